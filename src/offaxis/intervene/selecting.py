"""Which layers: `1,2`, `4-7`, `vision.3`, as text or as a sequence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from offaxis.errors import InputError

__all__ = ["Layer", "parse_layers"]

_WORD = re.compile(r"(?:(?P<tower>[a-z]+)\.)?(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?", re.ASCII)
_TOWERS = ("", "vision")


@dataclass(frozen=True, order=True)
class Layer:
    """One layer of a tower: an empty string for the language model, or `vision`."""

    tower: str
    number: int

    def __str__(self) -> str:
        return f"{self.tower}.{self.number}" if self.tower else str(self.number)


def parse_layers(wanted: str | int | Sequence[str | int]) -> tuple[Layer, ...]:
    """The layers in ascending order, 0-based as in tensor names.

    Commas join, `4-7` is an inclusive range, `vision.` before either takes the vision tower.
    InputError where a word is none of these, a range runs backwards, or a layer is named twice.
    """
    given = [wanted] if isinstance(wanted, str | int) else list(wanted)
    words = [word.strip() for one in given for word in str(one).split(",")]
    found: set[Layer] = set()
    for word in words:
        for layer in _layers_of(word):
            if layer in found:
                raise InputError(f"layers {_told(given)}: {layer} is named twice; name it once")
            found.add(layer)
    if not found:
        raise InputError("no layer is named; give numbers such as 1,2 or 4-7")
    return tuple(sorted(found))


def _layers_of(word: str) -> list[Layer]:
    match = _WORD.fullmatch(word)
    tower = "" if match is None else match["tower"] or ""
    if match is None or tower not in _TOWERS:
        raise InputError(
            f"layer {word!r}: give a number (3), an inclusive range (4-7), or either of the vision "
            "tower (vision.3), joined by commas"
        )
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if last < first:
        raise InputError(f"layers {word}: the range runs backwards; write {last}-{first}")
    return [Layer(tower, number) for number in range(first, last + 1)]


def _told(given: Sequence[str | int]) -> str:
    return ",".join(map(str, given))
