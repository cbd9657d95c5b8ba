"""Making a base from its seed and saving it with its recipe, scores and training log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from offaxis.evaluate import Score, avg_at_k, pass_at_k
from offaxis.lab.pretrain import PRETRAINING_THREADS, LogRow, Recipe, train_base
from offaxis.lab.provenance import library_versions, require_training_libraries
from offaxis.lab.scoring import Exam, mixture_losses, sit
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.lab.tasks import DIFFICULTIES, STYLES, TASKS
from offaxis.lab.tokenizer import build_tokenizer
from offaxis.live import load_live, pick_device
from offaxis.output import staged_directory

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["CARD_EXAM", "pretrain"]

CARD_EXAM = Exam(problems=500, samples=16, seed=1)
"""The held-out problems on which the model card's scores stand, of each family."""

_EASY = 80  # difficulty 1 has few held-out problems

_CARD = """\
# The lab's base

A character-level language model with the Qwen3 architecture ({parameters} parameters, stored in
bfloat16) that solves three families of small problems and often fails to: arithmetic in two steps,
two-operation programs on lists of digits, and countdown with three numbers. offaxis's lab starts
its training runs from it. It is good for nothing else, and what holds for it need not hold for a
larger model.

Pretrained from scratch on generated problems of the train split alone (a problem is held out if
the SHA-256 of its prompt is 0 modulo 10), of difficulty 2 (80 %) and 1 (20 %): {clean} steps on
right solutions, then {mixed} steps on a mixture of right and wrong ones:

| family | style | example | share | of it right |
|---|---|---|---|---|
{mixture}

Recipe: {recipe}. AdamW (β 0.9, 0.98), gradient norm clipped at 1, 5 % warm-up, cosine to 5 % of
the peak; float32 weights, matrix products in bfloat16; the loss is on solutions alone.

Versions: {versions}.

Sampled at temperature 1 from {device} float32 weights, {k} samples a held-out problem, none of
which it saw (95 % intervals, bootstrapped over problems). Difficulty 3 is in no training:

| family | difficulty | problems | avg@{k} | pass@4 | pass@{k} |
|---|---|---|---|---|---|
{scores}

Loss on the held-out mixture: {losses} nats a token.

Made by `offaxis lab pretrain --out DIR --seed {seed} --steps {steps}`, which makes it again: the
same bits on the same machine with the same libraries, and about the same scores elsewhere.
Made once from one seed: the intervals say nothing about other seeds. `training_log.json` holds the
loss. License: Apache-2.0, like offaxis.
"""


def _mixture_rows() -> str:
    """Each family's styles, with an example of each."""
    rows = []
    for task in TASKS.values():
        problem = next(task.stream(seed=3, split="train"))
        for style in STYLES:
            text = task.solution(problem, style=style, right=True, rng=Random(0))
            shares = f"{task.mixture.share[style]:.0%} | {task.mixture.right[style]:.0%}"
            rows.append(f"| {task.name} | {style} | `{problem.prompt}` `{text}` | {shares} |")
    return "\n".join(rows)


def _recipe_words(recipe: Recipe) -> str:
    told = asdict(recipe)
    shape = told.pop("shape")
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in (told | shape).items()]
    return ", ".join(parts)


def _card(
    parameters: int,
    recipe: Recipe,
    scores: Sequence[dict[str, Any]],
    exam: Exam,
    device: str,
    losses: dict[str, tuple[float, float, float]],
) -> str:
    """README.md of the model."""

    def cell(score: Score) -> str:
        return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"

    rows = "\n".join(
        f"| {one['task']} | {one['difficulty']} | {one['problems']} | "
        + " | ".join(cell(score) for score in one["scores"])
        + " |"
        for one in scores
    )
    return _CARD.format(
        parameters=f"{parameters:,}".replace(",", " "),
        clean=recipe.clean_steps,
        mixed=recipe.steps - recipe.clean_steps,
        mixture=_mixture_rows(),
        recipe=_recipe_words(recipe),
        versions=", ".join(
            f"{name} {number}" for name, number in library_versions().items() if number
        ),
        device="GPU" if device.startswith("cuda") else "CPU",
        k=exam.samples,
        scores=rows,
        losses=", ".join(f"{name} {mean:.3f}" for name, (mean, _, _) in losses.items()),
        seed=recipe.seed,
        steps=recipe.steps,
    )


def _examine(model: Path, exam: Exam) -> list[dict[str, Any]]:
    """avg@k, pass@4 and pass@k of every family at every difficulty."""
    live = load_live(model)
    found = []
    for task in TASKS:
        for difficulty in DIFFICULTIES:
            problems = min(exam.problems, _EASY) if difficulty == 1 else exam.problems
            one = replace(exam, task=task, difficulty=difficulty, problems=problems)
            correct = sit(live, one).correct
            ks = (min(4, exam.samples), exam.samples)
            scores = [avg_at_k(correct, seed=exam.seed)]
            scores += [pass_at_k(correct, k, seed=exam.seed) for k in ks]
            found.append(
                {"task": task, "difficulty": difficulty, "problems": problems, "scores": scores}
            )
    return found


def _save(model: Qwen3ForCausalLM, log: Sequence[LogRow], out: Path) -> None:
    """Weights in bfloat16, configuration, tokenizer and training log."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model.to(torch.bfloat16).save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    lines = [json.dumps({"step": r.step, "loss": round(r.loss, 4), "right": r.right}) for r in log]
    (out / "training_log.json").write_text("[\n " + ",\n ".join(lines) + "\n]\n")


def pretrain(
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    exam: Exam = CARD_EXAM,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Pretrain a base into `out` and score it; returns what `offaxis lab pretrain --json` prints.

    A GPU is used if there is one. `out` appears whole or not at all; OutputError where it is not
    empty and `overwrite` is not set.
    """
    require_training_libraries()
    recipe = recipe or Recipe()
    out = Path(out).expanduser().absolute()
    device = str(pick_device())
    with staged_directory(out, overwrite=overwrite) as staged, quiet_libraries():
        with cpu_threads(PRETRAINING_THREADS):
            model, log = train_base(recipe, device=device, progress=progress)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        _save(model, log, staged)
        scores = _examine(staged, exam)
        losses = mixture_losses(load_live(staged))
        (staged / "README.md").write_text(_card(parameters, recipe, scores, exam, device, losses))
    return {
        "schema": 1,
        "out": str(out),
        "parameters": parameters,
        "recipe": asdict(recipe),
        "exam": asdict(exam),
        "scores": [one | {"scores": [asdict(score) for score in one["scores"]]} for one in scores],
        "final_loss": log[-1].loss,
        "versions": library_versions(),
    }
