"""Masked runs of the queue: their settings and identity, a real one, and likeness to a twin."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab_base import DIFFICULTY, TASK, untrained_model
from offaxis.errors import InputError
from offaxis.lab.queue import RunConfig, Store, by_checkpoint, expand, read_grid, read_rows
from offaxis.lab.queue.job import execute
from offaxis.lab.queue.twin import agreement, run_mask
from offaxis.masks import build

Weights = dict[str, torch.Tensor]

# Settings and identity


def test_a_mask_is_an_axis_of_the_grid_and_keeps_the_files_order() -> None:
    rules = ["safe", "", "all", "random(like=safe)"]
    runs = expand([{"method": ["sft", "grpo"], "mask": rules, "own_exam": True, "twin_seed": 3}])
    assert [(run.method, run.mask) for run in runs] == [
        (method, rule) for method in ("sft", "grpo") for rule in rules
    ]
    assert all(run.own_exam and run.twin_seed == 3 for run in runs)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"mask": "principle"}, "no rule 'principle'"),
        ({"mask": ["safe", "random(densty=0.1)"]}, "has no option 'densty'"),
        ({"mask": 1}, "mask = 1 should be of type str"),
        ({"twin_seed": 0.5}, "twin_seed = 0.5 should be of type int"),
        ({"own_exam": 1}, "own_exam = 1 should be of type bool"),
    ],
)
def test_a_wrong_mask_is_refused_before_any_run(grid: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        expand([{"method": "grpo"}, grid], where="study.toml")
    assert str(caught.value).startswith("study.toml, table 2: ")


def test_runs_from_before_masks_keep_their_names() -> None:
    """The name is of settings alone: those of a run without a mask are what they were."""
    run = RunConfig("sft", "countdown", 1e-4, 3, 12, (6, 12), 1, 4, 2, 30, 4)
    assert run.identity("0123456789abcdef") == "1addf00879b7"
    rows = read_rows(Path(__file__).parents[1] / "docs" / "studies" / "methods" / "runs.parquet")
    (base,) = rows["base"].unique()
    assert {run.identity(base) for run in read_grid("methods")} == set(rows["run"])


def test_a_mask_a_twin_and_an_exam_make_other_runs() -> None:
    first = RunConfig()
    others = [replace(first, mask="all"), replace(first, mask="safe"), replace(first, twin_seed=0)]
    others += [replace(first, own_exam=True), replace(first, mask="safe", twin_seed=1)]
    assert len({one.identity("base") for one in (first, *others)}) == 1 + len(others)


def test_a_twin_is_the_run_over_all_matrices() -> None:
    assert RunConfig(mask="safe").twin is None
    sub = RunConfig(mask="random(like=subnetwork)", seed=4)
    assert sub.twin == replace(sub, mask="all")
    other = RunConfig(mask="all", seed=4, twin_seed=5)
    assert other.twin == RunConfig(mask="all", seed=5)


def test_the_sparse_study_has_every_mask_with_its_controls_at_every_rate() -> None:
    runs = read_grid("sparse")
    base, *trained = runs
    assert base.method == "base"
    assert all(run.own_exam and run.seed == 100 for run in trained)
    masks = {run.mask for run in trained if run.method == "grpo"}
    rules = {"principal", "safe(threshold='mean')", "lift(budget_rank=6)"}
    assert {f"{control}(like={rule})" for control in ("random", "magnitude_random")
            for rule in rules} | rules <= masks  # fmt: skip
    cells = {(run.method, run.mask, run.learning_rate) for run in trained}
    rates = {run.learning_rate for run in trained}
    assert len(cells) == len(trained) == len(rates) * len({cell[:2] for cell in cells})


# Real masked runs


def config(mask: str, **settings: Any) -> RunConfig:
    told = {"method": "grpo", "learning_rate": 1e-3, "steps": 2, "save_at": (1,), "seed": 3}
    return RunConfig(
        **(told | settings), task=TASK, difficulty=DIFFICULTY, prompts_per_step=4,
        completions_per_prompt=8, problems=6, samples=2, keep=True, own_exam=True, mask=mask,
    )  # fmt: skip


RULE = "random(density=0.25)"
RUNS = (
    config(RULE), config("all"), config("subnetwork"), config("random(like=subnetwork)"),
    config("all", twin_seed=3), config("all", twin_seed=4),
    config("lift(budget_rank=2)", mask_refresh=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def store(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.create(tmp_path_factory.mktemp("masks") / "queue", RUNS, small_base)
    for run in RUNS:
        execute(found, run)
    return found


def weights(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def trained(store: Store, run: RunConfig, step: int) -> Weights:
    return weights(
        store.directory / "checkpoints" / run.identity(store.base_digest) / f"checkpoint-{step}"
    )


def row(store: Store, run: RunConfig) -> dict[str, Any]:
    table = by_checkpoint(read_rows(store.row(run.identity(store.base_digest))))
    return table.sort("step").row(-1, named=True)


@pytest.mark.parametrize("step", [1, 2])
def test_a_masked_run_leaves_all_else_as_the_base_is(store: Store, step: int) -> None:
    mask, base = build(store.base, RULE, seed=3), weights(store.base)
    tuned = trained(store, RUNS[0], step)
    moved = 0
    for name, before in base.items():
        frozen = ~mask[name] if name in mask else torch.ones(before.shape, dtype=torch.bool)
        assert torch.equal(tuned[name].to(before.dtype)[frozen], before[frozen]), name
        moved += int((tuned[name].to(before.dtype) != before).sum())
    assert moved > 0.5 * mask.selected


def test_the_row_tells_the_rule_and_its_density(store: Store) -> None:
    told = row(store, RUNS[0])
    assert told["mask"] == RULE
    assert told["mask_density"] == build(store.base, RULE, seed=3).density
    assert told["mask_density"] == pytest.approx(0.25, abs=1e-3)
    assert row(store, RUNS[1])["mask_density"] == 1.0
    assert told["twin_cosine"] is None
    assert told["avg_harder"] is None, "own_exam asks nothing harder"
    assert told["mixture_loss"] > 0


def test_a_refreshed_mask_moves_entries_that_its_first_did_not_select(store: Store) -> None:
    told, first = row(store, RUNS[6]), build(store.base, "lift(budget_rank=2)")
    assert told["mask_refresh"] == 1
    assert row(store, RUNS[0])["mask_refresh"] is None
    base, tuned = weights(store.base), trained(store, RUNS[6], 2)
    outside = sum(
        int(((tuned[name].to(base[name].dtype) != base[name]) & ~first[name]).sum())
        for name in first
    )
    assert outside > 0


def test_a_refresh_without_a_mask_is_refused() -> None:
    with pytest.raises(InputError, match="mask_refresh 5: steps, for a run with a mask"):
        expand([{"mask_refresh": 5}])


def test_a_random_mask_follows_the_runs_seed_unless_it_names_one(store: Store) -> None:
    def drawn(rule: str, seed: int) -> Any:
        return run_mask(config(rule, seed=seed), store.base, None)

    def equal(a: Any, b: Any) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    assert equal(drawn(RULE, 3), drawn(RULE, 3))
    assert not equal(drawn(RULE, 3), drawn(RULE, 4))
    own = "random(density=0.25, seed=9)"
    assert equal(drawn(own, 3), drawn(own, 4))


def test_a_run_over_all_matrices_is_its_own_twin(store: Store) -> None:
    """The yardstick's end: cosine 1, every value equal, no distance."""
    told = row(store, RUNS[4])
    assert told["twin_cosine"] == pytest.approx(1)
    assert (told["twin_same"], told["twin_same_changed"], told["twin_distance"]) == (1, 1, 0)
    assert told["avg"] == row(store, RUNS[1])["avg"]
    assert told["twin_seed"] == 3
    other = row(store, RUNS[5])
    assert other["twin_cosine"] < 0.9
    assert other["twin_same_changed"] < 0.9


