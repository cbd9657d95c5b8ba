"""The queue's directory: what is planned, what is claimed, what is done.

| path | what it is |
|---|---|
| `queue.json` | the planned runs, the base and its digest |
| `base/`, `teacher/` | copies of the models that runs start from or sample |
| `rows/ID.parquet` | one finished run |
| `measurements/ID.parquet`, `masks/ID.npz` | what `compare` wrote, and the changed entries |
| `samples/` | what models were sampled for, by kind, task and seed |
| `checkpoints/ID/` | kept where asked |
| `failed/ID.txt` | the error of a run that failed |
| `claims/ID.lock` | held by the process that does the run; the system frees it when that ends |
| `work/ID/` | a run under way |
| `queue.log` | what the workers say |

A row appears whole, as the last act of its run, so a kill at any moment loses at most the runs
under way, and those start again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from offaxis.errors import InputError
from offaxis.lab.queue.grid import LISTS, RunConfig, distinct

__all__ = ["PATIENCE", "State", "Store", "digest", "is_held"]

_FOLDERS = ("rows", "claims", "failed", "work")

PATIENCE = 1.0
"""Seconds for which one waits for a lock: longer than another who looks whether it is held."""
_GLANCE = 0.05  # seconds after which a lock counts as held


def digest(model: Path) -> str:
    """SHA-256 of a model directory's safetensors files, the first 16 hexadecimal digits."""
    found = hashlib.sha256()
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise InputError(f"{model}: holds no safetensors file, so it is no model to start from")
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def is_held(lock: Path) -> bool:
    """True while a process holds that lock. Whoever looks holds it too, for a moment."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=_GLANCE, poll_interval=_GLANCE / 10):
            return False
    except Timeout:
        return True


@dataclass(frozen=True)
class State:
    """How far a queue is: numbers of runs."""

    planned: int
    done: int
    running: int
    failed: int

    @property
    def waiting(self) -> int:
        return self.planned - self.done - self.running - self.failed

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.planned} runs done", f"{self.running} running"]
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join([*parts, f"{self.waiting} waiting"])


@dataclass(frozen=True)
class Store:
    """An open queue directory."""

    directory: Path
    runs: tuple[RunConfig, ...]
    base_digest: str

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def teacher(self) -> Path:
        """The stronger model that distillation learns from; made by the first run that needs it."""
        return self.directory / "teacher"

    @property
    def teacher_digest(self) -> str:
        return digest(self.teacher)

    @staticmethod
    def create(directory: Path, runs: Sequence[RunConfig], base: Path) -> Store:
        """A new queue, or an old one with further runs. The base may not change.

        Raises InputError where the directory holds something else, or was begun from other weights.
        """
        directory = directory.expanduser().absolute()
        planned, weights = distinct(runs), digest(base)
        if (directory / "queue.json").is_file():
            old = Store.open(directory)
            if weights != old.base_digest:
                raise InputError(
                    f"{directory}: was begun from base {old.base_digest}, and {base} is "
                    f"{weights}: use another directory"
                )
            planned = distinct((*old.runs, *runs))
        elif directory.exists() and any(directory.iterdir()):
            raise InputError(f"{directory}: holds files and is no queue; name an empty directory")
        store = Store(directory, tuple(planned), weights)
        directory.mkdir(parents=True, exist_ok=True)
        store._write()  # first, so that a queue whose making was cut short can be made again
        for name in _FOLDERS:
            (directory / name).mkdir(exist_ok=True)
        if not (directory / "base").exists():
            staged = directory / "work" / "base"
            shutil.copytree(base, staged, dirs_exist_ok=True)
            staged.rename(directory / "base")
        return store

    @staticmethod
    def open(directory: Path) -> Store:
        directory = directory.expanduser().absolute()
        path = directory / "queue.json"
        if not path.is_file():
            raise InputError(f"{directory}: is no queue (it has no queue.json)")
        try:
            told = json.loads(path.read_text())
            runs = tuple(
                RunConfig(**(one | {key: tuple(one[key]) for key in LISTS if key in one}))
                for one in told["runs"]
            )
            return Store(directory, runs, told["base"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read as a queue: {error}") from error

    def _write(self) -> None:
        told = {"schema": 1, "base": self.base_digest, "runs": [asdict(run) for run in self.runs]}
        staged = self.directory / ".queue.json.part"
        staged.write_text(json.dumps(told, indent=1) + "\n")
        staged.replace(self.directory / "queue.json")

    def row(self, name: str) -> Path:
        return self.directory / "rows" / f"{name}.parquet"

    def failure(self, name: str) -> Path:
        return self.directory / "failed" / f"{name}.txt"

    def pending(self) -> Iterator[RunConfig]:
        """Runs without a row or a recorded failure, in order; looked up as the iteration goes."""
        for config in self.runs:
            name = config.identity(self.base_digest)
            if not self.row(name).exists() and not self.failure(name).exists():
                yield config

    @contextmanager
    def claim(self, config: RunConfig) -> Iterator[bool]:
        """Hold a run against other workers; gives False where another holds or has done it."""
        name = config.identity(self.base_digest)
        lock = FileLock(self.directory / "claims" / f"{name}.lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            yield False
            return
        try:
            yield not self.row(name).exists() and not self.failure(name).exists()
        finally:
            lock.release()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Hold a lock of the whole queue, waiting for it."""
        with FileLock(self.directory / "claims" / f"{what}.lock"):
            yield

    def state(self) -> State:
        """Numbers of runs done, running (their lock is held), failed."""
        done = failed = running = 0
        for config in self.runs:
            name = config.identity(self.base_digest)
            if self.row(name).exists():
                done += 1
            elif self.failure(name).exists():
                failed += 1
            elif self.held(name):
                running += 1
        return State(len(self.runs), done, running, failed)

    def held(self, name: str) -> bool:
        """True while a process does this run."""
        return is_held(self.directory / "claims" / f"{name}.lock")

    def failures(self) -> list[str]:
        """The runs that failed."""
        return sorted(path.stem for path in (self.directory / "failed").glob("*.txt"))

    def record_failure(self, name: str, reason: str) -> None:
        """Write down why a run failed; what it left under way is cleared away."""
        self.failure(name).write_text(reason)
        shutil.rmtree(self.directory / "work" / name, ignore_errors=True)

    def forget_failures(self) -> int:
        """Let failed runs be tried again; returns their number."""
        names = self.failures()
        for name in names:
            self.failure(name).unlink()
        return len(names)
