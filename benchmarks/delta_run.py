"""What DeltaCheckpointCallback saves over a run of the lab: one line of docs/delta.md's table.

    python benchmarks/delta_run.py --out DIR [--dtype bfloat16] [--every 5] [--codec small]

TRL's GRPO from the bundled base, 60 steps at 5e-5, optimizer state included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import offaxis.lab
from offaxis.lab import training
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.train import DeltaCheckpointCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--codec", choices=("fast", "small"), default="fast")
    chosen = parser.parse_args()
    base = Path(offaxis.lab.__file__).parent / "base"
    settings = training.TrainingSettings(steps=chosen.steps, save_at=(), learning_rate=5e-5)
    method = training.METHODS["grpo"]
    arguments = training._arguments(method, settings, chosen.out)
    arguments |= {"save_strategy": "steps", "save_steps": chosen.every, "save_only_model": False}
    arguments["model_init_kwargs"] |= {"dtype": chosen.dtype}
    saver = DeltaCheckpointCallback(codec=chosen.codec)
    with quiet_libraries(), cpu_threads(1):
        trainer = training._trainer(method, base, settings, arguments, source=base, cache=None)
        trainer.add_callback(saver)
        trainer.train()
    print(json.dumps(saver.summary(), indent=1))


if __name__ == "__main__":
    main()
