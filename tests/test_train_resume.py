"""An interrupted run that goes on is the uninterrupted run, bit for bit, on a CPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from offaxis.lab.data import named_data
from offaxis.train import train

LAB: dict[str, Any] = {
    "model_name_or_path": "lab",
    "data": "lab:arithmetic?count=16",
    "rewards": ["integer"],
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 24,
    "max_steps": 8,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "kl_every": 4,
    "kl_prompts": 4,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two steps a batch, two epochs": ("grpo", {"steps_per_generation": 2}),
    "dynamic sampling": ("dapo", {"dynamic_sampling_rounds": 2}),
    "adaptive leash": ("grpo", {"leash": "adaptive", "leash_options": {"target": 0.05}}),
    "KL in the reward": ("reinforce_pp", {"beta": 0.1, "num_iterations": 2}),
    "leave one out": ("rloo", {"gradient_accumulation_steps": 2, "max_steps": 4}),
}


def lab(out: Path, **keys: Any) -> dict[str, Any]:
    from offaxis.lab import BASE

    return LAB | {"model_name_or_path": str(BASE), "output_dir": str(out)} | keys


def model(out: Path) -> dict[str, Any]:
    return {name: value.tobytes() for name, value in load_file(out / "model.safetensors").items()}


def quietly(method: str, config: dict[str, Any], said: list[str]) -> None:
    import torch

    from offaxis.lab.session import quiet_libraries

    torch.set_num_threads(1)
    with quiet_libraries():
        train(method, config, sources={"lab": named_data}, tell=said.append)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case: str, tmp_path: Path) -> None:
    method, keys = CASES[case]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    quietly(method, lab(whole, **keys), [])
    steps = sorted(int(path.name[11:]) for path in whole.glob("checkpoint-*"))
    middle = steps[-2]
    shutil.copytree(whole / f"checkpoint-{middle}", cut / f"checkpoint-{middle}")
    quietly(method, lab(cut, resume_from_checkpoint="true", **keys), [])
    assert model(cut) == model(whole)
    assert model(cut) != model(whole / f"checkpoint-{middle}")


def test_saves_inside_a_batch_are_moved_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    keys = {"steps_per_generation": 2, "save_steps": 3, "max_steps": 4}
    quietly("grpo", lab(tmp_path, **keys), said)
    assert any("save_steps 3 is now 4" in text for text in said)
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not (tmp_path / "checkpoint-3").exists()


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = {"max_steps": 6}
    quietly("grpo", lab(whole, **keys), [])
    config = tmp_path / "run.yaml"
    slow = lab(cut, **keys) | {"data": "lab:arithmetic?count=16", "model_name_or_path": "lab"}
    config.write_text(yaml.safe_dump(slow))
    words = [sys.executable, "-m", "offaxis", "train", "grpo", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (cut / "checkpoint-2" / "whole.json").exists():
            assert process.poll() is None, "ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "model.safetensors").exists()
    # The next save, killed before its end: everything but what callbacks write and the mark.
    shutil.copytree(cut / "checkpoint-2", cut / "checkpoint-4", dirs_exist_ok=True)
    for name in ("leash.json", "whole.json"):
        (cut / "checkpoint-4" / name).unlink()

    refused = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    again = subprocess.run(
        [*words, "--resume_from_checkpoint", "true", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "checkpoint-4: not saved to the end, left out" in again.stderr
    assert model(cut) == model(whole)
