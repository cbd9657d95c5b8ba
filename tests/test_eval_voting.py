"""maj@k against every subset, and which answers are one answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offaxis.errors import InputError
from offaxis.evaluate import majority_rate, pass_rates, vote_classes
from offaxis.verifiers import verifier_named

votes = st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=1, max_size=8)
truths = st.sets(st.integers(0, 4), max_size=2)


def by_hand(classes: Sequence[int | None], correct: Sequence[bool], k: int) -> float:
    """The same over every subset, a tie being worth the share of right answers in it."""
    right = {one for one, good in zip(classes, correct, strict=True) if good}
    worth = []
    for subset in combinations(classes, k):
        counts = Counter(one for one in subset if one is not None)
        most = max(counts.values(), default=0)
        first = [one for one, count in counts.items() if count == most]
        worth.append(sum(one in right for one in first) / len(first) if first else 0.0)
    return float(np.mean(worth))


@given(votes, truths, st.data())
@settings(max_examples=300)
def test_maj_at_k_is_the_mean_over_all_subsets(
    classes: list[int | None], right: set[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(classes)))
    correct = [one in right for one in classes]
    assert majority_rate(classes, correct, k) == pytest.approx(
        by_hand(classes, correct, k), abs=1e-12
    )


@given(votes, truths)
def test_one_vote_is_avg_and_never_more_than_pass(
    classes: list[int | None], right: set[int]
) -> None:
    correct = [one in right for one in classes]
    assert majority_rate(classes, correct, 1) == pytest.approx(np.mean(correct), abs=1e-12)
    for k in range(1, len(classes) + 1):
        assert majority_rate(classes, correct, k) <= pass_rates(np.array([correct]), k)[0] + 1e-12


def test_maj_is_unbiased_for_the_vote_of_fresh_samples() -> None:
    """The mean of the estimate over runs of n = 6 is the chance that 3 fresh samples are right."""
    rng = np.random.default_rng(0)
    chances = [0.4, 0.35, 0.25]
    fresh = rng.choice(3, p=chances, size=(60_000, 3))
    truth = np.mean([by_hand(list(row), [one == 0 for one in row], 3) for row in fresh[:20_000]])
    runs = rng.choice(3, p=chances, size=(4000, 6))
    estimate = np.mean([majority_rate(list(row), [one == 0 for one in row], 3) for row in runs])
    assert estimate == pytest.approx(truth, abs=0.012)


def test_many_samples_neither_overflow_nor_take_long() -> None:
    rng = np.random.default_rng(0)
    classes = rng.zipf(1.5, size=1024).clip(max=300).tolist()
    correct = [one == 1 for one in classes]
    rates = [majority_rate(classes, correct, 1 << bit) for bit in range(11)]
    assert rates[0] == pytest.approx(np.mean(correct))
    assert all(b >= a - 1e-12 for a, b in pairwise(rates))
    assert rates[-1] == 1.0


def test_a_majority_of_wrong_answers_loses_where_single_samples_win() -> None:
    classes, correct = [0, 0, 1, 1, 1], [True, True, False, False, False]
    assert majority_rate(classes, correct, 1) == pytest.approx(0.4)
    assert majority_rate(classes, correct, 5) == 0
    assert majority_rate([None, None], [False, False], 2) == 0
    assert majority_rate([0, 1], [True, False], 2) == 0.5


def test_bad_k_is_refused() -> None:
    with pytest.raises(InputError, match="maj@3"):
        majority_rate([0, 1], [True, False], 3)
    with pytest.raises(InputError, match="2 answers and 1 marks"):
        vote_classes(["1", "2"], [True])


def test_spelling_does_not_split_a_vote() -> None:
    answers = ["3", "3.0", " 3 ", "$3$", "1,000", "1000", "\\dfrac{1}{2}", "\\frac{1}{2}", "x y",
               "xy"]  # fmt: skip
    classes = vote_classes(answers, [False] * len(answers))
    assert classes == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_what_has_no_answer_casts_no_vote() -> None:
    assert vote_classes([None, "1", None], [False, True, False]) == [None, 0, None]


def test_right_answers_are_one_where_there_is_one_truth() -> None:
    answers, right = ["2*3-1", "3*2-1", "2*3-1", "7"], [True, True, False, False]
    assert vote_classes(answers, right) == [0, 0, 1, 2]
    assert vote_classes(answers, right, one_truth=False) == [0, 1, 2, 3]


def test_the_verifier_joins_wrong_answers_that_mean_the_same() -> None:
    answers = ["\\frac{1}{3}", "2\\pi", "\\frac{2}{6}", "\\pi \\cdot 2", "5"]
    asked: list[tuple[str, str]] = []
    with verifier_named("math") as verifier:

        def same(pairs: Sequence[tuple[str, str]]) -> list[bool]:
            asked.extend(pairs)
            boxed = [(f"\\boxed{{{a}}}", f"\\boxed{{{b}}}") for a, b in pairs]
            return [one.correct for one in verifier.mark(boxed)]

        assert vote_classes(answers, [False] * 5, same=same) == [0, 1, 0, 1, 2]
    assert len(asked) == 10, "each pair once"


def test_only_frequent_spellings_are_compared() -> None:
    asked: list[int] = []

    def same(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        asked.append(len(pairs))
        return [False] * len(pairs)

    vote_classes([f"a{number}" for number in range(200)], [False] * 200, same=same)
    assert asked == [32 * 31 // 2]
