"""What a process of a distributed run tells the test that launched it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

Scene = Callable[[Path], dict[str, Any]]

SETTINGS: dict[str, Any] = {
    "model_name_or_path": "lab",
    "data": "lab:arithmetic?difficulty=2&count=64",
    "rewards": ["integer"],
    "max_steps": 2,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "kl_every": 0,
    "seed": 3,
}
NOT_SAMPLED = ("num_generations", "max_completion_length")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def digest(model: Any) -> str:
    """SHA-256 of every parameter's bytes, gathered where they are sharded."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        found.update(
            name.encode() + whole.detach().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


class Witness(TrainerCallback):  # type: ignore[misc]
    """Keeps the digests of this process's weights, how they are stored, and its advantages."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"batches": []}
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        self._trainer = trainer
        inner = getattr(trainer, "_generate_and_score_completions", None)
        if inner is not None:
            trainer._generate_and_score_completions = lambda inputs: self._kept(inner(inputs))

    def _kept(self, found: Any) -> Any:
        batch = {
            key: found[key].tolist() for key in ("advantages", "completion_mask") if key in found
        }
        self.seen["batches"].append(batch)
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        model = self._trainer.model
        self.seen["start"] = digest(model)
        self.seen["sharded"] = [isinstance(one, DTensor) for one in model.parameters()]
        self.seen["dtypes"] = sorted({str(one.dtype) for one in model.parameters()})
        self.seen["wrapped"] = type(self._trainer.model_wrapped).__name__
        self.seen["processes"] = self._trainer.accelerator.num_processes
        self.seen["kind"] = str(self._trainer.accelerator.distributed_type)
        linear = next(one for one in model.modules() if isinstance(one, torch.nn.Linear))
        linear.register_forward_hook(
            lambda module, given, found: self.seen.update(computed=str(found.dtype))
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen["end"] = digest(self._trainer.model)
        self.seen["log"] = list(state.log_history)


def trained(method: str, out: Path, *, drop: tuple[str, ...] = (), **settings: Any) -> Any:
    """`offaxis.train.train` on the bundled base with a witness: what it saw, and the outcome."""
    from offaxis.lab import BASE
    from offaxis.lab.data import named_data
    from offaxis.train import train

    given = {key: value for key, value in SETTINGS.items() if key not in drop} | settings
    objects = {key: given.pop(key) for key in ("reward_funcs", "dataset") if key in given}
    if given["model_name_or_path"] == "lab":
        given["model_name_or_path"] = str(BASE)
    if "dataset" in objects:
        given.pop("data")
    if "reward_funcs" in objects:
        given.pop("rewards")
    witness = Witness()
    outcome = train(
        method,
        {"output_dir": str(out), **given},
        data=objects.get("dataset"),
        reward_funcs=objects.get("reward_funcs", ()),
        callbacks=[witness],
        sources={"lab": named_data},
        tell=lambda text: None,
    )
    return {**witness.seen, "messages": list(outcome.messages), "output": str(out)}


def play(scenes: Mapping[str, Scene], out: Path, names: list[str]) -> None:
    """Run the scenes in order, and write what each told (or how it failed) to `rankN.json`."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: dict[str, Any] = {}
    for name in names or list(scenes):
        started = time.process_time()
        try:
            found[name] = scenes[name](out / name)
            print(f"{name}: {time.process_time() - started:.1f} s", file=sys.stderr)
        except BaseException:
            found[name] = {"failed": traceback.format_exc()}
        (out / f"rank{rank()}.json").write_text(json.dumps(found, default=str))
        if "failed" in found[name]:
            os._exit(3)  # the other process may be waiting in a collective
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