def test_a_subnetwork_is_what_the_twin_changed(store: Store) -> None:
    base, full = weights(store.base), trained(store, RUNS[1], 2)
    names = list(build(store.base, "all"))
    moved = {name: full[name].bfloat16() != base[name].bfloat16() for name in names}
    entries = sum(one.numel() for one in moved.values())
    told = row(store, RUNS[2])
    density = sum(int(one.sum()) for one in moved.values()) / entries
    assert told["mask_density"] == pytest.approx(density)
    assert row(store, RUNS[3])["mask_density"] == pytest.approx(density)
    tuned = trained(store, RUNS[2], 2)
    for name in names:
        assert torch.equal(tuned[name][~moved[name]], base[name].to(tuned[name])[~moved[name]])
    assert told["twin_same"] >= 1 - density, "what neither trained is equal in both"


# Likeness on planted models


def planted(root: Path, name: str, update: dict[str, torch.Tensor]) -> Path:
    """The untrained model with an update, in float32: nothing rounds what is planted."""
    base = root / "base"
    if not base.exists():
        untrained_model(base)
        whole = {key: value.float() for key, value in weights(base).items()}
        save_file(whole, base / "model.safetensors", metadata={"format": "pt"})
    out = root / name
    out.mkdir()
    for file in base.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    moved = {key: value + update.get(key, 0) for key, value in weights(base).items()}
    save_file(moved, out / "model.safetensors", metadata={"format": "pt"})
    return out


