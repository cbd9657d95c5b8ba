"""Two real processes under a mask: DDP, FSDP2 with DTensors, and ZeRO-2 where DeepSpeed is.

What they do is in engines/masked.py.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.launch import played, scene
from offaxis.train.sparse import restrict
from policy_runs import cpu_threads
from sparse_runs import bits, held, mask, model, run, same, trainer, weights

RULE = "random(density=0.3, seed=1)"


class Told:
    """What two processes told, and the weights that they ended with."""

    def __init__(self, out: Path, *names: str, **options: Any) -> None:
        self.out = out
        self.found = played(out, *names, script="masked.py", **options)

    def of(self, name: str, part: str = "") -> list[Any]:
        told = scene(self.found, name, part=part)
        assert told[0]["end"] == told[1]["end"], "the processes ended with different weights"
        assert [one["processes"] for one in told] == [2, 2]
        assert told[0]["loss"] == told[1]["loss"]
        return told

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(self.out / name / "weights.pt")
        return found


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("ddp"), "projected", "compressed")


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """`configs/fsdp2.yaml` itself, on two processes of the CPU."""
    return Told(tmp_path_factory.mktemp("fsdp"), "--force", "projected", config="fsdp2")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """`configs/zero2.yaml` itself, on two processes of the CPU."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed, so ZeRO-2 is not run here")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    out = tmp_path_factory.mktemp("zero")
    names = ("projected", "everything", "resumed", "half", "unrefreshed")
    return Told(out, "--force", *names, config="zero2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process with the whole batch: its weights, and its log by rows of training."""
    chosen = mask(RULE)
    made = trainer(tmp_path_factory.mktemp("alone"), max_steps=24, per_device_train_batch_size=8)
    restrict(made, chosen)
    with cpu_threads(1):
        return run(made), [row for row in made.state.log_history if "loss" in row]


def one_process(told: Any, after: dict[str, torch.Tensor], alone: Any) -> None:
    """Two processes did what one does with the whole batch, to float tolerance."""
    expected, rows = alone
    assert told["loss"] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    assert told["grad_norm"] == pytest.approx([row["grad_norm"] for row in rows], rel=1e-4)
    for name, one in expected.items():
        torch.testing.assert_close(after[name], one, rtol=0, atol=2e-6)
    held(after, mask(RULE), base=weights(model()))
    assert told["planted"] > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["projected", "compressed"])
def test_ddp(strategy: str, ddp: Told, alone: Any) -> None:
    told = ddp.of(strategy)[0]
    assert told["wrapped"] == "DistributedDataParallel"
    assert told["optimizer"] == ("AdamW" if strategy == "projected" else "SparseAdamW")
    one_process(told, ddp.weights(strategy), alone)


def test_fsdp2(fsdp: Told, alone: Any) -> None:
    for told in fsdp.of("projected"):
        assert all(told["sharded"])
        assert told["wrapped"].startswith("FSDP")
    one_process(fsdp.of("projected")[0], fsdp.weights("projected"), alone)


@pytest.mark.slow
def test_the_full_mask_is_no_mask_on_shards(tmp_path: Path) -> None:
    fsdp = Told(tmp_path, "--force", "everything", config="fsdp2")
    assert all(fsdp.of("everything", "mask")[0]["sharded"])
    assert same(fsdp.weights("everything/mask"), fsdp.weights("everything/plain"))


@pytest.mark.slow
def test_a_refresh_is_the_same_on_every_engine_and_resumes_exactly(tmp_path: Path) -> None:
    ddp = Told(tmp_path / "ddp", "refreshed")
    fsdp = Told(tmp_path / "fsdp", "--force", "refreshed", config="fsdp2")
    for engine in (ddp, fsdp):
        whole, again = engine.of("refreshed", "whole"), engine.of("refreshed", "again")
        assert [one["end"] for one in whole] == [one["end"] for one in again]
        assert len(whole[0]["kept"]) == 4
        assert all(0.3 < one < 1 for one in whole[0]["kept"])
    one, two = ddp.weights("refreshed/whole"), fsdp.weights("refreshed/whole")
    assert all(fsdp.of("refreshed", "whole")[0]["sharded"])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-6)


def test_zero2(zero: Told, alone: Any) -> None:
    told = zero.of("projected")
    assert told[0]["wrapped"] == "DeepSpeedEngine"
    assert any(told[0]["pieces"])
    assert any(told[1]["pieces"]), "one process holds everything"
    one_process(told[0], zero.weights("projected"), alone)
    assert same(zero.weights("everything/mask"), zero.weights("everything/plain"))
    assert same(zero.weights("resumed/whole"), zero.weights("resumed/again"))
    assert "refresh_every with DeepSpeed" in scene(zero.found, "unrefreshed")[0]["refused"]


def test_zero2_in_bfloat16(zero: Told) -> None:
    after, base = zero.weights("half"), weights(model(dtype=torch.bfloat16))
    for name, flags in mask(RULE).items():
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(bits(after[name])[~flags], bits(base[name])[~flags])
        assert float((after[name] != base[name])[flags].float().mean()) > 0.5
