"""Rewards of verifiers: right where the response's answer is the gold column's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.train.rewards.base import Completion, Reward, column_of, text_of
from offaxis.verifiers import Verifier, verifier_named

__all__ = ["CountdownReward", "VerifierReward"]


class VerifierReward(Reward):
    """`right` where the verifier calls the response correct, `wrong` where not.

    A response that meets a limit is wrong. None where the gold is absent, or where the verifier
    can make nothing of it. The verifier's options are passed on; ±1 is `right=1, wrong=-1`.
    """

    def __init__(
        self,
        verifier: str,
        *,
        column: str = "answer",
        right: float = 1.0,
        wrong: float = 0.0,
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(verifier, weight=weight)
        self.column, self.right, self.wrong = column, right, wrong
        self.verifier: Verifier = verifier_named(verifier, **options)

    def golds(self, prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[str | None]:
        """The reference of each row."""
        return column_of(self.__name__, self.column, columns, len(prompts))

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        golds = self.golds(prompts, columns)
        rows = [index for index, gold in enumerate(golds) if gold is not None]
        pairs = [(text_of(completions[index]), str(golds[index])) for index in rows]
        found: list[float | None] = [None] * len(golds)
        for index, mark in zip(rows, self.verifier.mark(pairs), strict=True):
            if mark.reason != "bad_gold":
                found[index] = self.right if mark.correct else self.wrong
        return found


class CountdownReward(VerifierReward):
    """The same for countdown, whose reference is `numbers@target`.

    Taken from the gold column where it is written so, else from the columns `numbers` and `target`,
    else from a prompt such as the lab's `9,9,5@36=`.
    """

    def __init__(self, verifier: str = "countdown", **options: Any) -> None:
        super().__init__(verifier, **options)

    def golds(self, prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[str | None]:
        """The reference of each row."""
        if "numbers" in columns and "target" in columns:
            both = zip(columns["numbers"], columns["target"], strict=True)
            return [
                None if numbers is None or target is None else f"{_listed(numbers)}@{int(target)}"
                for numbers, target in both
            ]
        given = columns.get(self.column) or [None] * len(prompts)
        if any("@" in str(value) for value in given):
            return super().golds(prompts, columns)
        return [prompt if isinstance(prompt, str) and "@" in prompt else None for prompt in prompts]


def _listed(numbers: Any) -> str:
    return numbers if isinstance(numbers, str) else ",".join(str(int(one)) for one in numbers)
