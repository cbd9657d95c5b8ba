"""Training runs behind docs/gates.md, and what the gates say of them.

    python benchmarks/gates.py clip                 tokens outside the clip, by rate and updates
    python benchmarks/gates.py versus --seeds 3     RL against SFT: curvature on equal prefixes
    python benchmarks/gates.py anchor BASE TUNED    Gate I on the lab's held-out problems

`clip` and `versus` train the bundled base: a second a step and core, so minutes. Results as JSON on
standard output; runs go to a temporary directory, or stay in --keep DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from offaxis.gates import anchor, anchor_summary, outside_by_update, versus, versus_summary
from offaxis.gates.fisher import Settings
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.lab.tasks import TASKS

RECIPES = Path(__file__).parents[1] / "recipes" / "lab"
CLIP = ((1e-4, 4), (1e-5, 4), (3e-5, 4), (1e-4, 1), (1e-4, 16))


def trained(method: str, recipe: str, out: Path, **settings: Any) -> tuple[Path, list[Any]]:
    """A run's directory and its log."""
    from offaxis.train import train

    flags = [f"--{name}={value}" for name, value in settings.items()]
    with redirect_stdout(sys.stderr):  # where the trainer prints its log
        outcome = train(
            method,
            RECIPES / f"{recipe}.yaml",
            flags=[*flags, f"--model_name_or_path={BASE}", f"--output_dir={out}", "--kl_every=0",
                   "--logging_steps=1", "--save_strategy=no", "--disable_tqdm=true"],
            sources={"lab": named_data},
            tell=lambda _: None,
        )  # fmt: skip
    return outcome.output, list(outcome.log)


def clip(root: Path, steps: int, batch: int) -> list[dict[str, Any]]:
    """GRPO at each rate and number of updates a batch: shares outside [0.8, 1.2]."""
    found = []
    for rate, updates in CLIP:
        length = updates * max(1, steps // updates) if updates > 1 else 2  # the control
        _, log = trained(
            "grpo", "rl", root / f"clip-{updates}-{rate:g}", learning_rate=rate,
            num_iterations=updates, max_steps=length, per_device_train_batch_size=batch,
        )  # fmt: skip
        shares = outside_by_update(log, updates)
        rows = [row for row in log if "clip_ratio/region_mean" in row]
        clipped = [row["clip_ratio/region_mean"] for row in rows][updates - 1 :: updates]
        one = {
            "rate": rate,
            "updates": updates,
            "batches": length // updates,
            "outside": shares,
            "clipped_at_last": sum(clipped) / len(clipped),
        }
        found.append(one)
        print(json.dumps(one), file=sys.stderr)
    return found


def held_out(count: int) -> list[str]:
    problems = TASKS["arithmetic"].problems(count, seed=0, split="held_out", difficulty=2)
    return [one.prompt for one in problems]


def contrast(root: Path, seeds: int, steps: int, prompts: int) -> dict[str, Any]:
    """RL and SFT of each seed, at one rate and as many steps."""
    pairs = []
    for seed in range(seeds):
        rl, _ = trained("grpo", "rl", root / f"rl-{seed}", seed=seed, max_steps=steps)
        sft, _ = trained("sft", "sft", root / f"sft-{seed}", seed=seed, max_steps=steps)
        pairs.append((rl, sft))
    settings = Settings(max_new_tokens=40)
    return versus_summary(
        versus(BASE, pairs, data=held_out(prompts), limit=None, settings=settings, device="cpu")
    )


def gate_one(base: str, tuned: str, prompts: int) -> dict[str, Any]:
    settings = Settings(max_new_tokens=40)
    found = anchor(base, tuned, data=held_out(prompts), limit=None, settings=settings, device="cpu")
    return anchor_summary(found) | {"settings": asdict(settings)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("clip", "versus", "anchor"))
    parser.add_argument("models", nargs="*", help="BASE TUNED, for anchor")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128, help="clip: completions a step")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="directory for the runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result: Any
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.keep or Path(scratch)
        if asked.what == "clip":
            result = clip(root, asked.steps, asked.batch)
        elif asked.what == "versus":
            result = contrast(root, asked.seeds, asked.steps, asked.prompts)
        elif len(asked.models) == 2:
            result = gate_one(*asked.models, asked.prompts)
        else:
            parser.error("anchor needs BASE TUNED")
    json.dump(result, sys.stdout, indent=1, allow_nan=False)
    print()


if __name__ == "__main__":
    main()
