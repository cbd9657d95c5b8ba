"""Gates II and III on a pair of checkpoints, and whatever else `offaxis gates` writes beside."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.checkpoint import TensorPair, align, read_pair
from offaxis.comparison import Progress
from offaxis.comparison.plan import AnyPath, open_base, open_tuned
from offaxis.errors import InputError
from offaxis.gates.matrix import nothing
from offaxis.gates.nulls import KINDS, SAME, Interval, Judged, geometry_with_nulls
from offaxis.gates.sweep import FACTORS, Melting, Meter, check_factors
from offaxis.output import staged_directory
from offaxis.provenance import library_versions

__all__ = ["COLUMNS", "FURTHER", "Gates", "check_checkpoints"]

FURTHER = ("anchor", "against", "rates")
"""Keys of `gates.json` that are null unless asked for: Gate I, Gate I of two runs, Gate III of
many."""

_SIDES = ("measured", "ratio")
_ENDS = ("mean", "low", "high")

COLUMNS: dict[str, Any] = {
    "tensor": pl.String,
    "layer": pl.Int32,
    "role": pl.String,
    "expert": pl.Int32,
    "rows": pl.Int64,
    "cols": pl.Int64,
    "check": pl.String,
    "rank": pl.Int64,
    "measured": pl.Float64,
    "bound": pl.Float64,
    "ratio": pl.Float64,
    "error": pl.Float64,
    "status": pl.String,
    "reason": pl.String,
    "source": pl.String,
    **{f"{k}_{s}_{e}": pl.Float64 for k in KINDS for s in _SIDES for e in _ENDS},
}
"""Columns of `gates.parquet`. `random_measured_low` is the smallest draw of the measured side of
the random null, and so on; all are null where nothing was drawn."""


@dataclass(frozen=True)
class Gates:
    """The result of `check_checkpoints`: one row a matrix and check, the sweep, a summary.

    further: tables beside these two, by file name.
    """

    table: pl.DataFrame
    melting: Melting
    _summary: dict[str, Any] = field(repr=False)
    further: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What `gates.json` holds."""
        return self._summary

    def adding(
        self, key: str, summary: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]
    ) -> Gates:
        """The same with one of `FURTHER` in the summary, its tables written as KEY_NAME.parquet."""
        if key not in FURTHER:
            raise InputError(f"no part of the gates named {key!r}: choose {', '.join(FURTHER)}")
        named = {f"{key}_{name}": table for name, table in tables.items()}
        return replace(
            self,
            _summary=self._summary | {key: dict(summary)},
            further={**self.further, **named},
        )

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write gates.parquet, melting.parquet, gates.json and what was added, atomically.

        Returns the directory. Raises OutputError where it is not empty (unless `overwrite`) or
        cannot be written; then nothing is left behind.
        """
        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            self.table.write_parquet(staged / "gates.parquet", compression="zstd")
            self.melting.table.write_parquet(staged / "melting.parquet", compression="zstd")
            for name, table in self.further.items():
                table.write_parquet(staged / f"{name}.parquet", compression="zstd")
            text = json.dumps(self._summary, indent=2, ensure_ascii=False, allow_nan=False)
            (staged / "gates.json").write_text(text + "\n", encoding="utf-8")
        return out


def check_checkpoints(
    base: AnyPath,
    tuned: AnyPath,
    *,
    draws: int = 8,
    seed: int = 0,
    rank: int | None = None,
    every_rank: bool = False,
    factors: Sequence[float] = FACTORS,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Gates:
    """Check Gate II on every matrix of a pair, beside its nulls, and sweep Gate III's factors.

    base, tuned: as for `compare`. draws: of each null for each matrix; a matrix costs 1 + 3·draws
    decompositions. rank: the k of the subspaces, cut to min(m, n), by default `angle_rank`.
    every_rank: also the worst ratio over all k. One matrix is in memory at a time. Raises
    InputError and its subclasses.
    """
    started = time.time()
    _check(draws, rank)
    meter = Meter(check_factors(factors))
    ground = open_base(str(base), allow_pickle=allow_pickle)
    side = open_tuned(str(tuned), ground, allow_pickle=allow_pickle)
    aligned = align(ground, side)
    total, done = sum(math.prod(pair.part.shape) for pair in aligned.pairs), 0
    rows: list[dict[str, Any]] = []
    for pair in aligned.pairs:
        tensors = read_pair(ground, side, pair)
        meter.add(tensors.base, tensors.tuned)
        if pair.part.is_matrix:
            rows += _rows(tensors, draws=draws, seed=seed, rank=rank, every_rank=every_rank)
        done += math.prod(pair.part.shape)
        if progress is not None:
            progress(Progress(done, total, pair.part.tensor))
    table = pl.DataFrame(rows, schema=COLUMNS)
    melted = meter.result()
    summary = _summary(table, melted, draws) | {"base": str(base), "tuned": str(tuned)}
    summary["run"] = {
        "seed": seed,
        "draws": draws,
        "rank": rank,
        "every_rank": every_rank,
        "factors": list(melted.factors),
        "nonfinite_entries": melted.skipped,
        "unmatched": [f"{row.tensor}: {row.status}" for row in aligned.mismatches],
        "seconds": round(time.time() - started, 3),
        "versions": library_versions("numpy", "polars"),
    }
    return Gates(table, melted, summary)


def _check(draws: int, rank: int | None) -> None:
    if draws < 0:
        raise InputError(f"{draws} draws: choose 0 or more")
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}: choose 1 or more")


def _summary(table: pl.DataFrame, melted: Melting, draws: int) -> dict[str, Any]:
    """What the tables come to."""
    return {
        "schema": 1,
        "matrices": table["tensor"].n_unique(),
        "checks": _checks(table, draws),
        "melting": melted.summary(),
        "melting_rounded": melted.rounded,
    } | dict.fromkeys(FURTHER)


def _rows(
    pair: TensorPair, *, draws: int, seed: int, rank: int | None, every_rank: bool
) -> list[dict[str, Any]]:
    """All rows of one matrix, turned as the model uses it."""
    part = pair.part
    base, tuned = (t.double().T if part.transposed else t.double() for t in (pair.base, pair.tuned))
    judged: Sequence[Judged]
    if bool(base.isfinite().all()) and bool(tuned.isfinite().all()):
        judged = geometry_with_nulls(
            base,
            tuned,
            draws=draws,
            seed=seed,
            name=part.tensor,
            rank=None if rank is None else min(rank, *base.shape),
            every_rank=every_rank,
        )
    else:
        judged = [Judged(check, ()) for check in nothing("nonfinite")]
    place = {
        "tensor": part.tensor,
        "layer": part.layer,
        "role": part.role,
        "expert": part.expert,
        "rows": base.shape[0],
        "cols": base.shape[1],
    }
    return [place | _row(one) for one in judged]


def _row(one: Judged) -> dict[str, Any]:
    names = ("rank", "measured", "bound", "ratio", "error", "status", "reason", "source")
    row = {"check": one.check.name} | {name: getattr(one.check, name) for name in names}
    for null in one.nulls:
        for side in _SIDES:
            interval: Interval | None = getattr(null, side)
            for end in _ENDS:
                value = None if interval is None else getattr(interval, end)
                row[f"{null.kind}_{side}_{end}"] = value
    return row


def _checks(table: pl.DataFrame, draws: int) -> list[dict[str, Any]]:
    """One entry a check: how many matrices have each status, the ratios, and the nulls."""
    found = []
    for (name,), rows in table.group_by("check", maintain_order=True):
        rated = rows.filter(pl.col("ratio").is_not_null()).sort("ratio")
        worst = rated.row(-1, named=True) if rated.height else None
        entry: dict[str, Any] = {"check": name, "source": rows["source"][0]}
        for status in ("ok", "vacuous", "exceeded", "undefined"):
            entry[status] = int((rows["status"] == status).sum())
        entry["median_ratio"] = rated["ratio"].median()
        entry["largest_ratio"] = worst["ratio"] if worst else None
        entry["largest_in"] = worst["tensor"] if worst else None
        entry["nulls"] = {kind: _against(rows, kind, draws) for kind in KINDS}
        found.append(entry)
    return found


def _against(rows: pl.DataFrame, kind: str, draws: int) -> dict[str, Any] | None:
    """In how many matrices the measured side is below, or above, every draw of one null.

    times: median over the matrices of measured / the null's mean.
    """
    measured, low = pl.col("measured"), pl.col(f"{kind}_measured_low")
    mean, high = pl.col(f"{kind}_measured_mean"), pl.col(f"{kind}_measured_high")
    there = rows.filter(measured.is_not_null() & low.is_not_null())
    if not there.height:
        return None
    below, above = there.select(
        (measured < low * (1 - SAME)).sum(), (measured > high * (1 + SAME)).sum().alias("above")
    ).row(0)
    return {
        "matrices": there.height,
        "below": below,
        "above": above,
        "chance": 1 / (draws + 1),
        "times": there.filter(mean > 0).select((measured / mean).median()).item(),
    }
