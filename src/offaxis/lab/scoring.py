"""How well checkpoints solve held-out problems: all of them on the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.evaluate import (
    Score,
    avg_at_k,
    correctness,
    paired_difference,
    pass_at_k,
    sample_completions,
)
from offaxis.lab.arithmetic import Problem, problems
from offaxis.lab.session import cpu_threads
from offaxis.lab.training import MAX_NEW_TOKENS
from offaxis.live import load_live
from offaxis.verifiers import integer_reward

__all__ = ["SCORES", "Exam", "differences", "score_rows", "sit"]

SCORES = {
    "tuned": pl.String,
    "step": pl.Int64,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}
"""Columns of `scores.parquet`: `n` problems, the 95 % interval from `low` to `high`."""


@dataclass(frozen=True)
class Exam:
    """Held-out problems, the same for every model, and how they are sampled."""

    problems: int = 200
    samples: int = 16
    difficulty: int = 2
    seed: int = 0

    def draw(self) -> list[Problem]:
        return problems(self.problems, seed=self.seed, split="held_out", difficulty=self.difficulty)


def sit(model: str | Path, exam: Exam) -> NDArray[np.bool_]:
    """Which samples of a model are right: (problems, samples), sampled at temperature 1."""
    drawn = exam.draw()
    with cpu_threads(1):
        completions = sample_completions(
            load_live(model),
            [problem.prompt for problem in drawn],
            k=exam.samples,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=exam.seed,
        )
    return correctness(completions, [problem.answer for problem in drawn], reward=integer_reward)


def score_rows(
    tuned: str, step: int, correct: NDArray[np.bool_], *, seed: int
) -> list[dict[str, Any]]:
    """Rows of `SCORES` for one model: avg@k, pass@4 and pass@k, k being the samples a problem."""
    samples = correct.shape[1]
    ks = sorted({min(4, samples), samples})
    found = (avg_at_k(correct, seed=seed), *(pass_at_k(correct, k, seed=seed) for k in ks))
    return [
        {
            "tuned": tuned,
            "step": step,
            "metric": score.metric,
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
        }
        for score in found
    ]


def differences(
    answers: Mapping[str, NDArray[np.bool_]], pairs: Sequence[tuple[str, str]], *, seed: int
) -> list[dict[str, Any]]:
    """avg@k of the first minus the second of each pair, paired by problem, with its interval."""
    rows = []
    for a, b in pairs:
        score: Score = paired_difference(answers[a], answers[b], seed=seed)
        values = {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
        rows.append({"a": a, "b": b, **values})
    return rows
