"""Whole training steps of one small language model, by SparseAdamW and by PEFT's sparse methods.

Each run is a process of its own: a Qwen3 model made from a config, all its block matrices trained,
embeddings, head and norms frozen, the same random tokens in the same order, weight decay 0.

- `dense`: torch's fused AdamW on the matrices.
- `shira`: peft.ShiraConfig(r) with its random masks: exactly r(m+n) entries of each matrix.
- `supertuning`: peft.SupertuningConfig(sparsity), the largest |W|: int(m·n·(1 − sparsity)) entries,
  the sparsity being the one nearest to SHiRA's share over the model.
- `offaxis as shira`, `offaxis as supertuning`: SparseAdamW on the model, the very same masks.

Both PEFT methods keep W frozen and train a vector of values that each forward pass adds to a dense
copy of W: their moments are as small, and they have values and indices (SHiRA two int32 an entry,
Supertuning one) beside; backward makes a dense gradient of that copy. offaxis writes into W: no
copy, no values; autograd leaves a dense gradient there. *Kept* is everything that a method holds
beside model and gradients: moments, steps, masters, values and indices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Trained", "print_training", "train"]

METHODS = ("dense", "shira", "offaxis as shira", "supertuning", "offaxis as supertuning")
SIZES = {
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2},
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Trained:
    """One method's runs; seconds are a round's median over its steps."""

    method: str
    seconds: list[float]
    peak: int
    kept: int
    trainable: int
    matrices: int
    loss: float


def train(options: argparse.Namespace) -> list[Trained]:
    """Every method `rounds` times, by turns, each time in a fresh process."""
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for _ in range(1 if options.quick else min(options.rounds, 3)):
        for method in METHODS:
            command = [
                sys.executable, __file__, method, "tiny" if options.quick else "small",
                str(4 if options.quick else options.rank), str(options.steps), str(options.tokens),
                str(options.threads[-1]),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{method}: {done.stderr}")
            found[method].append(json.loads(done.stdout.splitlines()[-1]))
    return [
        Trained(
            method,
            [run["seconds"] for run in runs],
            max(run["peak"] for run in runs),
            runs[0]["kept"], runs[0]["trainable"], runs[0]["matrices"], runs[0]["loss"],
        )
        for method, runs in found.items()
    ]  # fmt: skip


def print_training(results: Sequence[Trained], *, threads: int) -> None:
    dense = results[0]
    print(f"\ntraining steps, {dense.matrices / 1e6:.1f} M entries in matrices, {threads} "
          f"thread{'s' if threads > 1 else ''}\n")  # fmt: skip
    print("| method | ms a step | to dense, in a round (range) | trainable | share | kept, bytes "
          "| an entry | peak RssAnon, MiB | last loss |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for one in results:
        ratios = [a / b for a, b in zip(one.seconds, dense.seconds, strict=True)]
        print(
            f"| {one.method} | {statistics.median(one.seconds) * 1e3:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{one.trainable:,} | {one.trainable / one.matrices:.2%} | {one.kept:,} | "
            f"{one.kept / one.trainable:.1f} | {one.peak / 2**20:.0f} | {one.loss:.6f} |"
        )


def anonymous() -> int:
    """This process's anonymous resident memory (RssAnon), bytes; 0 where /proc has none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if "RssAnon" in line), 0)


class Peak:
    """The most anonymous memory while it is open, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.bytes, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def language_model(size: str) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096, num_attention_heads=8, num_key_value_heads=8, head_dim=64,
        tie_word_embeddings=True, **SIZES[size],
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def matrices(model: Any) -> dict[str, torch.nn.Parameter]:
    return {
        name: one
        for name, one in model.named_parameters()
        if name.split(".")[-2] in TARGETS and name.endswith("weight")
    }


def shira_mask(layer: torch.nn.Module, r: int) -> torch.Tensor:
    """PEFT's random mask, seeded by the layer's shape and values: the same in every process."""
    from peft.tuners.shira.mask_functions import random_mask

    seed = int(layer.weight.detach().flatten()[0].view(torch.int32))
    mask: torch.Tensor = random_mask(layer, r, random_seed=seed % (1 << 31))
    return mask


def sparsity_for(model: Any, rank: int) -> float:
    found = matrices(model).values()
    return 1 - sum(rank * sum(w.shape) for w in found) / sum(w.numel() for w in found)


def _magnitude_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    scores = weight.detach().abs().flatten()
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[torch.topk(scores, int(scores.numel() * (1 - sparsity))).indices] = True
    return mask.reshape(weight.shape)


def prepared(method: str, model: Any, rank: int) -> tuple[Any, torch.optim.Optimizer, int]:
    """Model, optimizer, and how many entries train."""
    chosen = matrices(model)
    sparsity = sparsity_for(model, rank)
    if method in ("shira", "supertuning"):
        import peft

        if method == "shira":
            config = peft.ShiraConfig(r=rank, target_modules=list(TARGETS), mask_type="given")
            config.mask_fn = lambda layer, r, **_: shira_mask(layer, r)
        else:
            config = peft.SupertuningConfig(sparsity=sparsity, target_modules=list(TARGETS))
        model = peft.get_peft_model(model, config)
        values = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(values, lr=1e-4, weight_decay=0.0, fused=True)
        return model, optimizer, sum(one.numel() for one in values)
    for one in chosen.values():
        one.requires_grad_(True)
    if method == "dense":
        made = torch.optim.AdamW(chosen.values(), lr=1e-4, weight_decay=0.0, fused=True)
        return model, made, sum(one.numel() for one in chosen.values())
    from offaxis.train.sparse.optimizer import SparseAdamW

    masks = {}
    for name, one in chosen.items():
        if method == "offaxis as shira":
            masks[one] = shira_mask(model.get_submodule(name.removesuffix(".weight")), rank) != 0
        else:
            masks[one] = _magnitude_mask(one, sparsity)
    trainable = sum(int(mask.sum()) for mask in masks.values())
    return model, SparseAdamW(chosen.values(), lr=1e-4, weight_decay=0.0, masks=masks), trainable


def kept_bytes(method: str, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Bytes beside model and gradients: optimizer state, and an adapter's values and indices."""
    held = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    if method in ("shira", "supertuning"):
        held += [one for one in model.parameters() if one.requires_grad]
        for module in model.modules():
            found = getattr(module, f"{method}_indices", None)
            held += [] if found is None else list(found.values())
    return sum(one.untyped_storage().nbytes() for one in held)


def run(method: str, size: str, rank: int, steps: int, tokens: int) -> dict[str, Any]:
    """One run; the first two steps warm up and are not timed."""
    model = language_model(size)
    entries = sum(one.numel() for one in matrices(model).values())
    model, optimizer, trainable = prepared(method, model, rank)
    generator = torch.Generator().manual_seed(1)
    taken, loss = [], torch.zeros(())

    def once(batch: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        found: torch.Tensor = model(input_ids=batch, labels=batch).loss
        found.backward()
        optimizer.step()
        return found.detach()

    with Peak() as peak:
        for _ in range(steps + 2):
            batch = torch.randint(
                4096, (max(1, tokens // 64), min(tokens, 64)), generator=generator
            )
            start = time.perf_counter()
            loss = once(batch)
            taken.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(taken[2:]), "peak": peak.bytes, "trainable": trainable,
        "kept": kept_bytes(method, model, optimizer), "matrices": entries, "loss": float(loss),
    }  # fmt: skip


def main(told: Callable[[str], None] = print) -> None:
    method, size, rank, steps, tokens, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    told(json.dumps(run(method, size, int(rank), int(steps), int(tokens))))


if __name__ == "__main__":
    main()
