"""What each method of the lab is trained on, as TRL data sets.

| data | what it is |
|---|---|
| `prompts` | problems of the train split, with what their verifier must know |
| `right` | the generator's right solutions, styles in the shares of pretraining |
| `foreign` | right solutions in a style that the base never saw |
| `rejection` | the base's own samples that the verifier passed |
| `distilled` | samples of a stronger lab model, right and wrong |
| `pairs` | a right and a wrong sample of the base for one problem |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

import polars as pl

from offaxis.errors import InputError
from offaxis.evaluate import Completion, sample, sample_completions
from offaxis.lab.tasks import DIFFICULTIES, STYLES, Problem, task_named
from offaxis.live import LiveModel, load_live
from offaxis.output import staged_file

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DataKind",
    "Material",
    "Need",
    "longest_completion",
    "material",
    "named_data",
    "prompt_data",
    "solution_data",
]

DataKind = Literal["prompts", "right", "foreign", "rejection", "distilled", "pairs"]

_SAMPLED_AT_ONCE = 512
_PAIR_SAMPLES = 4  # samples of a problem among which a right and a wrong one are looked for
_HOPELESS = 40  # samples drawn for each row wanted after which sampling gives up


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


def named_data(text: str) -> Dataset:
    """What `data: lab:TEXT` of a training configuration stands for.

    TEXT: a task's name and, after `?`, any of difficulty (2), count (1000) and seed (0), as in
    `countdown?difficulty=1&count=500`. Columns `prompt`, `answer` and `completion` (a right
    solution by the generator).
    """
    from urllib.parse import parse_qsl

    from datasets import Dataset

    name, _, query = text.partition("?")
    options = {"difficulty": 2, "count": 1000, "seed": 0}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options or not value.isdecimal():
            raise InputError(
                f"lab:{text}: {key}={value}: whole numbers for {', '.join(options)} are needed"
            )
        options[key] = int(value)
    task_named(name)
    if options["difficulty"] not in DIFFICULTIES:
        raise InputError(f"lab:{text}: choose a difficulty among {DIFFICULTIES}")
    need = Need(name, **options)
    task, rng = task_named(name), Random(f"named/{need.seed}")
    drawn = task.problems(need.count, seed=need.seed, split="train", difficulty=need.difficulty)
    return Dataset.from_list(
        [
            {
                "prompt": one.prompt,
                "answer": one.answer,
                "completion": task.solution(one, style="steps", right=True, rng=rng),
            }
            for one in drawn
        ]
    )


@dataclass(frozen=True)
class Material:
    """What a run is trained on."""

    data: Dataset
    sampled: int | None
    """Completions that a model was sampled for to make it; None where a cache does not say."""


def material(
    kind: DataKind, need: Need, *, model: Path | None = None, cache: Path | None = None
) -> Material:
    """Data of any kind: `prompt` and `answer`, `completion`, or `chosen` and `rejected`.

    model: what `rejection` and `pairs` (the base) and `distilled` (the stronger model) sample.
    cache: a directory in which samples are kept, so that runs that differ in their learning rate
    alone sample once. It must belong to one model of each kind.
    """
    from datasets import Dataset

    if kind == "prompts":
        return Material(prompt_data(need), 0)
    if kind in ("right", "foreign"):
        drawn = _Drawn(_generated(need, foreign=kind == "foreign"), 0)
    elif model is None:
        raise InputError(f"{kind} data are sampled from a model, and none is named")
    else:
        drawn = _kept(kind, need, model, cache) if cache else _sampled(kind, need, model)
    columns = zip(_columns(kind), zip(*drawn.rows, strict=True), strict=True)
    return Material(Dataset.from_dict({name: list(row) for name, row in columns}), drawn.samples)


def solution_data(
    kind: DataKind, need: Need, *, model: Path | None = None, cache: Path | None = None
) -> Dataset:
    """Solutions or pairs of one kind to a stream of problems; see `material`."""
    return material(kind, need, model=model, cache=cache).data


@dataclass(frozen=True)
class _Drawn:
    """Rows, and how many samples were drawn to find them."""

    rows: list[tuple[str, ...]]
    samples: int | None


def _columns(kind: DataKind) -> tuple[str, ...]:
    return ("prompt", "chosen", "rejected") if kind == "pairs" else ("prompt", "completion")


def _kept(kind: DataKind, need: Need, model: Path, cache: Path) -> _Drawn:
    """Samples from the cache, put there first where they are not."""
    path = cache / f"{kind}-{need.task}-{need.difficulty}-{need.count}-{need.seed}.parquet"
    if not path.is_file():
        drawn = _sampled(kind, need, model)
        frame = pl.DataFrame(drawn.rows, schema=_columns(kind), orient="row")
        with staged_file(path) as staged:
            frame.write_parquet(staged, metadata={"sampled": str(drawn.samples)})
    told = pl.read_parquet_metadata(path).get("sampled")
    return _Drawn(list(pl.read_parquet(path).iter_rows()), int(told) if told else None)


def _generated(need: Need, *, foreign: bool) -> list[tuple[str, ...]]:
    """Right solutions by the generator to a stream of problems."""
    task = task_named(need.task)
    rng = Random(f"solutions/{need.task}/{need.seed}")
    weights = [task.mixture.share[style] for style in STYLES]
    pairs: list[tuple[str, ...]] = []
    source = task.stream(seed=need.seed, split="train", difficulty=need.difficulty)
    for problem, _ in zip(source, range(need.count), strict=False):
        (style,) = rng.choices(STYLES, weights)
        text = task.solution(problem, style="foreign" if foreign else style, right=True, rng=rng)
        pairs.append((problem.prompt, text))
    return pairs


def _sampled(kind: DataKind, need: Need, model: Path) -> _Drawn:
    """Samples at temperature 1: one a problem, or some of which a right and a wrong one are kept.

    Of `rejection` only the right ones count.
    """
    task, live = task_named(need.task), load_live(model)
    source: Iterator[Problem] = task.stream(
        seed=need.seed, split="train", difficulty=need.difficulty
    )
    find = _pairs if kind == "pairs" else _singles
    rows: list[tuple[str, ...]] = []
    drawn = 0
    while len(rows) < need.count:
        problems = [next(source) for _ in range(_SAMPLED_AT_ONCE)]
        samples, found = find(kind, need, live, problems, seed=need.seed * 100_003 + drawn)
        drawn += samples
        rows += found
        if len(rows) < need.count and drawn > _HOPELESS * max(len(rows), _SAMPLED_AT_ONCE):
            what = "hold a right and a wrong one" if kind == "pairs" else "are right"
            raise InputError(
                f"{model}: {len(rows)} of {drawn} samples on {need.task} {what}, too few to "
                f"find {need.count} by rejection: start from a model that solves more"
            )
    return _Drawn(rows[: need.count], drawn)


def _singles(
    kind: DataKind, need: Need, live: LiveModel, problems: list[Problem], *, seed: int
) -> tuple[int, list[tuple[str, ...]]]:
    """One sample a problem; of `rejection` those that are right."""
    task = task_named(need.task)
    texts = sample_completions(
        live,
        [problem.prompt for problem in problems],
        k=1,
        max_new_tokens=longest_completion(need.task, need.difficulty),
        seed=seed,
    )
    return len(problems), [
        (problem.prompt, text)
        for problem, (text,) in zip(problems, texts, strict=True)
        if kind != "rejection" or task.reward(text, problem.prompt, problem.answer) > 0.5
    ]


def _pairs(
    kind: DataKind, need: Need, live: LiveModel, problems: list[Problem], *, seed: int
) -> tuple[int, list[tuple[str, ...]]]:
    """The first right and the first wrong sample of each problem that has both, none cut off."""
    task = task_named(need.task)

    def right(one: Completion, problem: Problem) -> bool:
        return task.reward(one.text, problem.prompt, problem.answer) > 0.5

    answers = sample(
        live,
        [problem.prompt for problem in problems],
        k=_PAIR_SAMPLES,
        max_new_tokens=longest_completion(need.task, need.difficulty),
        seed=seed,
    )
    found: list[tuple[str, ...]] = []
    for problem, row in zip(problems, answers, strict=True):
        ended = [(right(one, problem), one.text) for one in row if one.ended]
        good = next((text for is_right, text in ended if is_right), None)
        bad = next((text for is_right, text in ended if not is_right), None)
        if good is not None and bad is not None:
            found.append((problem.prompt, good, bad))
    return len(problems) * _PAIR_SAMPLES, found
