"""`offaxis delta pack` and `apply`, killed, interrupted, out of disk, or two at once.

Real processes on a model that takes them about a second. Whatever the moment, the final name holds
the old content or the whole new one, and the next run succeeds among what the killed ones left.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from delta_models import Tensor, Tensors, tree, write_folder
from offaxis import delta

OFFAXIS = [sys.executable, "-m", "offaxis"]
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


class Ground(NamedTuple):
    """A base, two models tuned from it, and their deltas: what is there before, what comes."""

    base: Path
    tuned: Path
    old_delta: Path
    new_delta: Path
    old_tree: dict[str, bytes]
    new_tree: dict[str, bytes]


def ground_of(root: Path, tensors: int, shape: tuple[int, int]) -> Ground:
    rng = np.random.default_rng(0)
    sides: dict[str, Tensors] = {"base": {}, "old": {}, "new": {}}
    for i in range(tensors):
        words = rng.integers(0x3C00, 0x3E00, shape, dtype=np.uint16)
        moved = words + (rng.random(shape) < 0.3).astype(np.uint16)
        for side, values in zip(sides, (words, words ^ np.uint16(1), moved), strict=True):
            sides[side][f"layers.{i}.weight"] = Tensor("BF16", shape, values.tobytes())
    for name, held in sides.items():
        write_folder(root / name, held, shards=3, files={"config.json": name.encode()})
    for name in ("old", "new"):
        delta.pack(root / "base", root / name, out=root / f"{name}.delta")
    deltas = (root / "old.delta", root / "new.delta")
    return Ground(root / "base", root / "new", *deltas, tree(root / "old"), tree(root / "new"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return ground_of(tmp_path_factory.mktemp("ground"), 14, (1024, 1024))


SERVER = """
import json, os, resource, signal, sys
from pathlib import Path
from rich.console import Console
from offaxis.cli import delta, main, progress
from offaxis.delta import apply, pack
base, tuned, place = sys.argv[1:]
pack(base, tuned, out=place + "/x.delta")
apply(base, place + "/x.delta", out=place + "/model")
def counted(function, last):
    def call(*arguments, **named):
        calls.append(function)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
