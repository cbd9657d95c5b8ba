"""The lab's first task family: two-step arithmetic, with worked solutions in characters.

A prompt is an expression and an equals sign (`12+7*3=`); a completion works it out and ends with
`#` and the answer. Three styles of working exist, so that exploration has something to find:

| style | completion of `12+7*3=` |
|---|---|
| `steps` | `7*3=21;12+21=33#33` |
| `chain` | `12+21=33#33` |
| `guess` | `#33` |

Everything is a pure function of its seed. A problem belongs to the held-out split if the SHA-256
of its prompt says so, so the splits are disjoint whatever the seeds.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal

from offaxis.errors import InputError

__all__ = [
    "MIXTURE",
    "STYLES",
    "Mixture",
    "Problem",
    "Split",
    "Style",
    "draw_example",
    "problems",
    "split_of",
    "stream",
    "worked_solution",
]

Split = Literal["train", "held_out"]
Style = Literal["steps", "chain", "guess"]
STYLES: tuple[Style, ...] = ("steps", "chain", "guess")

_HELD_OUT_IN = 10  # one problem in ten is held out
_SLIPS = (-10, -2, -1, 1, 2, 10)
_DIFFICULTIES = (1, 2, 3)
_PATIENCE = 3000  # repetitions in a row after which a split counts as exhausted


@dataclass(frozen=True, slots=True)
class Problem:
    """An expression of two operations. The first step's value `u` enters the second step."""

    prompt: str
    """The expression and `=`."""
    first: tuple[int, str, int]
    """The operation that comes first: left operand, operator, right operand."""
    other: int
    """The second step's other operand."""
    operator: str
    """The second step's operator."""
    value_left: bool
    """True where the second step reads `u operator other`, False where `other operator u`."""

    @property
    def answer(self) -> int:
        return _apply(*self.second(_apply(*self.first)))

    def second(self, value: int) -> tuple[int, str, int]:
        """The second step, given the first step's value (which a wrong solution gets wrong)."""
        if self.value_left:
            return value, self.operator, self.other
        return self.other, self.operator, value


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often each style is written, and how often it is right."""

    share: Mapping[Style, float]
    right: Mapping[Style, float]


MIXTURE = Mixture(
    share=MappingProxyType({"steps": 0.40, "chain": 0.35, "guess": 0.25}),
    right=MappingProxyType({"steps": 0.80, "chain": 0.60, "guess": 0.25}),
)
"""What the bundled base is pretrained on: 59 % of its solutions are right."""


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def split_of(prompt: str) -> Split:
    """The split to which a prompt belongs: SHA-256 modulo 10, zero being held out."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % _HELD_OUT_IN == 0 else "train"


def _draw(rng: Random, difficulty: int) -> Problem:
    """One problem of either split; every value on the way to the answer is >= 0."""
    top = 10**difficulty - 1
    form = rng.randrange(4)
    if form == 0:  # a+b*c
        a, b, c = rng.randint(1, top), rng.randint(2, 9), rng.randint(2, 9)
        return Problem(f"{a}+{b}*{c}=", (b, "*", c), a, "+", value_left=False)
    if form == 1:  # a-b*c, or b*c-a where that is not negative
        a, b, c = rng.randint(1, top), rng.randint(2, 9), rng.randint(2, 9)
        if a >= b * c:
            return Problem(f"{a}-{b}*{c}=", (b, "*", c), a, "-", value_left=False)
        return Problem(f"{b}*{c}-{a}=", (b, "*", c), a, "-", value_left=True)
    if form == 2:  # a+b-c
        a, b = rng.randint(1, top), rng.randint(1, top)
        c = rng.randint(1, min(top, a + b))
        return Problem(f"{a}+{b}-{c}=", (a, "+", b), c, "-", value_left=True)
    a, b, c = rng.randint(1, 9 * difficulty), rng.randint(1, 9), rng.randint(2, 9)  # (a+b)*c
    return Problem(f"({a}+{b})*{c}=", (a, "+", b), c, "*", value_left=True)


def stream(*, seed: int, split: Split, difficulty: int = 2) -> Iterator[Problem]:
    """An endless stream of problems of one split, with repetitions, determined by `seed`.

    `difficulty` is 1, 2 or 3: the number of digits of the free operands (factors stay below ten,
    sums in brackets below 9 * difficulty + 10).
    """
    if difficulty not in _DIFFICULTIES:
        raise InputError(f"difficulty {difficulty}: choose one of {_DIFFICULTIES}")
    rng = Random(f"problems/{split}/{difficulty}/{seed}")
    while True:
        problem = _draw(rng, difficulty)
        if split_of(problem.prompt) == split:
            yield problem


def problems(count: int, *, seed: int, split: Split, difficulty: int = 2) -> list[Problem]:
    """`count` different problems of one split, determined by `seed`.

    Raises InputError if the split is too small to hold them (difficulty 1 has few problems).
    """
    found: dict[str, Problem] = {}
    repeated = 0
    for problem in stream(seed=seed, split=split, difficulty=difficulty):
        if len(found) >= count:
            break
        repeated = repeated + 1 if problem.prompt in found else 0
        found.setdefault(problem.prompt, problem)
        if repeated > _PATIENCE:
            raise InputError(
                f"only {len(found)} different problems found for the {split} split at difficulty "
                f"{difficulty}, {count} asked for: ask for fewer or raise the difficulty"
            )
    return list(found.values())


def _slip(value: int, rng: Random) -> int:
    """A wrong value near a right one, never negative."""
    return value + rng.choice([slip for slip in _SLIPS if value + slip >= 0])


def worked_solution(problem: Problem, *, style: Style, right: bool, rng: Random) -> str:
    """A solution in one style. A wrong one slips in one step and carries the slip to its end."""
    slip_first = not right and style != "guess" and rng.random() < 0.5
    value = _apply(*problem.first)
    if slip_first:
        value = _slip(value, rng)
    left, operator, other = problem.second(value)
    result = _apply(left, operator, other)
    if not right and not slip_first:
        result = _slip(result, rng)
    if style == "guess":
        return f"#{result}"
    line = f"{left}{operator}{other}={result}#{result}"
    if style == "chain":
        return line
    a, first_operator, b = problem.first
    return f"{a}{first_operator}{b}={value};{line}"


def draw_example(problem: Problem, *, rng: Random, mixture: Mixture = MIXTURE) -> tuple[str, bool]:
    """A solution drawn from the mixture, and whether it is right."""
    (style,) = rng.choices(STYLES, weights=[mixture.share[style] for style in STYLES])
    right = rng.random() < mixture.right[style]
    return worked_solution(problem, style=style, right=right, rng=rng), right
