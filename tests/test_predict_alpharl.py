"""AlphaRL: the paper's and the code's, against references of their own; goals that do not leak."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cross_decomposition import PLSRegression

from offaxis.errors import InputError
from offaxis.predict import predict
from offaxis.predict.alpharl import AlphaRL, one_component
from offaxis.predict.goal import Goal
from offaxis.predict.methods import Timeline
from predict_runs import planted, read_all

Floats = NDArray[np.float64]
STEPS = np.array([10.0, 20.0, 40.0, 50.0, 70.0])
SCORES = np.array([0.42, 0.50, 0.61, 0.60, 0.71])


@dataclass(frozen=True, eq=False)
class Updates:
    """A trail in memory."""

    updates: Sequence[Floats]
    is_matrix: bool = True
    name: str = "w"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.updates[0].shape

    def __len__(self) -> int:
        return len(self.updates)

    def __getitem__(self, t: int) -> Floats:
        return np.array(self.updates[t])

    def rows(self, t: int, part: slice) -> Floats:
        return self[t].reshape(-1)[part]


class Turned(Updates):
    """One whose matrix is stored transposed."""

    part = SimpleNamespace(transposed=True)


def normal(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def noisy(rows: int = 7, cols: int = 5, seed: int = 0) -> list[Floats]:
    """A direction that grows and drifts, and noise around it."""
    u, drift, v = normal(rows, seed=seed), normal(rows, seed=seed + 1), normal(cols, seed=seed + 2)
    noise = normal(STEPS.size, rows, cols, seed=seed + 3)
    return [
        1e-3 * (s * np.outer(u + 0.01 * s * drift, v) + 5 * e)
        for s, e in zip(STEPS, noise, strict=True)
    ]


def timeline(at: float | None = 90.0, scores: Floats | None = SCORES) -> Timeline:
    return Timeline(STEPS, at, scores, None)


def reference(updates: Sequence[Floats], y: Floats, target: float, *, code: bool) -> Floats:
    """Both variants by numpy's SVD and scikit-learn's PLS and its inverse."""
    found = [np.linalg.svd(one, full_matrices=False) for one in updates]
    u = [one[0][:, 0].copy() for one in found]
    v = [one[2][0].copy() for one in found]
    for t in range(len(u) - 2, -1, -1):
        cosine = u[t] @ u[t + 1] + (0 if code else v[t] @ v[t + 1])
        if cosine < 0:
            u[t], v[t] = -u[t], -v[t]
    sizes = [
        one[1][0] if code else np.linalg.norm(d) for one, d in zip(found, updates, strict=True)
    ]
    x = np.array([size * one for size, one in zip(sizes, u, strict=True)])
    pls = PLSRegression(n_components=1, scale=True).fit(x, y)
    slope = float((y - y.mean()) @ pls.x_scores_[:, 0]) / float((pls.x_scores_**2).sum())
    latent = (target - y.mean()) / slope
    moved = np.outer(pls.inverse_transform(np.array([[latent]]))[0], v[-1])
    return moved + updates[-1] if code else moved


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("code", [False, True], ids=["paper", "code"])
def test_it_is_the_reference_by_svd_and_scikit_learn(code: bool, seed: int) -> None:
    updates = noisy(seed=10 * seed)
    method = AlphaRL(variant="code" if code else "paper", target=Goal("given", 0.8))
    fit = method.fit(Updates(updates), timeline())
    expected = reference(updates, SCORES, 1.7 * 0.8 if code else 0.8, code=code)
    assert fit.update() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 40), (3, 2), (2, 9)], ids=str)
def test_one_component_is_scikit_learns(shape: tuple[int, int]) -> None:
    x, y = normal(*shape, seed=1), normal(shape[0], seed=2)
    x[:, 1] = 0.7  # a feature that does not move
    pls = PLSRegression(n_components=1, scale=True).fit(x, y)
    found = one_component(x, y)
    sign = math.copysign(1.0, float(pls.x_weights_[:, 0] @ found.weights))
    assert sign * pls.x_weights_[:, 0] == pytest.approx(found.weights, abs=1e-12)
    assert sign * pls.x_loadings_[:, 0] == pytest.approx(found.loadings, abs=1e-12)
    assert found.r2 == pytest.approx(pls.score(x, y), abs=1e-12)
    latent = found.inverted(1.3)
    back = pls.inverse_transform(np.array([[sign * latent]]))[0]
    assert found.vector(1.3) == pytest.approx(back, abs=1e-12)
    assert float(pls.predict(found.vector(1.3)[None])[0]) == pytest.approx(1.3, abs=1e-12)


def test_a_checkpoint_on_an_exact_line_is_given_back() -> None:
    start, along, y = normal(30, seed=0), normal(30, seed=1), np.array([0.2, 0.5, 0.6, 0.9])
    x = start + y[:, None] * along
    found = one_component(x, y)
    assert found.r2 == pytest.approx(1.0)
    for score, row in zip(y, x, strict=True):
        assert found.vector(float(score)) == pytest.approx(row, abs=1e-12)
    assert found.vector(1.4) == pytest.approx(start + 1.4 * along, abs=1e-12)
    assert found.reach(1.4) > 1


def test_loadings_are_nearer_to_the_rows_than_weights() -> None:
    """t pᵀ is the least squares reconstruction; t wᵀ is another, and worse."""
    y = normal(6, seed=4)
    other = y + normal(6, seed=5)  # a trend that goes along with y in part
    x = np.outer(y, normal(50, seed=6)) + 2 * np.outer(other, normal(50, seed=7))
    found = one_component(x, y)
    wide = (x - found.mean) / found.spread
    by = {
        name: float(np.linalg.norm(wide - np.outer(found.latent, side)))
        for name, side in (("loadings", found.loadings), ("weights", found.weights))
    }
    assert by["loadings"] < 0.99 * by["weights"]
    assert float(found.weights @ found.loadings) == pytest.approx(1.0)


def test_units_of_the_scores_do_not_matter() -> None:
    """Raw accuracy, accuracy relative to the final model's, and percent give the same vector."""
    x, y = normal(5, 20, seed=5), SCORES
    plain = one_component(x, y)
    for scale, shift in ((1 / 0.92, 0.0), (100.0, 0.0), (-3.0, 7.0)):
        other = one_component(x, scale * y + shift)
        assert other.vector(scale * 0.9 + shift) == pytest.approx(plain.vector(0.9), abs=1e-12)
        assert other.r2 == pytest.approx(plain.r2)
    trail = Updates(noisy())
    oracle = AlphaRL(target=Goal("oracle", 0.92)).fit(trail, timeline(None)).update()
    given = AlphaRL(target=Goal("given", 0.92)).fit(trail, timeline(None)).update()
    assert oracle == pytest.approx(given, abs=1e-12)


