"""Three steps, and three more from the checkpoint, are six: every adapter with a state of its own.

`offaxis train` is what runs; weights, moments and what the adapter keeps are equal bit for bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapter_runs import made
from kl_runs import make
from offaxis.errors import CheckpointError
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.train import train
from offaxis.train.adapters import wire
from offaxis.train.adapters.wiring import STATE
from policy_runs import cpu_threads, quiet_libraries

KEYS: dict[str, Any] = {
    "model_name_or_path": str(BASE),
    "data": "lab:arithmetic?count=16",
    "rewards": ["integer"],
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "max_steps": 6,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "report_to": "none",
    "disable_tqdm": True,
    "kl_every": 0,
}
ADAPTERS = (
    "adalora?rank=4",
    "off_principal_lora?rank=4",
    pytest.param("lora_fa?rank=4&dropout=0.1", marks=pytest.mark.slow),
    pytest.param("pissa?rank=4", marks=pytest.mark.slow),
    pytest.param("pissa?rank=4&niter=4", marks=pytest.mark.slow),
    pytest.param("milora?rank=4", marks=pytest.mark.slow),
    pytest.param("geora?rank=4", marks=pytest.mark.slow),
    pytest.param("lora_plus?rank=4", marks=pytest.mark.slow),
    pytest.param("dora?rank=4", marks=pytest.mark.slow),
    pytest.param("vera?rank=4", marks=pytest.mark.slow),
    pytest.param("miss?rank=4", marks=pytest.mark.slow),
    pytest.param("ia3", marks=pytest.mark.slow),
    pytest.param("ln_tuning", marks=pytest.mark.slow),
)


def run(adapter: str, out: Path, **more: Any) -> list[dict[str, Any]]:
    with quiet_libraries(), cpu_threads(1):
        keys = KEYS | {"adapter": adapter, "output_dir": str(out)} | more
        found = train("grpo", keys, sources={"lab": named_data}, tell=lambda text: None)
    return [{k: v for k, v in row.items() if k in ("loss", "grad_norm")} for row in found.log]


def state(checkpoint: Path) -> dict[str, Any]:
    """Everything that a checkpoint goes on from, flat."""
    found: dict[str, Any] = dict(load_file(checkpoint / "adapter_model.safetensors"))
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", STATE)
    for name in (name for name in names if (checkpoint / name).is_file()):
        told = torch.load(checkpoint / name, weights_only=False)
        found |= {f"{name}.{key}": value for key, value in _flat(told)}
    return found


def _flat(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(one, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _flat(one, f"{name}.{number}")
    else:
        yield name, value


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool((a == b).all()) if hasattr(a, "shape") else a == b


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_resumed_run_is_the_uninterrupted_one(adapter: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rows = run(adapter, whole)
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    again = run(adapter, cut, resume_from_checkpoint="true")
    assert again == rows
    first, second = state(whole / "checkpoint-6"), state(cut / "checkpoint-6")
    assert first.keys() == second.keys()
    assert [name for name in first if not equal(first[name], second[name])] == []
    middle = state(whole / "checkpoint-3")
    names = load_file(whole / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not equal(middle[name], first[name]) for name in names), "nothing was trained"
    assert any(row.get("grad_norm") for row in rows)
    if adapter.startswith(("adalora", "off_principal")):
        assert (whole / "checkpoint-3" / STATE).is_file()


@pytest.mark.parametrize("adapter", ["adalora?rank=4", "off_principal_lora?rank=4"])
def test_a_checkpoint_without_its_state_is_refused(adapter: str, tmp_path: Path) -> None:
    """What Trainer saves by itself would not go on exactly."""
    trainer = make("GRPO", made(adapter), tmp_path, max_steps=3)
    wire(trainer)
    with pytest.raises(CheckpointError, match=r"adapter_state.pt: not there, so the run cannot"):
        trainer._load_optimizer_and_scheduler(str(tmp_path))
