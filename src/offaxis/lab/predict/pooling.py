"""The study's models beside each other: predictor by seed, over algorithms, tasks and problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.lab.claims import Measured
from offaxis.lab.predict.candidates import STOP
from offaxis.lab.predict.exams import harder_samples
from offaxis.lab.tasks import TASKS

__all__ = ["FULL", "RL", "TUNING", "Group", "measured", "with_settings"]

FULL = "full"
"""The arm that is the run's own checkpoint at the target; `STOP` is the one at the origin."""

RL = ("grpo", "dapo", "rloo")
TUNING = ("sft", "distill")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Which runs are averaged over; of each seed all of them are needed."""

    name: str
    label: str
    methods: tuple[str, ...]

    def runs(self, models: pl.DataFrame) -> pl.DataFrame:
        return models.filter(pl.col("method").is_in(self.methods))


def with_settings(models: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """A table of runs with the settings of each, in the order of methods, tasks and seeds."""
    names = ("method", "task", "seed", "steps", "difficulty", "problems", "samples")
    told = models.join(rows.select("run", *names), on="run", how="inner", maintain_order="left")
    known = {name: place for place, name in enumerate((*RL, *TUNING))}
    turn = pl.col("method").replace_strict(known, default=len(known), return_dtype=pl.Int64)
    return told.sort(turn, "method", "task", "seed", maintain_order=True)


def _accuracy(row: Mapping[str, Any]) -> Floats:
    found: Floats = np.asarray(row["right"], dtype=np.float64) / row["samples"]
    return found


def _harder(row: Mapping[str, Any]) -> Floats:
    found: Floats = np.asarray(row["right_harder"], dtype=np.float64) / harder_samples(
        row["samples"]
    )
    return found


def _elsewhere(row: Mapping[str, Any]) -> Floats:
    losses = [row[f"mixture_loss_{task}"] for task in TASKS if task != row["task"]]
    return np.array([np.mean(losses)])


MEASURES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Floats]]] = MappingProxyType(
    {
        "accuracy": ("right", _accuracy),
        "harder": ("right_harder", _harder),
        "elsewhere": ("mixture_loss", _elsewhere),
    }
)
"""Measure -> the column that it needs, and its numbers: one a problem; `elsewhere` is one number,
the mean loss on the families that the run was not trained on, in nats a token."""


def measured(
    models: pl.DataFrame, measure: str, *, origin: int, target: int, arms: Sequence[str]
) -> Measured:
    """Arm -> seed -> its numbers: the mean over methods of each problem, task after task.

    Runs of every method sit the same exam, so that a problem is one problem however many methods
    there are. A number without problems becomes one number. A seed counts for an arm where every
    pair of (method, task) in `models` has it.
    """
    column, numbers = MEASURES[measure]
    chosen = models.filter(pl.col(column).is_not_null())
    cells = sorted(models.select("method", "task").unique().rows())
    found: dict[str, dict[int, Floats]] = {}
    for arm in arms:
        own = _of(chosen, arm, origin, target)
        by_seed: dict[int, dict[tuple[str, str], Floats]] = {}
        for row in own.iter_rows(named=True):
            by_seed.setdefault(row["seed"], {})[row["method"], row["task"]] = numbers(row)
        found[arm] = {
            seed: _averaged(row) for seed, row in sorted(by_seed.items()) if set(row) == set(cells)
        }
    return found


def _averaged(row: Mapping[tuple[str, str], Floats]) -> Floats:
    """One seed's numbers by (method, task), over methods."""
    tasks = sorted({task for _, task in row})
    each = [
        np.mean([own for (_, task), own in row.items() if task == one], axis=0) for one in tasks
    ]
    found: Floats = np.concatenate(each)
    return found if each[0].size > 1 else found.mean(keepdims=True)


def _of(models: pl.DataFrame, arm: str, origin: int, target: int) -> pl.DataFrame:
    """An arm's models, one a run."""
    if arm in (STOP, FULL):
        return models.filter(kind="real", origin=origin if arm == STOP else target)
    return models.filter(predictor=arm, origin=origin, target=target)
