"""RELEX and the line for each weight: planted answers, a reference by SVD, invariances, edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offaxis.errors import InputError
from offaxis.predict import Linear, Relex, Stop, Timeline, Weighted, fitting, predict
from offaxis.predict.fitting import gram, line_weights
from offaxis.predict.series import open_series
from predict_runs import distance, planted, read_all

AT = 90.0


@dataclass(frozen=True)
class Rows:
    """A trail in memory: one row a checkpoint."""

    values: np.ndarray
    name: str = "weight"
    is_matrix: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, t: int) -> np.ndarray:
        return self.values[t]

    def rows(self, t: int, part: slice) -> np.ndarray:
        return self.values[t].reshape(-1)[part]


def timeline(*steps: float, at: float | None = AT) -> Timeline:
    return Timeline(np.array(steps, dtype=np.float64), at)


def by_svd(rows: np.ndarray, steps: np.ndarray, at: float, rank: int) -> np.ndarray:
    """RELEX from its definition: SVD of the stacked rows, polyfit of each coefficient."""
    flat = rows.reshape(len(rows), -1)
    left, sizes, right = np.linalg.svd(flat, full_matrices=False)
    out = np.zeros(flat.shape[1])
    for k in range(rank):
        out += np.polyval(np.polyfit(steps, left[:, k] * sizes[k], 1), at) * right[k]
    return out.reshape(rows.shape[1:])


def drawn(seed: int, count: int, shape: tuple[int, ...] = (7, 5)) -> np.ndarray:
    """Rows that grow along one direction, with a second one and noise."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, *shape))
    grow = np.arange(1, count + 1)[:, None, None]
    return grow * one + 0.3 * np.sqrt(grow) * two + 0.05 * rng.normal(size=(count, *shape))


@pytest.mark.parametrize("method", [Relex(), Linear(), Relex(rank=3)], ids=str)
def test_a_run_on_a_line_is_foretold_to_rounding(method, tmp_path):
    run = planted(tmp_path, steps=(10, 20, 50), curves=(lambda step: 3 * step,))
    for at in (5, 90, 400):
        out = tmp_path / f"out-{at}"
        predict(run.base, run.checkpoints, method=method, at=at, out=out)
        moved = distance(run.truth(at), run.start)
        assert distance(read_all(out), run.truth(at)) < 1e-12 * moved + 1e-14 * len(run.start)


def test_two_directions_need_rank_two(tmp_path):
    curves = (lambda step: step, lambda step: 20 - 0.2 * step)
    run = planted(tmp_path, steps=(10, 20, 50), curves=curves)
    errors = {}
    for rank in (1, 2):
        out = tmp_path / f"rank-{rank}"
        predict(run.base, run.checkpoints, method=Relex(rank=rank), at=AT, out=out)
        errors[rank] = distance(read_all(out), run.truth(AT)) / distance(run.truth(AT), run.start)
    assert errors[2] < 1e-11
    assert errors[1] > 1e-3


def test_the_line_has_an_intercept(tmp_path):
    run = planted(tmp_path, steps=(10, 20, 50), curves=(lambda step: 7 + step,))
    predict(run.base, run.checkpoints, method="relex", at=AT, out=tmp_path / "out")
    assert distance(read_all(tmp_path / "out"), run.truth(AT)) < 1e-11
    through = Linear(through_base=True)
    predict(run.base, run.checkpoints, method=through, at=AT, out=tmp_path / "through")
    assert distance(read_all(tmp_path / "through"), run.truth(AT)) > 1e-4


def test_a_line_through_the_base_needs_one_checkpoint(tmp_path):
    run = planted(tmp_path, steps=(30,), curves=(lambda step: step,))
    through = Linear(through_base=True)
    predict(run.base, run.checkpoints, method=through, at=AT, out=tmp_path / "out")
    assert distance(read_all(tmp_path / "out"), run.truth(AT)) < 1e-12


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_svd_of_the_rows(count, rank):
    rows = drawn(count, count)
    when = timeline(*np.cumsum(np.arange(1, count + 1)) * 7.0)
    found = Relex(rank=rank).fit(Rows(rows), when).update()
    np.testing.assert_allclose(found, by_svd(rows, when.steps, AT, rank), rtol=1e-11, atol=1e-12)


