"""Gate III on real runs: is the share that stays told by the size of the step alone?

One run's update is rescaled to the norm of every other run from the same base, rounded and counted
(`gates.sweep`). What the other runs left unchanged stands beside it: were the placing of their
updates alike, whatever the method and rate, the two agree. For a pure-bfloat16 store, which rounds
every step, stands the share of entries that a step of the learning rate cannot move.
Source: The Path Not Taken, sections 2.3 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from offaxis.checkpoint import align, read_pair
from offaxis.comparison import Progress
from offaxis.comparison.plan import AnyPath, open_base, open_tuned
from offaxis.errors import InputError
from offaxis.gates.sweep import Meter
from offaxis.kernels import bf16_codes

__all__ = ["NEEDED", "OPTIONAL", "Rates", "lost_steps", "rates"]

Floats = npt.NDArray[np.float64]

NEEDED: dict[str, Any] = {
    "run": pl.String,
    "method": pl.String,
    "task": pl.String,
    "learning_rate": pl.Float64,
    "seed": pl.Int64,
    "steps": pl.Int64,
    "prompts_per_step": pl.Int64,
    "dtype": pl.String,
    "optimizer": pl.String,
    "relative_update_norm": pl.Float64,
    "unchanged_bf16": pl.Float64,
}
"""Columns of the runs. `dtype` is the store's, `float32` (masters) where null; `optimizer` is
`adamw_torch` where null. `OPTIONAL` ones may be absent."""

OPTIONAL = frozenset({"steps", "prompts_per_step", "dtype", "optimizer"})

_POINTS = 64
_GROUP = ("store", "optimizer", "method", "learning_rate")
_ADAM = "adamw_torch"
_ALIKE = ("steps", "prompts_per_step")


@dataclass(frozen=True)
class Rates:
    """The runs beside what one of them, rescaled, foretells.

    table: a row a run: run, method, task, learning_rate, seed, steps, prompts_per_step (0 where not
    told), store, optimizer, norm (‖ΔW‖/‖W₀‖), unchanged (measured), rescaled (the reference's
    update at that norm), independent (the closed form of `gates.sweep` at it), by_rate (rescaled,
    the norm taken from the run of lowest rate of the same kind, times the ratio of rates), lost
    (share of entries that one step of the learning rate cannot move in bfloat16; AdamW alone, else
    null).
    norm: the reference's own.
    """

    table: pl.DataFrame
    norm: float

    def grouped(self) -> pl.DataFrame:
        """A row a store, optimizer, method and rate: means over the runs, `unchanged_sd` beside."""
        means = ("norm", "unchanged", "rescaled", "independent", "by_rate", "lost")
        return (
            self.table.group_by(_GROUP)
            .agg(
                pl.len().alias("runs"),
                *(pl.col(name).mean() for name in means),
                pl.col("unchanged").std().alias("unchanged_sd"),
            )
            .sort(_GROUP)
        )

    def residuals(self) -> pl.DataFrame:
        """A row a store, optimizer and method: unchanged − rescaled, mean, sd, largest size."""
        off = pl.col("unchanged") - pl.col("rescaled")
        return (
            self.table.group_by(_GROUP[:3])
            .agg(
                pl.len().alias("runs"),
                off.mean().alias("mean"),
                off.std().alias("sd"),
                off.abs().max().alias("largest"),
            )
            .sort(_GROUP[:3])
        )

    def stores(self) -> pl.DataFrame:
        """A row a method, task, length, batch and rate that both stores ran with AdamW.

        masters, pure: unchanged, mean over seeds; norms likewise; lost: what pure cannot move.
        """
        adam = self.table.filter(pl.col("optimizer") == _ADAM)
        keys = ["method", "task", *_ALIKE, "learning_rate"]
        sides = {"float32": "masters", "bfloat16": "pure"}
        both = [
            adam.filter(pl.col("store") == store)
            .group_by(keys)
            .agg(
                pl.col("unchanged").mean().alias(name),
                pl.col("norm").mean().alias(f"{name}_norm"),
                pl.col("lost").first().alias("lost"),
            )
            for store, name in sides.items()
        ]
        return both[0].drop("lost").join(both[1], on=keys).sort(keys)

    def summary(self) -> dict[str, Any]:
        """What `gates.json` holds under `rates`.

        The root mean square is over float32 stores with AdamW.
        """
        masters = self.table.filter(pl.col("store") == "float32", pl.col("optimizer") == _ADAM)
        off = (masters["unchanged"] - masters["rescaled"]).to_numpy()
        return {
            "runs": self.table.height,
            "reference_norm": self.norm,
            "root_mean_square": float(np.sqrt((off**2).mean())) if off.size else None,
            "by_rate": self.grouped().to_dicts(),
            "residuals": self.residuals().to_dicts(),
            "stores": self.stores().to_dicts(),
        }


def rates(
    base: AnyPath,
    tuned: AnyPath,
    runs: pl.DataFrame,
    *,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Rates:
    """Foretell `runs` (`NEEDED`, a row a run, all from `base`) from the update of `tuned`.

    The shares are measured at 64 factors in geometric steps and interpolated in the logarithm.
    Raises InputError where columns are missing, no run moved, or TUNED did not.
    """
    chosen = _chosen(runs)
    ground = open_base(str(base), allow_pickle=allow_pickle)
    side = open_tuned(str(tuned), ground, allow_pickle=allow_pickle)
    pairs = align(ground, side).pairs
    squares = np.zeros(2)
    for pair in pairs:
        both = read_pair(ground, side, pair)
        before, after = both.base.double(), both.tuned.double()
        squares += [float((after - before).square().sum()), float(before.square().sum())]
    if not (squares > 0).all() or not np.isfinite(squares).all():
        raise InputError(f"{tuned}: its update from {base} is zero or not finite; give another run")
    norm = math.sqrt(squares[0] / squares[1])
    chosen = chosen.with_columns(_norm_by_rate().alias("norm_by_rate"))
    asked = chosen.select("norm", "norm_by_rate").to_numpy() / norm
    grid = np.geomspace(asked.min() / 1.01, asked.max() * 1.01, _POINTS)
    meter, steps = Meter(tuple(grid.tolist())), chosen["learning_rate"].unique().sort().to_list()
    total, done = sum(math.prod(pair.part.shape) for pair in pairs), 0
    lost = np.zeros(len(steps))
    for pair in pairs:
        both = read_pair(ground, side, pair)
        meter.add(both.base, both.tuned)
        lost += both.base.numel() * lost_steps(both.base, steps)
        done += math.prod(pair.part.shape)
        if progress is not None:
            progress(Progress(done, total, pair.part.tensor))
    rows = meter.result().summary()
    curves = {name: np.array([row[name] for row in rows]) for name in ("unchanged", "expected")}
    return Rates(_table(chosen, asked, grid, curves, dict(zip(steps, lost / total))), norm)  # noqa: B905


def _chosen(runs: pl.DataFrame) -> pl.DataFrame:
    """The runs with every number, their columns as `Rates.table` names them."""
    absent = [name for name in NEEDED if name not in runs.columns]
    if set(absent) - OPTIONAL:
        raise InputError(f"the runs have no column {', '.join(absent)}: give a lab queue's rows")
    whole = runs.with_columns(pl.lit(None).alias(name) for name in absent)
    found = whole.select(pl.col(name).cast(kind) for name, kind in NEEDED.items()).filter(
        pl.col("unchanged_bf16").is_not_null(), pl.col("relative_update_norm") > 0
    )
    if not found.height:
        raise InputError("no run has moved: give rows whose checkpoints differ from the base")
    return found.with_columns(
        pl.col("dtype").fill_null("float32").alias("store"),
        pl.col("optimizer").fill_null(_ADAM),
        pl.col("steps", "prompts_per_step").fill_null(0),
    ).rename({"relative_update_norm": "norm", "unchanged_bf16": "unchanged"})


def _norm_by_rate() -> pl.Expr:
    """The norm of the run of lowest rate of the same kind, times the ratio of rates."""
    kind = [*_ALIKE, "method", "task", "seed", "store", "optimizer"]
    lowest = pl.col("norm").sort_by("learning_rate").first().over(kind)
    return lowest * pl.col("learning_rate") / pl.col("learning_rate").min().over(kind)


def lost_steps(base: Tensor, sizes: Sequence[float]) -> Floats:
    """Share of entries that a step of each size leaves as they are in bfloat16, (sizes,).

    The mean over both signs of the step; the entries are first rounded to bfloat16.
    """
    codes = bf16_codes(base.detach().reshape(-1))
    stored = torch.from_numpy((codes.astype(np.uint32) << np.uint32(16)).view(np.float32)).double()
    found = [
        [np.mean(bf16_codes(stored + sign * size) == codes) for sign in (1, -1)] for size in sizes
    ]
    means: Floats = np.array(found, np.float64).mean(1)
    return means


def _table(
    chosen: pl.DataFrame,
    asked: Floats,
    grid: Floats,
    curves: dict[str, Floats],
    lost: dict[float, float],
) -> pl.DataFrame:
    def at(factors: Floats, name: str) -> Floats:
        found: Floats = np.interp(np.log(factors), np.log(grid), curves[name])
        return found

    adam = pl.col("optimizer") == _ADAM
    return chosen.select(
        "run", "method", "task", "learning_rate", "seed", *_ALIKE, "store", "optimizer", "norm",
        "unchanged",
        pl.Series("rescaled", at(asked[:, 0], "unchanged")),
        pl.Series("independent", at(asked[:, 0], "expected")),
        pl.Series("by_rate", at(asked[:, 1], "unchanged")),
        pl.when(adam).then(
            pl.col("learning_rate").replace_strict(lost, return_dtype=pl.Float64)
        ).alias("lost"),
    )  # fmt: skip
