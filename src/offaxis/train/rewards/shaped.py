"""Rewards of form and length: no gold is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.errors import InputError
from offaxis.train.rewards.base import Completion, Reward, text_of
from offaxis.verifiers import has_box, has_tags, overlong

__all__ = ["BoxedReward", "FormatReward", "OverlongReward"]


class FormatReward(Reward):
    """`right` where the response is one think and one answer block, nothing else (`has_tags`)."""

    def __init__(
        self,
        *,
        tags: Sequence[str] = ("think", "answer"),
        opened: bool = False,
        right: float = 1.0,
        wrong: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__("format", weight=weight)
        if not tags or isinstance(tags, str):
            raise InputError(f"reward 'format': tags {tags!r}; give a list of names, as [think]")
        self.tags, self.opened, self.right, self.wrong = tuple(tags), opened, right, wrong

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        fine = [has_tags(text_of(one), self.tags, opened=self.opened) for one in completions]
        return [self.right if each else self.wrong for each in fine]


class BoxedReward(Reward):
    """`right` where the response boxes something (`has_box`)."""

    def __init__(
        self, *, once: bool = False, right: float = 1.0, wrong: float = 0.0, weight: float = 1.0
    ) -> None:
        super().__init__("boxed", weight=weight)
        self.once, self.right, self.wrong = once, right, wrong

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        fine = [has_box(text_of(one), once=self.once) for one in completions]
        return [self.right if each else self.wrong for each in fine]


class OverlongReward(Reward):
    """DAPO's soft punishment of length, from 0 down to −1 (`overlong`)."""

    def __init__(self, *, max_length: int, cache: int, weight: float = 1.0) -> None:
        super().__init__("overlong", weight=weight)
        if max_length is None or cache is None:
            raise InputError("reward 'overlong': set max_length and cache, both in tokens")
        self.max_length, self.cache = max_length, cache
        overlong(0, max_length=max_length, cache=cache)

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        if completion_ids is None:
            raise InputError("reward 'overlong' counts tokens: pass completion_ids")
        return [
            overlong(len(ids), max_length=self.max_length, cache=self.cache)
            for ids in completion_ids
        ]
