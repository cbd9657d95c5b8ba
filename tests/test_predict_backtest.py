"""Errors on checkpoints that were not seen: planted series, a reference by hand, no leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from models import State, write
from offaxis.errors import CheckpointError, InputError
from offaxis.predict import Linear, Predictor, Relex, Scale, Series, Stop, open_series
from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.backtest import BANDS, COLUMNS, Backtest, backtest
from offaxis.predict.fitting import Combination
from offaxis.predict.goal import Goal
from offaxis.predict.methods import Floats, Timeline, Trail
from offaxis.predict.turned import Prefix, turned
from predict_runs import Run, planted, read_all

STEPS = (10.0, 20.0, 40.0, 50.0)
ALL = pl.col("part") == "all"


def opened(run: Run, **options: object) -> Series:
    return open_series(run.base, run.checkpoints, **options)  # type: ignore[arg-type]


def wobbly(step: float) -> float:
    return 10 * float(np.sin(step / 9)) + 0.2 * step


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted(tmp_path_factory.mktemp("straight"), steps=STEPS)


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted(
        tmp_path_factory.mktemp("bent"),
        steps=STEPS,
        curves=(lambda s: s, wobbly),
        noise=3e-4,
        shards=2,
    )


def walk(directory: Path, steps: Sequence[float]) -> Run:
    """A random walk of all weights, without drift."""
    run = planted(directory, steps=())
    rng = np.random.default_rng(3)
    state = run.start
    for step in steps:
        state = {n: w + 1e-4 * torch.from_numpy(rng.normal(size=w.shape)) for n, w in state.items()}
        place = directory / "rl" / f"checkpoint-{step:g}"
        run.checkpoints.append(write(place, state))
    return run


def test_a_straight_run_is_foretold_by_all_but_stopping(straight: Run) -> None:
    found = backtest(opened(straight)).table
    assert found.columns == list(COLUMNS)
    by = {name: found.filter(pl.col("method") == name) for name in ("linear", "relex", "scale")}
    for name, rows in by.items():
        origins = 2 if name != "scale" else 3
        assert rows.filter(ALL).height == {2: 3, 3: 6}[origins]
        assert rows["relative_error"].max() < 1e-11  # type: ignore[operator]
        assert rows["gain_over_stop"].to_list() == pytest.approx([1.0] * rows.height, abs=1e-10)
        assert rows["cosine"].to_list() == pytest.approx([1.0] * rows.height, abs=1e-10)
    stop = found.filter((pl.col("method") == "stop") & ALL)
    assert stop["gain_over_stop"].to_list() == [0.0] * 6
    assert stop["cosine"].to_list() == [None] * 6
    wanted = [1 - row["origin_step"] / row["target_step"] for row in stop.iter_rows(named=True)]
    assert stop["relative_error"].to_list() == pytest.approx(wanted, abs=1e-10)


def test_nothing_beats_stopping_on_a_random_walk(tmp_path: Path) -> None:
    found = backtest(opened(walk(tmp_path, (10, 20, 30, 40, 50)))).table
    ahead = found.filter((pl.col("method") != "stop") & ALL)
    assert ahead["gain_over_stop"].max() < 0  # type: ignore[operator]
    assert ahead["cosine"].abs().max() < 0.1  # type: ignore[operator]


def by_hand(run: Run, name: str, known: int, target: int) -> tuple[float, float, float]:
    """The three numbers over all parameters at once, RELEX by a full SVD a tensor."""
    base = read_all(run.base)
    rows = [read_all(place) for place in run.checkpoints]
    guess, true, last = [], [], []
    steps = np.array(STEPS[:known])
    for tensor, start in base.items():
        x = np.stack([(row[tensor] - start).numpy().ravel() for row in rows])
        seen = x[:known]
        if name == "relex":
            left, sizes, right = np.linalg.svd(seen, full_matrices=False)
            slope, level = np.polyfit(steps, left[:, 0] * sizes[0], 1)
            guess.append((slope * STEPS[target] + level) * right[0])
        elif name == "linear":
            slope, level = np.polyfit(steps, seen, 1)
            guess.append(slope * STEPS[target] + level)
        else:
            guess.append(seen[-1] * (STEPS[target] / steps[-1] if name == "scale" else 1))
        true.append(x[target])
        last.append(seen[-1])
    there, goal, start_ = map(np.concatenate, (guess, true, last))
    error, left_, move = there - goal, goal - start_, there - start_
    size = np.linalg.norm
    return (
        float(size(error) / size(goal)),
        float(1 - size(error) / size(left_)),
        float(move @ left_ / max(1e-300, size(move) * size(left_))),
    )


@pytest.mark.parametrize("name", ["stop", "scale", "linear", "relex"])
def test_every_number_is_that_of_a_calculation_by_hand(bent: Run, name: str) -> None:
    rows = backtest(opened(bent)).table.filter(ALL & (pl.col("method") == name))
    assert rows.height == (3 if name in ("linear", "relex") else 6)
    for row in rows.iter_rows(named=True):
        known, target = STEPS.index(row["origin_step"]) + 1, STEPS.index(row["target_step"])
        error, gain, cosine = by_hand(bent, name, known, target)
        assert row["horizon"] == row["target_step"] / row["origin_step"]
        assert row["relative_error"] == pytest.approx(error, rel=1e-9)
        assert row["gain_over_stop"] == pytest.approx(gain, abs=1e-9)
        if name != "stop":
            assert row["cosine"] == pytest.approx(cosine, abs=1e-9)


@dataclass(frozen=True)
class SlowRelex(Relex):
    pass


@dataclass(frozen=True)
class SlowLinear(Linear):
    pass


@dataclass(frozen=True)
class SlowScale(Scale):
    pass


@dataclass(frozen=True)
class SlowStop(Stop):
    pass


@pytest.mark.parametrize("which", ["straight", "bent"])
def test_the_fast_way_agrees_with_whole_tensors(which: str, request: pytest.FixtureRequest) -> None:
    series = opened(request.getfixturevalue(which))
    fast = backtest(series).table
    slow = backtest(series, methods=(SlowStop(), SlowScale(), SlowLinear(), SlowRelex())).table
    assert_frame_equal(fast, slow, rel_tol=1e-8, abs_tol=1e-10)


@pytest.mark.parametrize("entries", [1 << 22, 1])
def test_turned_rows_keep_lengths_and_angles(
    bent: Run, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of tensors that are read in several stretches (1024 entries each at least)."""
    monkeypatch.setattr("offaxis.predict.fitting._ENTRIES", entries)
    for trail in opened(bent).trails():
        whole = np.stack([trail[t].ravel() for t in range(len(trail))])
        flat = turned(trail)
        assert len(flat) == 4
        assert flat.coordinates @ flat.coordinates.T == pytest.approx(whole @ whole.T, rel=1e-12)


