"""Marking mathematics: exact numbers here, everything else by math-verify in a killable worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

from offaxis.errors import InputError
from offaxis.verifiers.answers import Answer, final_answer
from offaxis.verifiers.mark import Mark, Reason
from offaxis.verifiers.match import Match, normal_text, same_in_base, same_number
from offaxis.verifiers.numbers import read_number
from offaxis.verifiers.workers import Outcome, Pool

__all__ = ["MathVerifier"]

_WORKERS = 64
_PHRASE = 80  # characters of a gold answer in words


class MathVerifier:
    """Whether a response's final answer equals the gold one, as mathematics.

    `final_answer` finds one answer in each; two numbers are compared exactly in this process, and
    anything else goes to math-verify in a worker process.

    `timeout_s`: seconds of wall clock a pair, after which the worker is killed and another takes
    its place; a worker's start is not counted. `memory_mib`: the worker's address space
    (RLIMIT_AS: Linux; macOS does not enforce it, and there time is the only limit). `workers`:
    processes, each about 75 MiB. Started when first needed, reused, and gone with this process.
    """

    def __init__(
        self,
        timeout_s: float = 5.0,
        memory_mib: int = 1024,
        *,
        workers: int = 1,
        match: Match | None = None,
    ) -> None:
        if not 0 < timeout_s < 86_400:
            raise InputError(f"timeout_s {timeout_s}: choose seconds above 0 and below a day")
        if memory_mib < 256:
            raise InputError(
                f"memory_mib {memory_mib}: choose 256 or more (the libraries take 70 to 90)"
            )
        if not 1 <= workers <= _WORKERS:
            raise InputError(f"workers {workers}: choose 1 to {_WORKERS}")
        self.timeout_s, self.memory_mib, self.workers = timeout_s, memory_mib, workers
        self.match = match or Match()
        self._pool = self._new_pool()

    def _new_pool(self) -> Pool:
        return Pool(
            "offaxis.verifiers.symbolic",
            "compare",
            timeout_s=self.timeout_s,
            memory_mib=self.memory_mib,
            workers=self.workers,
        )

    def mark(self, pairs: Sequence[tuple[str, str]]) -> list[Mark]:
        """Marks of (response, gold) pairs, in order; a pair that meets a limit harms no other."""
        marks: list[Mark | None] = []
        jobs: list[tuple[int, dict[str, Any], str]] = []
        for response, gold in pairs:
            answer = final_answer(
                response or "", explicit=self.match.explicit, plain=self.match.plain
            )
            reference = _reference(gold or "", self.match)
            mark = _at_once(answer, reference, self.match)
            if mark is None and answer is not None and reference is not None:
                jobs.append((len(marks), self._job(answer, reference), answer.text))
            marks.append(mark)
        outcomes = self._pool.map([job for _, job, _ in jobs])
        for (index, _, text), outcome in zip(jobs, outcomes, strict=True):
            marks[index] = _marked(outcome, text)
        return [mark for mark in marks if mark is not None]

    def equal(self, one: str, other: str) -> bool:
        """Whether two answers (their text alone) are the same, `one` in the place of the gold."""
        return self.mark([(f"\\boxed{{{other}}}", f"\\boxed{{{one}}}")])[0].correct

    def _job(self, answer: Answer, gold: Answer) -> dict[str, Any]:
        return {
            "gold": gold.parts,
            "answer": answer.parts,
            "latex": [gold.latex, answer.latex],
            "precision": self.match.precision,
            "strict": self.match.strict,
            "relation_as_set": self.match.relation_as_set,
        }

    def close(self) -> None:
        """End the workers; a later `mark` starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: a copy in another process starts workers of its own."""
        return {key: value for key, value in vars(self).items() if key != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pool = self._new_pool()


def _reference(gold: str, match: Match) -> Answer | None:
    """The gold answer: what the text states, or the text itself where it is a few words."""
    found = final_answer(gold, plain=match.plain)
    if found is None and gold.strip() and len(gold) <= _PHRASE and "boxed" not in gold:
        return Answer((gold.strip(),), "whole", "\\" in gold)
    return found


def _at_once(answer: Answer | None, gold: Answer | None, match: Match) -> Mark | None:
    """The mark where no algebra is needed, else None."""
    if gold is None:
        return Mark(False, "bad_gold", answer.text if answer else None)
    if answer is None:
        return Mark(False, "no_answer", None)
    if len(answer.parts) == len(gold.parts) == 1:
        one = read_number(gold.text, decimal_comma=not gold.latex)
        other = read_number(answer.text, decimal_comma=not answer.latex)
        same = same_number(one, other, match) if one and other else None
        if same is None:
            same = same_in_base(gold.text, answer.text)
        if same is None and match.worked_out and one and not _number(answer):
            same = False
        if same is not None:
            return Mark(same, "equal" if same else "different", answer.text)
    texts = [normal_text(each.text) for each in (gold, answer)]
    if texts[0] and texts[0] == texts[1]:
        return Mark(True, "equal", answer.text)
    return None


def _number(answer: Answer) -> bool:
    """Whether an answer is a number, or a name and a number: `x = 5`."""
    name, _, value = answer.text.rpartition("=")
    lone = re.fullmatch(r"\s*(?:[A-Za-z]|\\[a-z]+)?\s*", name) is not None
    return lone and read_number(value, decimal_comma=not answer.latex) is not None


def _marked(outcome: Outcome, text: str) -> Mark:
    reason = cast(Reason, outcome.failed or outcome.value)
    return Mark(reason == "equal", reason, None if reason == "no_answer" else text)
