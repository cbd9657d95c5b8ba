"""Arithmetic in two steps. The prompt is an expression and an equals sign.

| style | completion of `12+7*3=` |
|---|---|
| `steps` | `7*3=21;12+21=33#33` |
| `chain` | `12+21=33#33` |
| `guess` | `#33` |
| `foreign` | `first 7*3 is 21 then 12+21 is 33#33` |

Difficulty is the number of digits of the free operands (factors stay below ten, sums in brackets
below 9 * difficulty + 10).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from offaxis.lab.tasks.family import Mixture, Problem, Style, Task
from offaxis.verifiers import integer_reward

__all__ = ["Arithmetic", "ArithmeticProblem"]

_SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True, slots=True)
class ArithmeticProblem(Problem):
    """An expression of two operations. The first step's value `u` enters the second step."""

    first: tuple[int, str, int]
    """The operation that comes first: left operand, operator, right operand."""
    other: int
    """The second step's other operand."""
    operator: str
    """The second step's operator."""
    value_left: bool
    """True where the second step reads `u operator other`, False where `other operator u`."""

    def second(self, value: int) -> tuple[int, str, int]:
        """The second step, given the first step's value (which a wrong solution gets wrong)."""
        if self.value_left:
            return value, self.operator, self.other
        return self.other, self.operator, value


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def _problem(
    prompt: str, first: tuple[int, str, int], other: int, operator: str, *, value_left: bool
) -> ArithmeticProblem:
    shape = ArithmeticProblem(prompt, "", first, other, operator, value_left)
    answer = _apply(*shape.second(_apply(*first)))
    return ArithmeticProblem(prompt, str(answer), first, other, operator, value_left)


def _slip(value: int, rng: Random) -> int:
    """A wrong value near a right one, never negative."""
    return value + rng.choice([slip for slip in _SLIPS if value + slip >= 0])


class Arithmetic(Task[ArithmeticProblem]):
    """The family `arithmetic`. Every value on the way to an answer is at least 0."""

    name = "arithmetic"
    mixture = Mixture(
        share=MappingProxyType({"steps": 0.40, "chain": 0.35, "guess": 0.25}),
        right=MappingProxyType({"steps": 0.80, "chain": 0.60, "guess": 0.25}),
    )
    longest = MappingProxyType({1: 19, 2: 24, 3: 31})

    def draw(self, rng: Random, difficulty: int) -> ArithmeticProblem:
        top = 10**difficulty - 1
        form = rng.randrange(4)
        if form == 0:  # a+b*c
            a, b, c = rng.randint(1, top), rng.randint(2, 9), rng.randint(2, 9)
            return _problem(f"{a}+{b}*{c}=", (b, "*", c), a, "+", value_left=False)
        if form == 1:  # a-b*c, or b*c-a where that is not negative
            a, b, c = rng.randint(1, top), rng.randint(2, 9), rng.randint(2, 9)
            if a >= b * c:
                return _problem(f"{a}-{b}*{c}=", (b, "*", c), a, "-", value_left=False)
            return _problem(f"{b}*{c}-{a}=", (b, "*", c), a, "-", value_left=True)
        if form == 2:  # a+b-c
            a, b = rng.randint(1, top), rng.randint(1, top)
            c = rng.randint(1, min(top, a + b))
            return _problem(f"{a}+{b}-{c}=", (a, "+", b), c, "-", value_left=True)
        a, b, c = rng.randint(1, 9 * difficulty), rng.randint(1, 9), rng.randint(2, 9)  # (a+b)*c
        return _problem(f"({a}+{b})*{c}=", (a, "+", b), c, "*", value_left=True)

    def solution(
        self, problem: ArithmeticProblem, *, style: Style, right: bool, rng: Random
    ) -> str:
        """A wrong solution slips in one step and carries the slip to its end."""
        slip_first = not right and style != "guess" and rng.random() < 0.5
        value = _apply(*problem.first)
        if slip_first:
            value = _slip(value, rng)
        left, operator, other = problem.second(value)
        result = _apply(left, operator, other)
        if not right and not slip_first:
            result = _slip(result, rng)
        a, first, b = problem.first
        if style == "foreign":
            return (
                f"first {a}{first}{b} is {value} then {left}{operator}{other} is {result}#{result}"
            )
        if style == "guess":
            return f"#{result}"
        line = f"{left}{operator}{other}={result}#{result}"
        return line if style == "chain" else f"{a}{first}{b}={value};{line}"

    def reward(self, completion: str, prompt: str, answer: str) -> float:
        return integer_reward(completion, int(answer))
