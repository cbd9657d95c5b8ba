"""Checks on what the processes of a run told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def digest(folder: str) -> str:
    """As the witness takes it, of the saved weights."""
    found = hashlib.sha256()
    saved = load_file(Path(folder) / "model.safetensors")
    saved["lm_head.weight"] = saved["model.embed_tokens.weight"]  # tied, and so saved once
    for name, value in sorted(saved.items()):
        found.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def in_step(told: list[Any]) -> None:
    """Both processes started and ended with the same weights, which moved, and saved them."""
    assert [one["processes"] for one in told] == [2, 2]
    assert [one["wrapped"] for one in told] == ["DistributedDataParallel"] * 2
    assert told[0]["start"] == told[1]["start"] != told[0]["end"] == told[1]["end"]
    assert told[0]["end"] == digest(told[0]["output"])


def rows(told: list[Any], name: str) -> list[list[float]]:
    """A number of the log, step by step, of each process."""
    return [[row[name] for row in one["log"] if name in row] for one in told]


def alike(parts: Any, whole: Any) -> None:
    """A sharded run did what the unsharded one did, to float tolerance, and moved."""
    assert parts["kind"] == "DistributedType.FSDP"
    assert all(parts["sharded"])
    assert not any(whole["sharded"])
    assert parts["start"] == whole["start"] != parts["end"]
    for name in ("loss", "reward", "grad_norm", "kl_tuned_base", "kl_base_tuned", "leash/beta",
                 "leash/penalty", "dynamic_sampling/rounds"):  # fmt: skip
        expected = pytest.approx(rows([whole], name)[0], rel=2e-4, abs=1e-7)
        assert rows([parts], name)[0] == expected, name
    one, two = (load_file(Path(told["output"]) / "model.safetensors") for told in (whole, parts))
    for name, value in one.items():
        assert two[name].dtype == torch.float32
        torch.testing.assert_close(two[name], value, rtol=0, atol=5e-7)
