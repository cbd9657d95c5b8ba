"""Two real processes on gloo and the bundled base: DDP, FSDP2, the command line, configurations.

Started by `accelerate launch`; what they do is in engines/scenes.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from engines.launch import ROOT, accelerated, played, scene
from engines.told import alike, digest, in_step, rows
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.train import train
from policy_runs import cpu_threads, quiet_libraries

NAMES = ("grpo", "reinforce_pp", "dapo", "dapo_hopeless", "sampled", "resumed", "elastic",
         "supervised")  # fmt: skip


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return played(tmp_path_factory.mktemp("ddp"), *NAMES)


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """`configs/fsdp2.yaml` itself, on two processes of the CPU."""
    out = tmp_path_factory.mktemp("fsdp")
    return played(out, "--force", "by_hand", "resumed", "mixed", "elastic", config="fsdp2")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "resumed"])
def test_both_processes_end_with_the_weights_that_are_saved(ddp: Any, name: str) -> None:
    in_step(scene(ddp, name))


def test_a_group_that_two_processes_share_has_one_mean_and_deviation(ddp: Any) -> None:
    told = scene(ddp, "grpo")
    logged = rows(told, "reward")[0]
    for step, reward in enumerate(logged):
        mine = [torch.tensor(one["rewards"][step]) for one in told]
        assert [len(one) for one in mine] == [6, 6]  # groups of 4: the second one is shared
        groups = torch.cat(mine).view(3, 4)
        assert reward == pytest.approx(float(groups.mean()))
        expected = groups - groups.mean(1, keepdim=True)
        expected = (expected / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        found = torch.cat([torch.tensor(one["batches"][step]["advantages"]) for one in told])
        torch.testing.assert_close(found, expected)
    shared = torch.cat([torch.tensor(told[0]["rewards"]), torch.tensor(told[1]["rewards"])], 1)
    assert (shared[:, 4:8].std(1) > 0).any(), "no shared group that would show it"


def test_reinforce_pp_whitens_over_both_processes(ddp: Any) -> None:
    told = scene(ddp, "reinforce_pp")
    for step in range(2):
        returns, found = [], []
        for one in told:
            mask = torch.tensor(one["batches"][step]["completion_mask"]).bool()
            reward = torch.tensor(one["rewards"][step])[:, None].expand(mask.shape)
            returns.append(reward[mask])
            found.append(torch.tensor(one["batches"][step]["advantages"])[mask])
        whole = torch.cat(returns).double()
        expected = (whole - whole.mean()) / whole.std(correction=0)
        torch.testing.assert_close(torch.cat(found).double(), expected, rtol=1e-5, atol=1e-5)
        alone = [(one - one.mean()) / one.std(correction=0) for one in returns]
        assert not torch.allclose(torch.cat(alone), torch.cat(found), atol=1e-2)


def test_a_signal_on_one_side_alone_deadlocks_nothing(ddp: Any) -> None:
    told = scene(ddp, "dapo")
    first, second = (one["live"] for one in told)
    assert all(first[0]), "the first process has signals everywhere"
    assert not any(second[0]), "the second has none"
    assert len(first) == len(second) > 2, "both sampled as often, and more than once a step"
    signal = rows(told, "dynamic_sampling/signal_after")
    assert signal[0] == signal[1]
    assert rows(told, "dynamic_sampling/signal_before")[0][0] == 0.5
    assert signal[0][0] > 0.5


def test_what_one_process_can_never_fill_ends_at_the_bound(ddp: Any) -> None:
    told = scene(ddp, "dapo_hopeless")
    assert rows(told, "dynamic_sampling/rounds") == [[4, 4], [4, 4]]
    assert rows(told, "dynamic_sampling/signal_after") == [[0.5, 0.5], [0.5, 0.5]]
    for step in range(2):
        mine, theirs = (torch.tensor(one["batches"][step]["advantages"]) for one in told)
        assert mine.abs().min() > 0
        assert theirs.abs().max() == 0


def test_the_first_process_samples_and_the_other_trains_on_it(ddp: Any) -> None:
    told = scene(ddp, "sampled")
    assert [one["drawn"] for one in told] == [[64, 36], []]
    written = (Path(told[0]["output"]) / "samples.jsonl").read_text().splitlines()
    assert len(written) == 1 + 100
    assert rows(told, "train_loss")[0] == rows(told, "train_loss")[1]


def test_a_leashed_run_resumes_exactly(ddp: Any) -> None:
    whole, again = scene(ddp, "resumed", part="whole"), scene(ddp, "resumed", part="again")
    in_step(whole)
    assert [one["start"] for one in again] != [one["start"] for one in whole]
    assert [one["end"] for one in again] == [one["end"] for one in whole]
    for name in ("leash/beta", "kl_tuned_base", "kl_base_tuned"):
        values = [*rows(whole, name), *rows(again, name)]
        assert values.count(values[0]) == 4, f"{name} differs between processes, or resumed"
    assert len(set(rows(whole, "leash/beta")[0])) == 4
    assert rows(whole, "kl_tuned_base")[0][0] == 0 < rows(whole, "kl_tuned_base")[0][-1]


def test_the_elastic_penalty_is_the_same_number_in_both(ddp: Any) -> None:
    penalty = rows(scene(ddp, "elastic"), "leash/penalty")
    assert penalty[0] == penalty[1]
    assert 0 < penalty[0][0] < penalty[0][-1]


def test_two_processes_are_one_with_the_whole_batch(ddp: Any, tmp_path: Path) -> None:
    """SFT has no sampling: 2 processes x 4 rows are 1 process x 8."""
    told = scene(ddp, "supervised")
    given = yaml.safe_load((Path(told[0]["output"]) / "train.yaml").read_text())
    given |= {"output_dir": str(tmp_path / "one"), "per_device_train_batch_size": 8}
    with cpu_threads(1), quiet_libraries():
        alone = train("sft", given, sources={"lab": named_data}, tell=lambda text: None)
    losses = [row["loss"] for row in alone.log if "loss" in row]
    assert losses == pytest.approx(rows(told, "loss")[0], rel=1e-5)
    base = load_file(BASE / "model.safetensors")
    one, two = (load_file(Path(folder) / "model.safetensors") for folder in
                (alone.output, told[0]["output"]))  # fmt: skip
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-7)
        assert (value - base[name].float()).abs().max() > 1e-5


@pytest.mark.slow
def test_the_command_line_on_two_processes(ddp: Any, tmp_path: Path) -> None:
    """`-m offaxis train` does what `offaxis.train.train` did: the same weights, to the bit."""
    told = scene(ddp, "elastic")
    config = Path(told[0]["output"]) / "train.yaml"
    done = accelerated(
        "-m", "offaxis", "train", "grpo", "--config", str(config), "--output_dir",
        str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert digest(str(tmp_path / "out")) == told[0]["end"]
    assert json.loads((tmp_path / "out/offaxis.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_masters_and_clipping_on_a_model_sharded_by_hand(fsdp: Any) -> None:
    for told in scene(fsdp, "by_hand"):
        assert all(told["sharded"])
        assert told["placed"] == ["(Shard(dim=0),)"]
        assert told["dtypes"] == ["torch.float32"]
        assert told["shares"][1] == pytest.approx(told["shares"][0], abs=1e-9)
        assert told["told"][0] == told["told"][1]
        for whole, parts in zip(told["whole"], told["parts"], strict=True):
            assert parts == pytest.approx(whole, rel=1e-5)
        assert min(norm for _, norm in told["whole"]) > 1, "nothing was clipped"
        assert told["whole"][-1][0] < told["whole"][0][0] / 2
        assert told["apart"] < 5e-6


@pytest.mark.slow
def test_a_leashed_sharded_run_resumes_exactly(fsdp: Any, ddp: Any) -> None:
    whole, again = scene(fsdp, "resumed", part="whole"), scene(fsdp, "resumed", part="again")
    for parts, unsharded in zip(whole, scene(ddp, "resumed", part="whole"), strict=True):
        alike(parts, unsharded)
    assert [one["end"] for one in again] == [one["end"] for one in whole]
    assert [one["start"] for one in again] != [one["start"] for one in whole]
    assert rows(again, "leash/beta") == rows(whole, "leash/beta")


@pytest.mark.slow
def test_no_small_step_is_lost_in_mixed_precision(fsdp: Any) -> None:
    """A bfloat16 base at a learning rate of 1e-6, of which bfloat16 weights would keep 1 %."""
    base = load_file(BASE / "model.safetensors")
    for told in scene(fsdp, "mixed"):
        assert all(told["sharded"])
        assert told["dtypes"] == ["torch.float32"]
        assert told["computed"] == "torch.bfloat16"
        assert "99.4% of them. They are trained as float32 masters" in told["messages"][0]
        saved = load_file(Path(told["output"]) / "model.safetensors")
        moved = sum(int((saved[name].float() != one.float()).sum()) for name, one in base.items())
        assert moved > 0.99 * sum(one.numel() for one in base.values())


@pytest.mark.slow
def test_the_elastic_leash_on_a_sharded_model(fsdp: Any, ddp: Any) -> None:
    for parts, whole in zip(scene(fsdp, "elastic"), scene(ddp, "elastic"), strict=True):
        alike(parts, whole)


@pytest.mark.parametrize(("name", "kind", "processes"), [
    ("ddp_cpu", "MULTI_GPU", 2), ("ddp", "MULTI_GPU", 8), ("fsdp2", "FSDP", 8),
    ("zero2", "DEEPSPEED", 8),
])  # fmt: skip
def test_accelerate_reads_the_configurations(name: str, kind: str, processes: int) -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {
        "ddp_cpu", "ddp", "fsdp2", "zero2",
    }  # fmt: skip
    found = load_config_from_file(str(ROOT / f"configs/{name}.yaml"))
    assert found.distributed_type.value == kind
    assert found.num_processes == processes
    assert found.mixed_precision == ("no" if name == "ddp_cpu" else "bf16")
    assert found.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert found.deepspeed_config.get("zero_stage") == (2 if name == "zero2" else None)
