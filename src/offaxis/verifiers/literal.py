"""Marking without algebra: numbers with a tolerance, and strings."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from offaxis.errors import InputError
from offaxis.verifiers.answers import final_answer
from offaxis.verifiers.mark import Mark, Marking
from offaxis.verifiers.numbers import Number, read_number

__all__ = ["ExactVerifier", "NumericVerifier"]


class NumericVerifier(Marking):
    """Whether a response's final answer is the gold number, up to a tolerance.

    |answer − gold| ≤ max(absolute, relative·|gold|), computed in rational arithmetic from the
    digits as written: with both 0, the default, 0.1 + 0.2 is 0.3 and 1/3 is not 0.333. `28%` is
    28 unless `percent_value`, which makes it 0.28. Units are ignored.
    """

    def __init__(
        self,
        relative: float = 0.0,
        absolute: float = 0.0,
        *,
        explicit: bool = False,
        percent_value: bool = False,
    ) -> None:
        for name, value in (("relative", relative), ("absolute", absolute)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} {value}: choose a tolerance of 0 or more")
        self.relative, self.absolute = relative, absolute
        self.explicit, self.percent_value = explicit, percent_value

    def _number(self, text: str, explicit: bool) -> tuple[Fraction, str] | None:
        answer = final_answer(text, explicit=explicit)
        if answer is None or len(answer.parts) != 1:
            return None
        shown = answer.text.rpartition("=")[2]
        number = read_number(shown, decimal_comma=not answer.latex)
        return (self._value(number), answer.text) if number else None

    def _value(self, number: Number) -> Fraction:
        return number.value / 100 if number.percent and self.percent_value else number.value

    def mark_one(self, response: str, gold: str) -> Mark:
        """The mark of one pair."""
        found = self._number(response, self.explicit)
        reference = self._number(gold, False)
        if reference is None:
            return Mark(False, "bad_gold", found[1] if found else None)
        if found is None:
            return Mark(False, "no_answer", None)
        bound = max(Fraction(self.absolute), Fraction(self.relative) * abs(reference[0]))
        same = abs(found[0] - reference[0]) <= bound
        return Mark(same, "equal" if same else "different", found[1])


class ExactVerifier(Marking):
    """Whether a response's final answer is the gold string.

    Compared after Unicode NFKC, runs of blanks made one, and the ends stripped of blanks; in any
    case where `fold_case`. `whole` compares the whole response instead of its final answer.
    """

    def __init__(self, *, whole: bool = False, fold_case: bool = True) -> None:
        self.whole, self.fold_case = whole, fold_case

    def _normal(self, text: str) -> str:
        import unicodedata

        plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()
        return plain.casefold() if self.fold_case else plain

    def mark_one(self, response: str, gold: str) -> Mark:
        """The mark of one pair."""
        reference = self._normal(gold)
        if not reference:
            return Mark(False, "bad_gold", None)
        found = None if self.whole else final_answer(response)
        text = found.text if found else (response if self.whole else None)
        if text is None or not text.strip():
            return Mark(False, "no_answer", None)
        same = self._normal(text) == reference
        return Mark(same, "equal" if same else "different", text)
