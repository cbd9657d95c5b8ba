"""Score rows of a run: avg@n, pass@k and maj@k along k, each with its interval over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate.statistics import mean_score, pass_rates
from offaxis.evaluate.voting import majority_rate

__all__ = ["SCORE_COLUMNS", "Answers", "ScoreRow", "powers", "score_rows", "scores_frame"]

Floats = NDArray[np.float64]
SCORE_COLUMNS = {
    "model": pl.String,
    "data": pl.String,
    "metric": pl.String,
    "k": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}
"""Columns of `scores.parquet`: `n` problems, a 95 % interval from `low` to `high`."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score. `metric` is its name with its k (`pass@4`); `low` and `high` are null where the
    source gave no interval."""

    model: str
    data: str
    metric: str
    k: int | None
    value: float
    low: float | None
    high: float | None
    n: int | None
    """Problems."""


@dataclass(frozen=True)
class Answers:
    """How every sample of every problem did."""

    ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    """(problems, samples)"""
    classes: tuple[tuple[int | None, ...], ...] | None
    """For every problem the answer that each sample votes for; None where votes are not known."""

    def per_problem(self, metric: str, k: int) -> Floats:
        """`avg`, `pass` or `maj` at k of every problem, each unbiased; avg whatever the k."""
        if metric == "avg":
            means: Floats = np.asarray(self.correct, dtype=np.float64).mean(axis=1)
            return means
        if metric == "pass":
            return pass_rates(self.correct, k)
        if metric != "maj" or self.classes is None:
            raise InputError(f"no {metric}@{k} here: choose avg, pass, or maj where votes are kept")
        rows = zip(self.classes, self.correct.tolist(), strict=True)
        return np.array([majority_rate(votes, right, k) for votes, right in rows])

    @property
    def samples(self) -> int:
        return int(self.correct.shape[1])


def powers(samples: int) -> list[int]:
    """1, 2, 4, ... up to `samples`, which comes last though it be no power of two."""
    found = [1 << bit for bit in range(samples.bit_length())]
    return found if found[-1] == samples else [*found, samples]


def score_rows(answers: Answers, *, model: str, data: str, seed: int = 0) -> list[ScoreRow]:
    """avg@n; pass@k and maj@k for k = 1, 2, 4, ... and n, n being the samples a problem."""
    wanted: list[tuple[str, int]] = [("avg", answers.samples)]
    kinds = ["pass", "maj"] if answers.classes is not None else ["pass"]
    wanted += [(kind, k) for kind in kinds for k in powers(answers.samples)]
    found = []
    for kind, k in wanted:
        name = f"{kind}@{k}"
        one = mean_score(name, answers.per_problem(kind, k), seed=seed)
        found.append(ScoreRow(model, data, name, k, one.value, one.low, one.high, one.n))
    return found


def scores_frame(rows: Sequence[ScoreRow]) -> pl.DataFrame:
    """A polars frame with the columns `SCORE_COLUMNS`."""
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in SCORE_COLUMNS
    }
    return pl.DataFrame(columns, schema=SCORE_COLUMNS)
