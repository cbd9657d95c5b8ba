"""The first study's answers, from the queue's rows: RL against each kind of fine-tuning."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.queue import by_checkpoint
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.study.matching import Matching, Trajectory, read_pair
from offaxis.lab.study.questions import OWN, QUESTIONS, Answer, Question, answer
from offaxis.lab.tasks import TASKS

__all__ = ["MATCHINGS", "RL", "TUNING", "Runs", "against_nulls", "contrasts", "prepare"]

RL = ("grpo", "dapo", "dr_grpo", "rloo")
TUNING = ("sft", "sft_foreign", "rejection_sft", "distill")
"""The methods of this study; rows of others are left out."""
MATCHINGS: tuple[Matching, ...] = ("step", "norm", "accuracy")

Where = tuple[str, str, float, int]  # method, task, learning rate, seed
Runs = Mapping[Where, Trajectory]

_NULLED = ("principal_overlap", "low_magnitude_overlap")


def _derived(table: pl.DataFrame) -> pl.DataFrame:
    """Excesses over the other nulls, and forgetting: the other tasks' loss above the base's."""
    excesses = []
    for name in _NULLED:
        rounding, top = pl.col(f"{name}_rounding_null"), f"{name}_top5"
        excesses += [
            (pl.col(name) - rounding).alias(f"{name}_rounding_excess"),
            (pl.col(top) - pl.col(f"{top}_magnitude_null")).alias(f"{top}_excess"),
        ]
    base = table.filter(pl.col("method") == BASE_METHOD)
    if base.is_empty():
        raise InputError("the table has no row of the base (method = base): its scores are needed")
    start = {task: base[f"mixture_loss_{task}"][0] for task in TASKS}
    rises = {task: pl.col(f"mixture_loss_{task}") - start[task] for task in TASKS}
    forgetting = pl.coalesce(
        pl.when(pl.col("task") == task).then(
            pl.mean_horizontal(rise for other, rise in rises.items() if other != task)
        )
        for task in TASKS
    )
    return table.with_columns(*excesses, forgetting.alias("forgetting"))


def prepare(rows: pl.DataFrame) -> tuple[pl.DataFrame, Runs, dict[str, float]]:
    """Checkpoints with derived columns, every run's trajectory, and the base's accuracy by task."""
    known = rows.filter(pl.col("method").is_in([BASE_METHOD, *RL, *TUNING]))
    table = _derived(by_checkpoint(known))
    base = table.filter(pl.col("method") == BASE_METHOD)
    start = dict(base.select("task", "avg").iter_rows())
    measures = {q.measure for q in (*QUESTIONS, *OWN)} | {"avg"}
    runs: dict[Where, Trajectory] = {}
    tuned = table.filter(pl.col("method") != BASE_METHOD, pl.col("relative_update_norm") > 0)
    keys = ("method", "task", "learning_rate", "seed")
    for where, run in tuned.group_by(keys, maintain_order=True):
        points = run.sort("step")
        if points["run"].n_unique() > 1:
            raise InputError(f"two runs share {dict(zip(keys, where, strict=True))}: narrow them")
        runs[where] = Trajectory(
            tuple(points["step"]),
            tuple(points["relative_update_norm"]),
            tuple(points["avg"]),
            {name: tuple(points[name]) for name in measures},
        )
    return table, runs, start


def _scaled(question: Question, a: float, b: float) -> float | None:
    if question.scale == "difference":
        return a - b
    return math.log(a / b) if a > 0 and b > 0 else None


def _units(
    runs: Runs, start: Mapping[str, float], question: Question, other: str, matching: Matching
) -> tuple[list[float], int]:
    """One number a unit (task, seed), and how many pairs of runs had a common point.

    Within a unit the mean over RL algorithms, then over the learning rates at which they match.
    """
    found: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    pairs = 0
    for (method, task, rate, seed), run in runs.items():
        rival = runs.get((other, task, rate, seed))
        if method not in RL or rival is None or task not in start:
            continue
        read = read_pair(run, rival, [question.measure], matching=matching, start=start[task])
        if read is None or question.measure not in read[0]:
            continue
        value = _scaled(question, read[0][question.measure], read[1][question.measure])
        if value is not None:
            pairs += 1
            found[task, seed][rate].append(value)
    return [_mean(_mean(values) for values in rates.values()) for rates in found.values()], pairs


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def contrasts(rows: pl.DataFrame) -> pl.DataFrame:
    """RL against each kind of fine-tuning, by question and matching.

    Columns: claim, measure, against, matching, scale, direction, value, low, high, units, pairs,
    word. `value` is RL minus the other (`difference`) or the logarithm of RL over the other
    (`ratio`), the mean over units; `pairs` counts the pairs of runs behind it.
    """
    _, runs, start = prepare(rows)
    found = []
    for question in QUESTIONS:
        for other in TUNING:
            for matching in MATCHINGS:
                values, pairs = _units(runs, start, question, other, matching)
                found.append(
                    _row(question, answer(question, values))
                    | {"against": other, "matching": matching, "pairs": pairs}
                )
    return pl.DataFrame(found)


def _row(question: Question, found: Answer) -> dict[str, Any]:
    told = asdict(question)
    told.pop("margin")
    return told | asdict(found)


def against_nulls(rows: pl.DataFrame) -> pl.DataFrame:
    """Each method's overlaps minus their nulls, by learning rate and over all, at the last step.

    Columns: method, learning_rate (null: the mean over rates), claim, measure, value, low, high,
    units, word. RL's four algorithms together are the method `rl`.
    """
    _, runs, _ = prepare(rows)
    rates = sorted({rate for _, _, rate, _ in runs})
    found = []
    groups: dict[str, Sequence[str]] = {name: (name,) for name in (*RL, *TUNING)} | {"rl": RL}
    for name, members in groups.items():
        for rate in (None, *rates):
            for question in OWN:
                values = _own(runs, members, question.measure, rate)
                found.append(
                    {"method": name, "learning_rate": rate}
                    | _row(question, answer(question, values))
                )
    return pl.DataFrame(found, infer_schema_length=None)


def _own(runs: Runs, members: Sequence[str], measure: str, rate: float | None) -> list[float]:
    """One number a unit: the mean over these methods and rates of a measure at the last step."""
    units: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (method, task, at, seed), run in runs.items():
        value = run.values[measure][-1]
        if method in members and (rate is None or at == rate) and value is not None:
            units[task, seed].append(value)
    return [_mean(values) for values in units.values()]
