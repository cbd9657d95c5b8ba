"""A run whose process is killed: before any file operation of a save, and at random moments.

Children are forked from the process of the tests, so that each costs a fraction of a second.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from offaxis.errors import InputError
from offaxis.output import staged_directory
from offaxis.train import DeltaCheckpointCallback, restore_checkpoint
from offaxis.train.checkpoints.store import Store, is_finished, take
from trainer_runs import STEPS, Aside, contents, events, index, train

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
EXACT = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.utime", "os.truncate"}


def child(function: Callable[[], object]) -> int:
    """Run a function in a forked process; its number."""
    process = os.fork()
    if process == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def ended(process: int) -> bool:
    """Wait for a child: True if it came to its end, False if it was killed."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the child ended with {code}"
    return code == 0


def killed_before(number: int, function: Callable[[], object]) -> bool:
    """Whether a child died just before its `number`th change of files."""

    def run() -> None:
        left = number

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if event in CHANGES or writes:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        function()

    return not ended(child(run))


class Written:
    """Checkpoints as Trainer writes them, to be put into runs as if it had."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside

    def put(self, run: Path, step: int, *, of: int | None = None) -> Path:
        shutil.rmtree(run / f"checkpoint-{step}", ignore_errors=True)
        source = self.aside / f"checkpoint-{of or step}"
        return Path(shutil.copytree(source, run / f"checkpoint-{step}"))

    def is_given_back(self, run: Path, step: int, *others: int) -> None:
        """A step restores, and to what was saved: its own checkpoint, or one of `others`."""
        out = run / "given" / f"{step}"
        found = contents(restore_checkpoint(run, step, out=out))
        shutil.rmtree(out.parent)
        assert found in [contents(self.aside / f"checkpoint-{one}") for one in (step, *others)]


@pytest.fixture(scope="module")
def written(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A whole run, uninterrupted, with the callback, so that all is compiled before the forks."""
    root = tmp_path_factory.mktemp("written")
    train(small_base, root / "run", Aside(root / "aside"), DeltaCheckpointCallback(anchor_every=3))
    return Written(root / "aside")


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; a power cut is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


every = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
"""Killed before each fourth change of files, or before each."""


def callback() -> DeltaCheckpointCallback:
    return DeltaCheckpointCallback(anchor_every=3)


def saved(run: Path, written: Written, steps: int) -> Path:
    """A run in which that many steps were saved and stored."""
    made = callback()
    for step in range(1, steps + 1):
        written.put(run, step)
        made.on_save(*events(run, step))
    made.on_train_end(*events(run, steps))
    return run


def listed(run: Path) -> list[int] | None:
    """The steps that are listed; None while there is no index."""
    return index(run).steps if (run / "deltas/index.json").exists() else None


def is_tidy(run: Path) -> None:
    """Nothing hidden, nothing unlisted."""
    known = {f"checkpoint-{one.step}.delta" for one in index(run).checkpoints if not one.is_anchor}
    known |= {one.name for one in index(run).anchors}
    known |= {"index.json", "training.lock", "restoring.lock"}
    assert {one.name for one in (run / "deltas").iterdir()} == known
    assert not list(run.glob(".*"))


@every
@pytest.mark.parametrize(
    ("before", "step", "of"),
    [
        (0, 1, 1),
        (2, 3, 3),
        pytest.param(3, 4, 4, marks=pytest.mark.slow),
        (3, 2, 5),
        pytest.param(3, 1, 5, marks=pytest.mark.slow),
    ],
    ids=["first", "delta", "anchor", "delta-again", "anchor-again"],
)
def test_killed_before_any_change_while_saving(
    written: Written, tmp_path: Path, before: int, step: int, of: int, every: int
) -> None:
    """`again`: Trainer went back and saves a step for the second time, with other content."""
    start, number = saved(tmp_path / "start", written, before), 0
    written.put(start, step, of=of)
    while True:
        run = Path(shutil.copytree(start, tmp_path / f"{number}"))
        if not killed_before(number, lambda run=run: callback().on_save(*events(run, step))):
            break
        there = listed(run) or []
        assert set(there) >= set(range(1, before + 1)) - {step}
        for one in there:
            written.is_given_back(run, one, *([of] if one == step else []))
        assert contents(run / f"checkpoint-{step}") == contents(written.aside / f"checkpoint-{of}")
        again = callback()
        again.on_init_end(*events(run, 0))
        again.on_train_begin(*events(run, step))
        is_tidy(run)
        assert set(index(run).steps) == {*range(1, before + 1), step}
        for one in index(run).steps:
            written.is_given_back(run, one, *([of] if one == step else []))
        for one in set(index(run).steps) - {step}:  # none lies half removed in its place
            made = restore_checkpoint(run, one)
            assert contents(made) == contents(written.aside / f"checkpoint-{one}")
        again.on_train_end(*events(run, step))
        shutil.rmtree(run)
        number += every
    assert number > 20


