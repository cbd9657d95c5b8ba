"""Majority votes: which answers are one answer, and how often the majority is right (maj@k)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError

__all__ = ["Same", "majority_rate", "vote_classes"]

Floats = NDArray[np.float64]
Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
"""Whether the answers of each pair mean the same."""

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?|[+-]?\.\d+")
_NOISE = re.compile(r"\\left|\\right|\\[,;!]|[\s$]|\.$")
_COMPARED = 32  # distinct spellings, the most frequent first, that are compared with each other


def _spelling(answer: str) -> str:
    """An answer without what is mere typography; a decimal number as an exact fraction."""
    text = _NOISE.sub("", answer).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    if _NUMBER.fullmatch(text):
        return str(Fraction(text.replace(",", "")))
    return text


def vote_classes(
    answers: Sequence[str | None],
    correct: Sequence[bool],
    *,
    one_truth: bool = True,
    same: Same | None = None,
) -> list[int | None]:
    """For every sample the number of the answer that it votes for, or None: it casts no vote.

    Answers are one where they are spelt alike, blanks, dollar signs and sizes of brackets apart;
    where `one_truth` says that all right answers mean the same and both are right; and where `same`
    says so, which is asked about the 32 most frequent spellings alone, pair by pair. A class holds
    right samples or wrong ones, never both. Numbered in order of appearance.
    """
    if len(answers) != len(correct):
        raise InputError(f"{len(answers)} answers and {len(correct)} marks")
    keys: list[tuple[bool, str] | None] = []
    for answer, right in zip(answers, correct, strict=True):
        if answer is None and not right:
            keys.append(None)
        else:
            keys.append((right, "" if right and one_truth else _spelling(answer or "")))
    merged = _merged(keys, same) if same is not None else {}
    numbers: dict[tuple[bool, str], int] = {}
    found: list[int | None] = []
    for key in keys:
        where = merged.get(key, key) if key is not None else None
        found.append(None if where is None else numbers.setdefault(where, len(numbers)))
    return found


def _merged(
    keys: Sequence[tuple[bool, str] | None], same: Same
) -> dict[tuple[bool, str], tuple[bool, str]]:
    """Spelling -> the more frequent one that means the same, among the most frequent wrong ones."""
    votes = Counter(key for key in keys if key is not None and not key[0])
    often = [key for key, _ in votes.most_common(_COMPARED)]
    pairs = [(a, b) for at, b in enumerate(often) for a in often[:at]]
    if not pairs:
        return {}
    alike = same([(b[1], a[1]) for a, b in pairs])
    found: dict[tuple[bool, str], tuple[bool, str]] = {}
    for (a, b), equal in zip(pairs, alike, strict=True):
        if equal and b not in found:
            found[b] = found.get(a, a)
    return found


def majority_rate(classes: Sequence[int | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the majority of k of a problem's n samples is right, exactly.

    Over all C(n, k) subsets, ties broken at random: the mean of
    [a right answer is among the t with the most votes] / t. Samples without an answer cast no vote;
    where none votes, the majority is wrong. It is the unbiased estimate of maj@k.

    For a right answer with c votes, Σ_v P(it gets v, no other gets more, r others get v) / (r + 1).
    The votes in a random subset are multivariate hypergeometric: independent binomials of rate k/n
    given that they sum to k, so products of their generating functions, (1 − k/n + k/n · x)^n_i cut
    off at x^v and with a second variable for a tie, give every term without large numbers.
    """
    n = len(classes)
    if not 1 <= k <= n or len(correct) != n:
        raise InputError(f"maj@{k} needs 1 <= k <= samples a problem, and there are {n}")
    votes = Counter(one for one in classes if one is not None)
    right = {one for one, good in zip(classes, correct, strict=True) if good and one is not None}
    silent = n - sum(votes.values())
    if not right:
        return 0.0
    pmf = {size: _binomial(size, k / n, k) for size in {*votes.values(), silent, n}}
    total = 0.0
    for one in right:
        others = sorted(size for name, size in votes.items() if name != one)
        total += _wins(votes[one], others, silent, pmf, k)
    return min(1.0, float(total / pmf[n][k]))


def _binomial(n: int, rate: float, most: int) -> Floats:
    """P(Binomial(n, rate) = j) for j from 0 to `most`."""
    found = np.zeros(most + 1)
    if rate == 1:
        if n <= most:
            found[n] = 1.0
        return found
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))]) if n else np.zeros(1)
    j = np.arange(min(n, most) + 1)
    choose = logs[n] - logs[j] - logs[n - j]
    found[: j.size] = np.exp(choose + j * np.log(rate) + (n - j) * np.log1p(-rate))
    return found


def _wins(own: int, others: list[int], silent: int, pmf: dict[int, Floats], k: int) -> float:
    """P(an answer of `own` votes wins and k votes are cast) before the condition on the sum."""
    loose = pmf[silent]  # of those who cannot reach v votes, and of the silent
    at, total = 0, 0.0
    for votes in range(1, min(own, k) + 1):
        while at < len(others) and others[at] < votes:
            loose = np.convolve(loose, pmf[others[at]])[: k + 1]
            at += 1
        chance = pmf[own][votes]
        room = k - votes
        table = loose[None, : room + 1]  # rows: how many others have as many votes
        for size in others[at:]:
            table = _times(table, pmf[size], votes, room // votes + 1)
        shares = 1.0 / np.arange(1, len(table) + 1)
        total += chance * float(shares @ table[:, room])
    return total


def _times(table: Floats, pmf: Floats, votes: int, most: int) -> Floats:
    """The table with one more answer, which gets at most `votes`, a tie moving it one row down."""
    width = table.shape[1]
    found = np.zeros((min(len(table) + 1, most), width))
    for j in range(min(votes, width)):
        found[: len(table), j:] += pmf[j] * table[: len(found), : width - j]
    if votes < width:
        rows = min(len(table), len(found) - 1)
        found[1 : rows + 1, votes:] += pmf[votes] * table[:rows, : width - votes]
    return found