def test_all_ranks_are_a_line_for_each_weight():
    rows, when = drawn(0, 4), timeline(10, 20, 35, 60)
    full = Relex(rank=4).fit(Rows(rows), when).update()
    each = Linear().fit(Rows(rows), when).update()
    fit = np.polyfit(when.steps, rows.reshape(4, -1), 1)
    np.testing.assert_allclose(full, each, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(each, (fit[0] * AT + fit[1]).reshape(7, 5), rtol=1e-11, atol=1e-12)


def test_noise_is_cut_by_rank_one_and_by_the_line(tmp_path):
    run = planted(tmp_path, steps=(10, 20, 30, 40, 50, 60), curves=(lambda s: s,), noise=1e-4)
    errors = {}
    for method in ("relex", "linear", "stop"):
        predict(run.base, run.checkpoints, method=method, at=AT, out=tmp_path / method)
        errors[method] = distance(read_all(tmp_path / method), run.truth(AT))
    assert errors["relex"] < errors["linear"] < errors["stop"]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
    factor=st.floats(1e-3, 1e3),
    stretch=st.floats(1e-8, 1e4),
)
def test_units_of_steps_and_weights_do_not_matter(count, seed, factor, stretch):
    rows, steps = drawn(seed, count), np.cumsum(np.arange(1, count + 1)) * 3.0
    plain = Relex().fit(Rows(rows), Timeline(steps, AT)).update()
    scaled = Relex().fit(Rows(stretch * rows), Timeline(factor * steps, factor * AT)).update()
    np.testing.assert_allclose(scaled, stretch * plain, rtol=1e-8, atol=stretch * 1e-9)


def test_one_fit_serves_every_step():
    rows, steps = drawn(1, 4), (10.0, 20.0, 40.0, 50.0)
    fit = Relex().fit(Rows(rows), timeline(*steps))
    assert isinstance(fit, Weighted)
    for at in (60.0, 200.0):
        alone = Relex().fit(Rows(rows), timeline(*steps, at=at)).update()
        np.testing.assert_array_equal(fit.update(at), alone)
        np.testing.assert_allclose(np.tensordot(fit.weights(at), rows, 1), alone, rtol=1e-12)
    np.testing.assert_array_equal(fit.update(), fit.update(AT))


def test_stretches_do_not_change_the_result(monkeypatch):
    rows, when = drawn(2, 3, (40, 90)), timeline(1, 2, 4)
    whole = Relex().fit(Rows(rows), when).update()
    monkeypatch.setattr(fitting, "_ENTRIES", 3 * 1024)
    assert len(list(fitting.stretches(3600, 3))) == 4
    np.testing.assert_allclose(Relex().fit(Rows(rows), when).update(), whole, rtol=1e-12)


def test_the_gram_is_that_of_the_rows():
    rows = drawn(3, 5)
    flat = rows.reshape(5, -1)
    np.testing.assert_allclose(gram(Rows(rows)), flat @ flat.T, rtol=1e-13)


def test_weights_of_a_line_are_its_hat_matrix():
    steps = np.array([10.0, 20.0, 60.0])
    design = np.stack([np.ones(3), steps], axis=1)
    hat = np.array([1, AT]) @ np.linalg.pinv(design)
    np.testing.assert_allclose(line_weights(steps, AT), hat, rtol=1e-12)
    assert line_weights(steps, AT).sum() == pytest.approx(1)


def test_facts_of_a_planted_spectrum():
    one, two = np.eye(2).reshape(2, 1, 2)
    straight = Relex().fit(Rows(np.stack([one, 2 * one, 3 * one])), timeline(10, 20, 30)).facts
    assert straight["explained"] == pytest.approx(1)
    assert straight["r2"] == pytest.approx(1)
    assert straight["residual"] == pytest.approx(0, abs=1e-7)
    assert straight["slope"] == pytest.approx(1 / 30)
    assert straight["tied"] == 0
    bent = Relex().fit(Rows(np.stack([one, 2 * one, 9 * one])), timeline(10, 20, 30)).facts
    assert bent["r2"] == pytest.approx(np.corrcoef([10, 20, 30], [1, 2, 9])[0, 1] ** 2)
    wide = Relex().fit(Rows(np.stack([3 * one, 4 * two])), timeline(1, 2)).facts
    assert wide["explained"] == pytest.approx(16 / 25)
    assert wide["gap"] == pytest.approx(1 / 4)


