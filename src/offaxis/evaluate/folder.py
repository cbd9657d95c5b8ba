"""The directory of a run: what it is a run of, then its samples, a line a problem as they come.

It can be killed at any time. `settings.json` is written whole before the first sample; a line of
`samples.jsonl` that was cut off is dropped when the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from offaxis.errors import InputError, OutputError
from offaxis.evaluate.marking import MarkedProblem, MarkedSample
from offaxis.output import check_output, explained, staged_file

__all__ = ["Folder", "read_header", "read_samples"]

_HEADER = "settings.json"
_SAMPLES = "samples.jsonl"
_RESULTS = ("results.json", "scores.parquet", "curve.svg")
_TOLD = 12  # differing settings that a message names


class Folder:
    """A run's directory, which this process alone writes while `opened` lasts."""

    def __init__(self, directory: Path, file: IO[bytes], done: dict[str, MarkedProblem]) -> None:
        self.directory = directory
        self.done = done
        """Problems whose samples are kept, by id."""
        self._file = file

    @classmethod
    @contextmanager
    def opened(
        cls, directory: Path, header: Mapping[str, Any], *, overwrite: bool = False
    ) -> Iterator[Folder]:
        """Start a run in `directory`, or go on with the one that is there.

        header: what decides the samples, as JSON; `identity` in it must agree for the run to go on.
        overwrite: forget another run's files. Raises InputError where another run's settings are
        there, or its process still is; OutputError where the directory cannot be written.
        """
        directory = directory.expanduser().resolve()
        new = _is_new(directory, header, overwrite=overwrite)
        made = [one for one in (directory, *directory.parents) if not one.exists()]
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
            samples = (directory / _SAMPLES).open("a+b")
        with samples:
            _lock(samples, directory)
            with explained(directory):
                if new:
                    for name in _RESULTS:
                        (directory / name).unlink(missing_ok=True)
                    samples.truncate(0)
                    with staged_file(directory / _HEADER) as staged:
                        staged.write_text(_dumped(header, indent=2) + "\n", encoding="utf-8")
                _drop_torn_line(samples)
            folder = cls(directory, samples, {one.id: one for one in read_samples(directory)})
            try:
                yield folder
            except BaseException:
                samples.flush()
                if os.fstat(samples.fileno()).st_size == 0:  # not a sample, nor a part of one
                    _clear(directory, made)
                raise

    def append(self, problems: Sequence[MarkedProblem]) -> None:
        """Keep samples of problems that are not kept yet, each in one write; then sync to disk."""
        with explained(self.directory):
            for problem in problems:
                if problem.id not in self.done:
                    self._file.write((_dumped(asdict(problem)) + "\n").encode())
                    self._file.flush()
                    self.done[problem.id] = problem
            os.fsync(self._file.fileno())


def _dumped(value: Any, indent: int | None = None) -> str:
    # ASCII, since a tokenizer can decode half of a surrogate pair
    return json.dumps(value, indent=indent, allow_nan=False)


def _clear(directory: Path, made: Sequence[Path]) -> None:
    """Take away a run that failed before its first sample, and the directories made for it."""
    for name in (_HEADER, _SAMPLES):
        (directory / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is there
        for one in made:
            one.rmdir()


def _is_new(directory: Path, header: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a new run starts; raise where the directory holds something other than this run."""
    differences = _differences(directory, header)
    if overwrite or differences is None:
        check_output(directory, overwrite=overwrite or _is_bare(directory))
        return True
    if differences:
        raise InputError(
            f"{directory}: holds another run, which differs in {'; '.join(differences[:_TOLD])}; "
            "choose another --out, give the same settings to go on, or pass --overwrite"
        )
    return False


def _is_bare(directory: Path) -> bool:
    """Whether nothing is there but what a kill before the settings were written leaves."""
    return directory.is_dir() and all(
        path.name.startswith(".") or (path.name == _SAMPLES and path.stat().st_size == 0)
        for path in directory.iterdir()
    )


def _differences(directory: Path, header: Mapping[str, Any]) -> list[str] | None:
    """What differs from the run that is there, in words; None where there is none."""
    if not (directory / _HEADER).is_file():
        return None
    old = _flat(read_header(directory).get("identity", {}))
    new = _flat(json.loads(_dumped(header["identity"])))
    names = sorted({*old, *new})
    return [
        f"{name} ({_short(old.get(name))} there, {_short(new.get(name))} here)"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _lock(file: IO[bytes], directory: Path) -> None:
    """Hold the samples file for this process, as long as it is open."""
    try:
        import fcntl
    except ModuleNotFoundError:  # no such locks on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(
            f"{directory}: another process is sampling into it; wait for it, or choose another"
        ) from error


def _drop_torn_line(file: IO[bytes]) -> None:
    """Cut what follows the last line feed."""
    end = file.seek(0, os.SEEK_END)
    step = 1 << 16
    while end:
        start = max(0, end - step)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    file.truncate(end)
    file.seek(0, os.SEEK_END)


def read_header(directory: Path) -> dict[str, Any]:
    """What the run in `directory` is a run of. Raises InputError where that cannot be read."""
    path = directory / _HEADER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a directory that offaxis eval wrote"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
        raise InputError(f"{path}: no settings of a run; give a directory that offaxis eval wrote")
    return found


def read_samples(directory: Path) -> list[MarkedProblem]:
    """All samples in `directory`, in the order in which they were drawn.

    Raises InputError, with the line, for what cannot be read.
    """
    path = directory / _SAMPLES
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    samples = tuple(MarkedSample(**one) for one in row.pop("samples"))
                    found.append(MarkedProblem(**row, samples=samples))
                except (ValueError, TypeError, KeyError) as error:
                    raise InputError(
                        f"{path}, line {number}: no samples of a problem ({error}); remove the "
                        "line and run again with the same settings"
                    ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found
