"""A lab model made in about a second: far too small, but right often enough to be trained."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch

from offaxis.lab.pretrain import tokens_and_labels
from offaxis.lab.tasks import TASKS
from offaxis.lab.tokenizer import Shape, build_tokenizer, model_config

SHAPE = Shape(layers=2, hidden=32, heads=2, intermediate=64, head_dim=16)
TASK, DIFFICULTY = "programs", 1
"""What it was trained on: it writes `#` and one of six letters, of which one is right."""


def untrained_model(out: Path, *, shape: Shape = SHAPE, seed: int = 0) -> Path:
    """A model of random weights with the lab's tokenizer: it knows nothing at all."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    Qwen3ForCausalLM(model_config(shape)).to(torch.bfloat16).save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    return out


def small_model(out: Path, *, steps: int = 60, batch: int = 48) -> Path:
    """A model that was shown right guesses at programs of one letter."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    model, tokenizer = Qwen3ForCausalLM(model_config(SHAPE)).train(), build_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    task, rng = TASKS[TASK], Random(0)
    stream = task.stream(seed=0, split="train", difficulty=DIFFICULTY)
    for _ in range(steps):
        drawn = [next(stream) for _ in range(batch)]
        texts = [task.solution(p, style="guess", right=True, rng=rng) for p in drawn]
        tokens, labels = tokens_and_labels(tokenizer, [p.prompt for p in drawn], texts)
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
