"""Whether accuracy follows from where first singular directions go, run by run, beside walks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.lab.predict.history import History
from offaxis.lab.predict.rows import LINEARITY, NUMBERS
from offaxis.predict.dynamics import dynamics_series
from offaxis.predict.pls import check_scores

__all__ = ["linear", "means"]

_DRAWS = 100

_MEANS = {
    **dict.fromkeys(("method", "task", "kind", "role", "measure"), pl.String()),
    **dict.fromkeys(("value", "low", "high"), pl.Float64()),
    "runs": pl.Int64(),
}


def linear(history: History, curve: pl.DataFrame) -> pl.DataFrame:
    """Columns `rows.LINEARITY`: of all matrices of a run, and role by role."""
    scores = dict(curve.select("step", "validation").iter_rows())
    try:
        check_scores(np.array([scores[step] for step in history.paths]))
    except InputError:  # nothing to fit; what else is measured of the run stands
        return pl.DataFrame(schema=LINEARITY)
    series = history.series
    points = tuple(
        replace(point, score=scores[step])
        for point, step in zip(series.points, history.paths, strict=True)
    )
    found = dynamics_series(replace(series, points=points), draws=_DRAWS).summary()
    rows = [{"run": history.name} | row for row in _rows(found)]
    return pl.DataFrame(rows, schema=LINEARITY)


def _rows(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    shift = [one["relative_shift_mean"] for one in found["embeddings"]]
    beside = {f"step_{name}": found["step_line"][name] for name in ("r2", "q2")}
    beside["embedding_shift"] = shift[0] if shift else None
    for kind, one in found["kinds"].items():
        if one["mean"] is None:
            continue
        told = {"kind": kind} | beside
        yield told | {"role": None, "matrices": one["matrices"]} | one["mean"] | one["shares"]
        for own in one["by_role"]:
            yield told | {name: own.get(name) for name in ("role", "matrices", *NUMBERS)}


def means(table: pl.DataFrame, measures: list[str]) -> pl.DataFrame:
    """Mean over runs with Student's t interval, by method, task, kind and role.

    Columns: those, measure, value, low, high (None with one run), runs.
    """
    rows: list[dict[str, Any]] = []
    keys = ("method", "task", "kind", "role")
    for place, own in table.group_by(*keys, maintain_order=True):
        for measure in measures:
            values = own[measure].drop_nulls().drop_nans()
            if values.is_empty():
                continue
            value, count = float(values.mean()), values.len()  # type: ignore[arg-type]
            spread = float(values.std()) if count > 1 else None  # type: ignore[arg-type]
            half = None if spread is None else student_t(count - 1) * spread / count**0.5
            told = dict(zip(keys, place, strict=True)) | {"measure": measure, "value": value}
            told["low"] = None if half is None else value - half
            told["high"] = None if half is None else value + half
            rows.append(told | {"runs": count})
    return pl.DataFrame(rows, schema=_MEANS)
