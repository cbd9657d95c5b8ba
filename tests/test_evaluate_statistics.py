"""avg@k, pass@k and paired differences against hand cases, and intervals against their coverage."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.errors import InputError
from offaxis.evaluate import avg_at_k, bootstrap_mean, paired_difference, pass_at_k


def test_avg_is_the_mean_over_problems() -> None:
    score = avg_at_k(np.array([[1, 0], [1, 1], [0, 0]]))
    assert (score.metric, score.value, score.n) == ("avg@2", 0.5, 3)
    assert 0 <= score.low < 0.5 < score.high <= 1


@pytest.mark.parametrize(
    ("row", "k", "expected"),
    [
        ([1, 0, 0, 0], 1, 1 / 4),
        ([1, 0, 0, 0], 2, 1 / 2),  # 1 - C(3,2)/C(4,2)
        ([1, 1, 0, 0], 2, 5 / 6),  # 1 - C(2,2)/C(4,2)
        ([1, 1, 0, 0], 3, 1),
        ([0, 0, 0, 0], 4, 0),
        ([1, 1, 1, 1], 1, 1),
    ],
)
def test_pass_at_k_by_hand(row: list[int], k: int, expected: float) -> None:
    assert pass_at_k(np.array([row]), k).value == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one(
    row: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(row)))
    subsets = list(combinations(row, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(np.array([row]), k).value == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_avg() -> None:
    correct = np.random.default_rng(0).random((40, 6)) < 0.4
    assert pass_at_k(correct, 1).value == pytest.approx(avg_at_k(correct).value, abs=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        _, low, high = bootstrap_mean(rng.exponential(size=80), seed=trial, resamples=400)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 300 <= 0.98


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=4000)
    mean, low, high = bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_intervals_follow_the_seed() -> None:
    values = np.random.default_rng(1).random(50)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_a_large_sample_is_resampled_in_blocks_without_changing_the_count() -> None:
    values = np.random.default_rng(1).random(5_000_000)  # one resample a block
    mean, low, high = bootstrap_mean(values, seed=0, resamples=3)
    assert low < high
    assert mean == pytest.approx(0.5, abs=1e-3)


def test_a_perfect_score_still_has_an_interval() -> None:
    perfect, none = avg_at_k(np.ones((20, 4))), avg_at_k(np.zeros((20, 4)))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low**20 == pytest.approx(0.025)  # Clopper and Pearson
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 1 - perfect.low))


def test_the_paired_difference_is_tighter_than_the_unpaired() -> None:
    rng = np.random.default_rng(0)
    ease = rng.random((200, 1))
    base = rng.random((200, 8)) < ease
    tuned = rng.random((200, 8)) < np.minimum(1, ease + 0.1)
    score = paired_difference(tuned, base)
    width = score.high - score.low
    assert score.value == pytest.approx(tuned.mean() - base.mean())
    assert width < 0.6 * (avg_at_k(tuned).high - avg_at_k(tuned).low)
    assert score.low > 0


def test_a_model_does_not_differ_from_itself() -> None:
    correct = np.random.default_rng(0).random((30, 4)) < 0.5
    score = paired_difference(correct, correct)
    assert (score.value, score.low, score.high) == (0, 0, 0)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.array([[0.5]]), np.array([[np.nan]])],
)
def test_bad_tables_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        avg_at_k(bad)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="pass@5"):
        pass_at_k(np.ones((2, 4)), 5)
    with pytest.raises(InputError, match="pairs need the same"):
        paired_difference(np.ones((2, 4)), np.ones((3, 4)))
    with pytest.raises(InputError, match="NaN"):
        bootstrap_mean(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="non-empty"):
        bootstrap_mean(np.array([]))
