"""The causal test's numbers: planted updates, an independent count, and what they are read as."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lab_base import untrained_model
from offaxis import masks
from offaxis.cli.lab import app
from offaxis.comparison import compare
from offaxis.errors import InputError
from offaxis.intervene import Intervention
from offaxis.lab.blocks import refreshed
from offaxis.lab.causal import CausalStudy
from offaxis.lab.causal.jackknife import estimate
from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.causal.readings import QUESTIONS, reading
from offaxis.lab.queue import RunConfig, Store
from offaxis.lab.queue.edited import EDITED, EditSpec
from offaxis.lab.queue.rows import write_row
from offaxis.lab.tokenizer import Shape

ROTATE, PERMUTE = "rotate?layers=1&seed=3", "permute?layers=1"
SEEDS, STEP = (0, 1, 2, 3), 2
VALUE = "model.layers.1.self_attn.v_proj.weight"
AWAY = "model.layers.0.self_attn.v_proj.weight"

Weights = dict[str, torch.Tensor]


def config(edit: str, seed: int) -> RunConfig:
    return RunConfig(
        "sft", seed=seed, steps=STEP, save_at=(STEP,), optimizer="sgd", edit=edit, keep=True
    )


RUNS = [config(edit, seed) for seed in SEEDS for edit in ("", ROTATE, PERMUTE)]


def planted(base: Weights, seed: int) -> Weights:
    """A step in the base's coordinates: one direction that all seeds share, and noise."""
    found = {}
    for place, (name, one) in enumerate(sorted(base.items())):
        rng = torch.Generator().manual_seed(place)
        shape = one.shape if one.ndim == 2 else (1, one.numel())
        shared = torch.randn(shape[0], 2, generator=rng) @ torch.randn(2, shape[1], generator=rng)
        own = torch.randn(shape, generator=torch.Generator().manual_seed(100 * (seed + 1) + place))
        found[name] = (3e-5 * (shared + 0.5 * own)).reshape(one.shape).double()
    return found


def put(store: Store, run: RunConfig) -> None:
    """The run's row and checkpoint: the planted step, seen from the run's own coordinates."""
    name = run.identity(store.base_digest)
    kept = store.directory / "checkpoints" / name
    kept.mkdir(parents=True)
    ground, edits = store.base, {}
    if run.edit:
        made = EditSpec.parse(run.edit).make(store.base, kept / EDITED)
        ground, edits = kept / EDITED, dict(made.steps[-1].edits)
    step = planted(load_file(store.base / "model.safetensors"), run.seed)
    tuned = {
        key: (one.double() + (edits[key].apply(step[key]) if key in edits else step[key])).float()
        for key, one in load_file(ground / "model.safetensors").items()
    }
    shutil.copytree(ground, kept / f"checkpoint-{STEP}")
    save_file(tuned, kept / f"checkpoint-{STEP}" / "model.safetensors", {"format": "pt"})
    told = {
        "run": name, "method": run.method, "revision": 0, "task": run.task, "seed": run.seed,
        "learning_rate": run.learning_rate, "steps": STEP, "difficulty": run.difficulty,
        "prompts_per_step": run.prompts_per_step, "optimizer": run.optimizer,
        "completions_per_prompt": run.completions_per_prompt, "dtype": run.dtype,
        "edit": run.edit or None, "base": store.base_digest,
    }  # fmt: skip
    write_row(store.row(name), told, [{"step": STEP, "avg": 0.5}])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("causal")
    shape = Shape(layers=3, hidden=32, heads=4, intermediate=64, head_dim=16)
    found = Store.create(root / "queue", RUNS, untrained_model(root / "base", shape=shape))
    for run in RUNS:
        put(found, run)
    return found


@pytest.fixture(scope="module")
def study(store: Store) -> CausalStudy:
    return CausalStudy.read(store.directory)


def kept(store: Store, edit: str, seed: int) -> Path:
    return store.directory / "checkpoints" / config(edit, seed).identity(store.base_digest)


def ground(store: Store, edit: str, seed: int) -> Path:
    return kept(store, edit, seed) / EDITED if edit else store.base


def tuned(store: Store, edit: str, seed: int) -> Path:
    return kept(store, edit, seed) / f"checkpoint-{STEP}"


