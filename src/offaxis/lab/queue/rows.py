"""The table of the queue: one row a run, its checkpoints as a list inside the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.tasks import TASKS
from offaxis.measures import MEASURES
from offaxis.output import staged_file

__all__ = ["CHECKPOINT", "COMPARED", "PROFILES", "RUN", "by_checkpoint", "read_rows", "write_row"]

_EXCESSES = ("principal_overlap_excess", "low_magnitude_overlap_excess")
_MEANS = (*(measure.name for measure in MEASURES if measure.over == "matrices"), *_EXCESSES)

PROFILES = tuple(measure.name for measure in MEASURES if measure.over == "profiles")
"""Means over matrices of `compare`'s measures of row and column profiles."""

COMPARED: tuple[str, ...] = (
    "unchanged_bf16",
    "unchanged_stored",
    "relative_update_norm",
    "correlation",
    "matrix_update_norm",
    "matrix_correlation",
    *_MEANS,
)
"""The numbers of `compare`'s summary that a checkpoint's entry holds, nulls and excesses among
them; those averaged over matrices have `_low` and `_high` beside them (95 %, over matrices)."""


def _interval(*names: str) -> dict[str, Any]:
    return {f"{name}{end}": pl.Float64() for name in names for end in ("", "_low", "_high")}


CHECKPOINT: dict[str, Any] = {
    "step": pl.Int64(),
    **_interval("avg"),
    "pass_k": pl.Float64(),
    "right": pl.List(pl.Int64()),
    **_interval(*(f"avg_{task}" for task in TASKS), "avg_harder"),
    "right_harder": pl.List(pl.Int64()),
    **_interval("kl_tuned_base", "kl_base_tuned"),
    "kl_tuned_base_token": pl.Float64(),
    "kl_base_tuned_token": pl.Float64(),
    **_interval("mixture_loss", *(f"mixture_loss_{task}" for task in TASKS)),
    "reward": pl.Float64(),
    **{name: pl.Float64() for name in COMPARED if name not in _MEANS},
    **{name: pl.Float64() for name in PROFILES},
    **_interval(*_MEANS),
    "verdict": pl.String(),
    "twin_cosine": pl.Float64(),
    "twin_same": pl.Float64(),
    "twin_same_changed": pl.Float64(),
    "twin_distance": pl.Float64(),
}
"""Fields of a checkpoint. `avg`: accuracy on the run's own task with its 95 % interval over
problems; `right`: right answers to each problem, of `samples`. `avg_TASK`, `avg_harder`,
`right_harder`: on every task, and on the own task one difficulty up, at the last step alone.
`kl_*`: nats a completion. `mixture_loss*`: nats a token on the held-out pretraining mixture.
`reward`: the mean share of right training samples in the steps since the checkpoint before
(RL). `twin_*`: at the last step, against the run's twin (`offaxis.lab.queue.twin`)."""

RUN: dict[str, Any] = {
    "run": pl.String(),
    "method": pl.String(),
    "revision": pl.Int64(),
    "task": pl.String(),
    "learning_rate": pl.Float64(),
    "seed": pl.Int64(),
    "steps": pl.Int64(),
    "difficulty": pl.Int64(),
    "prompts_per_step": pl.Int64(),
    "completions_per_prompt": pl.Int64(),
    "problems": pl.Int64(),
    "samples": pl.Int64(),
    "mask": pl.String(),
    "twin_seed": pl.Int64(),
    "mask_density": pl.Float64(),
    "mask_refresh": pl.Int64(),
    "adapter": pl.String(),
    "optimizer": pl.String(),
    "dtype": pl.String(),
    "edit": pl.String(),
    "trainable": pl.Int64(),
    "base": pl.String(),
    "teacher": pl.String(),
    "sampled": pl.Int64(),
    "train_seconds": pl.Float64(),
    "train_cpu_seconds": pl.Float64(),
    "total_seconds": pl.Float64(),
    "peak_mib": pl.Float64(),
    "device": pl.String(),
    "versions": pl.String(),
    "checkpoints": pl.List(pl.Struct(CHECKPOINT)),
}
"""Columns of a row. `revision`: of the method, 0 the first. `mask`: the rule that says what was
trained, `mask_density`: the share of the matrices' entries that it selects; null where all was
trained; `mask_refresh`: steps after which it was made again. `adapter`: what was trained in the
base's place; `optimizer`, `dtype`: null in rows from before there was a choice (AdamW, float32);
`edit`: what was done to the base first, null where nothing; all is measured against the edited
base. `trainable`: parameters with gradients. `base`, `teacher`: digests of weights, the base's
before its edit.
`sampled`: completions that models were sampled for, for the data and in training.
`train_seconds`: with loading and sampling, on the clock; `train_cpu_seconds`: of the steps alone.
`peak_mib`: the largest resident size of the run's process. `versions`: JSON."""


def write_row(path: Path, run: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """One row as a Parquet file that appears whole or not at all. Unknown fields are refused."""
    unknown = set(run) - set(RUN)
    unknown |= {name for one in checkpoints for name in one} - set(CHECKPOINT)
    if unknown:
        raise ValueError(f"no such columns: {sorted(unknown)}")
    whole = [{name: one.get(name) for name in CHECKPOINT} for one in checkpoints]
    row = {name: run.get(name) for name in RUN} | {"checkpoints": whole}
    with staged_file(path) as staged:
        pl.DataFrame([row], schema=RUN).write_parquet(staged, compression="zstd")


def read_rows(source: str | Path) -> pl.DataFrame:
    """The rows of a queue directory, or of one Parquet file that `lab table` wrote."""
    path = Path(source)
    if path.is_dir():
        files = sorted((path / "rows").glob("*.parquet"))
        if not files:
            raise InputError(f"{path}: no rows yet (looked in {path / 'rows'})")
        try:
            return pl.concat([pl.read_parquet(file) for file in files], how="diagonal")
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"{path}: its rows do not fit together ({error}): another version of offaxis "
                "wrote some of them; use a new directory"
            ) from error
    if not path.is_file():
        raise InputError(f"{path}: neither a queue directory nor a table of rows")
    try:
        found = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not a Parquet table: {error}") from error
    absent = [name for name in ("run", "method", "checkpoints") if name not in found.columns]
    if absent:
        raise InputError(f"{path}: not a table of runs, it has no column {', '.join(absent)}")
    return found


def by_checkpoint(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a checkpoint: the run's columns, then the checkpoint's fields."""
    return rows.explode("checkpoints", keep_nulls=False, empty_as_null=False).unnest("checkpoints")
