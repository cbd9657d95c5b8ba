"""Layer by layer and role by role: the mask's excess overlap, by what the runs started from."""

from __future__ import annotations

from typing import Any

import polars as pl

from offaxis.lab.causal.levels import numbered
from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.causal.subjects import ARM, trained

__all__ = ["PLACES", "by_place"]

PLACES: dict[str, Any] = {
    "method": pl.String(),
    "optimizer": pl.String(),
    "learning_rate": pl.Float64(),
    "edit": pl.String(),
    "step": pl.Int64(),
    "layer": pl.Int64(),
    "role": pl.String(),
    "edited": pl.Boolean(),
    **{f"{kind}{end}": pl.Float64() for kind in KINDS[:2] for end in ("", ": pulled back")},
}
"""Columns: means over pairs of other seeds, of one arm and edit."""


def by_place(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Every arm, edit and step, every layer and role: columns `PLACES`."""
    runs = trained(rows).select("run", "edit", "seed", *ARM)
    joined = (
        numbered(pairs)
        .join(runs, left_on="run_a", right_on="run")
        .join(runs.select("run", "edit", "seed"), left_on="run_b", right_on="run", suffix="_b")
        .filter(pl.col("edit").is_null(), pl.col("seed") != pl.col("seed_b"))
        .with_columns(pl.col("optimizer").fill_null("adamw_torch"))
    )
    keys = [*ARM, "step", "layer", "role"]
    means = [pl.col("excess").mean(), pl.col("back_excess").mean()]
    plain = joined.filter(pl.col("edit_b").is_null()).group_by(keys).agg(*means)
    mixed = joined.filter(pl.col("edit_b").is_not_null())
    own = mixed.group_by([*keys, "edit_b"], maintain_order=True).agg(pl.col("edited").any(), *means)
    found = own.join(plain, on=keys, how="left", nulls_equal=True, suffix="_base")
    named = {
        "edit": "edit_b",
        KINDS[0]: "excess_base",
        f"{KINDS[0]}: pulled back": "back_excess_base",
        KINDS[1]: "excess",
        f"{KINDS[1]}: pulled back": "back_excess",
    }
    chosen = found.with_columns(pl.col(old).alias(new) for new, old in named.items())
    order = ["method", "optimizer", "learning_rate", "edit", "step", "role", "layer"]
    return chosen.select(pl.col(name).cast(kind) for name, kind in PLACES.items()).sort(order)
