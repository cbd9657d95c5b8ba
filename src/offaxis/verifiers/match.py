"""When two answers are the same: the choices, and the comparison of exact numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from offaxis.errors import InputError
from offaxis.verifiers.numbers import Number

__all__ = ["Match", "normal_text", "same_in_base", "same_number"]


@dataclass(frozen=True, slots=True)
class Match:
    """How strictly answers are found and compared."""

    explicit: bool = False
    """Take only an answer that the response declares (boxed, tagged, "the answer is", or alone)."""
    plain: bool = True
    """Numbers outside LaTeX count as answers."""
    precision: int | None = 6
    """A decimal equals what it is after rounding both to so many places (significant digits, where
    the gold is small); None: only what it is exactly, so that 0.333333 is not 1/3."""
    percent: Literal["either", "value", "literal"] = "either"
    """Whether `28%` equals 28 and 0.28 (`either`), 0.28 alone (`value`), or neither (`literal`)."""
    units: Literal["ignore", "same"] = "ignore"
    """Whether words behind a number must agree where both sides have them."""
    strict: bool = True
    """Names of variables matter, and a tuple is no set (math-verify's `strict`)."""
    worked_out: bool = False
    """Where the gold is a number, the response's answer must be one too: 3+2 is not 5."""
    relation_as_set: bool = False
    """A response's `0 < x < 1` equals a gold `(0, 1)`; the other way round always holds."""

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 <= self.precision <= 30:
            raise InputError(
                f"precision {self.precision}: choose 0 to 30 places, or None for exact"
            )
        if self.percent not in ("either", "value", "literal"):
            raise InputError(f"percent {self.percent!r}: choose either, value or literal")
        if self.units not in ("ignore", "same"):
            raise InputError(f"units {self.units!r}: choose ignore or same")


def _places(gold: Fraction, precision: int) -> int:
    """Decimal places to round to: more than `precision` where the gold has few digits there."""
    size = abs(float(gold))
    if size == 0 or size >= 10.0 ** (3 - precision):
        return precision
    return precision - 1 - math.floor(math.log10(size))


def _equal(gold: Fraction, answer: Fraction, *, rounded: bool, precision: int | None) -> bool:
    if gold == answer:
        return True
    if not rounded or precision is None:
        return False
    places = _places(gold, precision)
    return round(gold, places) == round(answer, places)


def same_number(gold: Number, answer: Number, match: Match) -> bool:
    """Whether two numbers are equal under `match`.

    Exact rational arithmetic; rounding comes in only where one side is written as a decimal.
    """
    if match.units == "same" and gold.unit and answer.unit:
        one, other = (unit.rstrip("s.") for unit in (gold.unit, answer.unit))
        if one != other:
            return False
    readings = [(gold.value, answer.value)]
    if gold.percent or answer.percent:
        a, b = (n.value / 100 if n.percent else n.value for n in (gold, answer))
        both = gold.percent and answer.percent
        if match.percent == "literal" and not both:
            return False
        if match.percent == "value":
            readings = [(a, b)]
        elif match.percent == "either":
            readings.append((a, b))
    rounded = gold.decimal or answer.decimal
    return any(_equal(a, b, rounded=rounded, precision=match.precision) for a, b in readings)


_WRAPPED = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf)\s*\{([^{}]*)\}"
)
_SIZES = re.compile(
    r"\\(?:left|right|big|Big|bigl|bigr|displaystyle)(?![A-Za-z])|\\[,;:! ]|\\q?quad|[${}]"
)


def normal_text(text: str) -> str:
    """`text` with \\text, sizes, dollars, braces and blanks removed; words in lower case.

    A single letter keeps its case (`e` is a number, `E` a choice) and loses its brackets, `(C)`.
    Equal results mean equal answers; different ones mean nothing for mathematics.
    """
    bare = _SIZES.sub("", _WRAPPED.sub(r"\1", text)).strip().rstrip(".")
    bare = re.sub(r"\s+", "", bare)
    if lone := re.fullmatch(r"\(?([A-Za-z])\)?", bare):
        return lone[1]
    letters_only = re.fullmatch(r"[^\W\d_]+", bare) is not None
    return bare.lower() if letters_only else bare


_BASED = re.compile(r"([0-9A-Za-z]+)_\{?\s*([0-9]{1,2})\s*\}?")


def same_in_base(gold: str, answer: str) -> bool | None:
    """Whether two numerals with a base, `204_5`, are the same; None where neither has one.

    Where the gold has a base, a response's bare digits are taken to be in it; where it has none, a
    base other than ten makes a response's digits another number.
    """
    texts = [normal_text(each).strip("()") for each in (gold, answer)]
    one, other = (_BASED.fullmatch(text) for text in texts)
    if one is None and other is None:
        return None
    digits = [found[1] if found else text for found, text in zip((one, other), texts, strict=True)]
    bases = [int(found[2]) if found else None for found in (one, other)]
    if not all(text.isalnum() for text in digits):
        return None
    agree = bases[0] == bases[1] or (bases[1] is None) or (bases == [None, 10])
    return agree and digits[0].lstrip("0").upper() == digits[1].lstrip("0").upper()
