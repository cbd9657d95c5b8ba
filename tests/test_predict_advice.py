"""Extrapolate, train on, or stop: planted runs, and each rule by itself."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from models import write
from offaxis.evaluate import avg_at_k, paired_difference
from offaxis.predict import Scale, open_series
from offaxis.predict.advice import MARGIN, Advice, advise
from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.assessing import Assessment, assess
from offaxis.predict.backtest import COLUMNS, Backtest, backtest
from offaxis.predict.candidates import Candidate
from offaxis.predict.curve import Curve, fit_curve
from offaxis.predict.goal import Goal
from predict_runs import planted

STEPS = (10.0, 20.0, 30.0, 40.0, 60.0)
RISING = [0.56, 0.61, 0.66, 0.705, 0.79]
FLAT = [0.86, 0.90, 0.9, 0.901, 0.9]


def assessed(
    directory: Path, scores: Sequence[float] | None, *, walk: bool = False, at: float = 90.0
) -> Assessment:
    """A planted straight run, or a random walk, with scores."""
    run = planted(directory, steps=() if walk else STEPS)
    state, rng = run.start, np.random.default_rng(1)
    for step in STEPS if walk else ():
        state = {n: w + 1e-4 * torch.from_numpy(rng.normal(size=w.shape)) for n, w in state.items()}
        run.checkpoints.append(write(directory / "rl" / f"checkpoint-{step:g}", state))
    base = None if scores is None else 0.5
    series = open_series(run.base, run.checkpoints, scores=scores, base_score=base)
    return assess(series, at=at)


def texts(advice: Advice) -> str:
    return "\n".join(one.text for one in advice.reasons)


def test_straight_weights_and_rising_scores_are_extrapolated(tmp_path: Path) -> None:
    found = assessed(tmp_path, RISING).advice
    assert found.verdict == "extrapolate"
    assert found.headline == "Extrapolate, with scale.", "nothing fancier can beat what is exact"
    assert "100 to 100 % closer" in texts(found)
    assert "still rise" in texts(found)
    assert "nothing about accuracy" in texts(found)


def test_a_random_walk_is_trained_on(tmp_path: Path) -> None:
    found = assessed(tmp_path, RISING, walk=True).advice
    assert (found.verdict, found.method, found.certain) == ("train on", None, True)
    assert "not enough" in texts(found)


@pytest.mark.parametrize("walk", [False, True])
def test_flat_scores_stop_a_run_whatever_its_weights(tmp_path: Path, walk: bool) -> None:
    found = assessed(tmp_path, FLAT, walk=walk).advice
    assert found.verdict == "stop"
    assert "less than 0.01 to gain" in texts(found)


def test_without_scores_the_weights_speak_and_say_what_they_cannot(tmp_path: Path) -> None:
    found = assessed(tmp_path, None).advice
    assert found.verdict == "extrapolate"
    assert "no curve of accuracy" in texts(found)
    assert "nothing about accuracy" in texts(found)
    assert any("--scores" in one for one in found.wanted)


def test_too_far_ahead_cannot_be_told(tmp_path: Path) -> None:
    found = assessed(tmp_path, RISING, at=900).advice
    assert (found.verdict, found.certain) == ("train on", False)
    assert found.headline == "Train on: these checkpoints cannot tell."
    assert "no origins" in texts(found)
    assert any("15.00 times their step" in one for one in found.wanted)


def test_what_is_told_is_plain_json_with_the_curve_drawn(tmp_path: Path) -> None:
    told = assessed(tmp_path, RISING).told()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert set(told) == {"backtest", "curve", "advice"}
    drawn = told["curve"]["drawn"]
    assert (drawn[0][0], drawn[-1][0]) == (0.0, 90.0)
    assert drawn[-1][1:] == told["curve"]["expected"]
    assert told["advice"]["at"] == 90.0


def test_a_series_without_steps_is_assessed_all_the_same(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20))
    places = [one.rename(one.with_name(name)) for one, name in zip(run.checkpoints, "ab")]  # noqa: B905
    found = assess(open_series(run.base, places), at=None)
    assert (found.advice.verdict, found.advice.certain) == ("train on", False)
    assert "--steps" in found.backtest.refused[0]


def test_a_stated_target_is_tried_on_the_step_instead(tmp_path: Path) -> None:
    run = planted(tmp_path, steps=(10, 20, 30))
    series = open_series(run.base, run.checkpoints, scores=[0.5, 0.6, 0.7])
    found = assess(series, at=None, method=AlphaRL(target=Goal("oracle", 0.9)))
    stepwise = backtest(series, methods=(AlphaRL(target=Goal("step")),)).table
    assert found.backtest.refused == ()
    assert_frame_equal(found.backtest.table.filter(pl.col("method") == "alpharl"), stepwise)
    other = assess(series, at=40, method=Scale(3.0)).backtest.table
    assert other.filter(pl.col("method") == "scale")["relative_error"].max() < 1e-10  # type: ignore[operator]


# -------------------------------------------------------------------------------------- each rule


def table(gains: Mapping[str, Sequence[float]], horizon: float = 1.5) -> Backtest:
    """Given gains of each method, one an origin, all `horizon` ahead."""
    rows = [
        (name, "all", 10.0 * (k + 1), 10.0 * (k + 1) * horizon, horizon, 0.1, gain, 0.9)
        for name, found in gains.items()
        for k, gain in enumerate(found)
    ]
    return Backtest(pl.DataFrame(rows, schema=COLUMNS, orient="row"), tuple(gains))


def curve(scores: Sequence[float]) -> Curve:
    return fit_curve(STEPS, scores, base=0.5)


NO_CURVE = fit_curve([], [])


def by_gains(gains: Mapping[str, Sequence[float]], *, horizon: float = 1.5) -> Advice:
    return advise(table(gains, horizon), NO_CURVE, last=60, at=90)


@pytest.mark.parametrize(
    ("gains", "method"),
    [
        ({"scale": [0.2, 0.3]}, "scale"),
        ({"scale": [0.2, 0.3], "linear": [0.25, 0.3]}, "linear"),
        ({"scale": [0.2, 0.3], "relex": [0.25, 0.31]}, "relex"),
        ({"scale": [0.2, 0.3], "relex": [0.9, 0.29]}, "scale"),
        ({"scale": [0.2, 0.3], "relex": [0.205, 0.305]}, "scale"),
        ({"scale": [0.5, 0.2, 0.5], "relex": [0.505, 0.4, 0.6]}, "scale"),
        ({"linear": [0.205, 0.3], "scale": [0.2, 0.3]}, "scale"),
        ({"scale": [0.0, 0.1], "linear": [-1, 0.1], "relex": [0.2, 0.2]}, "relex"),
        ({"scale": [0.0, 0.1], "linear": [0.3, 0.0], "relex": [0.2, 0.2]}, None),
        ({"scale": [0.2, 0.3, MARGIN - 1e-6]}, None),
        ({"scale": [0.2]}, None),
        ({"stop": [0.5, 0.5]}, None),
        ({}, None),
    ],
    ids=["a baseline", "the better one", "beats both", "not in every case", "not clearly",
         "not clearly once", "the plainer of two", "baselines fail",
         "one baseline wins a case", "below the margin", "one origin", "stop itself", "nothing"],
)  # fmt: skip
def test_the_method_that_is_named(gains: Mapping[str, Sequence[float]], method: str | None) -> None:
    found = by_gains(gains)
    assert found.method == method
    assert found.verdict == ("train on" if method is None else "extrapolate")


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.2, 0.312], "came 20 to 31 % closer to later weights than stopping, at least 10 %"),
        ([0.5, 0.4, 0.3], "in every case, but ever less: 0 % is to be expected from step 60 (3"),
        ([-0.16, 0.27], "came between 16 % farther from and 27 % closer to later weights"),
        ([-4.48, -1.69], "came 169 to 448 % farther from later weights than stopping, which is"),
    ],
)
def test_a_reason_says_closer_or_farther(gains: list[float], words: str) -> None:
    (reason, *_) = by_gains({"relex": gains}).reasons
    assert words in reason.text
    assert (reason.numbers["least"], reason.numbers["greatest"]) == (min(gains), max(gains))


def test_gains_that_wear_off_are_not_carried_on() -> None:
    """Origins 10, 20, 30: the line through the gains is read at the last checkpoint, 60."""
    assert by_gains({"scale": [0.3, 0.3, 0.3]}).method == "scale"
    assert by_gains({"scale": [0.2, 0.3, 0.5]}).method == "scale"
    fading = by_gains({"scale": [0.5, 0.4, 0.3]})
    assert fading.method is None
    assert fading.reasons[0].numbers["ahead"] == pytest.approx(0.4 - 0.01 * 40)


@pytest.mark.parametrize(
    ("horizon", "counts"), [(1.2, True), (1.19, False), (1.87, True), (1.88, False)]
)
def test_only_horizons_like_the_one_asked_for_count(horizon: float, counts: bool) -> None:
    found = by_gains({"scale": [0.5, 0.5, 0.5]}, horizon=horizon)
    assert found.verdict == ("extrapolate" if counts else "train on")
    assert found.certain == counts


def test_unclear_scores_are_no_rise() -> None:
    wavering = curve([0.56, 0.7, 0.52, 0.68, 0.6])
    found = advise(table({"scale": [0.5, 0.5]}), wavering, last=60, at=90)
    assert found.verdict == "train on"
    assert "not clear" in texts(found)
    assert any("more scores" in one for one in found.wanted)


@pytest.mark.parametrize(
    ("scores", "verdict", "words"),
    [
        ([0.493, 0.487, 0.48, 0.473, 0.46], "stop", "less than 0.01"),
        ([0.8, 0.85, 0.6, 0.5, 0.31], "stop", "fallen from 0.850 at step 20 to 0.310 at step 60"),
        ([0.8, 0.85, 0.86, 0.87, 0.6], "train on", "not clear"),
    ],
    ids=["steadily", "after a rise", "once"],
)
def test_falling_scores_stop(scores: list[float], verdict: str, words: str) -> None:
    found = advise(table({"scale": [0.5, 0.5]}), curve(scores), last=60, at=90)
    assert found.verdict == verdict
    assert words in texts(found)


@pytest.mark.parametrize("at", [None, 60.0, 30.0])
def test_a_step_that_is_not_ahead_recommends_nothing(at: float | None) -> None:
    found = advise(table({"scale": [0.5, 0.5]}), curve(RISING), last=60, at=at)
    assert (found.verdict, found.certain) == ("train on", False)


@pytest.mark.parametrize(
    "order", list(itertools.permutations(("scale", "linear", "relex"))), ids="-".join
)
def test_the_order_of_the_methods_does_not_matter(order: Sequence[str]) -> None:
    gains = {"scale": [0.2, 0.3], "linear": [0.1, 0.5], "relex": [0.25, 0.6]}
    found = by_gains({name: gains[name] for name in order})
    assert found.method == "relex"


# --------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Mark:
    value: float
    low: float
    high: float
    n: int = 200


def candidate(gain: float, half: float = 0.02) -> Candidate:
    return Candidate(0.8 + gain, gain, gain - half, gain + half, 200, True)


@pytest.mark.parametrize(
    ("candidates", "method"),
    [
        ({"scale": candidate(0.05)}, "scale"),
        ({"scale": candidate(0.01)}, None),
        ({"scale": candidate(-0.1)}, None),
        ({"scale": candidate(0.05), "relex": candidate(0.06)}, "scale"),
        ({"scale": candidate(0.05), "relex": candidate(0.08)}, "relex"),
        ({"scale": candidate(0.01), "relex": candidate(0.05)}, "relex"),
        ({"linear": candidate(0.05), "scale": candidate(0.05)}, "linear"),
        ({"relex": candidate(0.03)}, "relex"),
    ],
)
def test_validation_scores_rule_over_the_weights(
    candidates: Mapping[str, Candidate], method: str | None
) -> None:
    good = table({"scale": [0.9, 0.9], "relex": [0.9, 0.9]})
    bad = table({"scale": [-0.9, -0.9], "relex": [-0.9, -0.9]})
    for found in (
        advise(weights, curve(RISING), last=60, at=90, candidates=candidates)
        for weights in (good, bad)
    ):
        assert found.method == method
        assert found.verdict == ("train on" if method is None else "extrapolate")
        assert found.certain


def test_what_training_on_promises_stands_beside_a_validated_prediction() -> None:
    found = advise(table({}), curve(RISING), last=60, at=90, candidates={"scale": candidate(0.05)})
    assert "training on to step 90 is expected to score" in texts(found)
    several = {"scale": candidate(0.05), "linear": candidate(0.01)}
    found = advise(table({}), curve(RISING), last=60, at=90, candidates=several)
    assert "best of 2 candidates scores too well by chance" in texts(found)


def test_candidates_without_a_gain_leave_flat_scores_stopped() -> None:
    found = advise(table({}), curve(FLAT), last=60, at=90, candidates={"scale": candidate(0.0)})
    assert found.verdict == "stop"


def test_two_scores_are_compared_by_their_intervals() -> None:
    found = Candidate.from_scores(Mark(0.9, 0.86, 0.93), Mark(0.8, 0.77, 0.84))
    assert found.gain == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - math.hypot(0.04, 0.04))
    assert found.high == pytest.approx(0.1 + math.hypot(0.03, 0.03))
    assert not found.paired


def test_pairs_are_narrower_than_two_scores() -> None:
    rng = np.random.default_rng(2)
    ease = rng.uniform(0, 1, 150)
    last = (rng.uniform(0, 1, (150, 8)) < ease[:, None]).astype(int)
    after = (rng.uniform(0, 1, (150, 8)) < np.minimum(1, ease + 0.03)[:, None]).astype(int)
    apart = Candidate.from_scores(avg_at_k(after), avg_at_k(last))
    pairs = Candidate.from_pairs(avg_at_k(after), paired_difference(after, last))
    assert pairs.gain == pytest.approx(apart.gain)
    assert pairs.high - pairs.low < 0.7 * (apart.high - apart.low)
    assert pairs.paired
    weights = table({})
    paired = advise(weights, NO_CURVE, last=60, at=90, candidates={"scale": pairs})
    assert paired.verdict == "extrapolate"
    assert advise(weights, NO_CURVE, last=60, at=90, candidates={"scale": apart}).method is None