def test_the_parts_add_up(bent: Run) -> None:
    """‖error‖² and ‖move‖² are sums, so relative errors of the parts bracket the whole's."""
    table = backtest(opened(bent), methods=(Relex(), Scale())).table
    wide = table.pivot("part", index=["method", "origin_step", "target_step"], values="cosine")
    assert wide.columns[-3:] == ["all", "matrices", "rest"]
    errors = table.pivot(
        "part", index=["method", "origin_step", "target_step"], values="relative_error"
    )
    low = errors.select(pl.min_horizontal("matrices", "rest")).to_series()
    high = errors.select(pl.max_horizontal("matrices", "rest")).to_series()
    assert ((low <= errors["all"]) & (errors["all"] <= high)).all()
    assert (low < high).all()


def test_the_unit_of_the_steps_does_not_matter(bent: Run) -> None:
    one = backtest(opened(bent)).table
    other = backtest(opened(bent, steps=[7 * step for step in STEPS])).table
    keys = ["origin_step", "target_step"]
    assert_frame_equal(one.drop(keys), other.drop(keys), rel_tol=1e-9, abs_tol=1e-11)


# -------------------------------------------------------------------------------------------- leaks


@dataclass(frozen=True)
class Spy:
    """Writes down what it is given, and predicts by scores and weights alike."""

    log: list[tuple[object, ...]]
    least: int = 1
    cuts: bool = False
    needs: frozenset[str] = frozenset()
    name: str = "spy"

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        rows = [float(np.abs(trail[t]).sum()) for t in range(len(trail))]
        scores = None if timeline.scores is None else timeline.scores.tolist()
        self.log.append((trail.name, timeline.steps.tolist(), scores, rows, timeline.base_score))
        with pytest.raises(IndexError):
            trail[len(trail)]
        with pytest.raises(IndexError):
            trail.rows(len(trail), slice(0, 1))

        def weigh(at: float | None) -> Floats:
            out = np.zeros(len(trail))
            out[-1] = (at or 0) * (sum(rows) + np.nansum(scores or [0.0]))
            return out

        return Combination(trail, timeline, weigh)


