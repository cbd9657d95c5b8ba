"""Reference answers, taken from the columns in which benchmarks hide them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offaxis.verifiers import last_boxed

__all__ = [
    "Gold",
    "after_hashes",
    "boxed_formula",
    "boxed_integer",
    "contest_integer",
    "listed",
    "plain",
    "solution_boxed",
]

_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)\s*$")
_DOLLARS = re.compile(r"(?<!\\)\$")  # not the sign of the currency
_WHOLE = re.compile(r"[+-]?\d+(?:\.0+)?")


@dataclass(frozen=True, slots=True)
class Gold:
    """A reference answer, and how far from it a number may lie and still be right."""

    answer: str
    tolerance: float | None = None


def plain(value: object) -> str:
    """An answer as text: `27.0` and 27.0 are `27`; a list becomes its items, joined by `, `.

    Raises ValueError, whose words say why, for nothing, blanks, truth values and objects.
    """
    if isinstance(value, bool | Mapping):
        raise ValueError(f"holds {value!r}, which is no answer")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(plain(one) for one in value) or _nothing()
    return ("" if value is None else str(value).strip()) or _nothing()


def _nothing() -> str:
    raise ValueError("is empty")


def after_hashes(value: object) -> str:
    """GSM8K's answer, behind the last `####`, without its thousands separators.

    A value without `####` counts as the answer itself if it is a number.
    """
    text = plain(value)
    answer = text.rpartition("####")[2].strip().replace(",", "").removeprefix("$")
    if not re.fullmatch(r"[+-]?\d+(?:\.\d+)?", answer):
        raise ValueError(f"has no number behind ####: {text[-40:]!r}")
    return answer


def solution_boxed(value: object) -> str:
    """The last boxed expression of a worked solution, without stray dollar signs."""
    text = plain(value)
    answer = _DOLLARS.sub("", last_boxed(text) or "").strip()
    if not answer:
        raise ValueError(f"boxes no answer: ...{text[-40:]!r}")
    return answer


def boxed_formula(value: object) -> str:
    """The same for Minerva's solutions, of which one boxes Python: `np.arcsin` is `\\arcsin`."""
    return solution_boxed(value).replace("np.", "\\")


def boxed_integer(value: object) -> str:
    """A whole number that a worked solution boxes."""
    return contest_integer(solution_boxed(value))


def contest_integer(value: object) -> str:
    """An AIME or AMC answer: a whole number, without leading zeros, `.0` or a degree sign."""
    text = _DEGREES.sub("", plain(value).strip("$ "))
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"is no whole number: {text!r}")
    return str(int(float(text))) if "." in text else str(int(text))


def listed(value: object, error: object = None) -> Gold:
    """OlympiadBench's `final_answer`: a list of LaTeX strings that share dollar signs loosely.

    Dollar signs go; several answers stay one text, separated by commas. `error`, where there is
    one, is the absolute tolerance of a numerical answer.
    """
    text = _DOLLARS.sub("", plain(value)).strip() or _nothing()
    return Gold(text, _tolerance(error))


def _tolerance(value: Any) -> float | None:
    if value is None or str(value).strip() in ("", "None", "nan"):
        return None
    try:
        found = float(str(value))
    except ValueError as error:
        raise ValueError(f"has the tolerance {value!r}, which is no number") from error
    if not 0 <= found < float("inf"):
        raise ValueError(f"has the tolerance {value!r}: it must be finite and not negative")
    return found