for line in sys.stdin:
    job, calls = json.loads(line), []
    child = os.fork()
    if not child:
        for number, path in ((1, os.devnull), (2, job["said"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        for name in ("rename", "replace", "rmdir", "unlink") if job["names"] else ():
            for holder in (os, Path):
                setattr(holder, name, counted(getattr(holder, name), job["names"]))
        if job["most"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["most"], job["most"]))
        sys.argv = ["offaxis", *job["arguments"]]
        main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Has everything imported and compiled, and forks a process for each command line."""


class Server:
    """One command at a time, in a process of its own."""

    def __init__(self, ground: Ground, place: Path) -> None:
        self.said = place / "stderr"
        arguments = map(str, (ground.base, ground.tuned, place))
        self.process = subprocess.Popen([sys.executable, "-u", "-c", SERVER, *arguments], env=PLAIN,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        self.held = b""

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self.held:
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, "the server died"
            self.held += piece
        line, self.held = self.held.split(b"\n", 1)
        return line

    def start(self, arguments: list[str], **job: Any) -> int:
        """The command's process. job: `names`, the change of a name before which it dies; `most`,
        the bytes that a file may have."""
        said = {"arguments": arguments, "said": str(self.said), "names": 0, "most": None}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(said | job).encode() + b"\n")
        self.process.stdin.flush()
        return int(self._line())

    @property
    def ended(self) -> bool:
        return b"\n" in self.held or bool(select.select([self.process.stdout], [], [], 0)[0])

    def wait(self) -> tuple[int, str]:
        return int(self._line()), self.said.read_text()


@pytest.fixture(scope="module")
def server(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(ground, tmp_path_factory.mktemp("server"))
    yield server
    server.process.communicate()
    assert server.process.returncode == 0


class Task(NamedTuple):
    """A command, and what its final name may hold: nothing, old content, or the new."""

    server: Server
    arguments: list[str]
    final: Path
    before: Callable[[], Any]
    """Puts the old content in its place, or removes what is there."""
    state: Callable[[], str]
    """"nothing", "old", "new", or "torn"."""

    def run(self, **job: Any) -> tuple[int, str]:
        self.before()
        self.server.start(self.arguments, **job)
        return self.server.wait()

    def partials(self) -> set[str]:
        return {one for one in os.listdir(self.final.parent) if ".partial-" in one}

    def poll(self, until: Callable[[], bool]) -> None:
        while not until() and not self.server.ended:
            time.sleep(0.0005)

    def finish(self) -> tuple[float, float]:
        """Run to the end: when the hidden result appeared, and when it was gone (seconds)."""
        self.before()
        left = self.partials()
        start = time.monotonic()
        self.server.start(self.arguments)
        self.poll(lambda: not self.partials() <= left)
        seen = time.monotonic() - start
        self.poll(lambda: self.partials() == left)
        gone = time.monotonic() - start
        code, err = self.server.wait()
        assert (code, self.state()) == (0, "new"), err
        return seen, gone

    def stop(self, how: signal.Signals, moment: tuple[bool, float]) -> tuple[int, str]:
        """Start, send the signal at a moment; the exit status and standard error."""
        self.before()
        left = self.partials()
        child = self.server.start(self.arguments)
        if moment[0]:
            self.poll(lambda: not self.partials() <= left)
        time.sleep(moment[1])
        if not self.server.ended:
            os.kill(child, how)
        return self.server.wait()


def packing(server: Server, ground: Ground, place: Path, *, old: bool = True) -> Task:
    final = place / "x.delta"
    held = {ground.old_delta.read_bytes(): "old", ground.new_delta.read_bytes(): "new"}

    def before() -> None:
        final.unlink(missing_ok=True)
        if old:
            shutil.copy(ground.old_delta, final)

    def state() -> str:
        return held.get(final.read_bytes(), "torn") if final.exists() else "nothing"

    paths = map(str, (ground.base, ground.tuned, "--out", final))
    return Task(server, ["delta", "pack", *paths], final, before, state)


def applying(server: Server, ground: Ground, place: Path, *, old: bool = False) -> Task:
    final = place / "model"

    def before() -> None:
        shutil.rmtree(final, ignore_errors=True)
        if old:
            delta.apply(ground.base, ground.old_delta, out=final)

    def state() -> str:
        if not final.exists():
            return "nothing"
        held = tree(final)
        return "new" if held == ground.new_tree else "old" if held == ground.old_tree else "torn"

    more = ["--overwrite"] if old else []
    paths = map(str, (ground.base, ground.new_delta, "--out", final))
    return Task(server, ["delta", "apply", *paths, *more], final, before, state)


TASKS = {"pack": packing, "apply": applying}
OLD = {"pack": "old", "apply": "nothing"}


def moments(count: int, seen: float, gone: float) -> list[tuple[bool, float]]:
    """(Counted from the hidden result's appearance?, seconds): most moments lie in the work."""
    rng = random.Random(count)
    early = max(1, count // 8)
    work = [(i + rng.random()) / (count - early) * (gone - seen) for i in range(count - early)]
    return [(False, rng.random() * seen) for _ in range(early)] + [(True, one) for one in work]


def survives_kills(task: Task, count: int, old: str) -> None:
    codes, states = [], []
    for moment in moments(count, *task.finish()):
        codes.append(task.stop(signal.SIGKILL, moment)[0])
        states.append(task.state())
        assert states[-1] in {old, "new"}, (moment, codes[-1])
    left = task.partials()
    done = states.count("new")
    told = f"{codes.count(-9)} of {count} killed, {len(left)} left something, {done} were done"
    print(told)
    assert codes.count(-9) >= count // 2, told
    assert len(left) >= count // 4, told
    task.finish()
    assert task.partials() == left


@pytest.mark.parametrize("verb", TASKS)
def test_a_kill_leaves_the_old_or_the_new(server, ground, tmp_path, verb):
    survives_kills(TASKS[verb](server, ground, tmp_path), 12, OLD[verb])


@pytest.mark.slow
@pytest.mark.parametrize("verb", TASKS)
def test_a_hundred_kills_leave_the_old_or_the_new(server, ground, tmp_path, verb):
    survives_kills(TASKS[verb](server, ground, tmp_path), 100, OLD[verb])


@pytest.mark.parametrize("verb", TASKS)
def test_ctrl_c_is_130_and_leaves_nothing_half_done(server, ground, tmp_path, verb):
    task = TASKS[verb](server, ground, tmp_path)
    seen, gone = task.finish()
    stopped = 0
    for share in (0.0, 0.2, 0.4, 0.6, 0.8):
        code, err = task.stop(signal.SIGINT, (True, share * (gone - seen)))
        assert task.partials() == set()
        if task.state() == "new":  # too late: Python itself may complain of a signal at its exit
            continue
        stopped += 1
        assert (code, task.state()) == (130, OLD[verb]), err
        assert "Ctrl-C" in err
        assert "Traceback" not in err
    assert stopped


def test_overwriting_a_directory_ends_whole_whatever_was_killed(server, tmp_path):
    """Killed before each change of a name, in turn, until a run comes through.

    Between two renames some files are old and some new, as docs/delta.md says.
    """
    task = applying(server, ground_of(tmp_path / "ground", 3, (40, 40)), tmp_path, old=True)
    states, code = [], -9
    while code == -9:
        code, err = task.run(names=len(states) + 1)
        states.append(task.state())
    assert (code, states[0], states[-1]) == (0, "old", "new"), err


def test_two_packs_to_one_file_leave_one_of_them(server, ground, tmp_path):
    arguments = packing(server, ground, tmp_path).arguments
    commands = [[*OFFAXIS, *arguments, "--codec", codec] for codec in ("small", "fast")]
    both = [subprocess.Popen(one, env=PLAIN, stdout=subprocess.DEVNULL) for one in commands]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert os.listdir(tmp_path) == ["x.delta"]
    delta.apply(ground.base, tmp_path / "x.delta", out=tmp_path / "made")
    assert tree(tmp_path / "made") == ground.new_tree


def test_two_threads_packing_to_one_file_leave_one_of_them(ground, tmp_path):
    """One process, so that its number does not tell the two apart."""
    errors = []

    def work(codec: str) -> None:
        try:
            for _ in range(3):
                delta.pack(ground.base, ground.tuned, out=tmp_path / "x.delta", codec=codec)
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(codec,)) for codec in ("fast", "small")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert os.listdir(tmp_path) == ["x.delta"]
    assert delta.verify(ground.base, tmp_path / "x.delta")["base_matches"]


@pytest.mark.parametrize("most", [0, 1000, 500_000])
@pytest.mark.parametrize("verb", TASKS)
def test_a_full_disk_is_an_error_that_leaves_the_old(server, ground, tmp_path, verb, most):
    task = TASKS[verb](server, ground, tmp_path)
    server.said.touch()
    code, err = task.run(most=most)
    assert code == 1, err
    assert "Traceback" not in err
    assert task.state() == OLD[verb]
    assert task.partials() == set()


@pytest.mark.parametrize("verb", TASKS)
def test_a_full_disk_is_named_with_a_remedy(server, ground, tmp_path, verb):
    task = TASKS[verb](server, ground, tmp_path)
    code, err = task.run(most=1000)
    assert code == 1
    assert str(task.final) in err
    assert "--debug" not in err  # what only a defect asks for


@pytest.mark.parametrize("verb", TASKS)
def test_a_small_file_system_is_an_error_that_leaves_nothing(server, ground, tmp_path, verb):
    """A real one of 1 MiB, mounted for the process alone; skipped where that is not allowed."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*space, mount], check=False).returncode:
        pytest.skip("no mount for a process alone")
    words = " ".join([*OFFAXIS, *TASKS[verb](server, ground, tmp_path).arguments])
    done = subprocess.run([*space, f"{mount} && {words}; echo $?; ls -A {tmp_path}"], env=PLAIN,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1", done.stdout + done.stderr
    assert "Traceback" not in done.stderr
