"""Relative accuracy and share of the gain: planted answers, a brute reference, edges."""

from __future__ import annotations

import numpy as np
import pytest

from offaxis.errors import InputError
from offaxis.predict.recovery import relative_accuracy, share_of_gain


def answers(rates: list[float], *, problems: int = 100, samples: int = 20, seed: int = 0) -> list:
    """Models that solve each problem with chances that go together over problems."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=(problems, 1))
    return [
        (rng.random((problems, samples)) < 1 / (1 + np.exp(-(np.log(r / (1 - r)) + hard))))
        for r in rates
    ]


def exactly(rate: float, problems: int = 10, samples: int = 100) -> np.ndarray:
    table = np.zeros((problems, samples))
    table[:, : round(rate * samples)] = 1
    return table


def test_the_prototype_shows_why_the_first_flatters() -> None:
    rebuilt, full, base = exactly(0.85), exactly(0.92), exactly(0.57)
    assert relative_accuracy(rebuilt, full).value == pytest.approx(0.85 / 0.92)
    assert share_of_gain(rebuilt, full, base).value == pytest.approx(0.28 / 0.35)
    nothing = relative_accuracy(base, full)
    assert nothing.value == pytest.approx(0.57 / 0.92)  # learnt nothing, keeps 62 %
    assert share_of_gain(base, full, base).value == 0
    assert share_of_gain(full, full, base).value == 1


def test_intervals_agree_with_a_plain_bootstrap() -> None:
    rebuilt, full, base = answers([0.6, 0.8, 0.4])
    found = share_of_gain(rebuilt, full, base, resamples=4000)
    rng, ratios = np.random.default_rng(99), []
    r, f, b = (one.mean(axis=1) for one in (rebuilt, full, base))
    for _ in range(4000):
        at = rng.integers(len(r), size=len(r))
        ratios.append((r[at].mean() - b[at].mean()) / (f[at].mean() - b[at].mean()))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found.low < found.value < found.high


def test_pairing_narrows_the_interval() -> None:
    rebuilt, full = answers([0.6, 0.8], samples=200)
    paired = relative_accuracy(rebuilt, full)
    mixed = relative_accuracy(np.random.default_rng(0).permutation(rebuilt), full)
    assert paired.high - paired.low < 0.6 * (mixed.high - mixed.low)
    assert paired.value == pytest.approx(mixed.value)


def test_counts_say_what_samples_say() -> None:
    tables = answers([0.6, 0.8, 0.4])
    counts = [one.sum(axis=1) for one in tables]
    assert share_of_gain(*tables) == share_of_gain(*counts, samples=20)
    assert relative_accuracy(*tables[:2]) == relative_accuracy(*counts[:2], samples=20)


def test_the_order_of_problems_and_samples_does_not_matter() -> None:
    tables = answers([0.6, 0.8, 0.4], problems=400)
    order = np.random.default_rng(3).permutation(400)
    found, other = share_of_gain(*tables), share_of_gain(*(one[order][:, ::-1] for one in tables))
    assert found.value == pytest.approx(other.value)
    assert found.low == pytest.approx(other.low, abs=0.02)
    assert share_of_gain(*tables) == found
    assert share_of_gain(*tables, seed=1) != found


def test_no_gain_has_no_share() -> None:
    rebuilt, full, base = answers([0.5, 0.51, 0.5], problems=30)
    found = share_of_gain(rebuilt, full, base)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "the gain is" in found.status
    assert "not apart from 0" in found.status
    assert share_of_gain(base, base, base).value is None
    zero = relative_accuracy(exactly(0.5), exactly(0.0))
    assert zero.value is None
    assert "accuracy is 0.0000" in zero.status


def test_a_loss_is_called_one() -> None:
    found = share_of_gain(exactly(0.4), exactly(0.3), exactly(0.5))
    assert found.value == pytest.approx(0.5)
    assert "a share of the loss" in found.status


def test_a_weak_gain_has_a_wide_interval_and_never_a_wrong_sign() -> None:
    for seed in range(40):
        rebuilt, full, base = answers([0.55, 0.58, 0.5], problems=40, samples=4, seed=seed)
        found = share_of_gain(rebuilt, full, base)
        if found.value is not None:
            assert found.low is None or found.low <= found.value
            assert found.high is None or found.high >= found.value


def test_one_problem_and_perfect_models() -> None:
    assert share_of_gain(exactly(0.5, 1), exactly(1.0, 1), exactly(0.0, 1)).value == 0.5
    both = relative_accuracy(exactly(1.0), exactly(1.0))
    assert (both.value, both.low, both.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("rebuilt", "full", "samples", "words"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), None, "rebuilt 3, full 4"),
        (np.ones(3), np.ones(3), None, "problems, samples"),
        (np.ones((3, 2)), np.full((3, 2), 0.5), None, "full holds something other"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), None, "full holds something other"),
        (np.ones((0, 2)), np.ones((0, 2)), None, "problems, samples"),
        (np.full(3, 5), np.full(3, 2), 4, "whole numbers from 0 to 4"),
        (np.full(3, 1.5), np.full(3, 2), 4, "whole numbers"),
        (np.full(3, np.nan), np.full(3, 2), 4, "whole numbers"),
    ],
)
def test_what_cannot_be_used_is_refused(
    rebuilt: np.ndarray, full: np.ndarray, samples: int | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        relative_accuracy(rebuilt, full, samples=samples)
