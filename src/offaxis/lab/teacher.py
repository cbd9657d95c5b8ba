"""A stronger lab model: the base, trained further on right solutions to every family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from offaxis.lab.pretrain import tokens_and_labels
from offaxis.lab.session import cpu_threads
from offaxis.lab.tasks import TASKS
from offaxis.live import load_live

__all__ = ["TeacherRecipe", "make_teacher"]


@dataclass(frozen=True)
class TeacherRecipe:
    """AdamW without decay, linear warm-up over 5 % of the steps, then a linear decline to zero."""

    seed: int = 1
    steps: int = 400
    batch: int = 192
    learning_rate: float = 1e-3
    difficulty: int = 2


def make_teacher(base: Path, out: Path, recipe: TeacherRecipe | None = None) -> None:
    """Train `base` on right solutions that show every step, all families in turn; save to `out`.

    The teacher writes one style alone and is nearly always right. float32, one thread; everything
    random follows the recipe's seed.
    """
    from transformers import get_linear_schedule_with_warmup

    recipe = recipe or TeacherRecipe()
    live = load_live(base)
    model = live.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
    )
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, recipe.steps // 20), recipe.steps)
    rng = Random(f"teacher/{recipe.seed}")
    streams = [
        (task, task.stream(seed=recipe.seed, split="train", difficulty=recipe.difficulty))
        for task in TASKS.values()
    ]
    with cpu_threads(1):
        for _ in range(recipe.steps):
            drawn = []
            for index in range(recipe.batch):
                task, stream = streams[index % len(streams)]
                problem = next(stream)
                text = task.solution(problem, style="steps", right=True, rng=rng)
                drawn.append((problem.prompt, text))
            tokens, labels = tokens_and_labels(
                live.tokenizer, [p for p, _ in drawn], [s for _, s in drawn]
            )
            device = model.device
            loss = model(input_ids=tokens.to(device), labels=labels.to(device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval().save_pretrained(out)
    live.tokenizer.save_pretrained(out)
