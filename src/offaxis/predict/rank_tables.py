"""What a rank study found, as a table and as a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.predict.rebuilding import Recipe
from offaxis.predict.trails import SeriesTrail
from offaxis.provenance import library_versions

__all__ = ["COLUMNS", "Row", "frame", "summary"]

COLUMNS = {
    "tensor": pl.String,
    "layer": pl.Int32,
    "role": pl.String,
    "expert": pl.Int32,
    "rows": pl.Int64,
    "cols": pl.Int64,
    "group": pl.String,
    "included": pl.Boolean,
    "measure": pl.String,
    "value": pl.Float64,
    "status": pl.String,
}
"""Columns of `ranks.parquet`. `status` is `ok`, or why `value` is null."""

_MEANS = ("update_norm", "rank1_norm_share", "rank1_norm_share_null", "rank1pct_norm_share")


@dataclass(frozen=True)
class Row:
    """One number of one part; `numbers` makes many from one that says where."""

    tensor: str
    layer: int | None
    role: str
    expert: int | None
    rows: int
    cols: int
    group: str
    included: bool
    measure: str = ""
    value: float | None = None
    status: str = "ok"

    @staticmethod
    def of(trail: SeriesTrail, group: str, *, included: bool) -> Row:
        """Where a part stands, without a number."""
        part, shape = trail.part, trail.shape
        size = shape[0] if shape else 1
        rest = prod(shape[1:])
        return Row(trail.name, part.layer, part.role, part.expert, size, rest, group, included)

    def numbers(self, values: Mapping[str, float]) -> list[Row]:
        """One row a number."""
        where = {name: getattr(self, name) for name in list(COLUMNS)[:8]}
        return [Row(**where, measure=name, value=value) for name, value in values.items()]

    def shares(self, values: Mapping[str, float], *, moved: bool) -> list[Row]:
        """The same, undefined where the matrix did not move."""
        where = {name: getattr(self, name) for name in list(COLUMNS)[:8]}
        if moved:
            return self.numbers(values)
        return [Row(**where, measure=name, status="no_update") for name in values]


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    """The table, with the share of the whole ‖ΔW‖² added for each part."""
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    table = pl.DataFrame(columns, schema=COLUMNS)
    norms = table.filter(pl.col("measure") == "update_norm")
    total = float((norms["value"] ** 2).sum())
    shares = norms.with_columns(
        measure=pl.lit("update_share"),
        value=pl.col("value") ** 2 / total if total > 0 else pl.lit(None, pl.Float64),
    )
    return pl.concat([table, shares])


def summary(
    table: pl.DataFrame,
    recipes: Sequence[Recipe],
    about: Mapping[str, Any],
    *,
    models: Sequence[Path],
    notes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """What `ranks.json` holds: recipes, norms, shares by group and by role, notes."""
    matrices = table.filter(pl.col("group") == "matrices")
    shapes = matrices.select("tensor", "rows", "cols").unique(maintain_order=True)
    sizes = [(row["rows"], row["cols"]) for row in shapes.iter_rows(named=True)]
    return {
        "schema": 1,
        **about,
        "recipes": [
            _recipe(one, sizes, table) | {"directory": str(where) if where is not None else None}
            for one, where in zip_longest(recipes, models)
        ],
        "update": _update(table),
        "mean": _means(matrices),
        "by_role": [
            {"role": role, **_means(own)}
            for (role,), own in matrices.group_by("role", maintain_order=True)
        ],
        "groups": _groups(table),
        "notes": [*notes, *_sameness(recipes, sizes)],
        "run": {"seed": seed, "versions": library_versions("numpy", "polars")},
    }


def _recipe(
    recipe: Recipe, sizes: Sequence[tuple[int, int]], table: pl.DataFrame
) -> dict[str, Any]:
    """One recipe: the ranks that it comes to, and the mean share of ‖ΔW‖_F in what it keeps."""
    ranks = [recipe.rank_of(one) for one in sizes]
    return recipe.told() | {
        "rank_least": min(ranks, default=0),
        "rank_most": max(ranks, default=0),
        "norm_share": _mean(table, f"norm_share[{recipe.name}]"),
        "mean_factor": _mean(table, f"factor[{recipe.name}]"),
    }


def _mean(table: pl.DataFrame, measure: str) -> float | None:
    found = table.filter(pl.col("measure") == measure)["value"].drop_nulls().mean()
    return float(found) if isinstance(found, float) and math.isfinite(found) else None


def _means(matrices: pl.DataFrame) -> dict[str, Any]:
    """Means over matrices, as AlphaRL's tables 7 and 8 take them; shares over those that moved."""
    still = matrices.filter((pl.col("measure") == "update_norm") & (pl.col("value") == 0)).height
    return {
        "matrices": matrices["tensor"].n_unique(),
        "unmoved": still,
        **{name: _mean(matrices, name) for name in _MEANS},
    }


def _update(table: pl.DataFrame) -> dict[str, float | None]:
    """Norms of the whole update and of the base, all measured parameters together."""
    own, base = (
        math.sqrt(float((table.filter(pl.col("measure") == name)["value"] ** 2).sum()))
        for name in ("update_norm", "base_norm")
    )
    return {"norm": own, "base_norm": base, "relative_norm": own / base if base > 0 else None}


def _groups(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Each group's share of ‖ΔW‖², and whether the models have it."""
    norms = table.filter(pl.col("measure") == "update_norm")
    total = float((norms["value"] ** 2).sum())
    out = []
    for (group, included), own in norms.group_by("group", "included", maintain_order=True):
        square = float((own["value"] ** 2).sum())
        out.append({
            "group": group,
            "tensors": own.height,
            "norm": math.sqrt(square),
            "share": square / total if total > 0 else None,
            "included": included,
        })  # fmt: skip
    return out


def _sameness(recipes: Sequence[Recipe], sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Recipes that come to the same model, in words: rank 1 % of narrow matrices is rank 1."""
    notes, seen = [], dict[tuple[Any, ...], Recipe]()
    for recipe in recipes:
        key = (recipe.factor, recipe.rescale, *(recipe.stretch(one) for one in sizes))
        twin = seen.setdefault(key, recipe)
        if twin is not recipe:
            notes.append(f"{recipe.name} is {twin.name} in all {len(sizes)} matrices: one model")
    one = sum(math.floor(min(size) / 100) <= 1 for size in sizes)
    if one and sizes:
        notes.append(
            f"rank 1 % is rank 1 in {one} of {len(sizes)} matrices, whose smaller side is below 200"
        )
    return notes
