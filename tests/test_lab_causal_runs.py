"""Runs from an edited base: settings, identity, and real ones measured against what they left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from lab_base import DIFFICULTY, TASK
from offaxis.errors import InputError
from offaxis.intervene import Intervention
from offaxis.kernels import bf16_codes, pack
from offaxis.lab.queue import RunConfig, Store, expand, read_grid, read_rows
from offaxis.lab.queue.edited import EDITED, EditSpec
from offaxis.lab.queue.job import execute

ROTATE, PERMUTE = "rotate?layers=1&seed=3", "permute?layers=1"
PLACE = "model.layers.1.self_attn.{}_proj.weight"
CHANGED = {
    ROTATE: {PLACE.format(name) for name in "vo"},
    PERMUTE: {PLACE.format(name) for name in "qo"},  # one KV head: its query heads change places
}

# Settings and identity


def test_an_edit_is_written_as_an_adapter_is() -> None:
    spec = EditSpec.parse("rotate?layers=1,2&seed=4&kind=hadamard&per_head=true")
    assert spec == EditSpec("rotate", "1,2", 4, "hadamard", per_head=True)
    assert EditSpec.parse("permute?layers=1-2&within_groups=true").within_groups
    assert EditSpec.parse("rotate?layers=1") == EditSpec("rotate", 1, 0, "haar")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("mirror?layers=1", "'mirror' is none; choose rotate or permute"),
        ("rotate", "names no layers; write rotate"),
        ("rotate?layers", "no new key=value"),
        ("rotate?layers=1&layers=2", "no new key=value"),
        ("rotate?layers=a", "layer 'a'"),
        ("rotate?layers=2-1", "runs backwards"),
        ("rotate?layers=1&seed=-1", "seed -1 of rotate"),
        ("rotate?layers=1&seed=true", "seed True of rotate"),
        ("rotate?layers=1&kind=gauss", "kind 'gauss' of rotate: choose haar or hadamard"),
        ("rotate?layers=1&per_head=1", "per_head of rotate: write true or false"),
        ("permute?layers=1&kind=haar", "permute has no kind; it takes layers, seed, within_groups"),
    ],
)
def test_a_wrong_edit_is_refused_before_any_run(edit: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        expand([{"method": "grpo"}, {"edit": edit}], where="study.toml")
    assert str(caught.value).startswith("study.toml, table 2: ")


@pytest.mark.parametrize(
    ("more", "words"),
    [({"mask": "all"}, "mask"), ({"adapter": "lora"}, "adapter"), ({"twin_seed": 1}, "twin_seed")],
)
def test_an_edited_run_trains_all_of_its_base_alone(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"edit and {words}"):
        expand([{"edit": PERMUTE, **more}])


def test_an_edit_makes_another_run_and_its_absence_none() -> None:
    first = RunConfig("sft", "countdown", 1e-4, 3, 12, (6, 12), 1, 4, 2, 30, 4)
    assert first.identity("0123456789abcdef") == "1addf00879b7"
    others = [replace(first, edit=one) for one in (ROTATE, PERMUTE)]
    assert len({one.identity("base") for one in (first, *others)}) == 3


def test_the_study_has_every_run_beside_its_edits_with_the_same_seeds() -> None:
    runs = read_grid("causal")
    trained = [run for run in runs if run.method != "base"]
    assert all(run.keep and run.own_exam for run in trained)
    assert {run.edit for run in runs if run.method == "base"} == {run.edit for run in trained}
    plain = [run for run in trained if not run.edit]
    arms = {(run.method, run.optimizer, run.learning_rate) for run in plain}
    assert len(plain) == 4 * len(arms)
    for run in trained:
        assert replace(run, edit="") in plain
    for arm in arms:
        own = (run for run in trained if (run.method, run.optimizer, run.learning_rate) == arm)
        verbs = {run.edit.split("?")[0] for run in own}
        assert verbs == {"", "rotate", "permute"}


# Real runs


def config(edit: str, **settings: Any) -> RunConfig:
    told: dict[str, Any] = {"method": "sft", "learning_rate": 0.1, "optimizer": "sgd"} | settings
    return RunConfig(
        **told, task=TASK, difficulty=DIFFICULTY, steps=2, save_at=(1,), seed=3,
        prompts_per_step=4, completions_per_prompt=8, problems=6, samples=2, keep=True,
        own_exam=True, edit=edit,
    )  # fmt: skip


RUNS = (config(""), config(ROTATE), config(PERMUTE), config(PERMUTE, method="base"))


@pytest.fixture(scope="module")
def store(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.create(tmp_path_factory.mktemp("causal") / "queue", RUNS, small_base)
    for run in RUNS:
        execute(found, run)
    return found


def kept(store: Store, edit: str) -> Path:
    return store.directory / "checkpoints" / config(edit).identity(store.base_digest)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: one.double() for name, one in load_file(path / "model.safetensors").items()}


def row(store: Store, run: RunConfig) -> dict[str, Any]:
    found = read_rows(store.directory).filter(run=run.identity(store.base_digest))
    return found.row(0, named=True)


def test_rows_say_what_was_done_to_the_base(store: Store) -> None:
    assert [row(store, run)["edit"] for run in RUNS] == [None, ROTATE, PERMUTE, PERMUTE]
    assert {row(store, run)["base"] for run in RUNS} == {store.base_digest}


def test_rows_from_before_edits_are_still_read(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "queue"
    shutil.copytree(store.directory / "rows", copy / "rows")
    path = copy / "rows" / f"{RUNS[0].identity(store.base_digest)}.parquet"
    pl.read_parquet(path).drop("edit").write_parquet(path)
    assert read_rows(copy).filter(run=path.stem)["edit"].to_list() == [None]
    assert read_rows(copy).height == len(RUNS)


def test_the_edited_base_stays_with_the_checkpoints(store: Store) -> None:
    assert not (kept(store, "") / EDITED).exists()
    for edit in (ROTATE, PERMUTE):
        made = Intervention.load(kept(store, edit) / EDITED)
        assert [step.verb for step in made.steps] == [edit.partition("?")[0]]
        assert set(made.tensors) == CHANGED[edit]
        assert {path.name for path in kept(store, edit).glob("checkpoint-*")} == {
            "checkpoint-1", "checkpoint-2",
        }  # fmt: skip


@pytest.mark.parametrize("edit", [ROTATE, PERMUTE])
def test_a_run_is_measured_against_its_edited_base(store: Store, edit: str) -> None:
    """Against the base that was not edited almost everything would have changed."""
    run = next(one for one in RUNS if one.edit == edit)
    base, tuned = weights(kept(store, edit) / EDITED), weights(kept(store, edit) / "checkpoint-2")
    last = row(store, run)["checkpoints"][-1]
    norm = sum(float(((tuned[name] - base[name]) ** 2).sum()) for name in base) ** 0.5
    whole = sum(float((one**2).sum()) for one in base.values()) ** 0.5
    assert last["relative_update_norm"] == pytest.approx(norm / whole, rel=1e-6)
    masks = np.load(store.directory / "masks" / f"{run.identity(store.base_digest)}.npz")
    for name in CHANGED[edit]:
        same = bf16_codes(tuned[name]) == bf16_codes(base[name])
        assert np.array_equal(masks[f"2/{name}"], pack(~same))


@pytest.mark.parametrize(("edit", "least"), [(ROTATE, 0.95), (PERMUTE, 0.9999)])
def test_sgd_takes_the_same_way_in_other_coordinates(store: Store, edit: str, least: float) -> None:
    """SGD commutes with rotations: the update, pulled back, is that of the run from the base."""
    made = Intervention.load(kept(store, edit) / EDITED)
    ground = weights(store.base)
    base, tuned = weights(kept(store, edit) / EDITED), weights(kept(store, edit) / "checkpoint-2")
    other = weights(kept(store, "") / "checkpoint-2")
    for name in CHANGED[edit]:
        own, raw = other[name] - ground[name], tuned[name] - base[name]
        pulled = made.pull_back_update(name, raw)
        assert cosine(own, pulled) > least
        assert abs(cosine(own, raw)) < 0.9


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first * second).sum() / (first.norm() * second.norm()))
