"""Checking a countdown answer: an expression that reaches the target with the given numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from offaxis.verifiers.marked import marked_answer

__all__ = ["Expression", "countdown_reward", "read_expression"]

_LONGEST = 200  # characters; a longer answer is no answer
_DEEPEST = 20  # brackets inside brackets
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression's value and the numbers it is made of, in reading order."""

    value: int
    numbers: tuple[int, ...]


class _Reader:
    """Recursive descent over `sum = product (+|- product)*`, `product = atom (* atom)*`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.peek() == "+" else -1
            self.at += 1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> int:
        value = self.atom(depth)
        while self.peek() == "*":
            self.at += 1
            value *= self.atom(depth)
        return value

    def atom(self, depth: int) -> int:
        if self.peek() == "(" and depth < _DEEPEST:
            self.at += 1
            value = self.sum(depth + 1)
            if self.peek() != ")":
                raise ValueError
            self.at += 1
            return value
        start = self.at
        while self.peek() and self.peek() in "0123456789":
            self.at += 1
        digits = self.text[start : self.at]
        if not 1 <= len(digits) <= _DIGITS:
            raise ValueError
        self.numbers.append(int(digits))
        return int(digits)


def read_expression(text: str) -> Expression | None:
    """Value and numbers of an expression of `+ - * ( )` and integers, or None where it is not one.

    No blanks, no unary minus, at most 200 characters and 20 nested brackets. Any string is
    accepted; nothing is executed or raised.
    """
    if len(text) > _LONGEST:
        return None
    reader = _Reader(text)
    try:
        value = reader.sum(0)
    except ValueError:
        return None
    return Expression(value, tuple(reader.numbers)) if reader.at == len(text) else None


def countdown_reward(
    completion: str, numbers: Sequence[int], target: int, *, marker: str = "#"
) -> float:
    """1.0 where the marked expression equals `target` and uses each number exactly once, else 0.0.

    A pure function of its arguments; the working before the marker does not count.
    """
    answer = marked_answer(completion, marker=marker)
    found = read_expression(answer) if answer is not None else None
    if found is None or sorted(found.numbers) != sorted(numbers):
        return 0.0
    return 1.0 if found.value == target else 0.0
