"""The reward of programs: tests that pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.train.rewards.base import Completion, Reward, column_of, text_of
from offaxis.verifiers import CodeVerifier
from offaxis.verifiers.programs import read_tests

__all__ = ["CodeReward"]


class CodeReward(Reward):
    """`right` where the program in the response passes all tests of the gold column, else `wrong`.

    `partial` interpolates by the share of tests passed. None where the column holds no test. The
    other options are `CodeVerifier`'s.
    """

    def __init__(
        self,
        *,
        column: str = "answer",
        right: float = 1.0,
        wrong: float = 0.0,
        partial: bool = False,
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__("code", weight=weight)
        self.column, self.right, self.wrong, self.partial = column, right, wrong, partial
        self.verifier = CodeVerifier(**options)

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        golds = column_of(self.__name__, self.column, columns, len(prompts))
        usable = [gold is not None and bool(read_tests(gold)) for gold in golds]
        texts = [text_of(one) for one in completions]
        pairs = [(text, gold or "") for text, gold in zip(texts, golds, strict=True)]
        chosen = [pair for pair, fine in zip(pairs, usable, strict=True) if fine]
        results = iter(self.verifier.results(chosen))
        found: list[float | None] = []
        for fine in usable:
            result = next(results) if fine else None
            share = 0.0 if result is None else result.share if self.partial else result.correct
            found.append(self.wrong + (self.right - self.wrong) * share if fine else None)
        return found
