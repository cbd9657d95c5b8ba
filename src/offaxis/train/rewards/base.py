"""What TRL calls: prompts, completions and the data set's columns in, one reward a row out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from offaxis.errors import InputError

__all__ = ["Completion", "Reward", "RewardFunction", "column_of", "text_of"]

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages that answer a conversation."""


class RewardFunction(Protocol):
    """A reward as TRL's trainers take it."""

    __name__: str

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]: ...


class Reward(ABC):
    """A reward with the name that TRL logs it under, and the weight it should be given.

    TRL takes weights from its configuration's `reward_weights` and not from here.
    """

    def __init__(self, name: str, *, weight: float = 1.0) -> None:
        if not math.isfinite(weight):
            raise InputError(f"reward {name!r}: weight {weight} is no number; choose a finite one")
        self.__name__ = name
        self.weight = weight

    @abstractmethod
    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row; None takes the row out of this reward."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """`rewards`, called as TRL does."""
        return self.rewards(prompts, completions, completion_ids, columns)


def _words(content: Any) -> str:
    """The text of a message's content: itself, or its parts' of type text."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def text_of(completion: Completion) -> str:
    """What a completion says: the text, or the last assistant message of a conversation."""
    if isinstance(completion, str):
        return completion
    said = [one for one in completion if one.get("role") == "assistant"]
    return _words(said[-1].get("content")) if said else ""


def column_of(name: str, column: str, columns: Mapping[str, Any], rows: int) -> list[str | None]:
    """The column's values as text; None for None, NaN and blanks. InputError where it is missing.

    A float that is whole is written as an integer, as Arrow makes `18.0` of `18`.
    """
    if column not in columns:
        known = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list)))
        raise InputError(
            f"reward {name!r}: the data set has no column {column!r} (it has: {known or 'none'}); "
            "name another with the option column"
        )
    values = list(columns[column])
    if len(values) != rows:
        raise InputError(f"reward {name!r}: {len(values)} values of {column!r} for {rows} rows")
    return [_gold(value) for value in values]


def _gold(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return text if text.strip() else None
