"""Majority votes over a group's answers: the label that needs no gold (TTRL, arXiv 2504.16084)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Equal", "Majority", "majority", "majority_rewards"]

Equal = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Majority:
    """The answer that most voted for."""

    index: int
    """Of its first vote."""
    answer: str
    voters: tuple[int, ...]
    """Indices of all that gave it, in order."""
    tied: tuple[int, ...]
    """Indices of the first votes for other answers with as many votes; empty where it won alone."""


def _classes(answers: Sequence[str | None], equal: Equal | None) -> list[list[int]]:
    """Indices by answer, in order of first votes; each is compared with every class's first."""
    found: list[list[int]] = []
    of_text: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        mine = of_text.get(answer)
        if mine is None and equal is not None:
            mine = next((one for one in found if equal(str(answers[one[0]]), answer)), None)
        if mine is None:
            mine = []
            found.append(mine)
        of_text[answer] = mine
        mine.append(index)
    return found


def majority(answers: Sequence[str | None], *, equal: Equal | None = None) -> Majority | None:
    """The most frequent answer; None abstains, and None is returned where all abstain.

    Equal texts are one answer, and so are those that `equal(first, other)` says are (for
    mathematics `MathVerifier.equal`); it is asked of each new text and each answer's first vote.
    Of tied answers the one that was given first wins, and `tied` names the others.
    """
    classes = _classes(answers, equal)
    if not classes:
        return None
    most = max(map(len, classes))
    winner, *others = [one for one in classes if len(one) == most]
    text = str(answers[winner[0]])
    return Majority(winner[0], text, tuple(winner), tuple(one[0] for one in others))


def majority_rewards(
    answers: Sequence[str | None],
    *,
    equal: Equal | None = None,
    ties: Literal["first", "none"] = "first",
) -> list[float]:
    """1.0 for every answer that agrees with the group's majority, else 0.0 (TTRL).

    `ties`: whether a tie goes to the first answer or rewards no one.
    """
    found = majority(answers, equal=equal)
    if found is None or (ties == "none" and found.tied):
        return [0.0] * len(answers)
    return [1.0 if index in found.voters else 0.0 for index in range(len(answers))]
