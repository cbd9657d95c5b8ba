"""The folder `deltas` of a run: its files, and the order in which they come and go."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from offaxis.checkpoint.digest import file_digest
from offaxis.errors import DeltaError, InputError
from offaxis.train.checkpoints.index import Files, Index, settle

__all__ = ["Stamps", "Store", "is_finished", "manifest", "missing_part", "stamps", "take"]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STORED = re.compile(r"checkpoint-\d+\.delta|anchor-\d+(?:\.\d+)?")
_HALF_DONE = re.compile(r"\..*\.?partial.*")
_REMOVED = re.compile(r"\.checkpoint-\d+\.removed")
_HALF_RESTORED = re.compile(r"\.+checkpoint-\d+\.(?:partial|old)-.*")

Stamps = dict[str, tuple[int, int, int]]
"""Path in a folder -> size, time of the last change, number of the inode: cheap to look at."""


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a folder by its path in it. Raises DeltaError for what no delta keeps."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        nested = any(_CHECKPOINT.fullmatch(part) for part in name.split("/")[:-1])
        if path.is_symlink() or not (path.is_file() or path.is_dir()) or hidden or nested:
            raise DeltaError(
                f"{folder}: holds {name}, and a delta keeps no hidden files, links, special files "
                "or nested checkpoints; leave it out of the checkpoint"
            )
        if path.is_file():
            yield name, path


def manifest(folder: Path) -> Files:
    """Size and digest of every file. Raises DeltaError for what no delta keeps."""
    return {name: (path.stat().st_size, file_digest(path).hex()) for name, path in _files(folder)}


def stamps(folder: Path) -> Stamps:
    """What shows, without reading, that a folder is as it was."""
    found = {name: path.stat() for name, path in _files(folder)}
    return {name: (one.st_size, one.st_mtime_ns, one.st_ino) for name, one in found.items()}


def missing_part(folder: Path, files: Files) -> str | None:
    """The first file that is missing or of another size, in words; contents are not read."""
    for path, (size, _) in files.items():
        file = folder / path
        if not file.is_file():
            return f"{path} is missing"
        if file.stat().st_size != size:
            return f"{path} was changed"
    return None


def is_finished(checkpoint: Path) -> bool:
    """Whether Trainer wrote a checkpoint to its end: `trainer_state.json` comes last."""
    try:
        told = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict)


class Store:
    """A run's stored checkpoints. `index` says what is on the disk."""

    def __init__(self, run: Path, index: Index) -> None:
        self.run, self.index = run, index
        self.home = run / "deltas"
        self._lock: int | None = None

    @staticmethod
    def open(run: Path) -> Store:
        """The stored checkpoints of a run. Raises InputError where it has none."""
        run = run.expanduser().absolute()
        path = run / "deltas" / "index.json"
        if not path.is_file():
            raise InputError(
                f"{run}: has no deltas/index.json; name the output directory of a run that trained "
                "with DeltaCheckpointCallback"
            )
        return Store(run, Index.read(path))

    @staticmethod
    def begin(run: Path) -> Store:
        """The stored checkpoints of a run, or none yet: the index is made before all else."""
        run = run.expanduser().absolute()
        home = run / "deltas"
        if (home / "index.json").exists():
            return Store.open(run)
        if home.is_dir() and any(_STORED.fullmatch(one.name) for one in home.iterdir()):
            raise InputError(
                f"{home}: holds stored checkpoints but no index.json; put that back, or move the "
                "folder away to begin anew"
            )
        store = Store(run, Index())
        store.write(store.index)
        return store

    def place(self, step: int) -> Path:
        """Where Trainer writes a checkpoint."""
        return self.run / f"checkpoint-{step}"

    def delta(self, step: int) -> Path:
        return self.home / f"checkpoint-{step}.delta"

    def whole(self) -> list[int]:
        """Steps whose checkpoints lie whole in the run's directory."""
        found = (_CHECKPOINT.fullmatch(one.name) for one in self.run.iterdir())
        steps = sorted(int(one[1]) for one in found if one)
        return [step for step in steps if is_finished(self.place(step))]

    def write(self, index: Index) -> None:
        index.write(self.home / "index.json")
        self.index = index

    def forget(self, step: int) -> None:
        """Take a step off the list, because it is about to be stored anew."""
        self.write(self.index.without(step))
        self.delta(step).unlink(missing_ok=True)

    def hold(self) -> bool:
        """Keep other trainings off until `release` or the end of the process; False if one is on.

        The lock belongs to the process, not to the open file: data loaders that fork do not hold
        it, and neither does a trainer that this process gave up.
        """
        if self._lock is None:
            self._lock = take(self.home / "training.lock")
        return self._lock is not None

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def tidy(self) -> list[Path]:
        """Remove what a kill left: all that no reader would look at. Needs `hold`.

        Returns unfinished checkpoints that went: Trainer would choose the newest folder to resume
        from, finished or not, and fail.
        """
        known = {self.delta(one.step).name for one in self.index.checkpoints}
        known |= {one.name for one in self.index.anchors}
        for path in self.home.iterdir():
            if path.name not in known and (
                _STORED.fullmatch(path.name) or _HALF_DONE.fullmatch(path.name)
            ):
                _discard(path)
        restoring = take(self.home / "restoring.lock")
        for path in self.run.iterdir():
            if _REMOVED.fullmatch(path.name) or (
                restoring is not None and _HALF_RESTORED.fullmatch(path.name)
            ):
                _discard(path)
        if restoring is not None:
            os.close(restoring)
        return self._drop_unfinished()

    def _drop_unfinished(self) -> list[Path]:
        found = (_CHECKPOINT.fullmatch(one.name) for one in self.run.iterdir() if one.is_dir())
        gone = []
        for step in sorted((int(one[1]) for one in found if one), reverse=True):
            if is_finished(self.place(step)):
                break
            self.remove(step)
            gone.append(self.place(step))
        return gone

    def remove(self, step: int) -> None:
        """Remove a whole checkpoint: at one stroke from Trainer's sight, then from the disk."""
        hidden = self.run / f".checkpoint-{step}.removed"
        _discard(hidden)
        self.place(step).rename(hidden)
        _discard(hidden)

    def keep_anchor(self, step: int, files: Files) -> str:
        """Keep a checkpoint's files in a folder of their own, and return its name.

        By hard links where the file system has them, else by copies, which are compared.
        """
        taken = {one.name for one in self.index.anchors}
        names = (f"anchor-{step}{f'.{n}' if n else ''}" for n in range(len(taken) + 1))
        name = next(one for one in names if one not in taken)
        staged, folder = self.home / f".{name}.partial", self.home / name
        _discard(staged)
        _discard(folder)
        try:
            linked = [_link(self.place(step) / path, staged / path) for path in files]
            if not all(linked) and manifest(staged) != files:
                raise DeltaError(f"{self.place(step)}: changed while it was copied; save it again")
            staged.rename(folder)
        finally:
            _discard(staged)
        settle(self.home)
        return name

    def unshare(self, *, after: int) -> None:
        """Give anchors of steps beyond `after` files of their own.

        A file that is written over is written over in all its links, and a run that goes on from
        an earlier step writes over the checkpoints that it passes again.
        """
        staged = self.home / ".anchor.partial"
        for anchor in self.index.anchors:
            if anchor.step is None or anchor.step <= after:
                continue
            for path in anchor.files:
                kept, whole = self.home / anchor.name / path, self.place(anchor.step) / path
                if kept.exists() and whole.exists() and kept.samefile(whole):
                    shutil.copyfile(kept, staged)
                    settle(staged)
                    staged.replace(kept)


def take(path: Path, *, shared: bool = False) -> int | None:
    """A lock, held until the descriptor returned is closed; None where another process has it."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _link(source: Path, target: Path) -> bool:
    """Make `target` a link to `source` (True), or else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
        linked = True
    except OSError:
        shutil.copyfile(source, target)
        linked = False
    settle(target)
    return linked


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
