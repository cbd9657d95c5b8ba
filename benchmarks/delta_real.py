"""Makes the real pairs of docs/benchmarks.md: 63 MB of bfloat16 each, from runs on this machine.

    python benchmarks/delta_real.py --out DIR [--pretrain 400]

The lab's large recipe (31 million parameters) is pretrained for a few hundred short steps on right
solutions alone, stored as bfloat16, and trained on by GRPO at 3e-6 and 3e-5 and by SFT at 3e-5 for
20 steps each, on countdown problems of difficulty 1, the one family that so little pretraining
makes it solve now and then (a third). About 40 minutes of two cores. `benchmarks/delta.py --pair`
takes `DIR/base/model.safetensors` and `DIR/RUN/checkpoint-N.safetensors`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from offaxis.lab.pretrain import RECIPES, train_base
from offaxis.lab.tokenizer import build_tokenizer
from offaxis.lab.training import TrainingSettings, train_run

RUNS = {"grpo-3e-6": ("grpo", 3e-6, (1, 2, 3, 10, 11, 20)), "grpo-3e-5": ("grpo", 3e-5, (10, 20)),
        "sft-3e-5": ("sft", 3e-5, (10, 20))}  # fmt: skip
"""Method, learning rate, steps that are kept."""


def as_bfloat16(source: Path, target: Path) -> None:
    found = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source).items()}
    save_file(found, target, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrain", type=int, default=400)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = chosen.out / "base"
    if not (base / "model.safetensors").exists():
        steps = chosen.pretrain
        model, _ = train_base(
            replace(RECIPES["large"], steps=steps, clean_steps=steps, batch=64, learning_rate=1e-3)
        )
        model.save_pretrained(base)
        build_tokenizer().save_pretrained(base)
        as_bfloat16(base / "model.safetensors", base / "model.safetensors")
    for name, (method, rate, steps) in RUNS.items():
        out = chosen.out / name
        settings = TrainingSettings(
            task="countdown", difficulty=1, steps=20, save_at=steps, learning_rate=rate,
            prompts_per_step=8,
        )  # fmt: skip
        for step, checkpoint in train_run(
            method, base=base, out=out, settings=settings
        ).checkpoints:
            as_bfloat16(checkpoint / "model.safetensors", out / f"checkpoint-{step}.safetensors")


if __name__ == "__main__":
    main()
