"""Levels of likeness: each arm's pairs by kind, in edited and in other tensors, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.lab.causal.jackknife import Estimate, Values, estimate
from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.causal.subjects import ARM, RANKS, trained

__all__ = ["LEVELS", "MEASURES", "ONE_SEED", "SCOPES", "Cell", "cells", "levels", "numbered"]

SCOPES = ("edited", "alike", "rest")
"""Tensors that the edit changes; those of the same roles in the layers that it leaves; all else."""

MEASURES: Mapping[str, str] = {
    "excess": "Jaccard of the masks − its magnitude null",
    "back_excess": "the same, updates pulled back",
    "cosine": "cosine of the updates",
    "back_cosine": "the same, pulled back",
    **{
        f"{side}_{rank}": f"{side} top-{rank} subspaces − chance"
        for rank in RANKS
        for side in ("left", "right")
    },
    "span": "top-8 subspaces − chance, left and right",
    "jaccard": "Jaccard of the masks",
    "null": "its magnitude null",
    "chance": "its chance level",
}
"""Numbers of a pair: the mean over tensors."""

ONE_SEED = "base, edited: one seed"
"""A kind of pair beside `pairs.KINDS`: both runs see the same data in the same order."""

LEVELS: dict[str, Any] = {
    "method": pl.String(),
    "optimizer": pl.String(),
    "learning_rate": pl.Float64(),
    "edit": pl.String(),
    "step": pl.Int64(),
    "scope": pl.String(),
    "measure": pl.String(),
    "kind": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "pairs": pl.Int64(),
    "seeds": pl.Int64(),
}
"""Columns of `levels`. kind: what the two runs of a pair started from; other seeds, but for `one
seed`, in which both runs see the same data in the same order."""


@dataclass(frozen=True)
class Cell:
    """One arm, edit, step and scope: kind -> measure -> its values by the seeds of a pair."""

    method: str
    optimizer: str
    learning_rate: float
    edit: str
    step: int
    scope: str
    values: Mapping[str, Mapping[str, Values]]

    def of(self, measure: str, kind: str) -> Values:
        """The pairs of one kind; for `one seed` the runs of each seed with each other."""
        return self.values.get(kind, {}).get(measure, {})

    @property
    def place(self) -> dict[str, Any]:
        names = ("method", "optimizer", "learning_rate", "edit", "step", "scope")
        return {name: getattr(self, name) for name in names}


def numbered(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pair table with `MEASURES`, null where a run changed nothing."""

    def jaccard(view: str, shared: str) -> pl.Expr:
        both = pl.col(f"{view}{shared}").cast(pl.Float64)
        either = pl.col(f"{view}changed_a") + pl.col(f"{view}changed_b") - both
        return pl.when(either > 0).then(both / either)

    p, q = (pl.col(f"changed_{one}") / (pl.col("rows") * pl.col("cols")) for one in "ab")
    sizes = {"left": "rows", "right": "cols"}
    found = pairs.with_columns(
        *(
            (pl.col(f"{side}_{rank}") - rank / pl.col(size)).alias(f"{side}_{rank}")
            for rank in RANKS
            for side, size in sizes.items()
        ),
        jaccard=jaccard("", "shared"),
        null=jaccard("", "expected"),
        back=jaccard("back_", "shared") - jaccard("back_", "expected"),
        chance=pl.when(p + q > 0).then(p * q / (p + q - p * q)),
    )
    found = found.with_columns(
        excess=pl.col("jaccard") - pl.col("null"),
        back_excess=pl.col("back"),
        span=pl.mean_horizontal(f"left_{RANKS[-1]}", f"right_{RANKS[-1]}"),
    )
    return found.drop("back")


def cells(rows: pl.DataFrame, pairs: pl.DataFrame) -> Iterator[Cell]:
    """Every arm, edit, step and scope that has pairs of a base's run with an edited one's."""
    runs = trained(rows)
    told = runs.select("run", "edit", "seed", *ARM)
    joined = (
        numbered(pairs)
        .join(told, left_on="run_a", right_on="run")
        .join(told.select("run", "edit", "seed"), left_on="run_b", right_on="run", suffix="_b")
    )
    mixed = joined.filter(pl.col("edit").is_null(), pl.col("edit_b").is_not_null())
    keys = [*ARM, "edit_b", "step"]
    for key, own in mixed.group_by(keys, maintain_order=True):
        arm = dict(zip(keys, key, strict=True))
        same = [pl.col(name).eq_missing(pl.lit(arm[name])) for name in (*ARM, "step")]
        fellows = joined.filter(
            *same,
            pl.col("edit").is_null() | (pl.col("edit") == arm["edit_b"]),
            pl.col("edit_b").is_null() | (pl.col("edit_b") == arm["edit_b"]),
        )
        for scope, tensors in _scopes(own).items():
            inside = fellows.filter(pl.col("tensor").is_in(tensors))
            yield Cell(
                arm["method"],
                arm["optimizer"] or "adamw_torch",
                arm["learning_rate"],
                arm["edit_b"],
                arm["step"],
                scope,
                _values(inside),
            )


def _scopes(pairs: pl.DataFrame) -> dict[str, list[str]]:
    """Scope -> tensors, by what the edit of these pairs changed."""
    tensors = pairs.select("tensor", "layer", "role", "edited").unique(maintain_order=True)
    touched = tensors.filter("edited")
    layers, roles = touched["layer"].unique().to_list(), touched["role"].unique().to_list()
    away = ~pl.col("layer").is_in(layers)
    alike = tensors.filter(away, pl.col("role").is_in(roles))["tensor"].to_list()
    edited = touched["tensor"].to_list()
    rest = tensors.filter(~pl.col("tensor").is_in([*edited, *alike]))["tensor"].to_list()
    return dict(zip(SCOPES, (edited, alike, rest), strict=True))


def _values(pairs: pl.DataFrame) -> dict[str, dict[str, dict[tuple[int, int], float]]]:
    found: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
    means = pairs.group_by("run_a", "run_b", maintain_order=True).agg(
        pl.col("edit", "edit_b", "seed", "seed_b").first(),
        *(pl.col(name).mean() for name in MEASURES),
    )
    for row in means.iter_rows(named=True):
        seeds = (row["seed"], row["seed_b"])
        edits = sum(row[name] is not None for name in ("edit", "edit_b"))
        kind = KINDS[edits] if seeds[0] != seeds[1] else ONE_SEED
        for name in MEASURES:
            value = math.nan if row[name] is None else row[name]
            found.setdefault(kind, {}).setdefault(name, {})[seeds] = value
    return found


def levels(found: Sequence[Cell]) -> pl.DataFrame:
    """Each measure's mean over pairs of each kind: columns `LEVELS`."""
    rows = []
    for cell in found:
        for measure in MEASURES:
            for kind in (*KINDS, ONE_SEED):
                values = cell.of(measure, kind)
                if values:
                    told = estimate({"all": values}, lambda means: means["all"])
                    rows.append(cell.place | _row(measure, kind, told, len(values)))
    return pl.DataFrame(rows, schema=LEVELS).with_columns(pl.col("value").fill_nan(None))


def _row(measure: str, kind: str, told: Estimate, pairs: int) -> dict[str, Any]:
    numbers = {"value": told.value, "low": told.low, "high": told.high, "seeds": told.seeds}
    return {"measure": measure, "kind": kind, "pairs": pairs} | numbers
