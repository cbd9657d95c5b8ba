"""The tiny interpreter: programs of one-letter operations on lists of digits.

A program is a string of letters, applied from left to right to a list of the digits 0 to 9:

| letter | operation | of `5061` |
|---|---|---|
| `r` | reverse | `1605` |
| `s` | sort, smallest first | `0156` |
| `t` | drop the first | `061` |
| `h` | drop the last | `506` |
| `i` | add one to each, modulo ten | `6172` |
| `c` | nine minus each | `4938` |

An operation that needs more elements than there are leaves the list as it is, so every program
runs and ends.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

__all__ = ["OPERATIONS", "Digits", "run_program"]

Digits = tuple[int, ...]

_LONGEST = 16  # letters; a longer program is not run

OPERATIONS: Mapping[str, Callable[[Digits], Digits]] = MappingProxyType(
    {
        "r": lambda digits: digits[::-1],
        "s": lambda digits: tuple(sorted(digits)),
        "t": lambda digits: digits[1:],
        "h": lambda digits: digits[:-1],
        "i": lambda digits: tuple((digit + 1) % 10 for digit in digits),
        "c": lambda digits: tuple(9 - digit for digit in digits),
    }
)
"""Letter -> operation."""


def run_program(program: str, digits: Digits) -> Digits | None:
    """What `program` makes of `digits`, or None where it is empty, too long or not a program."""
    if not 1 <= len(program) <= _LONGEST or any(letter not in OPERATIONS for letter in program):
        return None
    for letter in program:
        digits = OPERATIONS[letter](digits)
    return digits
