"""Small programs on lists: find the program that turns each left list into the right one.

The prompt gives two examples; the answer is a program of `interpreter.OPERATIONS`. It is checked
by running it on the examples and on lists that the prompt does not show.

| style | completion of `5061>2716,2839>0493:` (reverse, then add one to each) |
|---|---|
| `steps` | `r1605;i2716#ri` |
| `chain` | `1605#ri` |
| `guess` | `#ri` |
| `foreign` | `first r is 1605 then i is 2716#ri` |

Difficulty is the number of operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from offaxis.lab.tasks.family import Mixture, Problem, Style, Task
from offaxis.lab.tasks.interpreter import OPERATIONS, Digits, run_program
from offaxis.verifiers import marked_answer

__all__ = ["ProgramProblem", "Programs"]

_LETTERS = "".join(OPERATIONS)
_WIDTH = 4
_SHOWN = 2
_PROBES: tuple[Digits, ...] = tuple(
    tuple(Random(f"probe/{index}").choices(range(10), k=_WIDTH)) for index in range(16)
)
"""Lists on which a program must agree with the hidden one, beside the examples of the prompt.

Any two programs of up to three letters that differ somewhere differ on one of them.
"""


@dataclass(frozen=True, slots=True)
class ProgramProblem(Problem):
    """Its answer is the program that made the examples; any program that does the same is right."""

    inputs: tuple[Digits, ...]


def _text(digits: Digits) -> str:
    return "".join(map(str, digits))


def _run(program: str, digits: Digits) -> Digits:
    found = run_program(program, digits)
    assert found is not None
    return found


def _same(a: str, b: str, lists: tuple[Digits, ...]) -> bool:
    """True where both are programs that agree on every list."""
    return all(
        (found := run_program(a, digits)) is not None and found == run_program(b, digits)
        for digits in lists
    )


def _is_idle(program: str) -> bool:
    """True where a shorter part of the program does the same on every probe."""
    shorter = [program[:at] + program[at + 1 :] for at in range(len(program))]
    unchanged = all(run_program(program, digits) == digits for digits in _PROBES)
    return unchanged or any(part and _same(part, program, _PROBES) for part in shorter)


class Programs(Task[ProgramProblem]):
    """The family `programs`."""

    name = "programs"
    mixture = Mixture(
        share=MappingProxyType({"steps": 0.40, "chain": 0.35, "guess": 0.25}),
        right=MappingProxyType({"steps": 0.90, "chain": 0.70, "guess": 0.40}),
    )
    longest = MappingProxyType({1: 7, 2: 14, 3: 21})

    def draw(self, rng: Random, difficulty: int) -> ProgramProblem:
        while True:
            program = "".join(rng.choices(_LETTERS, k=difficulty))
            inputs = tuple(tuple(rng.choices(range(10), k=_WIDTH)) for _ in range(_SHOWN))
            outputs = [_run(program, digits) for digits in inputs]
            if not _is_idle(program) and all(
                before != after for before, after in zip(inputs, outputs, strict=True)
            ):
                break
        shown = (f"{_text(a)}>{_text(b)}" for a, b in zip(inputs, outputs, strict=True))
        return ProgramProblem(",".join(shown) + ":", program, inputs)

    def solution(self, problem: ProgramProblem, *, style: Style, right: bool, rng: Random) -> str:
        """A wrong solution takes one wrong operation and traces what that one does."""
        program = problem.answer
        while not right and _same(program, problem.answer, (*problem.inputs, *_PROBES)):
            at = rng.randrange(len(program))
            program = program[:at] + rng.choice(_LETTERS) + program[at + 1 :]
        trace: list[tuple[str, str]] = []
        digits = problem.inputs[0]
        for letter in program:
            digits = _run(letter, digits)
            trace.append((letter, _text(digits)))
        if style == "foreign":
            return f"first {' then '.join(f'{a} is {b}' for a, b in trace)}#{program}"
        if style == "guess":
            return f"#{program}"
        if style == "chain":
            return f"{';'.join(after for _, after in trace[:-1])}#{program}"
        return f"{';'.join(letter + after for letter, after in trace)}#{program}"

    def reward(self, completion: str, prompt: str, answer: str) -> float:
        program = marked_answer(completion)
        if program is None:
            return 0.0
        shown = tuple(
            tuple(map(int, example.split(">")[0])) for example in prompt.rstrip(":").split(",")
        )
        return 1.0 if _same(program, answer, (*shown, *_PROBES)) else 0.0