def seen_by_spy(run: Run, scores: list[float | None]) -> tuple[list[tuple[object, ...]], Backtest]:
    spy = Spy([])
    series = opened(run, scores=scores, base_score=0.5)
    found = backtest(series, methods=(spy, AlphaRL(target=Goal()), Relex()))
    return sorted(spy.log, key=lambda one: (one[0], len(one[1]))), found  # type: ignore[arg-type]


def test_an_origin_knows_nothing_of_what_comes_after_it(bent: Run, tmp_path: Path) -> None:
    scores: list[float | None] = [0.55, 0.6, 0.7, 0.72]
    log, before = seen_by_spy(bent, scores)
    assert {len(one[1]) for one in log} == {1, 2, 3}  # type: ignore[arg-type]
    assert all(one[2] == scores[: len(one[1])] for one in log)  # type: ignore[arg-type]
    other = {name: one + 0.01 for name, one in read_all(bent.checkpoints[-1]).items()}
    place = write(tmp_path / "checkpoint-50", other)
    changed = replace(bent, checkpoints=[*bent.checkpoints[:-1], place])
    again, after = seen_by_spy(changed, [*scores[:-1], 0.1])
    assert again == log
    earlier = pl.col("target_step") < 50
    assert_frame_equal(before.table.filter(earlier), after.table.filter(earlier))
    assert not before.table.filter(~earlier).equals(after.table.filter(~earlier))


def test_a_later_score_changes_no_prediction_but_its_own(bent: Run) -> None:
    _, before = seen_by_spy(bent, [0.55, 0.6, 0.7, 0.72])
    _, after = seen_by_spy(bent, [0.55, 0.6, 0.3, 0.1])
    early = pl.col("origin_step") <= 20
    assert_frame_equal(before.table.filter(early), after.table.filter(early))
    late = (pl.col("origin_step") > 20) & pl.col("method").is_in(["spy", "alpharl"])
    assert not before.table.filter(late).equals(after.table.filter(late))


def test_a_prefix_counts_from_its_own_end(bent: Run) -> None:
    trail = next(iter(opened(bent).trails()))
    assert (Prefix(trail, 2)[-1] == trail[1]).all()
    with pytest.raises(IndexError, match="checkpoint 2 of 2"):
        _ = Prefix(trail, 2)[2]


# --------------------------------------------------------------------------- refusals, edges, words


def test_alpharl_without_scores_is_told_and_left_out(bent: Run) -> None:
    found = backtest(opened(bent), methods=(Stop(), AlphaRL(target=Goal())))
    assert set(found.table["method"]) == {"stop"}
    (reason,) = found.refused
    assert reason.startswith("alpharl from step 20, 40: ")
    assert "--against step" in reason


def test_alpharl_on_the_step_is_tried(straight: Run) -> None:
    found = backtest(opened(straight), methods=(AlphaRL(target=Goal("step")),))
    assert found.table.filter(pl.col("part") == "matrices").height == 3
    assert found.table.filter(pl.col("part") == "rest")["relative_error"].to_list() == [1.0] * 3


@dataclass(frozen=True)
class Picky(Stop):
    """Refuses one tensor, the last of all, where it has seen two checkpoints."""

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        if trail.name == "model.norm.weight" and len(trail) == 2:
            raise InputError("not this one")
        return super().fit(trail, timeline)


