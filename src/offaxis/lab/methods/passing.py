"""Did training widen what a model can solve, or only sharpen it? pass@k against the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.evaluate import bootstrap_mean, pass_rates
from offaxis.lab.methods.summary import answers, last_checkpoints
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.training import METHODS

__all__ = ["EXAMS", "PASSING", "Word", "against_base", "word"]

Word = Literal["widened", "narrowed", "cannot tell", "at the ceiling"]

EXAMS = {"own": "right", "harder": "right_harder"}
"""Exam -> the field that holds its right answers: the runs' own difficulty, and one up."""

PASSING: dict[str, Any] = {
    "exam": pl.String(),
    "method": pl.String(),
    "learning_rate": pl.Float64(),
    "k": pl.Int64(),
    "value": pl.Float64(),
    "base": pl.Float64(),
    "difference": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "problems": pl.Int64(),
    "seeds": pl.Int64(),
}
"""Columns of `against_base`. `difference` is `value` − `base`, with its 95 % interval."""


def against_base(rows: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """pass@k of each method at each rate for k = 1, 2, 4, ... samples, and minus the base's.

    Each problem's pass@k is the mean over seeds; the difference is paired by problem, and its
    interval a percentile bootstrap over problems: it is about other problems (and other samples of
    them), given these trained models, and holds no more of the spread over seeds than their mean
    does. Where no problem differs a bootstrap has no width; the share of problems that would is
    then below 1 − 0.025^(1/n), which bounds the difference on both sides (Clopper and Pearson,
    1934). Columns: `PASSING`.

    Raises InputError where the rows hold no right answers by problem.
    """
    last = last_checkpoints(rows)
    if "right" not in last.columns or last["right"].null_count() == last.height:
        raise InputError(
            "the rows hold no right answers by problem: an older offaxis wrote them; do the runs "
            "again in a new directory"
        )
    found: list[dict[str, Any]] = []
    for exam, field in EXAMS.items():
        known = last.filter(pl.col(field).is_not_null())
        base = known.filter(pl.col("method") == BASE_METHOD)
        if base.is_empty():
            continue
        start = {k: _rates(base, field, k) for k in _ks(int(base["samples"][0]))}
        for (method, rate), runs in _groups(known):
            for k, before in start.items():
                told = {"exam": exam, "method": method, "learning_rate": rate, "k": k}
                found.append(told | _against(_rates(runs, field, k), before, seed, runs.height))
    return pl.DataFrame(found, schema=PASSING)


def _ks(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which is among them."""
    return sorted({samples, *(1 << power for power in range(samples.bit_length()))})


def _groups(known: pl.DataFrame) -> list[tuple[tuple[Any, ...], pl.DataFrame]]:
    """Runs by method and learning rate, in the table's order."""
    trained = known.filter(pl.col("method") != BASE_METHOD)
    groups = trained.partition_by("method", "learning_rate", as_dict=True)
    order = list(METHODS)
    return sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))


def _rates(runs: pl.DataFrame, field: str, k: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """pass@k of each problem, the mean over runs."""
    told = runs.select(field, "samples").iter_rows()
    each = [pass_rates(answers(counts, samples), k) for counts, samples in told]
    found: np.ndarray[Any, np.dtype[np.float64]] = np.mean(each, axis=0)
    return found


def _against(after: Any, before: Any, seed: int, seeds: int) -> dict[str, Any]:
    difference, low, high = bootstrap_mean(after - before, seed=seed)
    if (after == before).all():
        high = 1 - 0.025 ** (1 / len(before))
        low = -high
    return {
        "value": float(after.mean()),
        "base": float(before.mean()),
        "difference": difference,
        "low": low,
        "high": high,
        "problems": len(before),
        "seeds": seeds,
    }


def word(row: Mapping[str, Any]) -> Word:
    """What a row of `against_base` says at the largest k: its interval leaves out zero, or not.

    Where the base solves every problem already, nothing can be widened: `at the ceiling`.
    """
    if row["low"] > 0:
        return "widened"
    if row["high"] < 0:
        return "narrowed"
    return "at the ceiling" if row["base"] == 1 else "cannot tell"