def test_the_record_tells_the_interval_of_the_target_and_a_leak() -> None:
    trail = Updates(noisy())
    foreseen = AlphaRL().fit(trail, timeline()).facts
    assert foreseen["target_low"] <= foreseen["target"] <= foreseen["target_high"]
    assert foreseen["target_leaks"] == 0
    oracle = AlphaRL(target=Goal("oracle", 0.92)).fit(trail, timeline()).facts
    assert (oracle["target"], oracle["target_leaks"]) == (1.0, 1.0)
    assert "target_low" not in oracle


def test_units_of_the_features_only_scale_the_vector() -> None:
    x, y, units = normal(5, 20, seed=6), SCORES, np.exp(normal(20, seed=7))
    plain, scaled = one_component(x, y), one_component(x * units, y)
    assert scaled.vector(0.9) == pytest.approx(units * plain.vector(0.9), abs=1e-12)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_signs_of_singular_vectors_do_not_reach_the_result(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every triplet with a sign of its own, by chance."""
    from dataclasses import replace

    from offaxis.predict import alpharl
    from offaxis.predict.solver import triplets

    method = AlphaRL(variant=variant, target=Goal("step"))  # type: ignore[arg-type]
    plain = method.fit(Updates(noisy()), timeline()).update()
    rng = np.random.default_rng(0)

    def flipped(*arguments: object, **options: object) -> list[object]:
        signs = rng.choice([-1.0, 1.0], STEPS.size)
        found = triplets(*arguments, **options)  # type: ignore[arg-type]
        return [replace(one, u=s * one.u, v=s * one.v) for one, s in zip(found, signs, strict=True)]

    monkeypatch.setattr(alpharl, "triplets", flipped)
    for _ in range(8):
        again = method.fit(Updates(noisy()), timeline()).update()
        assert again == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (140, 150)], ids=str)
def test_a_planted_line_is_continued(shape: tuple[int, int]) -> None:
    u, v = normal(shape[0], seed=0), normal(shape[1], seed=1)
    updates = [1e-4 * s * np.outer(u, v) for s in STEPS]
    fit = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline())
    for at in (90.0, 200.0, 10.0):
        expected = 1e-4 * at * np.outer(u, v)
        assert fit.update(at) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert fit.update() == pytest.approx(1e-4 * 90 * np.outer(u, v), rel=1e-9, abs=1e-12)
    assert fit.facts["r2"] == pytest.approx(1.0)
    assert fit.facts["share"] == pytest.approx(1.0)
    assert fit.facts["cosine_u_min"] == pytest.approx(1.0)
    assert fit.facts["target"] == 90


def test_the_paper_gives_back_the_length_of_the_update_and_the_code_does_not() -> None:
    """Asked for the last checkpoint on a line through both: α makes x_T as long as ΔW_T."""
    u, v = np.linalg.qr(normal(6, 2, seed=0))[0], np.linalg.qr(normal(5, 2, seed=1))[0]
    updates = [s * (2 * np.outer(u[:, 0], v[:, 0]) + np.outer(u[:, 1], v[:, 1])) for s in STEPS]
    paper = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline())
    code = AlphaRL(variant="code", target=Goal("step")).fit(Updates(updates), timeline())
    last = np.linalg.norm(updates[-1])
    assert np.linalg.norm(paper.update(70.0)) == pytest.approx(last)  # type: ignore[arg-type]
    # twice the first direction and once the second
    twice = 70 * (4 * np.outer(u[:, 0], v[:, 0]) + np.outer(u[:, 1], v[:, 1]))
    assert code.update(70.0) == pytest.approx(twice)
    assert code.facts["alpha_omitted"] == pytest.approx(math.sqrt(5) / 2)
    assert code.facts["own_rank1_kept"] == pytest.approx(70 / 90)
    assert code.facts["target_factor"] == 1.0
    scored = AlphaRL(variant="code", target=Goal("given", 0.8)).fit(Updates(updates), timeline())
    assert scored.facts["target_factor"] == 1.7
    assert scored.facts["target"] == pytest.approx(1.7 * 0.8)
    assert "alpha_omitted" not in paper.facts


def test_an_update_that_turns_round_is_followed() -> None:
    """u passes 90 degrees while v stays: the paper's variant follows, the code's walk turns it.

    On the planted line x(s) = (s − 45) b + 3 c, ΔW = x vᵀ.
    """
    b, c = np.linalg.qr(normal(6, 2, seed=0))[0].T
    v = normal(4, seed=1)
    planted = {s: np.outer((s - 45) * b + 3 * c, v) for s in (*STEPS, 90.0)}
    trail = Updates([planted[s] for s in STEPS])
    paper = AlphaRL(target=Goal("step")).fit(trail, timeline())
    assert paper.update() == pytest.approx(planted[90.0], rel=1e-9)
    code = AlphaRL(variant="code", target=Goal("step")).fit(trail, timeline())
    moved = code.update() - planted[70.0]  # type: ignore[operator]
    assert np.linalg.norm(moved - planted[90.0]) > 0.1 * np.linalg.norm(planted[90.0])


def test_a_transposed_matrix_is_the_same_turned() -> None:
    updates = noisy()
    plain = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline()).update()
    turned = AlphaRL(target=Goal("step")).fit(Turned([one.T for one in updates]), timeline())
    assert plain is not None
    assert turned.update() == pytest.approx(plain.T, rel=1e-12)


@pytest.mark.parametrize("goal", [Goal("step"), Goal()], ids=["step", "extrapolated"])
def test_one_fit_serves_many_horizons(goal: Goal) -> None:
    method, trail = AlphaRL(target=goal), Updates(noisy())
    fit = method.fit(trail, timeline(None))
    for at in (80.0, 120.0):
        alone = method.fit(trail, timeline(at)).update()
        assert fit.update(at) == pytest.approx(alone, abs=0)
    with pytest.raises(InputError, match="pass the step with --at"):
        fit.update()
    assert "target" not in fit.facts


def test_checkpoints_without_a_score_leave_the_regression_and_are_counted() -> None:
    """Their updates still serve the signs and, for the last one, v."""
    updates, scores = noisy(), SCORES.copy()
    scores[[1, 4]] = math.nan
    fit = AlphaRL(target=Goal("given", 0.8)).fit(Updates(updates), timeline(None, scores))
    assert (fit.facts["rows"], fit.facts["dropped"]) == (3, 2)
    kept = [0, 2, 3]
    other = AlphaRL(target=Goal("given", 0.8)).fit(
        Updates([updates[t] for t in kept]), Timeline(STEPS[kept], None, SCORES[kept], None)
    )
    found, without = fit.update(), other.update()
    assert found is not None
    assert without is not None
    vectors = [np.linalg.svd(one)[0][:, 0] for one in (found, without)]
    assert abs(float(vectors[0] @ vectors[1])) == pytest.approx(1.0)
    right = np.linalg.svd(updates[-1])[2][0]
    assert abs(float(np.linalg.svd(found)[2][0] @ right)) == pytest.approx(1.0)


def test_what_cannot_be_regressed_is_refused() -> None:
    trail, one = Updates(noisy()), np.full(5, math.nan)
    one[3] = 0.5
    for scores, words in (
        (None, "there is none; pass --scores FILE, or regress on the step number with --against"),
        (np.full(5, math.nan), "there is none"),
        (one, "1 of 5 checkpoints has a score, and AlphaRL needs two.*--against step"),
        (np.full(5, 0.5), "all 5 scores are 0.5: nothing to regress on.*--against step"),
    ):
        with pytest.raises(InputError, match=words):
            AlphaRL().fit(trail, timeline(90, scores))
    with pytest.raises(InputError, match="5 scores or steps for 2 checkpoints"):
        AlphaRL(target=Goal("step")).fit(Updates(noisy()[:2]), timeline())
    with pytest.raises(InputError, match="variant 'mine'"):
        AlphaRL(variant="mine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="others 'none'"):
        AlphaRL(others="none")  # type: ignore[arg-type]
    for x, y in ((np.eye(3), np.ones(3)), (np.eye(3), np.ones(2)), (np.eye(1), np.ones(1))):
        with pytest.raises(InputError):
            one_component(x, y)
    with pytest.raises(InputError, match="finite"):
        one_component(np.full((3, 2), math.nan), np.arange(3.0))


def test_updates_that_are_zero() -> None:
    """One checkpoint that did not move is a row of zeros; a matrix that never did stays."""
    updates = [np.zeros((6, 4)), *noisy(6, 4)[1:]]
    for variant in ("paper", "code"):
        method = AlphaRL(variant=variant, target=Goal("step"))  # type: ignore[arg-type]
        found = method.fit(Updates(updates), timeline()).update()
        assert found is not None
        assert np.isfinite(found).all()
        still = method.fit(Updates([np.zeros((6, 4))] * 5), timeline())
        assert still.update() is None
        assert still.facts == {}
    ends = AlphaRL(target=Goal("step")).fit(
        Updates([*noisy(6, 4)[:4], np.zeros((6, 4))]), timeline()
    )
    assert ends.update() is not None
    assert "share" not in ends.facts


def test_equal_updates_are_continued_as_they_are() -> None:
    updates = [np.outer(np.arange(1.0, 7), np.arange(1.0, 5))] * 5
    fit = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline())
    assert fit.update() == pytest.approx(updates[0])
    assert fit.facts["r2"] == 0


def test_a_single_row_and_a_single_column() -> None:
    for shape in ((1, 4), (4, 1)):
        updates = [s * normal(*shape, seed=0) for s in STEPS]
        fit = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline())
        assert fit.update(100.0) == pytest.approx(100 * normal(*shape, seed=0))


def test_ties_are_counted() -> None:
    updates = [s * np.eye(4) for s in STEPS]
    fit = AlphaRL(target=Goal("step")).fit(Updates(updates), timeline())
    assert fit.facts["tied"] == 5


def test_tensors_that_are_no_matrices_stay_at_the_base_or_at_the_last() -> None:
    trail = Updates([normal(4, seed=t) for t in range(5)], is_matrix=False)
    for method, last in (
        (AlphaRL(target=Goal("step")), False),
        (AlphaRL(target=Goal("step"), others="last"), True),
        (AlphaRL(variant="code", target=Goal("step")), True),
        (AlphaRL(variant="code", target=Goal("step"), others="base"), False),
    ):
        found = method.fit(trail, timeline()).update()
        assert found == pytest.approx(trail[4]) if last else found is None


GOALS = {
    "extrapolated": Goal(),
    "0.9": Goal("given", 0.9),
    "1": Goal("given", 1.0),
    "oracle:0.92": Goal("oracle", 0.92),
}


@pytest.mark.parametrize("words", GOALS)
def test_goals_are_read_from_words(words: str) -> None:
    assert Goal.read(words) == GOALS[words]


def test_goals_that_make_no_sense_are_refused() -> None:
    assert Goal.read(against="step") == Goal("step")
    for words, against, match in (
        ("90", "score", "0.9 for 90 %"),
        ("oracle:", "score", "oracle:SCORE"),
        ("oracle:0", "score", r"in \(0, 1\]"),
        ("best", "score", "give extrapolated, a score such as 0.9"),
        ("nan", "score", r"in \(0, 1\]"),
        ("0.9", "step", "leave --target away"),
        ("extrapolated", "loss", "choose score or step"),
    ):
        with pytest.raises(InputError, match=match):
            Goal.read(words, against=against)
    with pytest.raises(InputError, match="takes no score"):
        Goal("step", 0.5)
    with pytest.raises(InputError, match="target 'future'"):
        Goal("future")  # type: ignore[arg-type]


def test_what_each_goal_needs_and_says() -> None:
    assert Goal().needs == {"steps", "at", "scores"}
    assert Goal("step").needs == {"steps", "at"}
    assert Goal("oracle", 0.9).needs == Goal("given", 0.9).needs == {"scores"}
    line = timeline()
    oracle = Goal("oracle", 0.92).target(line)
    assert (oracle.value, oracle.leaks) == (1.0, True)
    assert "leakage" in oracle.note
    assert Goal("oracle", 0.5).response(line) == pytest.approx(2 * SCORES)
    for goal in (Goal(), Goal("step"), Goal("given", 0.9)):
        assert not goal.target(line).leaks
    foreseen = Goal().target(line)
    assert foreseen.low is not None
    assert foreseen.high is not None
    assert foreseen.low <= foreseen.value <= foreseen.high <= 1
    assert foreseen.value >= 0.65


def test_a_curve_of_few_scores() -> None:
    """Three or more: a curve with an interval; two: their line, at most 1; fewer: refused."""
    scores = np.array([math.nan, 0.5, math.nan, 0.6, math.nan])
    two = Goal().target(timeline(60, scores))
    assert two.value == pytest.approx(0.5 + 40 * 0.1 / 30)
    assert (two.low, two.high) == (None, None)
    assert "two scores" in two.note
    assert Goal().target(timeline(1e6, scores)).value == 1.0
    assert Goal().target(timeline(1e6, 1 - scores)).value == 0.0
    scores[3] = math.nan
    with pytest.raises(InputError, match=r"1 of 5 checkpoints has a score.*--target 0\.9"):
        Goal().target(timeline(60, scores))
    with_base = Timeline(STEPS, 60, np.array([math.nan, 0.5, math.nan, 0.6, math.nan]), 0.3)
    assert Goal().target(with_base).low is not None


def test_a_model_is_written(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20, 30, 40), curves=(lambda step: step / 10,))
    out = tmp_path / "out"
    made = predict(run.base, run.checkpoints, method=AlphaRL(target=Goal("step")), out=out, at=80)
    assert made.method == "alpharl"
    before, after = read_all(run.base), read_all(out)
    ranks = {
        name: int(np.linalg.matrix_rank((after[name].double() - one.double()).numpy(), tol=1e-12))
        for name, one in before.items()
        if one.ndim == 2
    }
    matrices = [name for name in ranks if "proj" in name]
    assert matrices
    assert {ranks[name] for name in matrices} == {1}
    others = [name for name in before if name not in matrices]
    assert others
    assert all((before[name] == after[name]).all() for name in others)
    assert made.facts["r2_mean"] == pytest.approx(1.0)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    """On small matrices: both sides, their agreement with float64, and the record's keys."""
    script = Path(__file__).parents[1] / "benchmarks" / "predict.py"
    command = [sys.executable, str(script), "--quick", "--threads", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["agreement_ours_float64"]["sigma_relative"] < 1e-10
    assert found["agreement_ours_float64"]["u_radians"] < 1e-6
    assert found["agreement_reference_float64"]["v_radians"] < 1e-3
    assert found["ours"]["after"]["matrices"] == 7
    assert set(found["ratios"]) == {
        "seconds",
        "processor_seconds",
        "memory_sample",
        "memory_whole_model",
    }
