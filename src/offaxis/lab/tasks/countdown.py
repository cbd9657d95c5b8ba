"""Countdown: reach the target with each of the given numbers used exactly once.

| style | completion of `3,7,2@15=` |
|---|---|
| `steps` | `7-2=5;5*3=15#(7-2)*3` |
| `chain` | `5*3=15#(7-2)*3` |
| `guess` | `#(7-2)*3` |
| `foreign` | `first 7-2 is 5 then 5*3 is 15#(7-2)*3` |

| difficulty | numbers, each from 1 to 9 | operations |
|---|---|---|
| 1 | three | `+ -` |
| 2 | three | `+ - *` |
| 3 | four | `+ - *` |
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from offaxis.lab.tasks.family import Mixture, Problem, Style, Task
from offaxis.verifiers import countdown_reward

__all__ = ["Countdown", "CountdownProblem", "Step"]

_MOST = 99  # the largest target and intermediate value


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on two values, with the expressions that they stand for."""

    left: int
    operator: str
    right: int
    value: int
    expression: str
    """The whole expression so far, without outer brackets."""

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.value}"


@dataclass(frozen=True, slots=True)
class CountdownProblem(Problem):
    """Its answer is the target; `steps` are those of the solution it was made from."""

    numbers: tuple[int, ...]
    operators: str
    steps: tuple[Step, ...]


def _bracketed(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"


def _chain(numbers: list[int], operators: str, rng: Random) -> tuple[Step, ...] | None:
    """A random chain of operations over `numbers` in order, or None where it leaves the range.

    The larger operand stands left, so that no value is negative and each pair has one spelling.
    """
    value, text = numbers[0], str(numbers[0])
    steps: list[Step] = []
    for number in numbers[1:]:
        operator = rng.choice(operators)
        (a, first), (b, second) = sorted(
            ((value, text), (number, str(number))), key=lambda pair: -pair[0]
        )
        result = a + b if operator == "+" else a - b if operator == "-" else a * b
        text = f"{_bracketed(first)}{operator}{_bracketed(second)}"
        steps.append(Step(a, operator, b, result, text))
        value = result
    within = all(1 <= step.value <= _MOST for step in steps)
    return tuple(steps) if within else None


class Countdown(Task[CountdownProblem]):
    """The family `countdown`."""

    name = "countdown"
    mixture = Mixture(
        share=MappingProxyType({"steps": 0.40, "chain": 0.35, "guess": 0.25}),
        right=MappingProxyType({"steps": 0.90, "chain": 0.75, "guess": 0.50}),
    )
    longest = MappingProxyType({1: 22, 2: 22, 3: 34})

    def draw(self, rng: Random, difficulty: int) -> CountdownProblem:
        count = 4 if difficulty == 3 else 3
        operators = "+-" if difficulty == 1 else "+-*"
        while True:
            numbers = [rng.randint(1, 9) for _ in range(count)]
            steps = _chain(numbers, operators, rng)
            if steps is not None:
                break
        shown = rng.sample(numbers, count)
        target = str(steps[-1].value)
        prompt = f"{','.join(map(str, shown))}@{target}="
        return CountdownProblem(prompt, target, tuple(shown), operators, steps)

    def solution(self, problem: CountdownProblem, *, style: Style, right: bool, rng: Random) -> str:
        """A wrong solution combines the numbers otherwise and misses the target."""
        steps = problem.steps
        while not right and steps[-1].value == int(problem.answer):
            numbers = rng.sample(problem.numbers, len(problem.numbers))
            steps = _chain(numbers, problem.operators, rng) or steps
        answer = steps[-1].expression
        if style == "foreign":
            words = (f"{s.left}{s.operator}{s.right} is {s.value}" for s in steps)
            return f"first {' then '.join(words)}#{answer}"
        if style == "guess":
            return f"#{answer}"
        written = steps if style == "steps" else steps[1:]
        return f"{';'.join(map(str, written))}#{answer}"

    def reward(self, completion: str, prompt: str, answer: str) -> float:
        numbers = [int(number) for number in prompt.split("@", maxsplit=1)[0].split(",")]
        return countdown_reward(completion, numbers, int(answer))
