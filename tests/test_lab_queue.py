"""The run queue for real: processes that are killed and stopped, and rows that outlive them.

One story, told through the command line. A queue of four runs is started and its whole session is
killed in the middle of a run; it is resumed, the process of that run alone is killed, and the
queue is stopped; then it is finished, with one more run planned meanwhile. Each chapter leaves
what the tests look at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from lab_base import DIFFICULTY, TASK
from offaxis.lab.queue import Store, by_checkpoint, is_running, read_grid, read_rows, stop
from offaxis.lab.queue.job import execute
from offaxis.lab.queue.rows import COMPARED, RUN

LAB = [sys.executable, "-m", "offaxis", "lab"]
PATIENCE = 180.0

GRID = f"""
[[grid]]
method = "base"
task = "{TASK}"
learning_rate = 1e-4
difficulty = {DIFFICULTY}
problems = 6
samples = 2

[[grid]]
method = ["grpo", "sft"]
task = "{TASK}"
learning_rate = 1e-3
difficulty = {DIFFICULTY}
steps = 4
save_at = [1]
prompts_per_step = 4
completions_per_prompt = 8
problems = 6
samples = 2

[[grid]]  # there are not that many prompts of difficulty 1
method = "grpo"
task = "arithmetic"
learning_rate = 2e-4
difficulty = 1
steps = 1
save_at = [1]
prompts_per_step = 30000
completions_per_prompt = 2
problems = 6
samples = 2
"""
MORE = GRID.replace('["grpo", "sft"]', '["grpo", "sft"]\nseed = 1')

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


def lab(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=PATIENCE
    )


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def parents() -> dict[int, tuple[int, int]]:
    """Process -> its parent and its session."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if told[0] != "Z":
            found[int(path.parent.name)] = int(told[1]), int(told[3])
    return found


Snapshot = dict[str, tuple[int, bytes]]


def snapshot(directory: Path) -> Snapshot:
    """Time and content of every row."""
    return {
        path.stem: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (directory / "rows").iterdir()
    }


@dataclass
class Story:
    """The queue and what was seen on the way."""

    store: Store
    names: dict[tuple[str, str, int], str]
    rows: dict[str, Snapshot] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.store.directory

    @property
    def long(self) -> str:
        """The run that is killed."""
        return self.names["grpo", TASK, 0]

    def chapter(self, name: str) -> None:
        """Note what is there, now that no worker is on the queue."""
        until(lambda: not is_running(self.store), "the workers' end")
        self.rows[name] = snapshot(self.directory)
        self.told[name] = json.loads(lab("status", self.directory, "--json").stdout)
        self.failed[name] = {
            path.stem: path.read_text() for path in (self.directory / "failed").iterdir()
        }

    def runner(self) -> int:
        pid: int = json.loads((self.directory / "runner.json").read_text())["pid"]
        return pid


