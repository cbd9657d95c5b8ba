"""`apply` and `verify`: a base and a delta in, the tuned model (or the certainty of it) out."""

from __future__ import annotations

import shutil
from io import RawIOBase
from pathlib import Path
from typing import Any

from offaxis.checkpoint.header import Entry
from offaxis.delta.folder import Folder, open_folder
from offaxis.delta.opened import Delta
from offaxis.delta.packing import Progress, Step
from offaxis.delta.plan import FilePlan, TensorPlan
from offaxis.errors import DeltaError
from offaxis.kernels.pool import in_order, threads
from offaxis.output import explained, staged_directory

__all__ = ["apply", "verify"]

_GROWTH, _SPARE = 64, 1 << 26


def apply(
    base: str | Path,
    delta: str | Path,
    *,
    out: str | Path,
    overwrite: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the tuned model again in the directory `out`: every packed file, byte for byte.

    base: the model that the delta was made from, in any sharding.
    limit: the most bytes to write; by default 64 times what base and delta take, plus 64 MiB, 4 KiB
    counted for each file and directory, so that no small hostile file can fill a disk.

    Every byte is checked on the way: the delta's digest, each base tensor, each tuned one. `out`
    appears whole, or not at all. Returns `out`, `files`, `tensors`, `bytes` and the `tuned`
    digest. Raises DeltaError where the delta is damaged or the base another, OutputError where
    `out` cannot be written.
    """
    opened, folder, target = Delta.open(delta), open_folder(base), Path(out)
    with staged_directory(target, overwrite=overwrite) as staged:
        _check_room(opened, folder, staged, limit)
        teller = _Teller(opened, progress)
        for file in opened.plan.files:
            with explained(target):
                _write(opened, file, folder, _below(staged, file.path), teller)
        for other in opened.plan.others:
            with explained(target), _below(staged, other.path).open("wb") as written:
                for block in opened.other(other, folder):
                    written.write(block)
    return _summary(opened) | {"out": str(out)}


def verify(
    base: str | Path,
    delta: str | Path,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check that `apply` would succeed, by doing all of it but the writing.

    Returns `files`, `tensors`, `bytes`, `tuned`, and `base_matches`: whether the base is the very
    model that the delta was made from (False where it only holds all tensors that are needed).
    Raises DeltaError as `apply`.
    """
    opened, folder = Delta.open(delta), open_folder(base)
    _check_limit(opened, folder, limit)
    teller = _Teller(opened, progress)

    def check(one: tuple[str, Entry, TensorPlan]) -> Entry:
        for _ in opened.blocks(*one, folder):
            pass
        return one[1]

    for entry in in_order(check, opened.entries, threads()):
        teller.tell(entry)
    for other in opened.plan.others:
        for _ in opened.other(other, folder):
            pass
    return _summary(opened) | {"base_matches": folder.digest() == opened.plan.base}


def _summary(delta: Delta) -> dict[str, Any]:
    plan = delta.plan
    return {
        "files": len(plan.files) + len(plan.others),
        "tensors": len(delta.entries),
        "bytes": plan.size,
        "tuned": plan.tuned,
    }


class _Teller:
    """Passes on how many bytes of tensors are done."""

    def __init__(self, delta: Delta, progress: Progress | None) -> None:
        self._progress = progress
        self._total = sum(entry.stop - entry.start for _, entry, _ in delta.entries)
        self._done = 0

    def tell(self, entry: Entry) -> None:
        self._done += entry.stop - entry.start
        if self._progress is not None:
            self._progress(Step(self._done, self._total, entry.name))


def _check_limit(delta: Delta, base: Folder, limit: int | None) -> None:
    """Refuse what is out of all proportion to what went in."""
    held = sum(source.header.size for source in base.weights) + delta.container.size
    most = _GROWTH * held + _SPARE if limit is None else limit
    if (delta.plan.room if limit is None else delta.plan.size) > most:
        raise DeltaError(
            f"{delta.path}: makes {delta.plan.size} bytes in {len(delta.plan.files)} and "
            f"{len(delta.plan.others)} files, above the limit of {most}; if you trust the file, "
            "raise the limit (--limit)"
        )


def _check_room(delta: Delta, base: Folder, place: Path, limit: int | None) -> None:
    """Refuse what would not fit, before a byte is written."""
    _check_limit(delta, base, limit)
    size, path = delta.plan.size, delta.path
    free = shutil.disk_usage(place).free
    if size > free:
        raise DeltaError(
            f"{path}: makes {size} bytes, and {place.parent} has {free} left; make room"
        )


def _below(root: Path, path: str) -> Path:
    out = root / path
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _write(delta: Delta, file: FilePlan, base: Folder, path: Path, teller: _Teller) -> None:
    """One safetensors file: its header, then its tensors, several at a time."""
    header = file.header.encode()
    with path.open("wb") as written:
        written.write(len(header).to_bytes(8, "little") + header)
        written.truncate(file.size)

    def tensor(pair: tuple[Entry, TensorPlan]) -> Entry:
        with path.open("r+b", buffering=0) as place:
            place.seek(pair[0].start)
            for block in delta.blocks(file.path, *pair, base):
                _write_all(place, block)
        return pair[0]

    pairs = zip(file.entries, file.tensors, strict=True)
    for entry in in_order(tensor, pairs, threads()):
        teller.tell(entry)


def _write_all(file: RawIOBase, block: Any) -> None:
    view = memoryview(block).cast("B")
    while view:
        view = view[file.write(view) or 0 :]
