"""Pretraining the lab's base from its seed, on a mixture of right and wrong worked solutions."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import torch

from offaxis.lab.arithmetic import draw_example, stream
from offaxis.lab.tokenizer import build_tokenizer, model_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

__all__ = ["PRETRAINING_THREADS", "LogRow", "Recipe", "train_base"]

PRETRAINING_THREADS = 2
"""CPU threads with which the bundled base was made."""

_IGNORED = -100  # the label that cross entropy leaves out
_LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How a base is pretrained: AdamW, 5 % warm-up, then a cosine down to 5 % of the peak."""

    seed: int = 0
    steps: int = 1800
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    difficulty: int = 2


@dataclass(frozen=True)
class LogRow:
    """Mean loss (nats a solution token) and share of right solutions since the last row."""

    step: int
    loss: float
    right: float
    seconds: float


def _batch(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], solutions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, (batch, length) each, padded on the right, prompts not to be learnt."""
    pad, eos = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
    texts = [prompt + solution for prompt, solution in zip(prompts, solutions, strict=True)]
    rows = [[*ids, eos] for ids in tokenizer(texts)["input_ids"]]
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), _IGNORED)
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
    model = Qwen3ForCausalLM(model_config()).to(device).train()
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


def train_base(
    recipe: Recipe, *, device: str = "cpu", progress: bool = True
) -> tuple[Qwen3ForCausalLM, list[LogRow]]:
    """The pretrained model, float32, and its training log. Progress goes to standard error.

    The same recipe gives the same weights on the same machine, number of threads and torch build;
    elsewhere sums are ordered differently and the weights agree only approximately.
    """
    model, optimizer, schedule = _prepare(recipe, device)
    tokenizer = build_tokenizer()
    source = stream(seed=recipe.seed, split="train", difficulty=recipe.difficulty)
    rng = Random(f"solutions/{recipe.seed}")
    log: list[LogRow] = []
    losses: list[float] = []
    right: list[float] = []
    started = time.monotonic()
    for step in range(1, recipe.steps + 1):
        drawn = list(islice(source, recipe.batch))
        examples = [draw_example(problem, rng=rng) for problem in drawn]
        tokens, labels = _batch(
            tokenizer, [problem.prompt for problem in drawn], [text for text, _ in examples]
        )
        tokens, labels = tokens.to(device), labels.to(device)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        right.extend(float(is_right) for _, is_right in examples)
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