def pair(study: CausalStudy, store: Store, a: tuple[str, int], b: tuple[str, int],
         tensor: str) -> dict[str, float]:  # fmt: skip
    names = [kept(store, *one).name for one in (a, b)]
    found = study.pairs.filter(run_a=names[0], run_b=names[1], tensor=tensor)
    assert found.height == 1
    return found.row(0, named=True)


# Numbers


def test_every_pair_that_says_something_is_there_once(study: CausalStudy, store: Store) -> None:
    same = 3 * math.comb(len(SEEDS), 2)
    matrices = 7 * 3
    assert study.pairs.height == (same + 2 * len(SEEDS) ** 2) * matrices
    assert study.pairs.select("run_a", "run_b", "tensor").is_duplicated().sum() == 0
    edited = study.pairs.filter("edited")
    assert set(edited["layer"]) == {1}
    assert set(edited["role"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("edits", [("", ""), ("", ROTATE), ("", PERMUTE), (ROTATE, ROTATE)])
def test_counts_and_the_null_are_those_of_a_plain_count(
    study: CausalStudy, store: Store, edits: tuple[str, str]
) -> None:
    """Each entry's rate is the share changed of its own base's bin of |W₀|."""
    changed, rates = [], []
    for edit, seed in zip(edits, (0, 1), strict=True):
        before, after = (
            load_file(path / "model.safetensors")[VALUE].to(torch.bfloat16)
            for path in (ground(store, edit, seed), tuned(store, edit, seed))
        )
        moved = (before != after).reshape(-1).tolist()
        bins = (before.abs().reshape(-1).view(torch.int16) >> 4).tolist()
        share = {
            one: float(np.mean([m for m, b in zip(moved, bins, strict=True) if b == one]))
            for one in set(bins)
        }
        changed.append(moved)
        rates.append([share[one] for one in bins])
    row = pair(study, store, (edits[0], 0), (edits[1], 1), VALUE)
    both = [a and b for a, b in zip(*changed, strict=True)]
    assert (row["changed_a"], row["changed_b"]) == tuple(map(sum, changed))
    assert row["shared"] == sum(both)
    assert row["expected"] == pytest.approx(sum(a * b for a, b in zip(*rates, strict=True)), 1e-5)


@pytest.mark.parametrize("edit", [ROTATE, PERMUTE])
def test_directions_are_those_of_the_updates_put_back(
    study: CausalStudy, store: Store, edit: str
) -> None:
    before, after = (
        load_file(path / "model.safetensors")[VALUE].double()
        for path in (ground(store, edit, 1), tuned(store, edit, 1))
    )
    steps = planted(load_file(store.base / "model.safetensors"), 0)[VALUE]
    back = Intervention.load(ground(store, edit, 1)).pull_back_update(VALUE, after - before)
    row = pair(study, store, ("", 0), (edit, 1), VALUE)
    cosines = [float((steps * one).sum() / (steps.norm() * one.norm()))
               for one in (after - before, back)]  # fmt: skip
    assert [row["cosine"], row["back_cosine"]] == pytest.approx(cosines, abs=1e-4)
    first, second = (torch.linalg.svd(one) for one in (steps, back))
    for rank in (1, 4, 8):
        left = (first.U[:, :rank].T @ second.U[:, :rank]).norm() ** 2 / rank
        right = (first.Vh[:rank] @ second.Vh[:rank].T).norm() ** 2 / rank
        assert row[f"left_{rank}"] == pytest.approx(float(left), abs=2e-3)
        assert row[f"right_{rank}"] == pytest.approx(float(right), abs=2e-3)


@pytest.mark.parametrize("edit", [ROTATE, PERMUTE])
def test_a_step_seen_from_elsewhere_is_itself_once_it_is_pulled_back(
    study: CausalStudy, store: Store, edit: str
) -> None:
    row = pair(study, store, ("", 2), (edit, 2), VALUE)
    assert row["back_cosine"] == pytest.approx(1, abs=1e-5)
    assert row["cosine"] < 0.9
    assert row["left_4"] == pytest.approx(1, abs=1e-3)
    if edit == PERMUTE:
        assert row["back_shared"] == row["back_changed_a"] == row["back_changed_b"]
        assert row["shared"] < row["changed_a"]


def test_of_permuted_heads_the_mask_is_that_which_is_mapped_back(
    study: CausalStudy, store: Store
) -> None:
    paths = [str(one) for one in (ground(store, PERMUTE, 0), tuned(store, PERMUTE, 0))]
    mask = masks.build(paths[0], "subnetwork", tuned=paths[1])
    other = masks.build(str(store.base), "subnetwork", tuned=str(tuned(store, "", 1)))
    back = Intervention.load(paths[0]).map_mask_back(mask)
    for tensor in (VALUE, AWAY):
        row = pair(study, store, ("", 1), (PERMUTE, 0), tensor)
        assert row["back_shared"] == int((back[tensor] & other[tensor]).sum())
        assert row["back_changed_b"] == back.count(tensor)
        assert row["shared"] == int((mask[tensor] & other[tensor]).sum())


@pytest.mark.parametrize("edit", ["", ROTATE])
def test_overlaps_with_principal_entries_are_those_of_compare(
    study: CausalStudy, store: Store, edit: str
) -> None:
    table = compare(str(ground(store, edit, 0)), [str(tuned(store, edit, 0))]).measurements
    own = study.principal.filter(run=kept(store, edit, 0).name)
    for tensor in (VALUE, AWAY):
        row = own.filter(tensor=tensor).row(0, named=True)
        told = dict(table.filter(tensor=tensor).select("measure", "value").iter_rows())
        assert row["own_shared"] / row["changed"] == pytest.approx(told["principal_overlap"])
        null = told["principal_overlap_magnitude_null"]
        assert row["own_expected"] / row["changed"] == pytest.approx(null, 1e-5)
    if edit:
        apart = own.filter(tensor=VALUE).row(0, named=True)
        assert apart["own_shared"] != apart["original_shared"] != apart["back_shared"]


# Seeds as units


def test_the_jackknife_of_unpaired_numbers_is_students_t() -> None:
    values = {(seed, seed): one for seed, one in enumerate((1.0, 2.0, 4.0, 9.0))}
    found = estimate({"all": values}, lambda means: means["all"])
    sample = np.array(list(values.values()))
    half = 3.182446305284263 * sample.std(ddof=1) / 2
    assert found.value == sample.mean()
    ends = [sample.mean() - half, sample.mean() + half]
    assert [found.low, found.high] == pytest.approx(ends, rel=0.01)  # `student_t` is of 0.1 %


def test_intervals_over_runs_cover_where_those_over_pairs_do_not() -> None:
    """Each run has a likeness of its own; the truth of the difference is zero."""
    rng = np.random.default_rng(0)
    covered, narrow, trials = 0, 0, 300
    for _ in range(trials):
        plain, edited = rng.standard_normal((2, 4))
        first = {(a, b): plain[a] + plain[b] for a, b in itertools.combinations(range(4), 2)}
        second = {(a, b): plain[a] + edited[b] for a, b in itertools.permutations(range(4), 2)}
        groups = {"first": first, "second": second}
        found = estimate(groups, lambda means: means["second"] - means["first"])
        assert found.low is not None
        covered += found.low <= 0 <= (found.high or 0)
        wide = math.sqrt(sum(np.var(list(one.values()), ddof=1) / len(one)
                             for one in groups.values()))  # fmt: skip
        narrow += abs(found.value) <= 2.1 * wide
    assert covered / trials > 0.92
    assert narrow / trials < 0.9


def test_two_seeds_give_no_interval() -> None:
    found = estimate({"all": {(0, 1): 1.0}}, lambda means: means["all"])
    assert (found.value, found.low, found.high) == (1.0, None, None)


# Readings


def test_planted_steps_are_read_as_what_they_are(study: CausalStudy) -> None:
    """The same path in other coordinates: masks come apart, and nothing else does."""
    told = {row["edit"]: row for row in study.readings.iter_rows(named=True)}
    assert told[PERMUTE]["reading"] == "relabelling"
    assert told[ROTATE]["reading"] == "coordinates of the optimizer"
    for row in told.values():
        assert row["mask"] == "holds"
        assert row["update, pulled back"] == row["subspaces"] == "does not"
    fall = study.falls.filter(edit=ROTATE, question="mask, pulled back").row(0, named=True)
    assert fall["level"] == pytest.approx(fall["reference"], rel=0.1)


@pytest.mark.parametrize(
    ("edit", "words", "expected"),
    [
        (ROTATE, {"mask, alike": "holds"}, "runs differ by more"),
        (ROTATE, {"mask, rest": "holds"}, "runs differ by more"),
        (ROTATE, {"mask": "does not"}, "it stays"),
        (ROTATE, {"mask": "cannot tell"}, "cannot tell"),
        (ROTATE, {"subspaces": "cannot tell"}, "cannot tell"),
        (ROTATE, {"subspaces": "does not"}, "coordinates of the optimizer"),
        (ROTATE, {"mask, pulled back": "does not"}, "another path"),
        (PERMUTE, {"mask, pulled back": "does not"}, "relabelling"),
        (PERMUTE, {"subspaces": "does not"}, "another path"),
    ],
)
def test_the_rule(edit: str, words: dict[str, str], expected: str) -> None:
    plain = dict.fromkeys(QUESTIONS, "holds") | {
        "mask, alike": "does not",
        "mask, rest": "does not",
    }
    assert reading(edit, plain | words) == expected


def test_where_runs_from_the_base_share_nothing_there_is_nothing_to_fall_from(
    study: CausalStudy, store: Store
) -> None:
    """Whatever runs from the edited base do, even where they share still less."""
    plain = [kept(store, "", seed).name for seed in SEEDS]
    share = pl.when(pl.col("run_b").is_in(plain)).then(0.9).otherwise(0.5)
    pairs = study.pairs.with_columns(shared=(share * pl.col("expected")).cast(pl.Int64))
    found = replace(study, pairs=pairs).falls.filter(question="mask")
    assert (found["high"] < 0).all()
    assert set(found["word"]) == {"cannot tell"}


def test_runs_of_one_seed_are_held_against_each_other(study: CausalStudy) -> None:
    for row in study.one_seed.iter_rows(named=True):
        assert row["edited"] == pytest.approx(1, abs=1e-5)
        assert row["alike"] == pytest.approx(1, abs=1e-5)
        assert row["difference_low"] <= 0 <= row["difference_high"] + 1e-6
        assert row["other_seed"] < 0.99
        assert row["raw"] < 0.9


# Files and the command


def test_a_saved_study_says_the_same(study: CausalStudy, tmp_path: Path) -> None:
    out = study.save(tmp_path / "saved")
    again = CausalStudy.read(out)
    assert again.markdown() == study.markdown()
    assert (out / "layers.svg").stat().st_size > 1000
    assert {path.name for path in out.iterdir()} == {
        "runs.parquet", "pairs.parquet", "principal.parquet", "causal.md", "layers.svg",
    }  # fmt: skip


def test_the_command_prints_saves_and_renews(
    study: CausalStudy, store: Store, tmp_path: Path
) -> None:
    saved, text = study.save(tmp_path / "saved"), tmp_path / "causal.md"
    text.write_text("# Ours\n<!-- block: readings -->\nold\n<!-- end -->\nAfter.\n")
    ran = CliRunner().invoke(app, ["causal", str(saved), "--json", "--into", str(text)])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["runs"] == len(RUNS)
    assert {row["reading"] for row in told["readings"]} == set(study.readings["reading"])
    assert study.blocks()["readings"] in text.read_text()
    assert text.read_text().startswith("# Ours\n")
    assert text.read_text().endswith("<!-- end -->\nAfter.\n")
    assert KINDS[1] in CliRunner().invoke(app, ["causal", str(saved), "--markdown"]).stdout


def test_what_cannot_be_read_is_refused(study: CausalStudy, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a queue nor a saved study"):
        CausalStudy.read(tmp_path)
    out = study.save(tmp_path / "saved")
    study.pairs.drop("expected").write_parquet(out / "pairs.parquet")
    with pytest.raises(InputError, match=r"lacks expected.*measure the queue again"):
        CausalStudy.read(out)
    plain = replace(study, rows=study.rows.filter(pl.col("edit").is_null()))
    with pytest.raises(InputError, match="no run from an edited base"):
        plain.check()
    copy = tmp_path / "queue"
    shutil.copytree(store.directory, copy)
    shutil.rmtree(copy / "checkpoints" / kept(store, ROTATE, 0).name)
    with pytest.raises(InputError, match=r"holds no checkpoints of run.*keep = true"):
        CausalStudy.read(copy)


def test_the_page_shows_what_the_saved_study_says() -> None:
    docs = Path(__file__).parents[1] / "docs"
    if not (docs / "studies" / "causal" / "runs.parquet").is_file():
        pytest.skip("docs/studies/causal holds no rows yet")
    found = CausalStudy.read(docs / "studies" / "causal")
    text = (docs / "causal.md").read_text(encoding="utf-8")
    assert refreshed(text, found.blocks()) == text
    assert (docs / "studies" / "causal" / "causal.md").read_text("utf-8") == found.markdown()
