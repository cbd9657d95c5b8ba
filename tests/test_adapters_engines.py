"""Adapters on two real processes over gloo: DDP, and FSDP2 with DTensors.

What the processes do is in engines/adapted.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.adapted import SPECS, logits, pattern, wired
from engines.launch import played, scene
from engines.told import rows
from offaxis.errors import InputError
from offaxis.train.adapters import load_adapted
from offaxis.train.adapters.wiring import STATE
from policy_runs import cpu_threads
from sparse_runs import model, run, same, weights

SOME = ("adalora", "off_principal_lora", "lora_fa")
SHARDED = ("pissa", "lora_fa")
SLOW = pytest.mark.slow


class Told:
    """What two processes told, and the weights that they ended with."""

    def __init__(self, out: Path, *names: str, **options: Any) -> None:
        self.out = out
        self.found = played(out, *names, script="adapted.py", **options)

    def of(self, name: str, part: str = "whole") -> Any:
        """The first process's, which is the other's too."""
        first, second = scene(self.found, name, part=part)
        assert first == second, "the processes differ"
        assert first["processes"] == 2
        return first

    def weights(self, name: str, part: str = "whole") -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(self.out / name / part / "weights.pt")
        return found


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("ddp"), *SOME)


@pytest.fixture(scope="module")
def ddp_rest(tmp_path_factory: pytest.TempPathFactory) -> Told:
    rest = [name for name in SPECS if name not in SOME]
    return Told(tmp_path_factory.mktemp("ddp_rest"), *rest, "grpo")


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """`configs/fsdp2.yaml` itself, on two processes of the CPU."""
    out = tmp_path_factory.mktemp("fsdp")
    return Told(out, "--force", *SHARDED, "refused", config="fsdp2")


@pytest.fixture(scope="module")
def fsdp_rest(tmp_path_factory: pytest.TempPathFactory) -> Told:
    out = tmp_path_factory.mktemp("fsdp_rest")
    rest = ("lora", "dora", "milora", "geora", "lora_plus", "vera_once", "grpo")
    return Told(out, "--force", *rest, config="fsdp2")


def one_process(found: Any, after: dict[str, torch.Tensor], name: str, out: Path) -> None:
    """Two processes did what one does with the whole batch, to float tolerance.

    By the norm of each tensor's move: Adam turns rounding in a gradient near zero into a step.
    """
    alone = wired(out, name, per_device_train_batch_size=8)
    before = weights(alone.model)
    with cpu_threads(1):
        expected = run(alone)
    log = [row for row in alone.state.log_history if "loss" in row]
    assert found["loss"] == pytest.approx([row["loss"] for row in log], rel=1e-5)
    assert found["grad_norm"] == pytest.approx([row["grad_norm"] for row in log], rel=1e-4)
    assert found["pattern"] == pattern(alone)
    trained = {n for n, one in alone.model.named_parameters() if one.requires_grad}
    for key, value in expected.items():
        if key in trained:
            moved = value - before[key]
            assert float(moved.abs().max()) > 1e-3, f"{key} was not trained"
            assert float((after[key] - value).norm() / moved.norm()) < 5e-3, key
        else:
            assert torch.equal(after[key], before[key]), f"{key} is frozen"


def resumes(told: Told, name: str) -> None:
    """From the middle again: the same weights, to the bit, and the same log."""
    whole, again = told.of(name), told.of(name, "again")
    assert again["end"] == whole["end"]
    assert again["pattern"] == whole["pattern"]
    assert same(told.weights(name), told.weights(name, "again"))
    assert again["loss"] == whole["loss"]


def loads(told: Told, name: str) -> None:
    """The adapter that two processes saved is the one that they ended with."""
    folder = told.out / name / "whole"
    found = logits(load_adapted(model(), folder / "checkpoint-6"))
    torch.testing.assert_close(found, torch.load(folder / "logits.pt"), rtol=0, atol=1e-5)
    assert float((found - logits(model())).abs().max()) > 1e-4, "the adapter does nothing"


@pytest.mark.parametrize("name", SOME)
def test_ddp_is_one_process_with_the_whole_batch(name: str, ddp: Told, tmp_path: Path) -> None:
    found = ddp.of(name)
    assert found["wrapped"] == "DistributedDataParallel"
    one_process(found, ddp.weights(name), name, tmp_path)
    resumes(ddp, name)
    loads(ddp, name)


def test_adaloras_ranks_are_pruned_alike_in_both_processes(ddp: Told) -> None:
    for told in scene(ddp.found, "adalora", part="whole"):
        kept = [sum(one) for one in told["pattern"].values()]
        assert sum(kept) == 4 * len(kept), "rank 4 on average"
        assert len(set(kept)) > 1, "all matrices got the same: nothing was allocated"
    assert (ddp.out / "adalora/whole/checkpoint-3" / STATE).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_fsdp2_is_one_process_with_the_whole_batch(name: str, fsdp: Told, tmp_path: Path) -> None:
    found = fsdp.of(name)
    assert all(found["sharded"])
    one_process(found, fsdp.weights(name), name, tmp_path)
    resumes(fsdp, name)
    loads(fsdp, name)


@pytest.mark.slow
def test_what_cannot_train_sharded_is_refused_before_it_starts(fsdp: Told) -> None:
    for said in scene(fsdp.found, "refused"):
        assert "adalora under FSDP: ranks are allocated over whole" in said["adalora"]
        assert "off_principal_lora under FSDP: its projection" in said["off_principal_lora"]
        assert "vera under FSDP: no run resumes" in said["vera"]
        for name in ("lora", "milora"):
            assert f"{name}: model.embed_tokens.weight is sharded" in said[f"sharded {name}"]
            assert "configs/fsdp2.yaml" in said[f"sharded {name}"]


@pytest.mark.parametrize(("name", "engine", "said"), [
    ("adalora", "deepspeed", "adalora under DeepSpeed: ranks .* use DDP"),
    ("lora_fa", "deepspeed", "lora_fa under DeepSpeed: its optimizer"),
    ("off_principal_lora", "deepspeed", "off_principal_lora under DeepSpeed: its projection"),
    ("lora", "deepspeed", ""),
    ("lora", "fsdp", "lora: FSDP 1 lays parameters end to end; set fsdp_version: 2"),
])  # fmt: skip
def test_engines_that_are_not_run_here_are_refused_by_name(
    name: str, engine: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed and FSDP 1 only as far as transformers says that the trainer has them."""
    made = wired(tmp_path, "lora")
    from offaxis.train.adapters import AdapterSpec, adapt, wire

    made.model, made._offaxis_wired = adapt(model(), SPECS[name], seed=0), False
    monkeypatch.setattr(made, f"is_{engine}_enabled", True)
    plugin = SimpleNamespace(fsdp_version=1)
    monkeypatch.setattr(made.accelerator.state, "fsdp_plugin", plugin, raising=False)
    spec = AdapterSpec.parse(SPECS[name])
    if not said:
        wire(made, spec)
        return
    with pytest.raises(InputError, match=said):
        wire(made, spec)
    assert not made._offaxis_wired


