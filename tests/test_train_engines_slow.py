"""More of two processes: every method, and FSDP2 by transformers and by accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engines.launch import played, scene
from engines.told import alike, in_step, rows

pytestmark = pytest.mark.slow

PARTS = ("rloo", "dr_grpo", "gspo", "distill", "dpo", "distill_on_policy")
SAME = ("supervised", "reinforce_pp", "dapo")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return played(tmp_path_factory.mktemp("ddp"), *SAME, "the_rest", "sharded_at_load")


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """`configs/fsdp2.yaml` itself, on two processes of the CPU."""
    return played(tmp_path_factory.mktemp("fsdp"), "--force", *SAME, config="fsdp2")


@pytest.mark.parametrize("method", PARTS)
def test_every_other_method_trains_on_two_processes(ddp: Any, method: str) -> None:
    in_step(scene(ddp, "the_rest", part=method))


@pytest.mark.parametrize("name", SAME)
def test_a_sharded_run_is_the_unsharded_one(fsdp: Any, ddp: Any, name: str) -> None:
    for parts, whole in zip(scene(fsdp, name), scene(ddp, name), strict=True):
        alike(parts, whole)


def test_a_model_that_transformers_shards_trains_as_a_whole_one(ddp: Any) -> None:
    """DAPO, masters of a bfloat16 base, a leash and the probe on DTensors, nothing forced."""
    whole = scene(ddp, "sharded_at_load", part="whole")
    parts = scene(ddp, "sharded_at_load", part="sharded")
    assert all(all(one["sharded"]) for one in parts)
    assert all(one["dtypes"] == ["torch.float32"] for one in (*whole, *parts))
    assert parts[0]["start"] == whole[0]["start"]
    assert parts[0]["messages"] == whole[0]["messages"], "the share of lost steps differs"
    for name in ("loss", "reward", "kl_tuned_base", "leash/beta", "grad_norm"):
        expected = pytest.approx(rows(whole, name)[0], rel=1e-4, abs=1e-7)
        assert rows(parts, name)[0] == expected, name
    one, two = (load_file(Path(told[0]["output"]) / "model.safetensors") for told in
                (whole, parts))  # fmt: skip
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-7)


def test_accelerate_takes_ddp_for_fsdp2_on_a_cpu_and_does_not_say_so(tmp_path: Path) -> None:
    """Why the other tests force it; should this fail, they need not."""
    for told in scene(played(tmp_path, "supervised", config="fsdp2"), "supervised"):
        assert not any(told["sharded"])
        assert told["wrapped"] == "DistributedDataParallel"
