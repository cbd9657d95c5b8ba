"""What the lab's task families have in common: problems, styles of working, splits, streams.

A problem is a prompt of a few characters; a completion works it out and ends with `#` and the
answer, which a verifier checks. Solutions are written in three styles, so that exploration has
something to find, and in a fourth that the base never saw:

| style | what is written |
|---|---|
| `steps` | every step, then the answer |
| `chain` | a part of the working, then the answer |
| `guess` | the answer alone |
| `foreign` | every step in words that pretraining does not hold, then the answer |

Everything is a pure function of its seed. A problem belongs to the held-out split if the SHA-256
of its prompt says so, so the splits are disjoint whatever the seeds.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, Literal, TypeVar

from offaxis.errors import InputError

__all__ = [
    "DIFFICULTIES",
    "STYLES",
    "Mixture",
    "Problem",
    "Split",
    "Style",
    "Task",
    "split_of",
]

Split = Literal["train", "held_out"]
Style = Literal["steps", "chain", "guess", "foreign"]
STYLES: tuple[Style, ...] = ("steps", "chain", "guess")
"""The styles of pretraining."""

DIFFICULTIES = (1, 2, 3)
"""The base is pretrained on 1 and 2; 3 is held out."""

_HELD_OUT_IN = 10  # one problem in ten is held out
_PATIENCE = 3000  # repetitions in a row after which a split counts as exhausted


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. A family's own subclass holds what its solutions are made from."""

    prompt: str
    answer: str
    """What the verifier must know beyond the prompt."""


@dataclass(frozen=True)
class Mixture:
    """How often each style is written in pretraining, and how often it is right."""

    share: Mapping[Style, float]
    right: Mapping[Style, float]


P = TypeVar("P", bound=Problem)


def split_of(prompt: str) -> Split:
    """The split to which a prompt belongs: SHA-256 modulo 10, zero being held out."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % _HELD_OUT_IN == 0 else "train"


class Task(ABC, Generic[P]):
    """A family of generated problems with its verifier. It holds no state."""

    name: str
    mixture: Mixture
    longest: Mapping[int, int]
    """Difficulty -> characters of the longest right solution in a pretraining style."""

    @abstractmethod
    def draw(self, rng: Random, difficulty: int) -> P:
        """One problem of either split."""

    @abstractmethod
    def solution(self, problem: P, *, style: Style, right: bool, rng: Random) -> str:
        """A solution in one style, right or wrong."""

    @abstractmethod
    def reward(self, completion: str, prompt: str, answer: str) -> float:
        """1.0 where the completion solves the prompt, else 0.0."""

    def stream(self, *, seed: int, split: Split, difficulty: int = 2) -> Iterator[P]:
        """An endless stream of problems of one split, with repetitions, determined by `seed`."""
        if difficulty not in DIFFICULTIES:
            raise InputError(f"difficulty {difficulty}: choose one of {DIFFICULTIES}")
        rng = Random(f"{self.name}/{split}/{difficulty}/{seed}")
        while True:
            problem = self.draw(rng, difficulty)
            if split_of(problem.prompt) == split:
                yield problem

    def problems(self, count: int, *, seed: int, split: Split, difficulty: int = 2) -> list[P]:
        """`count` different problems of one split, determined by `seed`.

        Raises InputError if the split is too small to hold them (difficulty 1 has few problems).
        """
        found: dict[str, P] = {}
        repeated = 0
        for problem in self.stream(seed=seed, split=split, difficulty=difficulty):
            if len(found) >= count:
                break
            repeated = repeated + 1 if problem.prompt in found else 0
            found.setdefault(problem.prompt, problem)
            if repeated > _PATIENCE:
                raise InputError(
                    f"only {len(found)} different problems found for the {split} split of "
                    f"{self.name} at difficulty {difficulty}, {count} asked for: ask for fewer or "
                    "raise the difficulty"
                )
        return list(found.values())

    def example(self, problem: P, *, rng: Random, clean: bool = False) -> tuple[str, bool]:
        """A solution drawn from the pretraining mixture, and whether it is right.

        clean: draw right solutions alone, the styles in the same shares.
        """
        (style,) = rng.choices(STYLES, weights=[self.mixture.share[style] for style in STYLES])
        right = clean or rng.random() < self.mixture.right[style]
        return self.solution(problem, style=style, right=right, rng=rng), right
