"""One row a pair: what a summary says about it, flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offaxis.comparison.summary import PairTotals, summarise_pair

if TYPE_CHECKING:
    import polars as pl

__all__ = ["flat", "pairs_frame", "reserved"]


def flat(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of one entry of `summary.json`'s `pairs` under a name of its own.

    A mean `x` over matrices is followed by `x_low` and `x_high`, its interval, and `x_matrices`,
    how many it is over. `nonfinite_base`, `nonfinite_tuned` and the verdict's label end the row.
    """
    intervals, measured = pair["intervals"], pair["measured"]
    row: dict[str, Any] = {}
    for key, value in pair.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            continue
        row[key] = value
        if key in measured:
            row[f"{key}_low"], row[f"{key}_high"] = intervals.get(key, (None, None))
            row[f"{key}_matrices"] = measured[key]
    row |= {f"nonfinite_{side}": number for side, number in pair["nonfinite"].items()}
    return row | {"verdict": pair["verdict"]["label"]}


def _blank() -> dict[str, Any]:
    """The row of a pair in which nothing was measured: its columns, and which of them count."""
    return flat(summarise_pair("", [], PairTotals(), sizes=None))


def reserved() -> frozenset[str]:
    """Names of the columns that offaxis fills, which no column of a manifest may have."""
    return frozenset(_blank())


def pairs_frame(own: pl.DataFrame, pairs: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The user's columns, then every summary number and interval; one row a pair."""
    import polars as pl

    def kind(value: object) -> pl.DataType | type[pl.DataType]:
        if isinstance(value, str):
            return pl.String
        return pl.Int64 if isinstance(value, int) else pl.Float64

    schema = {name: kind(value) for name, value in _blank().items()}
    return own.hstack(pl.DataFrame([flat(pair) for pair in pairs], schema=schema))
