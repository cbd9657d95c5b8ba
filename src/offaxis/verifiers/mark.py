"""What a verifier says of a response, and what every verifier can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

__all__ = ["Mark", "Marking", "Reason", "Verifier"]

Reason: TypeAlias = Literal[
    "equal", "different", "no_answer", "bad_gold", "timeout", "memory", "error"
]


@dataclass(frozen=True, slots=True)
class Mark:
    """One response's mark. Only `equal` is correct; the other reasons say why not."""

    correct: bool
    reason: Reason
    """`equal`; `different`; `no_answer` (nothing in the response reads as one); `bad_gold` (the
    reference does not); `timeout`, `memory` (a limit was met); `error` (the worker died)."""
    answer: str | None
    """What was taken from the response, or None where nothing was."""


class Verifier(Protocol):
    """Marks responses against references. Also a context manager, which closes it."""

    def mark(self, pairs: Sequence[tuple[str, str]]) -> list[Mark]:
        """Marks of (response, gold) pairs, in their order. No response makes it raise."""
        ...

    def close(self) -> None:
        """End what the verifier runs. A later `mark` starts it again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Marking:
    """What verifiers without processes share: they mark pair by pair and have nothing to close."""

    def mark_one(self, response: str, gold: str) -> Mark:
        """The mark of one pair."""
        raise NotImplementedError

    def mark(self, pairs: Sequence[tuple[str, str]]) -> list[Mark]:
        """Marks of (response, gold) pairs, in their order."""
        return [self.mark_one(response or "", gold or "") for response, gold in pairs]

    def close(self) -> None:
        """Nothing runs that could be ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