def test_a_tie_is_told():
    rows = np.eye(2).reshape(2, 1, 2)
    assert Relex().fit(Rows(rows), timeline(1, 2)).facts["tied"] == 1
    assert Relex(rank=2).fit(Rows(rows), timeline(1, 2)).facts["tied"] == 0


def test_a_tensor_that_did_not_move_stays():
    for method in (Relex(), Linear()):
        fit = method.fit(Rows(np.zeros((3, 4, 4))), timeline(1, 2, 3))
        assert fit.update() is None
        assert dict(fit.facts) == {}


@pytest.mark.parametrize("shape", [(1,), (1, 6), (6, 1), (0, 4), ()], ids=str)
def test_any_shape_is_a_row(shape):
    rows = np.arange(1, 4).reshape(3, *(1,) * len(shape)) * np.ones(shape)
    found = Relex().fit(Rows(rows), timeline(10, 20, 30)).update()
    if np.prod(shape, dtype=int) == 0:
        assert found is None
    else:
        np.testing.assert_allclose(found, np.full(shape, 9.0), rtol=1e-12)


@pytest.mark.parametrize("method", [Relex(), Linear(), Relex(rank=3)], ids=str)
def test_too_few_checkpoints_are_refused(method):
    few = method.least - 1
    with pytest.raises(InputError, match=f"{method.least} checkpoints"):
        method.fit(Rows(drawn(0, few)), timeline(*range(1, few + 1)))


def test_a_rank_of_none_is_refused():
    with pytest.raises(InputError, match="rank 0"):
        Relex(rank=0)


@pytest.mark.parametrize("method", [Relex(), Linear()], ids=str)
def test_no_step_to_predict_is_refused(method):
    with pytest.raises(InputError, match="--at"):
        method.fit(Rows(drawn(0, 3)), timeline(1, 2, 3, at=None)).update()


def test_stopping_is_the_last_checkpoint():
    rows = drawn(4, 3)
    np.testing.assert_array_equal(Stop().fit(Rows(rows), timeline(1, 2, 3)).update(), rows[-1])


def test_stored_tensors_are_rows_whole(tmp_path):
    """A fused tensor is one trajectory for RELEX, as the contract says: every tensor."""
    run = planted(tmp_path, steps=(10, 20, 40), curves=(lambda s: s, lambda s: s**0.5), noise=1e-5)
    series = open_series(run.base, run.checkpoints)
    assert {trail.name for trail in series.trails()} == set(run.start)
    predict(run.base, run.checkpoints, method="relex", at=AT, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    for name, start in run.start.items():
        later = [read_all(place)[name] for place in run.checkpoints]
        rows = np.stack([(one - start).numpy() for one in later])
        update = by_svd(rows, np.array([10.0, 20.0, 40.0]), AT, 1)
        torch.testing.assert_close(
            found[name], start + torch.from_numpy(update), rtol=0, atol=1e-13
        )


def test_held_out_error_on_a_real_run(pairs, tmp_path):
    """Step 60 from 20 and 40: better than stopping, by every method (docs/predict.md)."""
    early = [pairs / f"rl-checkpoint-{step}" for step in (20, 40)]
    start, end = read_all(pairs / "base"), read_all(pairs / "rl-checkpoint-60")
    errors = {}
    for method in ("relex", "linear", "scale", "stop"):
        predict(pairs / "base", early, method=method, at=60, out=tmp_path / method)
        errors[method] = distance(read_all(tmp_path / method), end) / distance(start, end)
    assert errors["relex"] == pytest.approx(0.2258, abs=1e-3)
    assert errors["linear"] == pytest.approx(0.1956, abs=1e-3)
    assert errors["scale"] == pytest.approx(0.2106, abs=1e-3)
    assert errors["stop"] == pytest.approx(0.3184, abs=1e-3)
