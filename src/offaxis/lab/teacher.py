"""A stronger lab model: the base, trained further on right solutions to every family."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from offaxis.lab.pretrain import tokens_and_labels
from offaxis.lab.provenance import library_versions
from offaxis.lab.scoring import Exam, sit
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.lab.tasks import TASKS
from offaxis.live import load_live
from offaxis.output import staged_directory

__all__ = ["TeacherRecipe", "build_teacher", "make_teacher"]


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


def build_teacher(
    base: Path,
    out: Path,
    recipe: TeacherRecipe | None = None,
    *,
    exam: Exam | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a teacher in `out` with its `recipe.json`, and score it on every family.

    Returns what `offaxis lab teacher --json` prints. The model is the one that a queue makes for
    its distillation runs. `out` appears whole or not at all; OutputError where it is not empty and
    `overwrite` is not set. CheckpointError where `base` is no model.
    """
    recipe, exam = recipe or TeacherRecipe(), exam or Exam(problems=100, samples=4)
    out = Path(out).expanduser().absolute()
    told: dict[str, Any] = {"schema": 1, "recipe": asdict(recipe), "versions": library_versions()}
    scores = []
    with staged_directory(out, overwrite=overwrite) as staged, quiet_libraries():
        make_teacher(base, staged, recipe)
        (staged / "recipe.json").write_text(json.dumps(told, indent=1) + "\n")
        live = load_live(staged)
        for task in TASKS:
            exam = replace(exam, task=task, difficulty=recipe.difficulty)
            scores.append({"task": task, **asdict(sit(live, exam).score)})
    return told | {"out": str(out), "exam": asdict(exam), "scores": scores}
