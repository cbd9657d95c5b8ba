"""Pooled numbers as lines to read."""

from __future__ import annotations

import polars as pl

from offaxis.comparison.contribution.pooling import ASKED, Pool
from offaxis.comparison.contribution.shared import SHARED
from offaxis.errors import InputError

__all__ = ["asked", "lines"]

_BY = ("pair", "role", "layer", "overlap")
_SHOWN = ("tuned", "group", "measure", "mean", "low", "high", "matrices")


def asked(rows: pl.DataFrame, by: str, measures: str | None) -> pl.DataFrame:
    """The numbers of one grouping, of these measures (joined by commas).

    By default the excesses over the nulls, for overlaps all of theirs. Raises InputError for a
    grouping or a measure that is not there.
    """
    if by not in _BY:
        raise InputError(f"--by {by!r}: choose one of {', '.join(_BY)}")
    found = rows.filter(pl.col("by") == by)
    wanted = measures.split(",") if measures else list(SHARED if by == "overlap" else ASKED)
    known = set(found["measure"].unique())
    missing = sorted(set(wanted) - known) if measures else []
    if missing:
        raise InputError(
            f"no measure {', '.join(missing)} by {by}; there are {', '.join(sorted(known))}"
        )
    return found.filter(pl.col("measure").is_in(wanted)).select(_SHOWN)


def lines(frame: pl.DataFrame, found: Pool) -> list[str]:
    """A frame as aligned columns, with what was left out at the end."""
    cells = [frame.columns, *([_cell(one) for one in row] for row in frame.iter_rows())]
    widths = [max(len(row[index]) for row in cells) for index in range(frame.width)]
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    shown = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    told = f"{found.files} file{'' if found.files == 1 else 's'}, {found.rows.height:,} numbers"
    if found.repeated:
        told += f"; {found.repeated} pairs were there before and count once"
    return [*shown, told]


def _cell(value: object) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
