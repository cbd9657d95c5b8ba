"""What each method of the lab is trained on, as TRL data sets.

| data | what it is |
|---|---|
| `prompts` | problems of the train split, with what their verifier must know |
| `right` | the generator's right solutions, styles in the shares of pretraining |
| `foreign` | right solutions in a style that the base never saw |
| `rejection` | the base's own samples that the verifier passed |
| `distilled` | samples of a stronger lab model, right and wrong |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

import polars as pl

from offaxis.errors import InputError
from offaxis.evaluate import sample_completions
from offaxis.lab.tasks import STYLES, Problem, task_named
from offaxis.live import load_live
from offaxis.output import staged_file

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataKind", "Need", "longest_completion", "prompt_data", "solution_data"]

DataKind = Literal["right", "foreign", "rejection", "distilled"]

_SAMPLED_AT_ONCE = 512
_HOPELESS = 40  # samples drawn for each right one after which rejection sampling gives up


@dataclass(frozen=True)
class Need:
    """How much of which task: `count` examples, determined by `seed`."""

    task: str
    difficulty: int
    count: int
    seed: int


def longest_completion(task: str, difficulty: int) -> int:
    """Tokens that a completion may have: the longest right solution, its end and some room."""
    return task_named(task).longest[difficulty] + 6


def prompt_data(need: Need) -> Dataset:
    """Different problems with columns `prompt` and `answer`, for RL."""
    from datasets import Dataset

    drawn = task_named(need.task).problems(
        need.count, seed=need.seed, split="train", difficulty=need.difficulty
    )
    return Dataset.from_dict(
        {"prompt": [p.prompt for p in drawn], "answer": [p.answer for p in drawn]}
    )


def solution_data(
    kind: DataKind, need: Need, *, model: Path | None = None, cache: Path | None = None
) -> Dataset:
    """Columns `prompt` and `completion`, for SFT. `model` is sampled for the last two kinds.

    cache: a directory in which samples are kept, so that runs that differ in their learning rate
    alone sample once. It must belong to one model of each kind.
    """
    from datasets import Dataset

    if kind in ("right", "foreign"):
        pairs = _generated(need, foreign=kind == "foreign")
    elif model is None:
        raise InputError(f"{kind} data are sampled from a model, and none is named")
    else:
        pairs = _kept(kind, need, model, cache) if cache else _sampled(kind, need, model)
    return Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})


def _kept(kind: DataKind, need: Need, model: Path, cache: Path) -> list[tuple[str, str]]:
    """Samples from the cache, put there first where they are not."""
    name = f"{kind}-{need.task}-{need.difficulty}-{need.count}-{need.seed}.parquet"
    if not (cache / name).is_file():
        pairs = _sampled(kind, need, model)
        with staged_file(cache / name) as staged:
            pl.DataFrame(pairs, schema=["prompt", "completion"], orient="row").write_parquet(staged)
    return list(pl.read_parquet(cache / name).iter_rows())


def _generated(need: Need, *, foreign: bool) -> list[tuple[str, str]]:
    """Right solutions by the generator to a stream of problems."""
    task = task_named(need.task)
    rng = Random(f"solutions/{need.task}/{need.seed}")
    weights = [task.mixture.share[style] for style in STYLES]
    pairs = []
    source = task.stream(seed=need.seed, split="train", difficulty=need.difficulty)
    for problem, _ in zip(source, range(need.count), strict=False):
        (style,) = rng.choices(STYLES, weights)
        text = task.solution(problem, style="foreign" if foreign else style, right=True, rng=rng)
        pairs.append((problem.prompt, text))
    return pairs


def _sampled(kind: DataKind, need: Need, model: Path) -> list[tuple[str, str]]:
    """One sample a problem at temperature 1; for `rejection` only those that are right."""
    task, live = task_named(need.task), load_live(model)
    source: Iterator[Problem] = task.stream(
        seed=need.seed, split="train", difficulty=need.difficulty
    )
    pairs: list[tuple[str, str]] = []
    drawn = 0
    while len(pairs) < need.count:
        problems = [next(source) for _ in range(_SAMPLED_AT_ONCE)]
        texts = sample_completions(
            live,
            [problem.prompt for problem in problems],
            k=1,
            max_new_tokens=longest_completion(need.task, need.difficulty),
            seed=need.seed * 100_003 + drawn,
        )
        drawn += len(problems)
        pairs += [
            (problem.prompt, text)
            for problem, (text,) in zip(problems, texts, strict=True)
            if kind != "rejection" or task.reward(text, problem.prompt, problem.answer) > 0.5
        ]
        if len(pairs) < need.count and drawn > _HOPELESS * max(len(pairs), _SAMPLED_AT_ONCE):
            raise InputError(
                f"{model}: {len(pairs)} of {drawn} samples on {need.task} are right, too few to "
                f"find {need.count} by rejection: start from a model that solves more"
            )
    return pairs[: need.count]