@pytest.fixture(scope="module")
def story(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    root = tmp_path_factory.mktemp("queue")
    out = root / "out"
    try:
        yield _told(root, out, small_base)
    finally:
        if (out / "queue.json").exists():
            stop(Store.open(out))


def _told(root: Path, out: Path, small_base: Path) -> Story:
    grid, more = root / "grid.toml", root / "more.toml"
    grid.write_text(GRID)
    more.write_text(MORE)
    given = ("--out", out, "--base", small_base, "--workers", 1)

    first = lab("queue", grid, *given, "--json")
    store = Store.open(out)
    runs = (*read_grid(grid), *read_grid(more))
    names = {(r.method, r.task, r.seed): r.identity(store.base_digest) for r in runs}
    told = Story(store, names)
    told.told["first"] = json.loads(first.stdout)
    training = out / "work" / told.long / "checkpoint-1"
    until(training.exists, "the long run's first checkpoint")
    killed = time.time()
    session = told.runner()
    os.killpg(session, signal.SIGKILL)
    told.told["work left"] = training.exists()
    told.chapter("killed")
    told.told["survivors"] = [pid for pid, (_, one) in parents().items() if one == session]

    lab("queue", grid, *given)
    weights = training / "model.safetensors"  # a file: clearing the old folder renews its time
    until(
        lambda: weights.exists() and weights.stat().st_mtime > killed,
        "the long run's second beginning",
    )
    everyone, runner = parents(), told.runner()
    (child,) = (pid for pid, (up, _) in everyone.items() if everyone.get(up, (0,))[0] == runner)
    os.kill(child, signal.SIGKILL)
    until((out / "work" / names["sft", TASK, 0]).exists, "the run after it")
    told.told["stop"] = stop(store)
    told.chapter("stopped")

    lab("queue", grid, *given, "--retry")
    session = told.runner()
    os.killpg(session, signal.SIGSTOP)  # on the queue however long the second one takes to come
    second = lab("work", out)
    told.told["second runner"] = second.stderr, second.returncode
    os.killpg(session, signal.SIGCONT)
    told.told["last"] = lab("queue", more, *given, "--wait", "--json")
    told.chapter("finished")
    return told


def test_a_bad_grid_begins_nothing(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.replace("steps = 4", "stops = 4"))
    done = lab("queue", grid, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "table 2: 'stops' is no setting of a run" in done.stderr
    assert not done.stdout
    assert not (tmp_path / "out").exists()


@linux
def test_the_command_returns_while_workers_go_on(story: Story) -> None:
    first = story.told["first"]
    assert (first["planned"], first["failed"], first["workers_alive"]) == (4, 0, True)
    assert first["base"] == story.store.base_digest


@linux
def test_a_second_runner_is_refused(story: Story) -> None:
    errors, code = story.told["second runner"]
    assert code == 1
    assert "workers are on this queue already" in errors
    assert "Traceback" not in errors


@linux
def test_a_kill_leaves_finished_rows_and_no_half_one(story: Story) -> None:
    assert set(story.rows["killed"]) == {story.names["base", TASK, 0]}
    assert story.told["work left"], "the kill came too late to be one"
    assert story.told["survivors"] == []
    told = story.told["killed"]
    assert (told["done"], told["running"], told["failed"], told["waiting"]) == (1, 0, 1, 2)
    assert told["workers_alive"] is False


@linux
def test_finished_rows_are_never_touched_again(story: Story) -> None:
    for earlier, later in (("killed", "stopped"), ("stopped", "finished")):
        assert story.rows[earlier].items() <= story.rows[later].items()


@linux
def test_a_failing_run_says_why_and_the_others_go_on(story: Story) -> None:
    name = story.names["grpo", "arithmetic", 0]
    for chapter in ("killed", "stopped", "finished"):
        assert "only" in story.failed[chapter][name]
        assert "raise the difficulty" in story.failed[chapter][name]
    assert list(story.failed["finished"]) == [name]
    log = (story.directory / "queue.log").read_text()
    assert log.count(f"{name}  grpo arithmetic lr 0.0002 seed 0: started") == 2  # and by --retry
    assert story.told["last"].returncode == 1
    assert "1 runs failed" in story.told["last"].stderr
    shown = lab("status", story.directory)
    assert shown.returncode == 0
    assert "no worker is on it" in shown.stdout
    assert "RunConfig(" not in shown.stdout
    assert f"failed/{name}.txt" in shown.stdout.replace(os.sep, "/")


@linux
def test_a_killed_process_is_a_failed_run_which_can_be_retried(story: Story) -> None:
    reason = story.failed["stopped"][story.long]
    assert "ended with code -9 and left no row" in reason
    assert "method='grpo'" in reason
    assert story.long in story.rows["finished"]


@linux
def test_stop_stops_and_loses_nothing(story: Story) -> None:
    assert story.told["stop"] is True
    told = story.told["stopped"]
    assert (told["done"], told["running"], told["failed"], told["waiting"]) == (1, 0, 2, 1)
    again = lab("stop", story.directory)
    assert again.returncode == 0
    assert again.stdout.startswith("no worker was on it; ")


@linux
def test_every_run_is_done_once_in_the_end(story: Story) -> None:
    assert set(story.rows["finished"]) == set(story.names.values()) - {
        story.names["grpo", "arithmetic", 0]
    }
    assert read_rows(story.directory)["run"].n_unique() == 5
    log = (story.directory / "queue.log").read_text()
    for name in story.rows["finished"]:
        assert sum(f"{name}  " in line and ": done in" in line for line in log.splitlines()) == 1
    started = sum(f"{story.long}  " in line and ": started" in line for line in log.splitlines())
    assert started == 3  # killed with its session, killed alone, done
    assert not list((story.directory / "work").iterdir())
    assert not (story.directory / "checkpoints").exists()  # none was to be kept
    assert not (story.directory / "runner.json").exists()


@linux
def test_runs_planned_while_workers_are_on_the_queue_are_done(story: Story) -> None:
    result = json.loads(story.told["last"].stdout)
    assert (result["planned"], result["done"], result["waiting"]) == (6, 5, 0)


DEFINED = (
    "avg", "pass_k", "kl_tuned_base", "kl_tuned_base_high", "kl_base_tuned", "kl_base_tuned_token",
    "mixture_loss", "unchanged_bf16", "relative_update_norm", "nss", "nss_low", "nss_high",
    "rotation_left_deg", "principal_overlap", "principal_overlap_magnitude_null",
    "principal_overlap_excess", "low_magnitude_overlap_rounding_null", "rank1_energy",
    "effective_rank",
)  # fmt: skip


@linux
def test_rows_are_whole(story: Story) -> None:
    rows = read_rows(story.directory)
    assert rows.schema == pl.Schema(RUN)
    assert set(rows["base"]) == {story.store.base_digest}
    assert rows["teacher"].null_count() == len(rows)
    each = by_checkpoint(rows)
    steps = dict(each.group_by("method").agg(pl.col("step").sort()).iter_rows())
    assert steps == {"base": [0], "grpo": [1, 1, 4, 4], "sft": [1, 1, 4, 4]}
    trained = each.filter(pl.col("method") != "base")
    assert set(COMPARED) <= set(each.columns)
    for name in DEFINED:
        assert trained[name].null_count() == 0, name
        assert trained[name].is_finite().all(), name
    for name in ("avg", "mixture_loss", "mixture_loss_countdown"):
        low, value, high = (each[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert ((low <= value) & (value <= high)).all()
    assert (trained["kl_tuned_base"] > 0).all()
    assert trained["unchanged_bf16"].is_between(0, 0.999).all()
    assert (trained["train_seconds"] > 0).all()
    assert (each["peak_mib"] > 50).all()
    # Other exams are sat at the last step alone.
    last = each.filter(pl.col("step").is_in([0, 4]))
    assert (last["avg"] == last[f"avg_{TASK}"]).all()
    assert last["avg_harder"].null_count() == last["avg_countdown"].null_count() == 0
    assert each.filter(step=1)["avg_countdown"].null_count() == 4
    rewards = trained.filter(method="grpo")["reward"]
    assert rewards.is_between(0, 1).all()
    assert trained.filter(method="sft")["reward"].null_count() == 4


@linux
def test_what_compare_wrote_lies_beside_the_rows(story: Story) -> None:
    table = pl.read_parquet(story.directory / "measurements" / f"{story.long}.parquet")
    assert set(table["tuned"]) == {"1", "4", "1 ∥ 4"}  # no path of this machine
    assert {"unchanged_bf16", "nss"} <= set(table["measure"])
    trained = {name for (method, _, _), name in story.names.items() if method != "base"}
    trained.remove(story.names["grpo", "arithmetic", 0])
    for folder, end in (("measurements", "parquet"), ("masks", "npz")):
        found = {path.name for path in (story.directory / folder).iterdir()}
        assert found == {f"{name}.{end}" for name in trained}


TIMES = ["train_seconds", "train_cpu_seconds", "total_seconds", "peak_mib"]


@linux
def test_the_same_run_gives_the_same_numbers_and_keeps_what_it_is_told_to(
    story: Story, tmp_path: Path
) -> None:
    """Here in this process, there in a worker's, after a kill and with another queue around it."""
    config = next(
        replace(run, keep=True)
        for run in story.store.runs
        if run.identity(story.store.base_digest) == story.long
    )
    store = Store.create(tmp_path / "queue", [config], story.store.base)
    torch.manual_seed(99)
    execute(store, config)
    here, there = (
        by_checkpoint(pl.read_parquet(one.row(story.long))).drop(TIMES)
        for one in (store, story.store)
    )
    assert here.equals(there)
    assert not list((store.directory / "work").iterdir())
    kept = store.directory / "checkpoints" / story.long
    assert {path.name for path in kept.iterdir()} == {
        "checkpoint-1", "checkpoint-4", "run.json", "log.json",
    }  # fmt: skip
    check_masks(store, story.long, kept)


def check_masks(store: Store, name: str, kept: Path) -> None:
    """The stored bits against the weights themselves."""
    base = load_file(store.base / "model.safetensors")
    with np.load(store.directory / "masks" / f"{name}.npz") as masks:
        matrices = [key for key in base if key.endswith("_proj.weight")]
        assert set(masks) == {f"{step}/{key}" for step in (1, 4) for key in matrices}
        for step in (1, 4):
            tuned = load_file(kept / f"checkpoint-{step}" / "model.safetensors")
            for key in matrices:
                changed = (tuned[key].bfloat16() != base[key]).numpy()
                bits = np.unpackbits(masks[f"{step}/{key}"], bitorder="little")
                assert (bits[: changed.size].reshape(changed.shape) == changed).all()
                assert not bits[changed.size :].any()
