"""Completions against reference answers: marks, tolerances, and what each sample votes for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offaxis.evaluate.problems import Problem
from offaxis.evaluate.sampling import Completion
from offaxis.evaluate.voting import Same, vote_classes

if TYPE_CHECKING:
    from offaxis.verifiers import Mark, Verifier

__all__ = ["MarkedProblem", "MarkedSample", "mark_all"]

_ONE_TRUTH = ("math", "numeric", "exact", "integer")
"""Verifiers under which two right answers mean the same; countdown has many right ones."""
_COMPARE = ("math", "numeric")
"""Verifiers that also tell whether two answers mean the same, an answer being a good reference."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SLACK = 1e-9  # relative, so that a decimal tolerance is not missed by binary rounding


@dataclass(frozen=True, slots=True)
class MarkedSample:
    """One completion and its mark."""

    text: str
    tokens: int
    ended: bool
    correct: bool
    reason: str
    answer: str | None
    vote: int | None
    """Which answer of its problem it votes for; None where it has none."""


@dataclass(frozen=True, slots=True)
class MarkedProblem:
    """A problem's samples."""

    id: str
    prompt: str
    gold: str
    samples: tuple[MarkedSample, ...]


def mark_all(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    verifier: Verifier,
    *,
    name: str,
) -> list[MarkedProblem]:
    """Marks of all completions, a row of them for each problem. `name`: the verifier's."""
    pairs = [
        (one.text, _reference(problem.answer, name))
        for problem, row in zip(problems, completions, strict=True)
        for one in row
    ]
    marks = iter(verifier.mark(pairs))
    found = []
    for problem, row in zip(problems, completions, strict=True):
        found.append(_marked(problem, row, [next(marks) for _ in row], _same(verifier, name), name))
    return found


def _marked(
    problem: Problem,
    completions: Sequence[Completion],
    marks: Sequence[Mark],
    same: Same | None,
    name: str,
) -> MarkedProblem:
    near = [not mark.correct and _near(mark.answer, problem) for mark in marks]
    correct = [mark.correct or close for mark, close in zip(marks, near, strict=True)]
    votes = vote_classes(
        [mark.answer for mark in marks], correct, one_truth=name in _ONE_TRUTH, same=same
    )
    samples = tuple(
        MarkedSample(
            one.text,
            len(one.tokens),
            one.ended,
            right,
            "within_tolerance" if close else mark.reason,
            mark.answer,
            vote,
        )
        for one, mark, close, right, vote in zip(
            completions, marks, near, correct, votes, strict=True
        )
    )
    return MarkedProblem(problem.id, problem.prompt, problem.answer, samples)


def _reference(gold: str, name: str) -> str:
    """The reference as the verifier should read it: boxed, so that all of it is the answer."""
    return f"\\boxed{{{gold}}}" if name in _COMPARE and "\\boxed" not in gold else gold


def _same(verifier: Verifier, name: str) -> Same | None:
    """The verifier's own equality of two answers, where it has one."""
    if name not in _COMPARE:
        return None
    return lambda pairs: [
        one.correct
        for one in verifier.mark([(_reference(a, name), _reference(b, name)) for a, b in pairs])
    ]


def _near(answer: str | None, problem: Problem) -> bool:
    """Whether |answer − gold| <= tolerance, where the problem has one and both are numbers."""
    if problem.tolerance is None or answer is None:
        return False
    ours, theirs = _number(answer), _number(problem.answer)
    return (
        ours is not None
        and theirs is not None
        and abs(ours - theirs) <= problem.tolerance + _SLACK * max(1.0, abs(theirs))
    )


def _number(text: str) -> float | None:
    plain = text.strip().strip("$").removesuffix("\\%").removesuffix("%").strip()
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain.replace(",", ""))
    return value if math.isfinite(value) else None
