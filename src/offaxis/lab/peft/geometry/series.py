"""Measures of adapters' test runs over training, each beside its null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from offaxis.checkpoint import open_checkpoint
from offaxis.lab import BASE
from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.peft.naming import LORA, canonical, ordered
from offaxis.lab.peft.planning import METHOD, PROMPTS, STEPS, TEST_SEEDS, chosen_rates
from offaxis.lab.queue.rows import by_checkpoint
from offaxis.lab.queue.store import digest
from offaxis.linalg import principal_rank
from offaxis.names import is_matrix, place

__all__ = [
    "EITHER",
    "ENERGIES",
    "GEOMETRY",
    "LOGARITHMIC",
    "MARGINS",
    "NORM",
    "OVERLAPS",
    "VALUE",
    "Rates",
    "checkpoints",
    "geometry",
    "isotropic",
]

Rates = Literal["own", "shared"]
OVERLAPS = (
    "principal_overlap", "low_magnitude_overlap",
    "principal_overlap_top5", "low_magnitude_overlap_top5",
)  # fmt: skip
"""Of the changed entries, and of the 5 % that moved most: where nearly all entries have changed,
the first stands at its null by construction."""
EITHER = "update_energy_either"
ENERGIES = ("update_energy_left", "update_energy_right", "update_energy_two_sided", EITHER)
NORM = "matrix_update_norm"
LOGARITHMIC = (
    "relative_update_norm", NORM, "nss", "rotation_left_deg", "rotation_right_deg",
    "effective_rank",
)  # fmt: skip
"""Compared by ln of the ratio."""

MARGINS: Mapping[str, float] = {
    **dict.fromkeys(LOGARITHMIC, math.log(1.1)),
    **dict.fromkeys((*OVERLAPS, *ENERGIES), 0.01),
    "rank1_norm_share": 0.02,
    "unchanged_bf16": 0.02,
}
"""Every measure, and a difference that is nothing to speak of: a hundredth of ‖ΔW‖² or of an
overlap minus its null, a tenth of a norm, spectral shift, angle or rank."""

VALUE = {"value": pl.Float64(), "low": pl.Float64(), "high": pl.Float64(), "seeds": pl.Int64()}
GEOMETRY: dict[str, Any] = {
    "adapter": pl.String(),
    "rates": pl.String(),
    "learning_rate": pl.Float64(),
    "step": pl.Int64(),
    "measure": pl.String(),
    **VALUE,
    "null": pl.Float64(),
    "excess": pl.Float64(),
    "excess_low": pl.Float64(),
    "excess_high": pl.Float64(),
}
"""Columns of `geometry`. null: what `value` stands beside, `excess`: value minus null."""


@lru_cache(maxsize=4)
def isotropic(base: Path = BASE) -> Mapping[str, float]:
    """Energy measure -> the share that an update without direction has: the mean over matrices.

    Left r/m, right r/n, both r²/(mn), either r/m + r/n − r²/(mn), r = `principal_rank(m, n)`.
    """
    specs = open_checkpoint(str(base)).specs
    shares: dict[str, list[float]] = {name: [] for name in ENERGIES}
    for name, spec in specs.items():
        if not is_matrix(spec.shape, place(name, spec.shape)):
            continue
        rows, cols = spec.shape
        rank = principal_rank(rows, cols)
        left, right = rank / rows, rank / cols
        both = left * right
        for measure, share in zip(ENERGIES, (left, right, both, left + right - both), strict=True):
            shares[measure].append(share)
    return {measure: float(np.mean(own)) for measure, own in shares.items()}


@lru_cache(maxsize=1)
def _bundled() -> str:
    return digest(BASE)


def checkpoints(rows: pl.DataFrame, rates: Rates = "own") -> pl.DataFrame:
    """Every checkpoint of DAPO's test runs of adapters at their own rate, or at LoRA's.

    Columns beside those of rows: `update_energy_either`, and MEASURE_null of overlaps (magnitude)
    and energies (isotropic; null where the run began from another base than the bundled one).
    """
    if "adapter" not in rows.columns:
        rows = rows.clear().with_columns(adapter=pl.lit(None, dtype=pl.String))
    chosen = chosen_rates(rows)
    own = rows.filter(
        pl.col("method") == METHOD,
        pl.col("seed").is_in(TEST_SEEDS),
        pl.col("prompts_per_step") == PROMPTS,
        pl.col("steps") == STEPS,
        pl.col("adapter").fill_null("") != "",
    ).with_columns(pl.col("adapter").map_elements(canonical, return_dtype=pl.String))
    rate = pl.col("adapter").replace_strict(chosen, default=None, return_dtype=pl.Float64)
    if rates == "shared":
        rate = pl.when(rate.is_not_null()).then(pl.lit(chosen.get(LORA), pl.Float64))
    points = by_checkpoint(own.filter(pl.col("learning_rate") == rate))
    left, right, both, either = ENERGIES
    known = pl.col("base") == _bundled()
    return points.with_columns(
        (pl.col(left) + pl.col(right) - pl.col(both)).alias(either),
        *(pl.col(f"{name}_magnitude_null").alias(f"{name}_null") for name in OVERLAPS),
        *(pl.when(known).then(one).alias(f"{name}_null") for name, one in isotropic().items()),
    )


def geometry(rows: pl.DataFrame) -> pl.DataFrame:
    """Every measure of every adapter at every saved step, with the columns `GEOMETRY`."""
    found = []
    for rates in ("own", "shared"):
        points = checkpoints(rows, rates)
        for adapter in ordered(points["adapter"]):
            own = points.filter(adapter=adapter)
            for step in own["step"].unique().sort():
                at = own.filter(step=step)
                told = {"adapter": adapter, "rates": rates, "step": step}
                told["learning_rate"] = at["learning_rate"][0]
                found += [told | one for name in MARGINS if (one := _spread_of(at, name))]
    return pl.DataFrame(found, schema=GEOMETRY)


def _spread_of(at: pl.DataFrame, measure: str) -> dict[str, Any] | None:
    """One measure over the seeds of one step: value, null and excess of `GEOMETRY`."""
    null = f"{measure}_null"
    pairs = at.select(measure, null if null in at.columns else pl.lit(None).alias(null))
    known = [(value, zero) for value, zero in pairs.iter_rows() if value is not None]
    if not known:
        return None
    value, low, high = over_seeds([one for one, _ in known])
    told = {"measure": measure, "value": value, "low": low, "high": high, "seeds": len(known)}
    if all(zero is not None for _, zero in known):
        excess, *bounds = over_seeds([one - zero for one, zero in known])
        told |= {"null": float(np.mean([zero for _, zero in known])), "excess": excess}
        told |= {"excess_low": bounds[0], "excess_high": bounds[1]}
    return told
