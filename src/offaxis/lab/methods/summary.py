"""Every method of a queue side by side: means over seeds, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.evaluate import pass_rates
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.queue.rows import by_checkpoint
from offaxis.lab.tasks import TASKS
from offaxis.lab.training import METHODS

__all__ = [
    "MEASURES",
    "SUMMARY",
    "Measure",
    "answers",
    "last_checkpoints",
    "over_seeds",
    "summarise",
]


@dataclass(frozen=True)
class Measure:
    """A column of the table: its field of a checkpoint, its heading, and what it is."""

    name: str
    heading: str
    part: str
    """`learning`, `weights` or `cost`: the part of the table that it stands in."""
    meaning: str


MEASURES = tuple(
    Measure(*one)
    for one in (
        ("avg", "accuracy", "learning", "avg@k on held-out problems of the task"),
        ("gain", "gain", "learning", "accuracy minus the base's"),
        ("pass_8", "pass@8", "learning", "chance that 8 samples hold a right one"),
        ("pass_16", "pass@16", "learning", "chance that 16 samples hold a right one"),
        ("avg_harder", "harder", "learning", "avg@k one difficulty up, which no model trained on"),
        ("kl_tuned_base", "KL(tuned ‖ base)", "learning", "nats a completion"),
        ("kl_base_tuned", "KL(base ‖ tuned)", "learning", "nats a completion"),
        ("forgetting", "forgetting", "learning",
         "rise of the loss on the other tasks, nats a token"),
        ("relative_update_norm", "‖ΔW‖/‖W₀‖", "weights", "all parameters together"),
        ("rank1_norm_share", "rank-1 share", "weights", "σ₁(ΔW)/‖ΔW‖, mean over matrices"),
        ("effective_rank", "effective rank", "weights", "of ΔW, mean over matrices"),
        ("unchanged_bf16", "unchanged", "weights", "share of entries that are equal in bf16"),
        ("nss", "NSS", "weights", "normalised spectral shift, mean over matrices"),
        ("rotation_left_deg", "left", "weights", "rotation of left subspaces in degrees"),
        ("rotation_right_deg", "right", "weights", "rotation of right subspaces in degrees"),
        ("principal_overlap_excess", "principal − null", "weights",
         "overlap with principal entries minus its magnitude null"),
        ("low_magnitude_overlap_excess", "low − null", "weights",
         "overlap with small entries minus its magnitude null"),
        ("sampled_per_step", "samples a step", "cost",
         "completions sampled from any model, before or in training, over steps"),
        ("cpu_per_step", "CPU s a step", "cost", "on one thread, without loading and scoring"),
    )
)  # fmt: skip
"""What the table holds of each method, at the last step of its runs."""

SUMMARY: dict[str, Any] = {
    "method": pl.String(),
    "learning_rate": pl.Float64(),
    "measure": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "seeds": pl.Int64(),
}
"""Columns of `summarise`. learning_rate is null for the base."""

_SETTINGS = (
    "task", "difficulty", "steps", "prompts_per_step", "completions_per_prompt", "problems",
    "samples",
)  # fmt: skip
_WEIGHED = ("task", "difficulty", "problems", "samples")  # of these, what the base has too


def last_checkpoints(rows: pl.DataFrame) -> pl.DataFrame:
    """The last checkpoint of every run and the base's, with the table's measures as columns.

    rows: of a queue (`read_rows`) that holds one task under one set of settings, and its base.
    Raises InputError where there is more than one, or where two runs differ in nothing but them.
    """
    trained = rows.filter(pl.col("method") != BASE_METHOD)
    base = rows.filter(pl.col("method") == BASE_METHOD)
    for frame, names in ((trained, _SETTINGS), (pl.concat([trained, base]), _WEIGHED)):
        known = [name for name in names if name in frame.columns]
        settings = frame.select(known).unique()
        if settings.height > 1:
            differ = [name for name in known if settings[name].n_unique() > 1]
            raise InputError(
                f"the runs differ in {', '.join(differ)}, and a table of methods needs one setting "
                "of each: make a queue of one task with `offaxis lab queue`"
            )
    if trained.is_empty() or base.is_empty():
        raise InputError(
            f"no row yet of {'the base' if base.is_empty() else 'a trained run'}: a grid needs "
            "both, and `offaxis lab status` tells how far the queue is"
        )
    if "revision" in trained.columns:
        mixed = trained.group_by("method").agg(pl.col("revision").n_unique())
        for name in mixed.filter(pl.col("revision") > 1)["method"]:
            raise InputError(f"{name} was trained by two revisions of it: use a new directory")
    same = trained.group_by("method", "learning_rate", "seed").len().filter(pl.col("len") > 1)
    for method, rate, seed, _ in same.iter_rows():
        raise InputError(
            f"two runs share method {method}, learning rate {rate:g} and seed {seed}, and differ "
            "in something that the table does not show: make a queue of one setting"
        )
    table = by_checkpoint(rows)
    return _derived(table.filter(pl.col("step") == pl.col("step").max().over("run")))


def _derived(last: pl.DataFrame) -> pl.DataFrame:
    """Gain, forgetting, pass@k, and cost a step."""
    base = last.filter(pl.col("method") == BASE_METHOD)
    others = [f"mixture_loss_{task}" for task in TASKS if task != base["task"][0]]
    found = last.with_columns(
        (pl.col("avg") - base["avg"][0]).alias("gain"),
        pl.mean_horizontal(pl.col(name) - base[name][0] for name in others).alias("forgetting"),
    )
    for k in (8, 16):
        found = found.with_columns(pl.Series(f"pass_{k}", _passes(found, k), dtype=pl.Float64))
    for name, source in (("sampled_per_step", "sampled"), ("cpu_per_step", "train_cpu_seconds")):
        known = source in found.columns
        value = pl.col(source) / pl.col("steps") if known else pl.lit(None, dtype=pl.Float64)
        found = found.with_columns(value.alias(name))
    return found


def _passes(last: pl.DataFrame, k: int) -> list[float | None]:
    """Mean pass@k of each row, None where it holds no counts or too few samples."""
    if "right" not in last.columns:
        return [None] * last.height
    return [
        None
        if counts is None or samples is None or samples < k
        else float(pass_rates(answers(counts, samples), k).mean())
        for counts, samples in last.select("right", "samples").iter_rows()
    ]


def answers(counts: Sequence[int], samples: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(problems, samples) of booleans that have these right answers to each problem."""
    found: np.ndarray[Any, np.dtype[np.bool_]] = np.arange(samples) < np.asarray(counts)[:, None]
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval, mean ± t · s / √n; no interval of a single seed."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return mean, None, None
    half = student_t(sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return mean, mean - half, mean + half


def summarise(rows: pl.DataFrame) -> pl.DataFrame:
    """Each measure of each method at each learning rate, with the columns `SUMMARY`.

    Mean over seeds at the last step and Student's t interval over seeds, 95 %. With three seeds t
    is 4.3, so the interval is 2.5 standard deviations wide on each side: it hides differences that
    paired comparisons would show. It is about other seeds, not other problems. The base has values
    alone, of the measures that make sense for it.
    """
    last = last_checkpoints(rows)
    order = [BASE_METHOD, *METHODS]
    groups: Mapping[tuple[Any, ...], pl.DataFrame] = last.partition_by(
        "method", "learning_rate", as_dict=True, maintain_order=True
    )
    found = []
    for (method, rate), runs in sorted(
        groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
    ):
        told = {"method": method, "learning_rate": None if method == BASE_METHOD else rate}
        for measure in MEASURES:
            values = runs[measure.name].drop_nulls().to_list()
            if not values or (method == BASE_METHOD and measure.name in ("gain", "cpu_per_step")):
                continue
            value, low, high = over_seeds(values)
            found.append(
                told
                | {"measure": measure.name, "value": value, "low": low, "high": high}
                | {"seeds": len(values)}
            )
    return pl.DataFrame(found, schema=SUMMARY)
