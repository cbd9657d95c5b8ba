"""What offaxis costs a training run: `offaxis train` beside bare TRL, the same configuration.

    python benchmarks/train.py [--methods grpo,rloo,sft] [--steps 60] [--rounds 5]

Each round trains the bundled base once with TRL's own trainer and once with offaxis's (KL to the
base both ways every 20 steps, leash, ratios, resumable saves), by turns, in one process and on one
thread: 128 completions (or solutions) a step. Timed from the first step's end to the last one's;
the probe before the first step is timed apart. Prints seconds a step and the ratio of the two: the
median over rounds of the ratio within a round, and its range. The weights at the end must be equal
bit for bit, or the configurations are not the same and the script fails.

`dapo` is compared with TRL's loss_type dapo and so without dynamic sampling, which TRL lacks;
`dapo+` is with it, whose steps sample more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import trl
from transformers import PrinterCallback, TrainerCallback

from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.lab.session import quiet_libraries
from offaxis.train import read_arguments
from offaxis.train.setup import build_trainer, reward_setup

SHARED: Mapping[str, Any] = {
    "model_name_or_path": str(BASE),
    "per_device_train_batch_size": 128,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "attn_implementation": "eager",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}
SAMPLED: Mapping[str, Any] = {
    "num_generations": 8,
    "max_completion_length": 30,
    "rewards": ["integer"],
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "grpo": SAMPLED,
    "dapo": {**SAMPLED, "dynamic_sampling": False, "overlong_cache": 0},
    "dapo+": {**SAMPLED, "dynamic_sampling": True, "overlong_cache": 0},
    "dr_grpo": SAMPLED,
    "gspo": SAMPLED,
    "rloo": SAMPLED,
    "sft": {"kl_max_new_tokens": 30},
}


class Clock(TrainerCallback):
    """When training began, and when each step ended."""

    def __init__(self) -> None:
        self.start = 0.0
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def per_step(self) -> float:
        """Seconds, the first step (warming up) left out."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


@dataclass(frozen=True)
class Timed:
    seconds: float
    weights: dict[str, torch.Tensor]


def run(name: str, steps: int, *, bare: bool, kl_every: int) -> Timed:
    """One run: seconds a step, and the weights at the end."""
    method = name.rstrip("+")
    rows = 16 if method != "sft" else 128
    data = named_data(f"arithmetic?count={steps * rows}")
    with tempfile.TemporaryDirectory() as out, quiet_libraries():
        keys = {**SHARED, **METHODS[name], "output_dir": out, "max_steps": steps}
        arguments = read_arguments(method, keys | {"kl_every": kl_every})
        rewards = reward_setup(arguments)
        if bare:
            config = arguments.config
            config.model_init_kwargs = {"attn_implementation": "eager", "dtype": "float32"}
            given = {"reward_funcs": rewards[0]} if arguments.method.rewarded else {}
            kind = getattr(trl, f"{arguments.method.prefix}Trainer")
            trainer = kind(model=str(BASE), args=config, train_dataset=data, **given)
        else:
            trainer = build_trainer(arguments, data, None, rewards, tell=print)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        weights = {key: one.clone() for key, one in trainer.model.state_dict().items()}
    return Timed(clock.per_step, weights)


def same(a: Timed, b: Timed) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kl-every", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | TRL, s a step | offaxis, s a step | ratio, median | range | same weights |")
    print("|---|---|---|---|---|---|")
    for name in chosen.methods.split(","):
        pairs = []
        for turn in range(chosen.rounds):
            order = (True, False) if turn % 2 == 0 else (False, True)
            made = {
                bare: run(name, chosen.steps, bare=bare, kl_every=chosen.kl_every) for bare in order
            }
            pairs.append((made[True], made[False]))
        ratios = [ours.seconds / theirs.seconds for theirs, ours in pairs]
        equal = all(same(theirs, ours) for theirs, ours in pairs)
        theirs, ours = (statistics.median(one[i].seconds for one in pairs) for i in (0, 1))
        print(
            f"| {name} | {theirs:.3f} | {ours:.3f} | {statistics.median(ratios):.3f} | "
            f"{min(ratios):.3f} to {max(ratios):.3f} | {'yes' if equal else 'no'} |",
            flush=True,
        )
        if not equal and name != "dapo+":
            raise SystemExit(f"{name}: the weights differ, so the runs are not the same")


if __name__ == "__main__":
    main()
