"""Making a base from its seed and saving it with its recipe, scores and training log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offaxis.evaluate import Score, avg_at_k, pass_at_k
from offaxis.lab.arithmetic import MIXTURE, Style
from offaxis.lab.pretrain import PRETRAINING_THREADS, LogRow, Recipe, train_base
from offaxis.lab.provenance import library_versions, require_training_libraries
from offaxis.lab.scoring import Exam, sit
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.lab.tokenizer import build_tokenizer
from offaxis.live import pick_device
from offaxis.output import staged_directory

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["CARD_EXAM", "pretrain"]

CARD_EXAM = Exam(problems=500, samples=16, seed=1)
"""The held-out problems on which the model card's scores stand."""

_CARD = """\
# The lab's base

A character-level language model with the Qwen3 architecture ({parameters} parameters, stored in
bfloat16) that solves two-step arithmetic (`12+7*3=`) and often fails to. offaxis's lab starts its
training runs from it. It is good for nothing else, and what holds for it need not hold for a
larger model.

Pretrained from scratch, on generated problems of the train split alone (a problem is held out if
the SHA-256 of its prompt is 0 modulo 10), on a mixture of right and wrong worked solutions:

| style | completion of `12+7*3=` | share | of it right |
|---|---|---|---|
{mixture}

A wrong solution slips by 1, 2 or 10 in one step and carries the slip to its end.

Recipe: {recipe}.
AdamW (β 0.9, 0.98), gradient norm clipped at 1, 5 % warm-up, cosine to 5 % of the peak, float32;
the loss is on solutions alone.

Versions: {versions}.

Sampled at temperature 1 from {device} float32 weights, on {n} held-out problems, {k} samples each
(95 % intervals, bootstrapped over problems):

| | value | interval |
|---|---|---|
{scores}

Made by `offaxis lab pretrain --out DIR --seed {seed} --steps {steps}`, which makes it again: the
same bits on the same machine with the same libraries, and about the same scores elsewhere.
Made once from one seed: the intervals say nothing about other seeds. `training_log.json` holds the
loss. License: Apache-2.0, like offaxis.
"""


def _card(parameters: int, recipe: Recipe, scores: Sequence[Score], exam: Exam, device: str) -> str:
    """README.md of the model."""
    examples: dict[Style, str] = {
        "steps": "7*3=21;12+21=33#33",
        "chain": "12+21=33#33",
        "guess": "#33",
    }
    mixture = "\n".join(
        f"| {style} | `{text}` | {MIXTURE.share[style]:.0%} | {MIXTURE.right[style]:.0%} |"
        for style, text in examples.items()
    )
    rows = "\n".join(f"| {s.metric} | {s.value:.3f} | {s.low:.3f} – {s.high:.3f} |" for s in scores)
    return _CARD.format(
        parameters=f"{parameters:,}".replace(",", " "),
        mixture=mixture,
        recipe=", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in asdict(recipe).items()
        ),
        versions=", ".join(
            f"{name} {number}" for name, number in library_versions().items() if number
        ),
        device="GPU" if device.startswith("cuda") else "CPU",
        n=exam.problems,
        k=exam.samples,
        scores=rows,
        seed=recipe.seed,
        steps=recipe.steps,
    )


def _save(model: Qwen3ForCausalLM, log: Sequence[LogRow], out: Path) -> None:
    """Weights in bfloat16, configuration, tokenizer and training log."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model.to(torch.bfloat16).save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    lines = [json.dumps({"step": r.step, "loss": round(r.loss, 5), "right": r.right}) for r in log]
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
        correct = sit(staged, exam)
        ks = sorted({4, exam.samples} & set(range(1, exam.samples + 1)))
        scores = [avg_at_k(correct, seed=exam.seed)]
        scores += [pass_at_k(correct, k, seed=exam.seed) for k in ks]
        (staged / "README.md").write_text(_card(parameters, recipe, scores, exam, device))
    return {
        "schema": 1,
        "out": str(out),
        "parameters": parameters,
        "recipe": asdict(recipe),
        "exam": asdict(exam),
        "scores": [asdict(score) for score in scores],
        "final_loss": log[-1].loss,
        "versions": library_versions(),
    }
