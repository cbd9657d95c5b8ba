"""Columns of the page of pairs: the user's own and the measures, and what may be done with each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.report.headline import VERDICTS
from offaxis.report.text import DASH, clean, is_number, percent, plain, short_labels, small

__all__ = ["EXCESS", "GROUPED", "MEASURES", "Measure", "Own", "number", "own_columns", "verdict"]

_FEW = 12
"""A column with at most so many values can be grouped by."""

_PATHS = ("name", "base", "tuned")
EXCESS = "_excess"


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure as a column. `family` heads it together with its neighbours."""

    key: str
    head: str
    show: Callable[[float | None], str]
    family: str = ""


def _overlap(key: str, family: str) -> tuple[Measure, ...]:
    return (
        Measure(key, "Observed", plain, family),
        Measure(f"{key}_magnitude_null", "Magnitude null", plain, family),
        Measure(f"{key}{EXCESS}", "Difference", plain, family),
    )


MEASURES = (
    Measure("unchanged_bf16", "Unchanged in bf16", percent),
    Measure("relative_update_norm", "‖ΔW‖ / ‖W₀‖", small),
    Measure("nss", "Spectral shift", small),
    Measure("rotation_left_deg", "Left", small, "Rotation,\u00a0°"),
    Measure("rotation_right_deg", "Right", small, "Rotation,\u00a0°"),
    *_overlap("principal_overlap", "Overlap with principal weights"),
    *_overlap("low_magnitude_overlap", "Overlap with low-magnitude weights"),
)
"""The columns of the table, after the user's own."""

GROUPED = tuple(m for m in MEASURES if not m.family or m.head in ("Left", "Right", "Difference"))
"""What is averaged in each group."""


@dataclass(frozen=True, slots=True)
class Own:
    """One of the user's columns: its cells as text (None where empty) and what it can do."""

    key: str
    cells: tuple[str | None, ...]
    full: tuple[str | None, ...]
    """The same, not shortened."""
    numbers: tuple[float | None, ...] | None
    """The cells as numbers, where all that are not empty are."""

    @property
    def values(self) -> list[str | None]:
        """Each value once: numbers by size, text as it comes, the empty one last."""
        seen = list(dict.fromkeys(self.cells))
        if self.numbers is not None:
            size = dict(zip(self.cells, self.numbers, strict=True))
            seen.sort(key=lambda cell: (cell is None, size[cell] or 0.0))
        return sorted(seen, key=lambda cell: cell is None)

    @property
    def few(self) -> bool:
        """Whether it tells the pairs apart, by few values."""
        return 2 <= len(self.values) <= _FEW

    @property
    def groups(self) -> bool:
        """Whether there is something to average: few values, and some pairs share one."""
        known = [cell for cell in self.cells if cell is not None]
        return self.few and len(set(known)) < len(known)


def own_columns(own: pl.DataFrame) -> list[Own]:
    """The user's columns in order, `name` leading. `tuned` is left out where it is the name."""
    names = own["name"].to_list()
    keys = ["name", *(key for key in own.columns if key != "name")]
    if own["tuned"].to_list() == names:
        keys.remove("tuned")
    return [_own(key, own[key].to_list()) for key in keys]


def _own(key: str, cells: Sequence[Any]) -> Own:
    full = tuple(None if cell is None else clean(_text(cell)) for cell in cells)
    numbers = [number(cell) for cell in cells]
    whole = all(n is not None for n, cell in zip(numbers, cells, strict=True) if cell is not None)
    known = tuple(numbers) if whole and any(n is not None for n in numbers) else None
    shown: tuple[str | None, ...] = full
    if key in _PATHS:
        shown, known = _short([str(cell) for cell in cells]), None
    return Own(key, shown, full, known)


def _short(names: Sequence[str]) -> tuple[str, ...]:
    """Short labels, the same one for the same name."""
    distinct = list(dict.fromkeys(names))
    labels = dict(zip(distinct, short_labels(distinct), strict=True))
    return tuple(labels[name] for name in names)


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:.12g}" if isinstance(cell, float) else str(cell)


def number(cell: Any) -> float | None:
    """A cell that is a number, or text that reads as one (`1e-6`, `53.8%`)."""
    if is_number(cell):
        return float(cell)
    if not isinstance(cell, str) or "_" in cell:
        return None
    try:
        value = float(cell.strip().removesuffix("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def verdict(pair: Mapping[str, Any]) -> str:
    """The verdict in words."""
    label = str((pair.get("verdict") or {}).get("label", ""))
    return VERDICTS.get(label, clean(label) or DASH)
