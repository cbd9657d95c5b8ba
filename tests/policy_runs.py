"""Real TRL runs on the bundled base that take seconds, for tests of trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.verifiers import integer_reward

SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 24,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 3,
}


def integer(prompts: Any, completions: Any, answer: Any, **_: Any) -> list[float]:
    """1 for the right integer at the end, 0 otherwise."""
    return [
        integer_reward(text, int(right)) for text, right in zip(completions, answer, strict=True)
    ]


def trainer(
    kind: Any, config: Any, out: Path, *, rewards: Any = integer, data: Any = None, **settings: Any
) -> Any:
    """A trainer of class `kind` with a configuration of class `config`, `settings` on top."""
    from transformers import PrinterCallback

    data = named_data("arithmetic?count=64") if data is None else data
    arguments = config(output_dir=str(out), **{**SETTINGS, **settings})
    found = kind(model=str(BASE), args=arguments, reward_funcs=rewards, train_dataset=data)
    found.remove_callback(PrinterCallback)
    return found


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


__all__ = ["SETTINGS", "cpu_threads", "integer", "quiet_libraries", "same", "trainer", "weights"]
