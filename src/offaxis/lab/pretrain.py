"""Pretraining the lab's base from its seed, on right and wrong worked solutions to all families."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import torch

from offaxis.lab.tasks import TASKS, Problem, Split
from offaxis.lab.tokenizer import LARGE, SMALL, Shape, build_tokenizer, model_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

__all__ = [
    "PRETRAINING_THREADS",
    "RECIPES",
    "Example",
    "LogRow",
    "Recipe",
    "examples",
    "tokens_and_labels",
    "train_base",
]

PRETRAINING_THREADS = 1
"""CPU threads with which the bundled base was made."""

IGNORED = -100  # the label that cross entropy leaves out
_LOG_EVERY = 50
_DIFFICULTIES, _DIFFICULTY_SHARES = (1, 2), (0.2, 0.8)


@dataclass(frozen=True)
class Recipe:
    """How a base is pretrained: AdamW, 5 % warm-up, then a cosine down to 5 % of the peak.

    The first steps see right solutions alone, from which the skills are learnt sooner; the rest
    see the mixture, which makes the model fail as often as its examples do.
    """

    seed: int = 0
    steps: int = 3600
    clean_steps: int = 2000
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    shape: Shape = field(default=SMALL)


RECIPES = {
    "small": Recipe(),
    "large": Recipe(steps=6000, clean_steps=3000, batch=512, learning_rate=6e-4, shape=LARGE),
}
"""By name: the bundled base, and one for a GPU."""


@dataclass(frozen=True)
class Example:
    """One line of the pretraining mixture."""

    task: str
    problem: Problem
    solution: str
    right: bool


@dataclass(frozen=True)
class LogRow:
    """Mean loss (nats a solution token) and share of right solutions since the last row."""

    step: int
    loss: float
    right: float
    seconds: float


def examples(*, seed: int, split: Split = "train", clean: bool = False) -> Iterator[Example]:
    """The pretraining mixture: families in turn, difficulty 1 (20 %) or 2 (80 %) at random.

    The training split makes the base; the held-out split measures what a model has kept of it.
    clean: right solutions alone.
    """
    rng = Random(f"mixture/{split}/{clean}/{seed}")
    streams = {
        (name, difficulty): task.stream(seed=seed, split=split, difficulty=difficulty)
        for name, task in TASKS.items()
        for difficulty in _DIFFICULTIES
    }
    while True:
        for name, task in TASKS.items():
            (difficulty,) = rng.choices(_DIFFICULTIES, _DIFFICULTY_SHARES)
            problem = next(streams[name, difficulty])
            solution, right = task.example(problem, rng=rng, clean=clean)
            yield Example(name, problem, solution, right)


def tokens_and_labels(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], solutions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, (batch, length) each, padded on the right, prompts not to be learnt."""
    pad, eos = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
    texts = [prompt + solution for prompt, solution in zip(prompts, solutions, strict=True)]
    rows = [[*ids, eos] for ids in tokenizer(texts)["input_ids"]]
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens[index, : len(row)] = torch.tensor(row)
        start = len(prompt) + 1  # <bos> and one token a character
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return tokens, labels


def _prepare(
    recipe: Recipe, device: str
) -> tuple[Qwen3ForCausalLM, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """A model drawn from the seed, with its optimizer and schedule."""
    from transformers import Qwen3ForCausalLM, get_cosine_with_min_lr_schedule_with_warmup

    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(model_config(recipe.shape)).to(device).train()
    model.set_attn_implementation("eager" if device == "cpu" else "sdpa")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, max(1, recipe.steps // 20), recipe.steps, min_lr_rate=0.05
    )
    return model, optimizer, schedule


def _loss(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Example]
) -> float:
    """Backward passes for one batch, a family at a time since they differ in length.

    The gradient is that of the mean over all solution tokens, which is returned (nats).
    """
    device = model.device
    families = sorted({one.task for one in drawn})
    parts = []
    for family in families:
        chosen = [one for one in drawn if one.task == family]
        tokens, labels = tokens_and_labels(
            tokenizer, [one.problem.prompt for one in chosen], [one.solution for one in chosen]
        )
        parts.append((tokens.to(device), labels.to(device)))
    total = sum(int((labels != IGNORED).sum()) for _, labels in parts)
    mean = 0.0
    for tokens, labels in parts:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        share = loss * (int((labels != IGNORED).sum()) / total)
        share.backward()
        mean += share.item()
    return mean


def train_base(
    recipe: Recipe, *, device: str = "cpu", progress: bool = True
) -> tuple[Qwen3ForCausalLM, list[LogRow]]:
    """The pretrained model, float32, and its training log. Progress goes to standard error.

    Weights and optimizer are float32, matrix products bfloat16. The same recipe gives the same
    weights on the same machine, number of threads and torch build; elsewhere sums are ordered
    differently and the weights agree only approximately.
    """
    model, optimizer, schedule = _prepare(recipe, device)
    tokenizer = build_tokenizer()
    sources = {clean: examples(seed=recipe.seed, clean=clean) for clean in (True, False)}
    log: list[LogRow] = []
    losses: list[float] = []
    right: list[float] = []
    started = time.monotonic()
    for step in range(1, recipe.steps + 1):
        source = sources[step <= recipe.clean_steps]
        drawn = [next(source) for _ in range(recipe.batch)]
        losses.append(_loss(model, tokenizer, drawn))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        right.extend(float(one.right) for one in drawn)
        if step % _LOG_EVERY == 0 or step == recipe.steps:
            seconds = time.monotonic() - started
            row = LogRow(step, sum(losses) / len(losses), sum(right) / len(right), seconds)
            log.append(row)
            losses, right = [], []
            if progress:
                print(
                    f"step {step}/{recipe.steps}  loss {row.loss:.4f}  {seconds:.0f} s",
                    file=sys.stderr,
                )
    return model.eval(), log
