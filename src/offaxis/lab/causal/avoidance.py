"""Do runs avoid principal entries, and whose: each arm's excess over the magnitude null."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from offaxis.lab.causal.jackknife import Values, estimate
from offaxis.lab.causal.subjects import ARM, trained

__all__ = ["AVOIDANCE", "avoidance"]

_VIEWS = ("own", "original", "back")

AVOIDANCE: dict[str, Any] = {
    "method": pl.String(),
    "optimizer": pl.String(),
    "learning_rate": pl.Float64(),
    "edit": pl.String(),
    "step": pl.Int64(),
    **{
        f"{view}{end}": pl.Float64()
        for view in ("unedited", *_VIEWS, "difference")
        for end in ("", "_low", "_high")
    },
    "overlap": pl.Float64(),
    "null": pl.Float64(),
    "runs": pl.Int64(),
}
"""Columns: overlap of the changed entries with M_princ minus its magnitude null, in the tensors
that the edit changes, the mean over them and over seeds (Student's t). unedited: runs from the
base; own, original, back: runs from the edited base, against M_princ as `principal.PRINCIPAL`
says; difference: own − unedited, of the same seeds. overlap, null: of the runs from the base."""


def avoidance(rows: pl.DataFrame, principal: pl.DataFrame) -> pl.DataFrame:
    """Every arm, edit and step: columns `AVOIDANCE`."""
    runs = trained(rows).select("run", "edit", "seed", *ARM)
    joined = _excesses(principal).join(runs, on="run")
    keys = [*ARM, "edit", "step"]
    found = []
    for key, own in joined.filter(pl.col("edit").is_not_null()).group_by(keys, maintain_order=True):
        arm = dict(zip(keys, key, strict=True))
        tensors = own.filter("edited")["tensor"].unique().to_list()
        same = [pl.col(name).eq_missing(pl.lit(arm[name])) for name in (*ARM, "step")]
        plain = joined.filter(*same, pl.col("edit").is_null())
        place = {name: arm[name] for name in ("method", "learning_rate", "edit", "step")}
        place["optimizer"] = arm["optimizer"] or "adamw_torch"
        inside = pl.col("tensor").is_in(tensors)
        found.append(place | _one(plain.filter(inside), own.filter(inside)))
    return pl.DataFrame(found, schema=AVOIDANCE)


def _excesses(principal: pl.DataFrame) -> pl.DataFrame:
    changed = {"own": "changed", "original": "changed", "back": "back_changed"}
    found = principal.with_columns(
        ((pl.col(f"{view}_shared") - pl.col(f"{view}_expected")) / pl.col(size)).alias(view)
        for view, size in changed.items()
    )
    shares = [
        (pl.col(f"own_{one}") / pl.col("changed")).alias(name)
        for one, name in (("shared", "overlap"), ("expected", "null"))
    ]
    return found.with_columns(*shares).with_columns(
        pl.col(*_VIEWS, "overlap", "null").fill_nan(None)
    )


def _one(plain: pl.DataFrame, edited: pl.DataFrame) -> dict[str, Any]:
    groups = {"unedited": _by_seed(plain, "own")}
    groups |= {view: _by_seed(edited, view) for view in _VIEWS}
    told: dict[str, Any] = {"runs": len(groups["own"])}
    for name, values in groups.items():
        told |= _ends(name, {"all": values}, "all", "")
    shared = {"own": groups["own"], "unedited": groups["unedited"]}
    told |= _ends("difference", shared, "own", "unedited")
    return told | {name: plain[name].mean() for name in ("overlap", "null")}


def _by_seed(table: pl.DataFrame, view: str) -> Values:
    means = table.group_by("seed", maintain_order=True).agg(pl.col(view).mean())
    return {(seed, seed): value for seed, value in means.iter_rows() if value is not None}


def _ends(name: str, groups: dict[str, Values], plus: str, minus: str) -> dict[str, Any]:
    found = estimate(groups, lambda means: means[plus] - means.get(minus, 0.0))
    value = None if math.isnan(found.value) else found.value
    return {name: value, f"{name}_low": found.low, f"{name}_high": found.high}
