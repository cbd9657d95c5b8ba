"""Runs on an adapter in the queue: named in the grid, checkpoints whole, told in the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab_base import DIFFICULTY, TASK
from offaxis.errors import InputError
from offaxis.lab.queue import RunConfig, Store, by_checkpoint, expand, read_rows
from offaxis.lab.queue.job import execute
from offaxis.names import is_matrix, place


def config(adapter: str, **settings: Any) -> RunConfig:
    told = {"method": "grpo", "learning_rate": 1e-2, "steps": 2, "save_at": (1,), "seed": 3}
    return RunConfig(
        **(told | settings), task=TASK, difficulty=DIFFICULTY, prompts_per_step=4,
        completions_per_prompt=8, problems=6, samples=2, keep=True, own_exam=True, adapter=adapter,
    )  # fmt: skip


RUNS = (
    config("full"), config(""), config("lora?rank=2"), config("pissa?rank=2"),
    config("ln_tuning"), config("lora?rank=2", method="sft"),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.create(tmp_path_factory.mktemp("adapters") / "queue", RUNS, small_base)
    for run in RUNS:
        execute(found, run)
    return found


def trained(store: Store, run: RunConfig, step: int = 2) -> dict[str, torch.Tensor]:
    name = run.identity(store.base_digest)
    return load_file(
        store.directory / "checkpoints" / name / f"checkpoint-{step}" / "model.safetensors"
    )


def row(store: Store, run: RunConfig) -> dict[str, Any]:
    table = by_checkpoint(read_rows(store.row(run.identity(store.base_digest))))
    return table.sort("step").row(-1, named=True)


def update(store: Store, run: RunConfig, name: str) -> torch.Tensor:
    base = load_file(store.base / "model.safetensors")
    return trained(store, run)[name].double() - base[name].double()


def matrices(store: Store) -> list[str]:
    base = load_file(store.base / "model.safetensors")
    return [
        name
        for name, one in base.items()
        if is_matrix(tuple(one.shape), place(name, tuple(one.shape)))
    ]


def test_the_row_tells_the_adapter_and_what_it_trains(store: Store) -> None:
    whole = sum(one.numel() for one in load_file(store.base / "model.safetensors").values())
    assert row(store, RUNS[0])["adapter"] == "full"
    assert row(store, RUNS[0])["trainable"] == whole
    assert row(store, RUNS[1])["adapter"] is None
    lora = row(store, RUNS[2])
    assert lora["adapter"] == "lora?rank=2"
    sizes = load_file(store.base / "model.safetensors")
    assert lora["trainable"] == sum(2 * sum(sizes[name].shape) for name in matrices(store))


def test_full_is_the_run_without_an_adapter(store: Store) -> None:
    for name, one in trained(store, RUNS[0]).items():
        assert torch.equal(one, trained(store, RUNS[1])[name])


@pytest.mark.parametrize("run", [RUNS[2], RUNS[3], RUNS[5]], ids=["lora", "pissa", "sft"])
def test_a_checkpoint_holds_the_effective_weights_of_a_low_rank_update(
    store: Store, run: RunConfig
) -> None:
    """ΔW is W₊ − W₀ of the true base: rank r for LoRA, at most 2 r for BA − B₀A₀."""
    most = 4 if run is RUNS[3] else 2
    moved = 0
    for name in matrices(store):
        values = torch.linalg.svdvals(update(store, run, name))
        moved += int(values[0] > 0)
        assert values[most] <= 1e-5 * values[0] + 1e-7, name
    assert moved == len(matrices(store))
    base = load_file(store.base / "model.safetensors")
    for name, one in trained(store, run).items():
        if name not in matrices(store):
            assert torch.equal(one, base[name].float()), name


def test_norms_alone_move_under_ln_tuning(store: Store) -> None:
    base = load_file(store.base / "model.safetensors")
    for name, one in trained(store, RUNS[4]).items():
        same = torch.equal(one, base[name].float())
        assert same == (place(name, tuple(one.shape)).role != "norm"), name


def test_a_grid_names_adapters_and_refuses_what_is_none() -> None:
    runs = expand([{"method": "dapo", "adapter": ["lora?rank=4", "full", "ia3"]}])
    assert [run.adapter for run in runs] == ["lora?rank=4", "full", "ia3"]
    assert len({run.identity("0") for run in runs}) == 3
    assert runs[0].adapter_spec is not None
    assert runs[0].adapter_spec.rank == 4
    assert runs[1].adapter_spec is None
    with pytest.raises(InputError, match=r"grid, table 1: adapter 'lor': choose one of full, lora"):
        expand([{"adapter": "lor"}])
    with pytest.raises(InputError, match="lora has no ratio"):
        expand([{"adapter": "lora?ratio=3"}])
    with pytest.raises(InputError, match="mask and adapter"):
        expand([{"adapter": "lora", "mask": "safe"}])


def test_a_run_without_an_adapter_keeps_the_identity_it_had() -> None:
    """Rows of earlier studies stay the rows of the runs that they are."""
    assert RunConfig().identity("0" * 16) == "1b0c6edadae6"