@every
def test_killed_before_any_change_while_restoring(
    written: Written, tmp_path: Path, every: int
) -> None:
    start, number = saved(tmp_path / "start", written, 3), 0
    while True:
        run = Path(shutil.copytree(start, tmp_path / f"{number}"))
        if not killed_before(number, lambda run=run: restore_checkpoint(run, 2)):
            break
        place = run / "checkpoint-2"
        if place.exists():
            assert contents(place) == contents(written.aside / "checkpoint-2")
        again = callback()
        again.on_init_end(*events(run, 0))
        is_tidy(run)
        written.is_given_back(run, 2)
        shutil.rmtree(run)
        number += every
    assert number > 10


def killed_soon(process: int, run: Path, delay: float) -> bool:
    """Kill a training some time after it has listed a further step; False if it ended before."""
    known = listed(run) or []
    while (listed(run) or []) == known:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return not ended(process)
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    return not ended(process)


def test_killed_at_random_moments_of_a_run(
    written: Written, small_base: Path, tmp_path: Path
) -> None:
    """Real runs, killed and resumed; the end is that of the run that nobody touched."""
    run, rng, kills = tmp_path / "run", random.Random(0), 0
    while listed(run) != list(range(1, STEPS + 1)) or kills < 4:
        if listed(run) == list(range(1, STEPS + 1)):  # fast: begin another one
            run = tmp_path / f"run-{kills}"
        begun = run.exists() and any(is_finished(one) for one in run.glob("checkpoint-*"))
        process = child(partial(train, small_base, run, callback(), resume=begun))
        kills += killed_soon(process, run, rng.uniform(0, 0.15))
        for step in listed(run) or []:
            made = contents(restore_checkpoint(run, step, out=tmp_path / "out"))
            wanted = contents(written.aside / f"checkpoint-{step}")
            assert {name: made[name] for name in EXACT} == {n: wanted[n] for n in EXACT}
            shutil.rmtree(tmp_path / "out")
    assert ended(child(partial(train, small_base, run, callback(), resume=True)))
    assert listed(run) == list(range(1, STEPS + 1))
    is_tidy(run)


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(
    written: Written, small_base: Path, tmp_path: Path
) -> None:
    run = saved(tmp_path / "run", written, 3)
    (run / "checkpoint-4").mkdir()
    (run / "checkpoint-4/model.safetensors").write_bytes(b"half")
    train(small_base, run, callback(), resume=True)
    assert index(run).steps == list(range(1, STEPS + 1))
    made = contents(restore_checkpoint(run, STEPS))
    wanted = contents(written.aside / f"checkpoint-{STEPS}")
    assert {name: made[name] for name in EXACT} == {name: wanted[name] for name in EXACT}


def test_what_was_left_whole_is_stored_by_the_next_run(written: Written, tmp_path: Path) -> None:
    """Killed between Trainer's save and the callback's; what lies beyond the step is left alone."""
    run = saved(tmp_path / "run", written, 2)
    written.put(run, 3)
    written.put(run, 7)
    callback().on_train_begin(*events(run, 3))
    assert index(run).steps == [1, 2, 3]
    written.is_given_back(run, 3)


def test_one_process_trains_into_a_folder_at_a_time(written: Written, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", written, 2)
    (run / "checkpoint-9").mkdir()  # the other process is writing it
    ready, say = os.pipe()

    def train_on() -> None:
        assert Store.open(run).hold()
        os.write(say, b".")
        time.sleep(60)

    other = child(train_on)
    os.close(say)
    assert os.read(ready, 1)
    with pytest.raises(InputError, match="another process is training into it"):
        callback().on_train_begin(*events(run, 2))
    callback().on_init_end(*events(run, 2))
    assert (run / "checkpoint-9").exists()
    os.kill(other, signal.SIGKILL)
    assert not ended(other)
    callback().on_init_end(*events(run, 2))
    assert not (run / "checkpoint-9").exists()
    callback().on_train_begin(*events(run, 2))


def test_a_restore_under_way_is_no_leftover(written: Written, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", written, 2)
    ready, say = os.pipe()

    def restore() -> None:
        assert take(run / "deltas/restoring.lock", shared=True) is not None
        with staged_directory(run / "checkpoint-1"):
            os.write(say, b".")
            time.sleep(60)

    other = child(restore)
    os.close(say)
    assert os.read(ready, 1)
    callback().on_init_end(*events(run, 2))
    (staged,) = run.glob(".checkpoint-1.partial-*")
    os.kill(other, signal.SIGKILL)
    assert not ended(other)
    callback().on_init_end(*events(run, 2))
    assert not staged.exists()


def test_the_index_is_text_that_one_can_read(written: Written, tmp_path: Path) -> None:
    lines = (saved(tmp_path, written, 2) / "deltas/index.json").read_text().splitlines()
    (second,) = [json.loads(one) for one in lines if '"step": 2,' in one]
    assert (second["anchor"], second["is_anchor"], second["resumable"]) == ("anchor-1", False, True)
    assert second["files"].keys() == contents(written.aside / "checkpoint-2").keys()
