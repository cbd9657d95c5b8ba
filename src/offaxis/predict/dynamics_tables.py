"""What was found of linear dynamics, as tables and as a summary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.predict.methods import Timeline
from offaxis.predict.pls import Fit
from offaxis.predict.series import Series
from offaxis.predict.trajectories import KINDS, Trajectory
from offaxis.predict.walks import WALK_PC1, Linearity, principal_path
from offaxis.provenance import library_versions

__all__ = ["COLUMNS", "PATHS", "measurement_frame", "measurement_rows", "path_rows", "summary"]

Floats = NDArray[np.float64]

COLUMNS = {
    "tensor": pl.String,
    "layer": pl.Int32,
    "role": pl.String,
    "expert": pl.Int32,
    "rows": pl.Int64,
    "cols": pl.Int64,
    "kind": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
    "status": pl.String,
}
"""Columns of `dynamics.parquet`. kind: `raw`, `scaled`, or `update` for ‖ΔW_T‖_F and σ₁."""

PATHS = {
    "tensor": pl.String,
    "kind": pl.String,
    "step": pl.Float64,
    "score": pl.Float64,
    "pc1": pl.Float64,
    "pc2": pl.Float64,
    "walk_pc1": pl.Float64,
    "walk_pc2": pl.Float64,
}
"""Columns of `paths.parquet`: each trajectory and one walk along their own two components."""

_MEANS = (
    "r2", "q2", "rmse", "walk_r2", "walk_q2", "residual_r2", "residual_null", "residual_walk",
    "permuted_r2", "pc1", "walk_pc1",
)  # fmt: skip


def measurement_rows(
    path: Trajectory,
    linear: Mapping[str, Linearity | None],
    pc1: Mapping[str, float],
    walk_pc1: Mapping[str, float],
) -> Iterator[tuple[Any, ...]]:
    """One row a number of one matrix."""
    where = (path.tensor, path.layer, path.role, path.expert, *path.shape)
    for name, value in (("update_norm", path.norms[-1]), ("sigma", path.sigma[-1])):
        yield (*where, "update", name, float(value), "ok")
    for kind in KINDS:
        found = linear[kind]
        numbers = {"pc1": pc1[kind], "walk_pc1": walk_pc1[kind]}
        if found is None:
            yield (*where, kind, "r2", None, "no_movement")
        else:
            numbers = found.numbers() | numbers
        for name, value in numbers.items():
            known = math.isfinite(value)
            yield (*where, kind, name, value if known else None, "ok" if known else "undefined")


def measurement_frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """The table."""
    return pl.DataFrame(list(rows), schema=COLUMNS, orient="row")


def path_rows(
    path: Trajectory, walk: Mapping[str, Floats], timeline: Timeline
) -> Iterator[tuple[Any, ...]]:
    """One row a checkpoint: where trajectory and walk stand in their own two components."""
    scores = _scores(timeline)
    for kind in KINDS:
        own, _ = principal_path(path.rows(kind))
        null, _ = principal_path(walk[kind])
        for t, step in enumerate(timeline.steps):
            score = float(scores[t]) if np.isfinite(scores[t]) else None
            yield (path.tensor, kind, float(step), score, *map(float, own[t]), *map(float, null[t]))


def summary(
    series: Series,
    timeline: Timeline,
    table: pl.DataFrame,
    rival: Fit,
    embeddings: Sequence[Mapping[str, Any]],
    *,
    draws: int,
    seed: int,
    notes: Sequence[str],
    tied: int,
) -> dict[str, Any]:
    """What `dynamics.json` holds."""
    scores = _scores(timeline)
    used = int(np.isfinite(scores).sum())
    norms = table.filter(pl.col("measure") == "update_norm").select(
        "tensor", pl.col("value").alias("update_norm")
    )
    told = list(notes)
    if tied:
        told.append(f"{tied} of all first directions are not unique: two singular values are equal")
    return {
        "schema": 1,
        "base": series.base.source,
        "checkpoints": [
            {"name": name, "step": float(step), "score": float(mark) if np.isfinite(mark) else None}
            for name, step, mark in zip(series.names, timeline.steps, scores, strict=True)
        ],
        "fitted_on": used,
        "step_line": asdict(rival),
        "kinds": {
            kind: _kind(table.filter(pl.col("kind") == kind), norms, rival) for kind in KINDS
        },
        "walk_pc1_limit": WALK_PC1,
        "embeddings": list(embeddings),
        "notes": told,
        "run": {
            "draws": draws,
            "seed": seed,
            "versions": library_versions("numpy", "scikit-learn", "polars"),
        },
    }


def _kind(table: pl.DataFrame, norms: pl.DataFrame, rival: Fit) -> dict[str, Any]:
    """Means over matrices, how many beat their nulls and the step, by layer and by role."""
    wide = table.filter(pl.col("status") == "ok").pivot(
        on="measure", index=["tensor", "layer", "role"], values="value"
    )
    wide = wide.filter(pl.col("r2").is_not_null()) if "r2" in wide.columns else wide.clear()
    out: dict[str, Any] = {"matrices": wide.height}
    if wide.is_empty():
        return out | {"mean": None, "by_layer": [], "by_role": []}
    has = set(wide.columns)
    beats = {
        "above_walks": pl.col("r2") > pl.col("walk_r2_q95"),
        "left_out_above_walks": pl.col("q2") > pl.col("walk_q2_q95"),
        "left_out_above_step": pl.col("q2") > rival.q2,
    }
    if "residual_null_q95" in has:
        beats["residual_above_permuted"] = pl.col("residual_r2") > pl.col("residual_null_q95")
    shares = wide.select(**{name: rule.mean() for name, rule in beats.items()}).row(0, named=True)
    return out | {
        "mean": _means(wide),
        "r2_least": wide["r2"].min(),
        "r2_most": wide["r2"].max(),
        "shares": shares,
        "r2_norm_rank_correlation": _number(
            wide.join(norms, on="tensor")
            .select(pl.corr("r2", "update_norm", method="spearman"))
            .item()
        ),
        "by_layer": _by(wide, "layer"),
        "by_role": _by(wide, "role"),
    }


def _scores(timeline: Timeline) -> Floats:
    """(T,), NaN where none is known."""
    return np.full(len(timeline.steps), np.nan) if timeline.scores is None else timeline.scores


def _means(wide: pl.DataFrame) -> dict[str, float | None]:
    return {name: _number(wide[name].mean()) if name in wide.columns else None for name in _MEANS}


def _by(wide: pl.DataFrame, column: str) -> list[dict[str, Any]]:
    groups = wide.group_by(column, maintain_order=True)
    return [{column: key, "matrices": own.height, **_means(own)} for (key,), own in groups]


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None
