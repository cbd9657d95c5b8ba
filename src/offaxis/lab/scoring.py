"""How well models solve held-out problems, and how far they went from the base in what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.evaluate import (
    Completion,
    Score,
    avg_at_k,
    bootstrap_mean,
    paired_difference,
    pass_at_k,
    sample,
    sequence_kl,
    token_losses,
)
from offaxis.lab.data import longest_completion
from offaxis.lab.pretrain import Example, examples
from offaxis.lab.session import cpu_threads
from offaxis.lab.tasks import Problem, task_named
from offaxis.live import LiveModel, load_live

__all__ = [
    "SCORES",
    "Divergences",
    "Exam",
    "Sitting",
    "differences",
    "divergences",
    "mixture_losses",
    "score_rows",
    "sit",
]

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

_FOREIGN_WORDS = 24  # characters by which a solution in a foreign style is longer, at most


@dataclass(frozen=True)
class Exam:
    """Held-out problems of one task, the same for every model, and how they are sampled."""

    problems: int = 200
    samples: int = 16
    difficulty: int = 2
    seed: int = 0
    task: str = "arithmetic"

    def draw(self) -> list[Problem]:
        return task_named(self.task).problems(
            self.problems, seed=self.seed, split="held_out", difficulty=self.difficulty
        )


@dataclass(frozen=True)
class Sitting:
    """A model's answers to an exam."""

    completions: list[list[Completion]]
    correct: NDArray[np.bool_]
    """(problems, samples)"""
    prompts: list[list[int]]
    """Token ids of each prompt."""

    @property
    def score(self) -> Score:
        """avg@k with its interval."""
        return avg_at_k(self.correct)


def sit(model: str | Path | LiveModel, exam: Exam) -> Sitting:
    """Sample a model's answers at temperature 1 and mark them.

    Completions may be as long as the longest right solution in any style, so a model that learnt
    a wordy one is not cut off.
    """
    task, drawn = task_named(exam.task), exam.draw()
    with cpu_threads(1):
        live = model if isinstance(model, LiveModel) else load_live(model)
        texts = [problem.prompt for problem in drawn]
        completions = sample(
            live,
            texts,
            k=exam.samples,
            max_new_tokens=longest_completion(exam.task, exam.difficulty) + _FOREIGN_WORDS,
            seed=exam.seed,
        )
    correct = [
        [task.reward(one.text, problem.prompt, problem.answer) > 0.5 for one in row]
        for problem, row in zip(drawn, completions, strict=True)
    ]
    ids = live.tokenizer(texts)["input_ids"]
    return Sitting(completions, np.array(correct, dtype=np.bool_), ids)


@dataclass(frozen=True)
class Divergences:
    """KL between a tuned model and the base, in nats a completion, and in nats a token."""

    tuned_base: tuple[float, float, float]
    """KL(tuned ‖ base) over the tuned model's own samples: mean and 95 % interval."""
    base_tuned: tuple[float, float, float]
    """KL(base ‖ tuned) over the base's samples."""
    tuned_base_token: float
    base_tuned_token: float


def divergences(
    tuned: LiveModel, sitting: Sitting, base: LiveModel, base_sitting: Sitting, *, samples: int = 1
) -> Divergences:
    """Both directions, each on the samples of its first model; bootstrapped over problems.

    samples: how many completions of each problem are used, at most. One does, since each token
    counts with its whole distribution, and the problems vary more than their samples.
    """
    with cpu_threads(1):
        there = _kl(tuned, base, sitting, samples)
        back = _kl(base, tuned, base_sitting, samples)
    return Divergences(there[0], back[0], there[1], back[1])


def _kl(
    p: LiveModel, q: LiveModel, sitting: Sitting, samples: int
) -> tuple[tuple[float, float, float], float]:
    rows = [row[:samples] for row in sitting.completions]
    prompts = [ids for ids, row in zip(sitting.prompts, rows, strict=True) for _ in row]
    found = sequence_kl(p, q, prompts, [one.tokens for row in rows for one in row])
    return bootstrap_mean(found.sequence.reshape(len(rows), -1).mean(1)), found.per_token


@cache
def _mixture(count: int) -> tuple[Example, ...]:
    return tuple(islice(examples(seed=0, split="held_out"), count))


def mixture_losses(live: LiveModel, *, count: int = 360) -> dict[str, tuple[float, float, float]]:
    """The probe of general ability: loss on held-out lines of the pretraining mixture.

    Mean nats a solution token with its 95 % interval over examples, for each family and for `all`.
    A model that forgets what it was not trained on rises here.
    """
    drawn = _mixture(count)
    prompts = live.tokenizer([one.problem.prompt for one in drawn])["input_ids"]
    end = [int(live.tokenizer.eos_token_id)]
    first = len(live.tokenizer("")["input_ids"])
    solutions = [
        ids[first:] + end for ids in live.tokenizer([one.solution for one in drawn])["input_ids"]
    ]
    with cpu_threads(1):
        losses = token_losses(live, prompts, solutions)
    families = np.array([one.task for one in drawn])
    found = {"all": bootstrap_mean(losses)}
    return found | {
        name: bootstrap_mean(losses[families == name]) for name in sorted(set(families))
    }


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
