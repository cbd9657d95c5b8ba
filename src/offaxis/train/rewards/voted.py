"""The reward of agreeing with the group: TTRL's, which needs no gold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from offaxis.errors import InputError
from offaxis.train.rewards.base import Completion, Reward, text_of
from offaxis.verifiers import MathVerifier, final_answer, majority_rewards

__all__ = ["MajorityReward"]


class MajorityReward(Reward):
    """1 where a response's answer is its group's most frequent one, else 0 (arXiv 2504.16084).

    A group is `num_generations` neighbouring rows of one prompt (in evaluation
    `num_generations_eval`), and must be whole in this process: with several processes, the batch
    of each must be a multiple of it. Answers are equal as mathematics, or as text with
    `equality="text"`; `ties` is `majority_rewards`'.
    """

    def __init__(
        self,
        *,
        num_generations: int,
        num_generations_eval: int | None = None,
        equality: Literal["math", "text"] = "math",
        ties: Literal["first", "none"] = "first",
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__("majority", weight=weight)
        if not isinstance(num_generations, int) or num_generations < 2:
            raise InputError(
                f"reward 'majority': num_generations {num_generations}; set the group's size, 2 or "
                "more"
            )
        if equality not in ("math", "text") or ties not in ("first", "none"):
            raise InputError(
                f"reward 'majority': equality {equality!r}, ties {ties!r}; choose math or "
                "text, and first or none"
            )
        self.sizes = tuple(
            dict.fromkeys((num_generations, num_generations_eval or num_generations))
        )
        self.ties: Literal["first", "none"] = ties
        self.verifier = MathVerifier(**options) if equality == "math" else None

    def _groups(self, prompts: Sequence[Any]) -> Iterator[range]:
        """Rows of each group, or InputError where they do not fit."""
        for size in self.sizes:
            starts = range(0, len(prompts), size)
            whole = len(prompts) % size == 0 and all(
                prompts[start] == prompts[row]
                for start in starts
                for row in range(start, start + size)
            )
            if whole:
                yield from (range(start, start + size) for start in starts)
                return
        sizes = " or ".join(map(str, self.sizes))
        raise InputError(
            f"reward 'majority': {len(prompts)} rows do not fall into groups of {sizes} with one "
            "prompt each; make each process's batch a multiple of num_generations"
        )

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        found = [final_answer(text_of(one)) for one in completions]
        answers = [answer.text if answer else None for answer in found]
        equal = self.verifier.equal if self.verifier else None
        rewards: list[float | None] = [None] * len(prompts)
        for rows in self._groups(prompts):
            votes = majority_rewards([answers[row] for row in rows], equal=equal, ties=self.ties)
            for row, vote in zip(rows, votes, strict=True):
                rewards[row] = vote
        return rewards
