"""One-component PLS, its left-out error, the step's line, walks: references, planted truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from offaxis.errors import InputError
from offaxis.predict.pls import fit, left_out, line, q2_of, r2, residuals, rmse_of
from offaxis.predict.walks import WALK_PC1, linearity, pc1_share, principal_path, walks

STEPS = np.array([8.0, 16, 32, 48, 80])
SCORES = np.array([0.61, 0.65, 0.73, 0.78, 0.83])


def walk(rows: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).standard_normal((rows, width)), axis=0)


# ------------------------------------------------------------------------------------ one fit


@pytest.mark.parametrize(("rows", "width"), [(5, 144), (20, 64), (12, 3), (8, 1), (4, 448)])
def test_a_fit_is_scikit_learns(rows: int, width: int) -> None:
    x = walk(rows, width)
    y = np.random.default_rng(1).random(rows)
    model = PLSRegression(n_components=1, scale=True)
    inside = r2_score(y, model.fit(x, y).predict(x).ravel())
    outside = cross_val_predict(model, x, y, cv=LeaveOneOut()).ravel()
    found = fit(x, y)
    assert found.r2 == pytest.approx(inside, abs=1e-10)
    assert found.rmse == pytest.approx(float(np.sqrt(np.mean((outside - y) ** 2))), rel=1e-9)
    assert float(r2(x, y)) == pytest.approx(inside, abs=1e-10)
    assert left_out(x, y) == pytest.approx(outside, abs=1e-10)
    assert float(q2_of(left_out(x, y), y)) == pytest.approx(found.q2, abs=1e-9)


def test_a_linear_trajectory_explains_a_linear_score_wholly() -> None:
    direction = np.random.default_rng(0).standard_normal(50)
    x = 3 + STEPS[:, None] * direction
    y = 0.5 + 0.004 * STEPS
    found = fit(x, y)
    assert (found.r2, found.q2) == (pytest.approx(1), pytest.approx(1))
    assert found.rmse == pytest.approx(0, abs=1e-12)


def test_units_and_offsets_of_features_and_scores_do_not_matter() -> None:
    x, rng = walk(7, 30), np.random.default_rng(2)
    y = rng.random(7)
    other = x * rng.uniform(0.1, 9, 30) * rng.choice([-1, 1], 30) + rng.standard_normal(30)
    assert float(r2(other, 1 - 3 * y)) == pytest.approx(float(r2(x, y)))
    assert fit(other, y).q2 == pytest.approx(fit(x, y).q2)
    order = rng.permutation(7)
    assert float(r2(x[order], y[order])) == pytest.approx(float(r2(x, y)))


def test_batches_say_what_single_fits_say() -> None:
    batch = np.stack([walk(6, 9, seed=seed) for seed in range(4)])
    y = np.random.default_rng(0).random(6)
    assert r2(batch, y) == pytest.approx([float(r2(one, y)) for one in batch])
    assert left_out(batch, y) == pytest.approx(np.stack([left_out(one, y) for one in batch]))
    mixed = np.stack([y[::-1], y])
    assert r2(batch[0], mixed) == pytest.approx([float(r2(batch[0], one)) for one in mixed])


def test_features_that_do_not_move_are_left_out() -> None:
    x = walk(6, 5)
    y = np.random.default_rng(0).random(6)
    padded = np.concatenate([x, np.full((6, 3), 0.1)], axis=1)
    assert fit(padded, y).r2 == pytest.approx(fit(x, y).r2)
    assert float(r2(padded, y)) == pytest.approx(float(r2(x, y)))
    assert math.isnan(fit(np.ones((6, 5)), y).r2)
    assert math.isnan(float(r2(np.ones((6, 5)), y)))
    once = np.zeros((6, 2))
    once[3] = 1  # moves in one row alone: leaving it out leaves nothing
    assert left_out(once, y) == pytest.approx([_without(once, y, row) for row in range(6)])


def _without(x: np.ndarray, y: np.ndarray, row: int) -> float:
    rest = np.arange(len(y)) != row
    if not np.ptp(x[rest], axis=0).any():
        return float(y[rest].mean())
    model = PLSRegression(n_components=1).fit(x[rest], y[rest])
    return float(model.predict(x[row : row + 1]).ravel()[0])


def test_the_steps_line_is_ordinary_least_squares() -> None:
    found = line(STEPS, SCORES)
    model, column = LinearRegression(), STEPS[:, None]
    outside = cross_val_predict(model, column, SCORES, cv=LeaveOneOut())
    assert found.r2 == pytest.approx(model.fit(column, SCORES).score(column, SCORES))
    assert found.rmse == pytest.approx(float(rmse_of(outside, SCORES)))
    others = (SCORES.sum() - SCORES) / 4
    expected = 1 - ((SCORES - outside) ** 2).sum() / ((SCORES - others) ** 2).sum()
    assert found.q2 == pytest.approx(expected)


def test_the_mean_of_the_others_has_no_skill() -> None:
    others = (SCORES.sum() - SCORES) / 4
    assert float(q2_of(others, SCORES)) == 0
    assert float(q2_of(SCORES, SCORES)) == 1


def test_residuals_are_those_of_a_regression_and_lines_leave_nothing() -> None:
    x = walk(5, 7)
    expected = x - LinearRegression().fit(STEPS[:, None], x).predict(STEPS[:, None])
    assert residuals(x, STEPS) == pytest.approx(expected)
    straight = 5 + STEPS[:, None] * np.random.default_rng(0).standard_normal(7) * 1e-6
    assert not residuals(straight, STEPS).any()
    assert not residuals(np.full((5, 2), 0.1), STEPS).any()
    assert residuals(np.stack([x, 2 * x]), STEPS)[1] == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array([0.1, 0.2, 0.3]), "3 checkpoints have a score, and 4"),
        (np.full(5, 0.4), "all 5 scores are 0.4"),
        (np.array([0.1, 0.2, np.nan, 0.3]), "NaN"),
    ],
)
def test_scores_that_cannot_be_fitted_are_refused(y: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit(walk(len(y), 4), y)


# ------------------------------------------------------------------------------------ walks


def test_walks_keep_the_step_lengths_and_nothing_else() -> None:
    x = walk(6, 200) * np.array([1, 1, 5, 1, 0.2, 1])[:, None]
    (batch,) = walks(x, 40, seed=1)
    assert batch.shape == (40, 6, 200)
    steps = np.diff(batch, axis=1, prepend=np.zeros((40, 1, 200)))
    lengths = np.linalg.norm(np.diff(x, axis=0, prepend=np.zeros((1, 200))), axis=1)
    assert np.linalg.norm(steps, axis=-1) == pytest.approx(np.tile(lengths, (40, 1)))
    unit = steps / lengths[:, None]
    cosines = np.einsum("ntd,nsd->nts", unit, unit) - np.eye(6)
    assert abs(cosines.mean()) < 0.01
    assert np.abs(cosines).max() < 6 / math.sqrt(200)
    (again,) = walks(x, 40, seed=1)
    assert (again == batch).all()
    assert not (next(walks(x, 40, seed=2)) == batch).any()


def test_walks_come_in_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offaxis.predict.walks._HELD", 300)
    sizes = [len(one) for one in walks(walk(5, 20), 7)]
    assert sizes == [3, 3, 1]


def test_a_long_walk_is_half_a_cosine_with_six_over_pi_squared_of_the_variance() -> None:
    x = np.cumsum(np.random.default_rng(0).standard_normal((40, 2000)), axis=0)
    path, shares = principal_path(x)
    assert shares[0] == pytest.approx(WALK_PC1, abs=0.03)
    assert shares[1] == pytest.approx(WALK_PC1 / 4, abs=0.02)
    half = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    assert abs(np.corrcoef(path[:, 0], half)[0, 1]) > 0.99
    assert float(pc1_share(x)) == pytest.approx(shares[0])


def test_principal_paths_keep_distances_and_know_when_nothing_moves() -> None:
    flat = walk(9, 2) @ np.linalg.qr(np.random.default_rng(0).standard_normal((30, 2)))[0].T
    path, shares = principal_path(flat)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    assert np.linalg.norm(path[:, None] - path[None], axis=-1) == pytest.approx(apart)
    assert shares.sum() == pytest.approx(1)
    still, none = principal_path(np.ones((4, 3)))
    assert not still.any()
    assert np.isnan(none).all()
    assert np.isnan(pc1_share(np.ones((4, 3))))
    assert principal_path(np.array([[1.0], [2.0], [4.0]]))[1] == pytest.approx([1, 0])


# ------------------------------------------------------------------------------------ together


def test_unrelated_walks_already_have_an_r2_above_four_fifths() -> None:
    """The fact that makes an R² of 0.9 say nothing: five checkpoints, 144 features."""
    (batch,) = walks(walk(5, 144), 200)
    found = r2(batch, SCORES)
    assert found.mean() > 0.9
    assert found.min() > 0.8
    assert float(q2_of(left_out(batch, SCORES), SCORES).mean()) > 0.5
    mixed = np.random.default_rng(0).permuted(np.tile(SCORES, (200, 1)), axis=1)
    assert r2(batch[0], mixed).mean() < found.mean()  # permuted scores only test for drift


def test_a_walk_looks_like_a_walk() -> None:
    """A draw of the null itself is above its null one time in twenty."""
    above = []
    for seed in range(40):
        found = linearity(walk(8, 40, seed=seed), np.linspace(0.5, 0.9, 8) ** 2,
                          np.arange(1.0, 9), draws=40, seed=seed)  # fmt: skip
        assert found is not None
        above.append(found.walk_p <= 0.05)
    assert sum(above) <= 7


def test_a_trajectory_that_carries_the_score_beats_every_null() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(1.0, 21)
    wiggle = np.sin(steps * 1.7) * 0.05
    y = 0.5 + 0.015 * steps + wiggle
    x = np.outer(y, rng.standard_normal(300)) + 0.003 * rng.standard_normal((20, 300))
    found = linearity(x, y, steps, draws=100)
    assert found is not None
    assert found.r2 > 0.99
    assert found.r2 > found.walk_r2_q95
    assert found.walk_p == pytest.approx(1 / 101)
    assert found.residual_r2 > 0.95
    assert found.residual_r2 > found.residual_null_q95
    assert found.residual_p == pytest.approx(1 / 101)
    assert found.rmse < line(steps, y).rmse / 3


def test_drift_alone_is_seen_through_once_the_step_is_taken_out() -> None:
    """Walks against a score that rises and wiggles on its own: p-values of chance."""
    steps = np.arange(1.0, 13)
    y = 0.5 + 0.02 * steps + 0.03 * np.random.default_rng(5).standard_normal(12)
    small = [
        found.residual_p <= 0.05
        for seed in range(20)
        if (found := linearity(walk(12, 60, seed=seed), y, steps, draws=40, seed=1)) is not None
    ]
    assert len(small) == 20
    assert sum(small) <= 5


def test_edges_of_the_nulls() -> None:
    assert linearity(np.ones((5, 3)), SCORES, STEPS, draws=5) is None
    straight = 0.5 + 0.004 * STEPS  # nothing is left of the scores
    found = linearity(walk(5, 20), straight, STEPS, draws=20)
    assert found is not None
    assert math.isnan(found.residual_r2)
    assert math.isnan(found.residual_p)
    assert found.r2 > 0.5
    same = linearity(walk(5, 20), SCORES, STEPS, draws=20, seed=3)
    assert same == linearity(walk(5, 20), SCORES, STEPS, draws=20, seed=3)
    assert same != linearity(walk(5, 20), SCORES, STEPS, draws=20, seed=4)