MATRIX = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def steps(pattern: list[float], shape: torch.Size) -> torch.Tensor:
    """These numbers again and again."""
    count = math.prod(shape)
    return torch.tensor(pattern).repeat(-(-count // len(pattern)))[:count].reshape(shape)


@pytest.mark.parametrize(
    ("twin", "tuned", "cosine", "distance"),
    [
        ([0.5, 0.0], [0.5, 0.0], 1.0, 0.0),
        ([0.5, 0.0], [0.25, 0.0], 1.0, 0.5),
        ([0.5, 0.0], [0.0, 0.5], 0.0, math.sqrt(2)),
        ([0.5, 0.0], [-0.5, 0.0], -1.0, 2.0),
        ([0.5, 0.5], [0.5, 0.0], 1 / math.sqrt(2), 1 / math.sqrt(2)),
    ],
)
def test_likeness_is_that_of_the_updates(
    twin: list[float], tuned: list[float], cosine: float, distance: float, tmp_path: Path
) -> None:
    shape = weights(untrained_model(tmp_path / "shape"))[MATRIX].shape
    first = planted(tmp_path, "twin", {MATRIX: steps(twin, shape)})
    second = planted(tmp_path, "tuned", {MATRIX: steps(tuned, shape)})
    found = agreement(tmp_path / "base", first, second)
    assert found["twin_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert found["twin_distance"] == pytest.approx(distance, abs=1e-5)


def test_shares_count_entries_of_matrices_alone(tmp_path: Path) -> None:
    base = weights(untrained_model(tmp_path / "shape"))
    shape = base[MATRIX].shape
    first = planted(tmp_path, "twin", {MATRIX: steps([1.0, 1.0, 0.0, 0.0], shape)})
    update = {
        MATRIX: steps([1.0, 2.0, 3.0, 0.0], shape),
        EMBEDDING: torch.ones_like(base[EMBEDDING]),  # no matrix: it counts for nothing
    }
    found = agreement(tmp_path / "base", first, planted(tmp_path, "tuned", update))
    assert found["twin_same_changed"] == pytest.approx(0.5)
    entries = sum(base[name].numel() for name in build(tmp_path / "base", "all"))
    assert found["twin_same"] == pytest.approx(1 - base[MATRIX].numel() / 2 / entries)


def test_a_run_that_never_left_has_no_direction(tmp_path: Path) -> None:
    shape = weights(untrained_model(tmp_path / "shape"))[MATRIX].shape
    moved = planted(tmp_path, "moved", {MATRIX: steps([0.5], shape)})
    still = planted(tmp_path, "still", {})
    found = agreement(tmp_path / "base", moved, still)
    assert math.isnan(found["twin_cosine"])
    assert (found["twin_distance"], found["twin_same_changed"]) == (1.0, 0.0)
    found = agreement(tmp_path / "base", still, moved)
    assert math.isnan(found["twin_same_changed"])
    assert math.isnan(found["twin_distance"])
