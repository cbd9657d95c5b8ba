"""One interface of what draws completions, and the settings that decide them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offaxis.errors import InputError
from offaxis.evaluate.prompts import Prompt
from offaxis.evaluate.sampling import Completion

__all__ = ["SAMPLERS", "Sampler", "Sampling", "batches"]

SAMPLERS = ("transformers", "vllm")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. At temperature 0 the likeliest token is taken, and k is 1."""

    k: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    max_new_tokens: int = 1024
    seed: int = 0
    batch_size: int = 64
    """Sequences at a time."""

    def __post_init__(self) -> None:
        for name in ("k", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature}: give 0 (greedy) or a positive one")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: give a number above 0 and at most 1")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k}: give a positive number, or 0 for all tokens")
        if self.temperature == 0 and self.k > 1:
            raise InputError(
                f"temperature 0 draws one completion {self.k} times over; pass k 1, or a "
                "temperature above 0"
            )


class Sampler(Protocol):
    """Draws completions."""

    context: int | None
    """Positions that the model has; None where that is not known, or checked elsewhere."""

    def together(self, settings: Sampling) -> int:
        """How many problems one call of `sample` should be given."""
        ...

    def sample(self, prompts: Sequence[Prompt], settings: Sampling) -> list[list[Completion]]:
        """k completions of every prompt: a list of k for each, in the order of `prompts`."""
        ...


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Indices of all prompts in groups of `size`, the longest first, so that little is padded.

    It depends on the prompts alone, not on what is done already: a run that goes on computes the
    same batches as one that was never stopped.
    """
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at].tokens), at))
    return [order[start : start + size] for start in range(0, len(order), size)]
