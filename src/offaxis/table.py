"""The two tables that offaxis writes, and nothing else: schemas and small builders.

`measurements` is in long form, one row a number. `curves` holds what is a list by nature
(a spectrum, a histogram, a picture), one row a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

__all__ = [
    "CURVES",
    "MEASUREMENTS",
    "Curve",
    "Measurement",
    "curves_frame",
    "measurements_frame",
]

MEASUREMENTS = (
    "tuned",
    "tensor",
    "layer",
    "role",
    "expert",
    "rows",
    "cols",
    "measure",
    "value",
    "unit",
    "error",
    "status",
)
"""Columns of `measurements.parquet`. `status` is `ok` or the reason why `value` is null."""

CURVES = ("tuned", "tensor", "curve", "shape", "values")
"""Columns of `curves.parquet`. `values` is row-major; `shape` has one or two entries."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number: which checkpoint, which tensor, which measure."""

    tuned: str
    tensor: str
    layer: int | None
    role: str
    expert: int | None
    rows: int
    cols: int
    measure: str
    value: float | None
    unit: str = "1"
    error: float | None = None
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Curve:
    """One list of numbers that belongs to a checkpoint and a tensor. `values` is flat."""

    tuned: str
    tensor: str
    curve: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.float64]


def measurements_frame(rows: Sequence[Measurement]) -> pl.DataFrame:
    """A polars frame with the columns `MEASUREMENTS`, an undefined number being null."""
    import polars as pl

    schema: Mapping[str, pl.DataType | type[pl.DataType]] = {
        "tuned": pl.String,
        "tensor": pl.String,
        "layer": pl.Int32,
        "role": pl.String,
        "expert": pl.Int32,
        "rows": pl.Int64,
        "cols": pl.Int64,
        "measure": pl.String,
        "value": pl.Float64,
        "unit": pl.String,
        "error": pl.Float64,
        "status": pl.String,
    }
    columns = {name: [getattr(row, name) for row in rows] for name in MEASUREMENTS}
    return pl.DataFrame(columns, schema=schema).with_columns(
        pl.col("value", "error").fill_nan(None)
    )


def curves_frame(rows: Sequence[Curve]) -> pl.DataFrame:
    """A polars frame with the columns `CURVES`."""
    import polars as pl

    schema: Mapping[str, pl.DataType | type[pl.DataType]] = {
        "tuned": pl.String,
        "tensor": pl.String,
        "curve": pl.String,
        "shape": pl.List(pl.Int64),
        "values": pl.List(pl.Float64),
    }
    columns = {
        "tuned": [row.tuned for row in rows],
        "tensor": [row.tensor for row in rows],
        "curve": [row.curve for row in rows],
        "shape": [list(row.shape) for row in rows],
        "values": pl.Series([row.values for row in rows], dtype=schema["values"]),
    }
    return pl.DataFrame(columns, schema=schema)