@SLOW
@pytest.mark.parametrize("name", [name for name in SPECS if name not in SOME])
def test_every_other_adapter_under_ddp(name: str, ddp_rest: Told, tmp_path: Path) -> None:
    one_process(ddp_rest.of(name), ddp_rest.weights(name), name, tmp_path)
    resumes(ddp_rest, name)
    loads(ddp_rest, name)


@SLOW
@pytest.mark.parametrize("name", ["lora", "dora", "milora", "geora", "lora_plus"])
def test_every_other_adapter_under_fsdp2(name: str, fsdp_rest: Told, ddp_rest: Told) -> None:
    assert all(fsdp_rest.of(name)["sharded"])
    apart = ddp_rest.weights(name)
    for key, value in fsdp_rest.weights(name).items():
        torch.testing.assert_close(value, apart[key], rtol=0, atol=5e-7)
    resumes(fsdp_rest, name)
    loads(fsdp_rest, name)


@SLOW
def test_vera_trains_under_fsdp2_without_checkpoints(fsdp_rest: Told, ddp_rest: Told) -> None:
    first, second = scene(fsdp_rest.found, "vera_once")
    assert first == second
    assert all(first["sharded"])
    after = torch.load(fsdp_rest.out / "vera_once/weights.pt")
    for key, value in ddp_rest.weights("vera").items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=5e-7)


@SLOW
@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_a_leashed_run_of_grpo_is_the_same_on_both_engines(
    name: str, ddp_rest: Told, fsdp_rest: Told
) -> None:
    """The reference is the model with its adapter, or its start, switched: on shards as well."""
    whole, parts = (scene(one.found, "grpo", part=name) for one in (ddp_rest, fsdp_rest))
    for told in (whole, parts):
        assert told[0]["start"] == told[1]["start"] != told[0]["end"] == told[1]["end"]
    assert all(all(one["sharded"]) for one in parts)
    assert parts[0]["start"] == whole[0]["start"]
    for key in ("loss", "grad_norm", "kl", "kl_tuned_base", "leash/beta", "reward"):
        expected = pytest.approx(rows(whole, key)[0], rel=2e-4, abs=1e-7)
        assert rows(parts, key)[0] == expected, key
    assert rows(whole, "kl_tuned_base")[0][0] == 0 < rows(whole, "kl_tuned_base")[0][-1]
