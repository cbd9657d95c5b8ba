"""From a grid file to runs, and the directory and table of a queue, without any training."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lab_base import untrained_model
from offaxis.errors import InputError
from offaxis.lab.queue import RunConfig, State, Store, by_checkpoint, expand, read_grid, read_rows
from offaxis.lab.queue.rows import CHECKPOINT, RUN, write_row
from offaxis.lab.training import METHODS, TrainingSettings
from offaxis.train.methods import METHODS as RECIPES


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# The grid


def test_a_table_stands_for_every_combination() -> None:
    runs = expand(
        [
            {
                "method": ["grpo", "sft"],
                "learning_rate": [1e-4, 1e-5],
                "seed": [0, 1],
                "task": "countdown",
            }
        ]
    )
    told = {(run.method, run.learning_rate, run.seed, run.task) for run in runs}
    assert told == {
        (method, rate, seed, "countdown")
        for method in ("grpo", "sft")
        for rate in (1e-4, 1e-5)
        for seed in (0, 1)
    }
    assert len(runs) == 8
    assert all(run.steps == RunConfig().steps for run in runs)


def test_whole_replications_come_first_and_methods_in_the_files_order() -> None:
    grid = {"method": ["sft", "grpo"], "learning_rate": [1e-4, 1e-5], "seed": [1, 0]}
    runs = expand([grid | {"task": ["countdown", "arithmetic"]}])
    told = [(run.seed, run.learning_rate, run.task, run.method) for run in runs]
    assert [one[:3] for one in told] == sorted(one[:3] for one in told)
    assert [method for *_, method in told] == ["sft", "grpo"] * 8


def test_tables_add_up_and_each_run_is_done_once() -> None:
    one = {"method": ["grpo", "sft"], "seed": [0, 0]}
    assert len(expand([one])) == 2
    assert len(expand([one, {"method": "grpo"}, {"method": "base"}])) == 3
    assert expand([one, {"method": "sft", "keep": True}]) == [
        RunConfig("grpo"),
        RunConfig("sft", keep=True),
    ]


def test_a_list_of_steps_is_one_setting_and_a_list_of_lists_several() -> None:
    assert [run.save_at for run in expand([{"save_at": [6, 24]}])] == [(6, 24)]
    several = expand([{"save_at": [[6], [12, 24], []]}])
    assert [run.save_at for run in several] == [(6,), (12, 24), ()]
    assert [run.save_at for run in expand([{"save_at": []}])] == [()]


def test_whole_numbers_are_rates_too() -> None:
    (run,) = expand([{"learning_rate": 1}])
    assert isinstance(run.learning_rate, float)
    assert run == RunConfig(learning_rate=1.0)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"rate": 1e-4}, "'rate' is no setting of a run"),
        ({"method": "ppo"}, "'ppo'.*base, grpo"),
        ({"method": []}, "method is an empty list"),
        ({"task": "chess"}, "chess"),
        ({"seed": "0"}, "seed = '0' should be of type int"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"seed": True}, "seed = True"),
        ({"keep": 1}, "keep = 1"),
        ({"learning_rate": "1e-4"}, "learning_rate = '1e-4'"),
        ({"learning_rate": True}, "learning_rate = True"),
        ({"learning_rate": 0}, "must be positive"),
        ({"learning_rate": -1e-4}, "must be positive"),
        ({"learning_rate": float("nan")}, "must be positive"),
        ({"learning_rate": float("inf")}, "must be positive"),
        ({"problems": 0}, "must be positive"),
        ({"samples": [8, 0]}, "must be positive"),
        ({"steps": 12, "save_at": [6, 13]}, r"steps 12, save_at \[6, 13\]"),
        ({"save_at": 6}, "save_at = 6 should be of type list"),
        ({"save_at": ["6"]}, "save_at = '6' should be of type int"),
        ({"save_at": [[6], 12]}, "save_at = 12 should be of type list"),
        ({"save_at": [0]}, "save_at"),
        ({"difficulty": 4}, "difficulty 4"),
        ({"completions_per_prompt": 1}, "completions_per_prompt 1"),
    ],
)
def test_errors_name_the_table_and_the_key(grid: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        expand([{"method": "grpo"}, grid], where="study.toml")
    assert str(caught.value).startswith("study.toml, table 2: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds nothing"),
        ("grid = []", "are needed"),
        ("grid = 3", "are needed"),
        ("grid = [3]", "are needed"),
        ("[grid]\nseed = 1", "are needed"),
        ("[[grid]]\n[[grids]]", "'grids'"),
        ("[[grid", "not a TOML file"),
        ("\x00", "not a TOML file"),
    ],
)
def test_files_that_are_no_grid_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "g.toml", text)
    with pytest.raises(InputError, match=words) as caught:
        read_grid(path)
    assert str(path) in str(caught.value)


def test_a_grid_that_is_not_there_names_the_studies(tmp_path: Path) -> None:
    for source in ("absent", tmp_path / "absent.toml", tmp_path):
        with pytest.raises(InputError, match=r"no such grid file.*first"):
            read_grid(source)


def test_the_first_study_is_the_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = read_grid("first")
    trained = [run for run in runs if run.method != "base"]
    assert {run.method for run in trained} == {
        "grpo", "dapo", "dr_grpo", "rloo", "sft", "sft_foreign", "rejection_sft", "distill",
    }  # fmt: skip
    assert len({run.learning_rate for run in trained}) >= 4
    assert len({run.seed for run in trained}) >= 3
    assert len({run.task for run in trained}) == 2
    count = 8 * len({(run.learning_rate, run.seed, run.task) for run in trained})
    assert len(trained) == count
    (tmp_path / "first").mkdir()  # the queue's own directory may bear the study's name
    assert read_grid("first") == runs


def test_the_study_of_methods_has_all_of_them_at_the_same_rates() -> None:
    runs = read_grid("methods")
    base, *trained = runs
    assert base.method == "base"
    assert {run.method for run in trained} == set(RECIPES)
    assert len(trained) == 11 * 2 * 3 == len({replace(run, keep=True) for run in trained})
    for method in RECIPES:
        own = {(run.learning_rate, run.seed) for run in trained if run.method == method}
        assert own == {(rate, seed) for rate in (3e-5, 1e-4) for seed in range(3)}
    assert len({replace(run, method="", learning_rate=1.0, seed=0) for run in trained}) == 1
    # Whole replications first: whenever it is stopped, the seeds before are complete.
    assert [run.seed for run in trained] == sorted(run.seed for run in trained)
    assert (base.task, base.problems, base.samples) == (
        trained[0].task, trained[0].problems, trained[0].samples,
    )  # fmt: skip


# Identity


def test_every_setting_but_keep_makes_another_run() -> None:
    first = RunConfig()
    changed = {
        "method": "sft",
        "task": "countdown",
        "learning_rate": 1e-4,
        "seed": 1,
        "steps": 49,
        "save_at": (6,),
        "difficulty": 1,
        "prompts_per_step": 8,
        "completions_per_prompt": 4,
        "problems": 10,
        "samples": 4,
        "mask": "safe",
        "twin_seed": 0,
        "own_exam": True,
        "mask_refresh": 5,
        "adapter": "lora",
        "optimizer": "sgd",
        "dtype": "bfloat16",
        "edit": "permute?layers=1",
        "series": (3,),
    }
    assert {field.name for field in fields(RunConfig)} == changed.keys() | {"keep"}
    names = {replace(first, **{key: value}).identity("base") for key, value in changed.items()}
    names |= {first.identity("base"), first.identity("other base")}
    assert len(names) == len(changed) + 2
    assert replace(first, keep=True).identity("base") == first.identity("base")


def test_a_runs_name_is_the_same_on_every_machine() -> None:
    run = RunConfig("sft", "countdown", 1e-4, 3, 12, (6, 12), 1, 4, 2, 30, 4)
    assert run.identity("0123456789abcdef") == "1addf00879b7"


def test_a_name_that_came_to_mean_another_method_makes_another_run() -> None:
    """The first study's rows stay what they are; its `dapo` was DAPO's loss alone."""
    assert {name for name, method in METHODS.items() if method.revision} == {"dapo"}
    rows = read_rows(Path(__file__).parents[1] / "docs" / "studies" / "first" / "runs.parquet")
    names = {field.name for field in fields(RunConfig)}
    told = rows.filter(pl.col("method") != "base").to_dicts()
    assert len(told) == 192
    for one in told:
        config = RunConfig(**{key: value for key, value in one.items() if key in names})
        assert (config.identity(one["base"]) == one["run"]) == (one["method"] != "dapo")


def test_settings_of_a_run_are_those_of_its_training() -> None:
    run = RunConfig("sft", "countdown", 1e-4, 3, 12, (6,), 1, 4, 2)
    assert run.settings() == TrainingSettings("countdown", 12, (6,), 1e-4, 1.0, 3, 1, 4, 2)


# The directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model") / "base")


RUNS = [RunConfig(seed=seed) for seed in range(3)]


def test_a_queue_is_written_whole_and_read_back(model: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "new" / "queue", RUNS, model)
    assert Store.open(store.directory) == store
    assert store.state() == State(planned=3, done=0, running=0, failed=0)
    assert list(store.pending()) == RUNS
    for file in model.iterdir():
        assert (store.base / file.name).read_bytes() == file.read_bytes()
    assert str(model) not in (store.directory / "queue.json").read_text()


def test_further_runs_join_an_old_queue_once_each(model: Path, tmp_path: Path) -> None:
    Store.create(tmp_path, RUNS, model)
    more = [RunConfig(seed=9), replace(RUNS[1], keep=True), RUNS[0]]
    store = Store.create(tmp_path, more, model)
    assert store.runs == (RUNS[0], replace(RUNS[1], keep=True), RUNS[2], RunConfig(seed=9))
    assert Store.create(tmp_path, RUNS, model).runs == store.runs  # keep is not forgotten
    assert store.state().planned == 4


def test_another_base_is_refused(model: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "queue", RUNS, model)
    before = (store.directory / "queue.json").read_bytes()
    other = untrained_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=f"was begun from base {store.base_digest}"):
        Store.create(store.directory, [RunConfig(seed=7)], other)
    assert (store.directory / "queue.json").read_bytes() == before
    with pytest.raises(InputError, match="holds no safetensors file"):
        Store.create(tmp_path / "third", RUNS, tmp_path / "absent")
    assert not (tmp_path / "third").exists()


def test_what_is_no_queue_is_refused(model: Path, tmp_path: Path) -> None:
    written(tmp_path / "notes.txt", "mine")
    with pytest.raises(InputError, match="is no queue; name an empty directory"):
        Store.create(tmp_path, RUNS, model)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is no queue"):
        Store.open(tmp_path)
    for text in ("{", "[]", '{"runs": 3}', '{"base": "x", "runs": [{"save_at": [1], "rate": 3}]}'):
        written(tmp_path / "queue.json", text)
        with pytest.raises(InputError, match="cannot be read as a queue"):
            Store.open(tmp_path)


def test_a_queue_whose_making_was_cut_short_can_be_made_again(model: Path, tmp_path: Path) -> None:
    whole = Store.create(tmp_path / "whole", RUNS, model)
    for lost in (["base"], ["base", "claims", "failed", "work"], ["rows", "base"]):
        shutil.copytree(whole.directory, tmp_path / "cut")
        for name in lost:
            shutil.rmtree(tmp_path / "cut" / name)
        store = Store.create(tmp_path / "cut", RUNS, model)
        assert (store.base / "model.safetensors").is_file()
        assert store.state().waiting == 3
        shutil.rmtree(tmp_path / "cut")


def test_a_run_is_claimed_by_one(model: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path, RUNS, model)
    name = RUNS[0].identity(store.base_digest)
    with store.claim(RUNS[0]) as ours:
        assert ours
        assert store.held(name)
        assert store.state() == State(3, 0, 1, 0)
        with store.claim(RUNS[0]) as second:
            assert not second
        assert store.held(name)
    assert not store.held(name)
    written(store.failure(name), "a reason")
    with store.claim(RUNS[0]) as ours:
        assert not ours, "it has failed already"
    assert list(store.pending()) == RUNS[1:]
    assert store.state() == State(3, 0, 0, 1)
    assert store.forget_failures() == 1
    assert list(store.pending()) == RUNS
    written(store.row(name), "a row")
    with store.claim(RUNS[0]) as ours:
        assert not ours, "it is done"
    assert store.state() == State(3, 1, 0, 0)


def test_looking_at_a_queue_takes_nothing_from_its_workers(model: Path, tmp_path: Path) -> None:
    """Who looks whether a lock is held must hold it for a moment, and a worker waits that long."""
    store = Store.create(tmp_path, RUNS, model)
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            store.state()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(300):
            with store.claim(RUNS[0]) as ours:
                assert ours
    finally:
        ended.set()
        watcher.join()


# The table


def row(tmp_path: Path, name: str, steps: list[int]) -> Path:
    (tmp_path / "rows").mkdir(exist_ok=True)
    path = tmp_path / "rows" / f"{name}.parquet"
    checkpoints = [{"step": step, "avg": step / 10, "verdict": "small_step"} for step in steps]
    write_row(path, {"run": name, "method": "sft", "learning_rate": 1e-4}, checkpoints)
    return path


def test_rows_have_every_column_whatever_was_measured(tmp_path: Path) -> None:
    path = row(tmp_path, "a", [1, 2])
    assert pl.read_parquet(path).schema == pl.Schema(RUN)
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]
    assert pl.read_parquet(row(tmp_path, "empty", [])).schema == pl.Schema(RUN)


def test_columns_that_are_not_known_are_refused(tmp_path: Path) -> None:
    for run, checkpoint in (({"rum": "a"}, {}), ({}, {"stop": 1})):
        with pytest.raises(ValueError, match=r"no such columns: .'(rum|stop)'"):
            write_row(tmp_path / "a.parquet", run, [checkpoint])
    assert not list(tmp_path.iterdir())


def test_rows_are_read_from_a_queue_or_from_a_table(tmp_path: Path) -> None:
    row(tmp_path, "b", [1, 2])
    row(tmp_path, "a", [3])
    (tmp_path / "rows" / ".c.parquet.part").write_bytes(b"PAR1")  # a row that was being written
    found = read_rows(tmp_path)
    assert found["run"].to_list() == ["a", "b"]
    found.write_parquet(tmp_path / "table.parquet")
    assert read_rows(tmp_path / "table.parquet").equals(found)
    each = by_checkpoint(found)
    assert each.columns == [*list(RUN)[:-1], *CHECKPOINT]
    assert each.select("run", "step", "avg").rows() == [("a", 3, 0.3), ("b", 1, 0.1), ("b", 2, 0.2)]


def test_what_holds_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows yet"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="neither a queue directory nor a table"):
        read_rows(tmp_path / "absent")
    with pytest.raises(InputError, match="not a Parquet table"):
        read_rows(written(tmp_path / "text", json.dumps({})))
    pl.DataFrame({"run": ["a"], "x": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column method, checkpoints"):
        read_rows(tmp_path / "other.parquet")
