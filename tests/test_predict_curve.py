"""The curve of accuracy: planted curves, references by other means, what it must not claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.predict.curve import fit_curve
from offaxis.predict.saturating import saturating_fit

STEPS = np.array([0.0, 10, 20, 30, 40, 60])


def saturating(step: float, first: float = 0.4, top: float = 0.9, tau: float = 25.0) -> float:
    return top - (top - first) * math.exp(-step / tau)


def noisy(seed: int, size: float = 0.02) -> np.ndarray:
    truth = np.array([saturating(step) for step in STEPS])
    return np.clip(truth + np.random.default_rng(seed).normal(0, size, STEPS.size), 0, 1)


def test_a_planted_curve_is_found() -> None:
    curve = fit_curve(STEPS[1:].tolist(), [saturating(s) for s in STEPS[1:]], base=0.4)
    assert curve.kind == "saturating"
    assert curve.ceiling == pytest.approx(0.9, abs=1e-9)
    for step in (5.0, 60.0, 90.0, 300.0):
        assert curve.at(step) == pytest.approx((saturating(step),) * 3, abs=1e-9)
    wanted = saturating(90) - saturating(60)
    assert curve.gain(60, 90) == pytest.approx((wanted,) * 3, abs=1e-9)
    assert curve.unseen["saturating"] == pytest.approx(0, abs=1e-9)
    assert (curve.unseen["line"] or 0) > 0.05
    assert (curve.unseen["flat"] or 0) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_least_squares_of_another_solver(seed: int) -> None:
    seen = noisy(seed)
    fit = saturating_fit(STEPS, seen)

    def left(theta: np.ndarray) -> np.ndarray:
        first, top, log_tau = theta
        return top - (top - first) * np.exp(-STEPS / np.exp(log_tau)) - seen

    bounds = ([-1, 0, np.log(0.5)], [2, 1, np.log(3000)])
    starts = ([0.4, 0.8, t] for t in np.log([3.0, 10, 30, 100, 1000]))
    best = min((least_squares(left, x, bounds=bounds) for x in starts), key=lambda one: one.cost)
    assert fit.best.error == pytest.approx(2 * best.cost, rel=1e-5)
    assert fit.ceiling <= 1


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_holds_every_curve_that_comes_close_and_no_more(seed: int) -> None:
    """In the last case the bound y∞ ≤ 1 cuts the ellipse."""
    seen = noisy(seed) if seed < 3 else np.array([0.5, 0.59, 0.70, 0.78, 0.86, 0.985])
    fit = saturating_fit(STEPS, seen)
    value, low, high = fit.at(120.0)
    rng = np.random.default_rng(seed)
    found = []
    for tau in np.geomspace(1, 3000, 300):
        left = np.exp(-STEPS / tau)
        first, top = rng.uniform(0, 1, (2, 4000))
        errors = ((np.outer(first, left) + np.outer(top, 1 - left) - seen) ** 2).sum(axis=1)
        near = errors <= fit.limit
        away = math.exp(-120 / tau)
        found += (first[near] * away + top[near] * (1 - away)).tolist()
    assert len(found) > 100
    assert low - 1e-9 <= min(found)
    assert max(found) <= high + 1e-9
    assert low <= value <= high
    assert min(found) - low < 0.1 * (high - low)
    assert high - max(found) < 0.1 * (high - low)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(60):
        tau, top = rng.uniform(15, 80), rng.uniform(0.7, 1)
        steps = np.linspace(0, 60, rng.integers(5, 9))
        truth = [saturating(step, 0.5, top, tau) for step in steps]
        seen = np.clip(np.array(truth) + rng.normal(0, 0.015, steps.size), 0, 1)
        _, low, high = saturating_fit(steps, seen).at(90.0)
        hits += low <= saturating(90, 0.5, top, tau) <= high
    assert hits >= 0.88 * 60


def test_three_scores_give_a_line_with_the_textbook_interval() -> None:
    steps, seen = np.array([10.0, 20, 40]), np.array([0.5, 0.58, 0.64])
    curve = fit_curve(steps.tolist(), seen.tolist())
    slope, level = np.polyfit(steps, seen, 1)
    left = seen - level - slope * steps
    away = 1 + 1 / 3 + (60 - steps.mean()) ** 2 / ((steps - steps.mean()) ** 2).sum()
    half = student_t(1) * math.sqrt(float(left @ left) * away)
    value, low, high = curve.at(60)
    assert curve.kind == "line"
    assert value == pytest.approx(level + 60 * slope)
    assert low == pytest.approx(max(0.0, level + 60 * slope - half))
    assert high == pytest.approx(min(1.0, level + 60 * slope + half))
    assert curve.judged == 0


def test_fewer_points_say_less() -> None:
    steps = [10.0, 20, 30, 40, 50, 60, 70, 80]
    seen = np.clip([saturating(s) + e for s, e in zip(steps, [0.01, -0.01] * 4, strict=True)], 0, 1)
    widths = []
    for count in (4, 5, 8):
        _, low, high = fit_curve(steps[:count], seen[:count].tolist()).at(120)
        assert low is not None
        assert high is not None
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_the_unit_of_the_steps_does_not_matter(scale: float) -> None:
    seen = noisy(1)
    one = fit_curve(STEPS[1:].tolist(), seen[1:].tolist(), base=float(seen[0]))
    other = fit_curve((scale * STEPS[1:]).tolist(), seen[1:].tolist(), base=float(seen[0]))
    assert one.at(90) == pytest.approx(other.at(90 * scale), abs=1e-6)
    assert one.gain(60, 90) == pytest.approx(other.gain(60 * scale, 90 * scale), abs=1e-6)


def test_few_trials_widen_what_luck_made_narrow() -> None:
    steps = [10.0, 20, 30, 40]
    exact = [saturating(step) for step in steps]
    _, low, high = fit_curve(steps, exact).at(60)
    _, lower, higher = fit_curve(steps, exact, trials=200).at(60)
    assert high == pytest.approx(low, abs=1e-9)
    assert (higher or 0) - (lower or 0) > 0.05


@pytest.mark.parametrize(
    ("count", "words"), [(0, "no known scores"), (1, "1 known score,"), (2, "2 known scores")]
)
def test_too_few_scores_give_none_and_the_reason(count: int, words: str) -> None:
    curve = fit_curve([10.0, 20, 30], [0.5] * count + [math.nan] * (3 - count))
    assert curve.kind == "undefined"
    assert curve.at(40) == curve.gain(30, 40) == (None, None, None)
    assert words in curve.notes[-1]


def test_missing_scores_are_left_out_and_told() -> None:
    whole = fit_curve([10.0, 20, 40, 50], [0.5, 0.6, 0.7, 0.72])
    holes = fit_curve([10.0, 20, 30, 40, 50], [0.5, 0.6, None, 0.7, 0.72])
    assert holes.at(60) == whole.at(60)
    assert holes.notes[0] == "1 of 5 checkpoints have no score"


@pytest.mark.parametrize("level", [0.0, 0.7, 1.0])
def test_equal_scores_stay_where_they_are(level: float) -> None:
    curve = fit_curve([10.0, 20, 30, 40, 50], [level] * 5)
    assert curve.at(100) == pytest.approx((level,) * 3, abs=1e-9)
    assert curve.gain(50, 100) == pytest.approx((0, 0, 0), abs=1e-9)


def test_no_reading_leaves_the_shares() -> None:
    for seed in range(2):
        seen = np.sort(np.random.default_rng(seed).uniform(0.6, 1, 5))
        for step in (0.0, 60, 1e4):
            reading = fit_curve([10.0, 20, 30, 40, 50], seen.tolist()).at(step)
            assert all(one is not None and 0 <= one <= 1 for one in reading)


@pytest.mark.parametrize(
    ("steps", "scores", "options", "words"),
    [
        ([10, 20], [0.5], {}, "1 scores for 2 steps"),
        ([20, 10], [0.5, 0.6], {}, "to increase"),
        ([0, 10], [0.5, 0.6], {}, "above 0"),
        ([10, 20], [0.5, 61.3], {}, "0.613 for 61.3 %"),
        ([10, 20], [0.5, 0.6], {"base": -0.1}, "outside"),
        ([10, 20], [0.5, 0.6], {"trials": 0}, "number of answers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    steps: list[float], scores: list[float], options: dict[str, float], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        fit_curve(steps, scores, **options)


@pytest.mark.parametrize("step", [-1.0, math.nan, math.inf])
def test_a_step_that_is_none_is_refused(step: float) -> None:
    with pytest.raises(InputError, match="at least 0"):
        fit_curve([10, 20, 30], [0.5, 0.6, 0.7]).at(step)