def test_an_origin_that_one_tensor_refuses_is_left_out_whole(straight: Run) -> None:
    found = backtest(opened(straight), methods=(Picky(),))
    assert found.refused == ("stop from step 20: not this one",)
    assert set(found.table["origin_step"]) == {10.0, 40.0}


@pytest.mark.parametrize("methods", [None, (SlowLinear(),)], ids=["fast", "slow"])
def test_a_checkpoint_that_is_not_finite_is_an_error(
    methods: tuple[Predictor, ...] | None, tmp_path: Path
) -> None:
    run = planted(tmp_path, steps=(10, 20))
    state: State = read_all(run.checkpoints[1])
    state["model.norm.weight"][3] = float("nan")
    run.checkpoints.append(write(tmp_path / "checkpoint-40", state))
    with pytest.raises(CheckpointError, match=r"checkpoint-40.*model\.norm\.weight"):
        backtest(opened(run), methods=methods)


def test_one_checkpoint_has_nothing_to_hold_back(straight: Run) -> None:
    series = open_series(straight.base, straight.checkpoints[:1])
    found = backtest(series)
    assert found.table.is_empty()
    assert found.summary().is_empty()
    assert found.told()["rows"] == []


def test_two_methods_of_one_name_are_refused(straight: Run) -> None:
    with pytest.raises(InputError, match="name each one once"):
        backtest(opened(straight), methods=(Relex(), Relex(rank=2)))


def test_a_series_without_steps_is_refused(straight: Run, tmp_path: Path) -> None:
    places = [
        write(tmp_path / name, read_all(place))
        for name, place in zip("abcd", straight.checkpoints, strict=True)
    ]
    with pytest.raises(InputError, match="--steps"):
        backtest(open_series(straight.base, places))


def test_equal_checkpoints_leave_the_gain_undefined(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20, 30), curves=(lambda step: 1.0,))
    methods: tuple[Predictor, ...] = (Stop(), Scale())
    table = backtest(opened(run), methods=methods).table.filter(ALL)
    assert table["gain_over_stop"].null_count() == table["cosine"].null_count() == table.height
    assert table["relative_error"].null_count() == 0


def test_a_run_that_comes_back_leaves_the_gain_undefined(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20, 30), curves=(lambda step: abs(step - 20) + 5,))
    table = backtest(opened(run), methods=(Scale(),)).table.filter(ALL)
    back = table.filter((pl.col("origin_step") == 10) & (pl.col("target_step") == 30))
    assert back["gain_over_stop"].to_list() == [None]
    assert table["gain_over_stop"].null_count() == 1


def test_a_model_that_never_moved_has_no_numbers(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20, 30), curves=(lambda step: 0.0,))
    table = backtest(opened(run)).table
    assert table.height > 0
    assert table["relative_error"].null_count() == table.height


def test_the_summary_is_median_and_range_by_band() -> None:
    rows = [
        ("relex", "all", 10.0, 10.0 * h, h, error, 1 - error, None)
        for h, error in ((1.25, 0.1), (1.5, 0.2), (1.4, 0.4), (1.3, 0.9), (7.0, 2.0))
    ]
    table = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    found = Backtest(table, ("relex",)).summary()
    assert found.select("above", "upto", "cases", "origins").rows() == [
        (1.0, 1.25, 1, 1),
        (1.25, 1.5, 3, 1),
        (5.0, BANDS[-1], 1, 1),
    ]
    spread = found.row(1, named=True)
    assert (spread["relative_error"], spread["relative_error_least"]) == (0.4, 0.2)
    assert spread["relative_error_greatest"] == 0.9
    assert spread["cosine"] is None
    told = Backtest(table, ("relex",)).told()
    assert told["summary"][-1]["upto"] is None
    with pytest.raises(InputError, match="matrices, rest"):
        Backtest(table, ("relex",)).summary(part="heads")


def test_progress_is_told_up_to_the_end(straight: Run) -> None:
    seen = []
    backtest(opened(straight), progress=seen.append)
    assert seen[-1].done == seen[-1].total == sum(one.numel() for one in straight.start.values())
