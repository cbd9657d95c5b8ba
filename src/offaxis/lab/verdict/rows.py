"""The runs that the rule is fitted to and tested on: one row a checkpoint, with its label."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.queue import by_checkpoint
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.verdict.rule import FEATURES, LABELS

__all__ = ["CELL", "FOLD", "NEITHER", "checkpoints", "ends", "name_of"]

FOLD = ("task", "learning_rate", "optimizer", "dtype")
"""What is left out at a time; in the first study it comes down to task and rate."""

CELL = ("optimizer", "dtype", "prompts_per_step", "steps")

NEITHER = ("dpo", "distill_on_policy")
"""Methods of the study that are neither on-policy RL nor fine-tuning on given solutions."""

_OLD = {"optimizer": "adamw_torch", "dtype": "float32"}
"""What rows from before there was a choice were made with."""


def checkpoints(rows: pl.DataFrame) -> pl.DataFrame:
    """One row a checkpoint of a trained run, with `rl` (None: no label), `last` and `fold`.

    Checkpoints at which a feature is undefined are left out. Raises InputError where the rows lack
    a feature altogether.
    """
    for name, usual in _OLD.items():
        if name not in rows.columns:
            rows = rows.with_columns(pl.lit(None, pl.String).alias(name))
        rows = rows.with_columns(pl.col(name).fill_null(usual))
    points = by_checkpoint(rows.filter(pl.col("method") != BASE_METHOD))
    absent = [name for name in FEATURES if name not in points.columns]
    if absent:
        raise InputError(
            f"these rows have no {', '.join(absent)}: an older offaxis made them; run them again"
        )
    rl = pl.col("method").replace_strict(dict(LABELS), default=None, return_dtype=pl.Boolean)
    points = points.with_columns(
        rl.alias("rl"),
        (pl.col("step") == pl.col("steps")).alias("last"),
        pl.concat_str([pl.col(name).cast(pl.String) for name in FOLD], separator=" ").alias("fold"),
    )
    defined = pl.all_horizontal(
        pl.col(name).is_not_null() & pl.col(name).is_not_nan() for name in FEATURES
    )
    return points.filter(defined).sort("run", "step")


def ends(points: pl.DataFrame, *, labelled: bool = True) -> pl.DataFrame:
    """Each run at its last step; labelled: only where the method has a label."""
    found = points.filter("last")
    return found.filter(pl.col("rl").is_not_null()) if labelled else found


def name_of(cell: Sequence[object]) -> str:
    """`AdamW, float32, 8 problems, 40 steps` of a `CELL`."""
    optimizer, dtype, problems, steps = cell
    names = {"adamw_torch": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "adafactor": "Adafactor"}
    return f"{names.get(str(optimizer), optimizer)}, {dtype}, {problems} problems, {steps} steps"
