"""Numbers as people write them, read exactly: `1,234.50`, `-3/4`, `2 1/2`, `28%`, `$5 million`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["IN_TEXT", "Number", "read_number"]

_LONGEST = 120  # characters of a number with its unit
_PLACES = 40  # digits of a number, and the largest exponent of ten
_CURRENCY = r"\\?[$€£¥₹₩₽₺₫₪฿]"

_COMMA = r"(?:\{,\}|,\\!\s?|\\,|\\!|,)"
_GROUPED = rf"[1-9][0-9]{{0,2}}(?:{_COMMA}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?"
_PLAIN = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_ANY = rf"(?:{_GROUPED}|{_PLAIN})"
_CORES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<n>{_ANY})(?:[eE](?P<e>[+-]?[0-9]{{1,3}}))?",
        rf"(?P<n>{_PLAIN})\s*(?:\\times|\\cdot|×|·|\*)\s*10\s*(?:\^|\*\*)\s*"
        r"\{?\s*(?P<e>[+-]?[0-9]{1,3})\s*\}?",
        rf"\(?(?P<n>{_ANY})\)?\s*/\s*\(?(?P<d>{_ANY})\)?",
        rf"\\[dtc]?frac\s*\{{\s*(?P<s>-?)\s*(?P<n>{_ANY})\s*\}}\s*\{{\s*(?P<d>{_ANY})\s*\}}",
        r"\\[dtc]?frac\s*(?P<n>[0-9])\s*(?P<d>[0-9])",
        r"(?P<w>[0-9]{1,15})\s*\\[dt]?frac\s*\{\s*(?P<n>[0-9]{1,15})\s*\}\s*\{\s*(?P<d>[0-9]{1,15})\s*\}",
        r"(?P<w>[0-9]{1,15})\s+(?P<n>[0-9]{1,15})/(?P<d>[0-9]{1,15})",
        r"(?P<n>(?:0|[1-9][0-9]*),[0-9]{1,2}|0,[0-9]+|[1-9][0-9]{3,},[0-9]+)(?P<comma>)",
        r"(?P<n>[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?)",
    )
)
"""Decimals, powers of ten, ratios, LaTeX fractions, mixed numbers, decimal commas, spaces."""

_SIGNS = re.compile(rf"(?P<a>[+\-−–]?)\s*(?:{_CURRENCY})?\s*(?P<b>[+\-−–]?)\s*")
_WORD = r"[^\W\d_]+(?:[ /.\-][^\W\d_]+){0,3}"
_TEXT = r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf)"
_ENDS = tuple(
    (kind, re.compile(pattern + r"\s*$"))
    for kind, pattern in (
        (
            "percent",
            rf"\s*(?:\\?%|{_TEXT}\s*\{{\s*(?:\\?%|percent)\s*\}}|\b(?i:per\s?cent(?:age)?|pct))",
        ),
        ("degrees", r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)"),
        ("currency", rf"\s*{_CURRENCY}"),
        ("point", r"(?<=[0-9}])\."),
        ("space", r"(?:\\[,;:! ]|~|\\q?quad)"),
        ("unit", rf"{_TEXT}\s*\{{\s*(?P<inner>{_WORD})\.?\s*\}}\s*(?:\^\s*\{{?[23]\}}?)?"),
        ("unit", rf"(?<=[0-9\s}}])(?P<inner>{_WORD})\.?\s*(?:\^\s*\{{?[23]\}}?|[²³])?"),
    )
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_LETTERS = frozenset("mgsLlNJWVAK")  # units of one letter, where a blank stands before them
_NO_UNIT = frozenset(
    ("or", "and", "to", "not", "times", "plus", "minus", "over", "than", "if", "e", "of", "is",
     "in", "as", "so", "for", "because", "since", "but", "mod", "choose")
)  # fmt: skip

IN_TEXT = re.compile(
    rf"(?<![\w.])(?<!\.[-−])[-−]?(?:{_CURRENCY})?\s?[-−]?"
    rf"(?:[0-9]+ [0-9]+/[0-9]+|{_PLAIN}/{_PLAIN}|{_GROUPED}|[0-9]+,[0-9]{{1,2}}(?![0-9])"
    r"|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:\s?\\?%|\s?(?i:per\s?cent|pct)\b|\s(?:hundred|thousand|million|billion|trillion)\b)?"
)
"""A number in prose, with its sign, currency, percent sign or scale."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number's exact value, and how it was written."""

    value: Fraction
    """Of the number as written: 28 for `28%`."""
    decimal: bool
    """Whether it has a decimal point, and so may have been rounded."""
    percent: bool
    unit: str = ""
    """The words behind it, lower case; currencies and degrees are dropped."""


def _digits(text: str | None, comma: bool = False) -> Fraction | None:
    """The value of unsigned digits and separators, or None where there are too many."""
    plain = re.sub(r"[^0-9.]", "", (text or "").replace(",", ".") if comma else text or "")
    return Fraction(plain) if 0 < len(plain) <= _PLACES and plain != "." else None


def _core(text: str) -> tuple[Fraction, bool, bool] | None:
    """Value of an unsigned number, whether it is a decimal, whether it has a decimal comma."""
    found = next((match for one in _CORES if (match := one.fullmatch(text))), None)
    if found is None:
        return None
    parts = found.groupdict()
    value, exponent = _digits(parts["n"], "comma" in parts), int(parts.get("e") or 0)
    if value is None or abs(exponent) > _PLACES:
        return None
    if "d" in parts:
        under = _digits(parts["d"])
        if not under:
            return None
        value = value / under * (-1 if parts.get("s") else 1)
    value = value * Fraction(10) ** exponent + (_digits(parts.get("w")) or 0)
    comma = "comma" in parts
    return value, "." in text or comma or exponent < 0, comma


def read_number(text: str, *, decimal_comma: bool = True) -> Number | None:
    """The number that `text` is as a whole, or None where it is not one.

    Read: signs, thousands (`1,234`, `1{,}234`, `1 234`), decimal points, decimal commas where they
    cannot be thousands or lists (`3,5`, `0,111`), ratios, LaTeX fractions, mixed numbers, powers
    of ten, a currency before or behind, percent, degrees, units in words or in \\text, and the
    words hundred to trillion. At most 120 characters and 40 digits. Without `decimal_comma`, as
    in LaTeX, `3,5` is two numbers and so none.
    """
    rest = text.strip()
    if not rest or len(rest) > _LONGEST:
        return None
    start = _SIGNS.match(rest)
    negative = start is not None and (start["a"] + start["b"]).strip("+") != ""
    if start is not None and start["a"] and start["b"]:
        return None
    rest = rest[start.end() :] if start else rest
    percent, unit, power = False, "", 0
    for _ in range(4):
        core = _core(rest)
        if core and not (core[2] and not decimal_comma):
            value = core[0] * 10**power * (-1 if negative else 1)
            return Number(value, core[1], percent, unit)
        cut = next(((kind, found) for kind, one in _ENDS if (found := one.search(rest))), None)
        if cut is None:
            return None
        percent |= cut[0] == "percent"
        if cut[0] == "unit":
            words = cut[1]["inner"]
            first, _, more = words.lower().partition(" ")
            lone = len(words) == 1 and "\\" not in cut[1].group() and words not in _LETTERS
            if _NO_UNIT & set(words.lower().split()) or lone or unit:
                return None
            power, unit = _SCALES.get(first, 0), more if first in _SCALES else words.lower()
        rest = rest[: cut[1].start()].rstrip()
    return None
