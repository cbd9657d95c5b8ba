"""The plan of a delta: which streams make which file. Its JSON is read as if an enemy wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from offaxis.checkpoint.header import Entry, parse_header
from offaxis.errors import CheckpointError

__all__ = ["CODECS", "FilePlan", "OtherPlan", "Plan", "TensorPlan"]

CODECS = ("same", "small", "fast", "planes", "raw")
_HEX = re.compile(r"[0-9a-f]{32}")
_DRIVE = re.compile(r"[A-Za-z]:")
_BLOCK = 4096  # bytes of a file or directory beyond its content, about
_LONGEST_PATH, _LONGEST_PART, _DEEPEST = 1024, 255, 32


class Malformed(ValueError):
    """A plan that cannot be followed. The message says which part."""


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the tuned model is made.

    codec: `same` (the base's bytes), `small`, `fast` (both from the base's words), `planes`, `raw`.
    tuned, base: checksums of its bytes and of the base tensor's; base is None without a base.
    origin: the base tensor's name.
    changed: how many words differ from the base tensor's; all, where there is none.
    at, length: its stream in the payload.
    """

    codec: str
    tuned: str
    base: str | None = None
    origin: str | None = None
    changed: int = 0
    at: int = 0
    length: int = 0

    def row(self, name: str) -> dict[str, Any]:
        """As JSON: what follows from the rest is left out."""
        out: dict[str, Any] = {"codec": self.codec, "tuned": self.tuned}
        if self.origin not in (None, name):
            out["origin"] = self.origin
        if self.codec == "same":
            return out
        if self.base is not None:
            out["base"] = self.base
        return out | {"changed": self.changed, "at": self.at, "length": self.length}

    @classmethod
    def read(cls, row: Any, entry: Entry, payload: int) -> TensorPlan:
        where = f"tensor {entry.name!r}"
        codec = _one_of(row, "codec", CODECS, where)
        tuned = _hex(row, "tuned", where)
        based = codec in {"same", "small", "fast"}
        origin = _text(row, "origin", where) if "origin" in row else entry.name if based else None
        if codec == "same":
            return cls(codec, tuned, tuned, origin)
        base = _hex(row, "base", where) if based else None
        at, length = _span(row, payload, where)
        return cls(codec, tuned, base, origin, _natural(row, "changed", where), at, length)


@dataclass(frozen=True)
class FilePlan:
    """One safetensors file of the tuned model: its header's JSON, and its tensors in byte order."""

    path: str
    header: str
    entries: tuple[Entry, ...]
    tensors: tuple[TensorPlan, ...]

    @property
    def size(self) -> int:
        return 8 + len(self.header.encode()) + sum(e.stop - e.start for e in self.entries)

    def row(self) -> dict[str, Any]:
        rows = [
            plan.row(entry.name) for plan, entry in zip(self.tensors, self.entries, strict=True)
        ]
        return {"path": self.path, "header": self.header, "tensors": rows}

    @classmethod
    def read(cls, row: Any, payload: int) -> FilePlan:
        path = _path(row)
        header = _text(row, "header", path)
        try:
            entries = parse_header(Path(path), header.encode()).entries
        except (CheckpointError, UnicodeEncodeError) as error:
            raise Malformed(f"{path}: {error}") from error
        rows = _list(row, "tensors", path)
        if len(rows) != len(entries):
            _bad(f"{path}: {len(rows)} tensors are planned, its header has {len(entries)}")
        tensors = (TensorPlan.read(one, e, payload) for one, e in zip(rows, entries, strict=True))
        return cls(path, header, entries, tuple(tensors))


@dataclass(frozen=True)
class OtherPlan:
    """A file that is no safetensors: the base's own (`same`), zstd frames, or raw bytes."""

    path: str
    codec: str
    size: int
    digest: str
    at: int = 0
    length: int = 0

    def row(self) -> dict[str, Any]:
        out = {"path": self.path, "codec": self.codec, "size": self.size, "digest": self.digest}
        return out if self.codec == "same" else out | {"at": self.at, "length": self.length}

    @classmethod
    def read(cls, row: Any, payload: int) -> OtherPlan:
        path = _path(row)
        codec = _one_of(row, "codec", ("same", "zstd", "raw"), path)
        size, digest = _natural(row, "size", path), _hex(row, "digest", path)
        at, length = (0, 0) if codec == "same" else _span(row, payload, path)
        if codec == "raw" and length != size:
            _bad(f"{path}: {length} bytes are stored for {size}")
        return cls(path, codec, size, digest, at, length)


@dataclass(frozen=True)
class Plan:
    """All files, and the digests of both models' tensors (`content_digest`)."""

    base: str
    tuned: str
    files: tuple[FilePlan, ...]
    others: tuple[OtherPlan, ...]
    removed: tuple[str, ...]
    """Tensors of the base that the tuned model lacks."""
    export: str | None = None
    """The dtype that the tuned weights were rounded to before they were packed."""

    @property
    def size(self) -> int:
        """Bytes of all files that the delta makes."""
        return sum(one.size for one in self.files) + sum(one.size for one in self.others)

    @property
    def room(self) -> int:
        """About what they take on a disk: 4 KiB more for each file and each directory above it."""
        paths = [one.path for one in self.files] + [one.path for one in self.others]
        return self.size + _BLOCK * sum(path.count("/") + 1 for path in paths)

    def document(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "tuned": self.tuned,
            "export": self.export,
            "files": [one.row() for one in self.files],
            "others": [one.row() for one in self.others],
            "removed": list(self.removed),
        }

    @classmethod
    def read(cls, document: Any, payload: int) -> Plan:
        """Check a plan against itself and the payload's length. Raises ValueError."""
        files = tuple(FilePlan.read(row, payload) for row in _list(document, "files", "plan"))
        others = tuple(OtherPlan.read(row, payload) for row in _list(document, "others", "plan"))
        _check_paths([one.path for one in files] + [one.path for one in others])
        removed = _list(document, "removed", "plan")
        if not all(isinstance(name, str) for name in removed):
            _bad("removed is not a list of names")
        "".join(removed).encode()  # a ValueError where they are no text
        export = document.get("export")
        if export not in (None, "BF16"):
            _bad(f"export {export!r} is unknown")
        base, tuned = _hex(document, "base", "plan"), _hex(document, "tuned", "plan")
        return cls(base, tuned, files, others, tuple(removed), export)


def _bad(words: str) -> NoReturn:
    raise Malformed(words)


def _field(row: Any, key: str, kind: type, where: str) -> Any:
    value = row.get(key) if isinstance(row, Mapping) else None
    if type(value) is not kind:
        _bad(f"{where}: {key} is {str(value)[:40]!r}, not a {kind.__name__}")
    return value


def _text(row: Any, key: str, where: str) -> str:
    return str(_field(row, key, str, where))


def _list(row: Any, key: str, where: str) -> list[Any]:
    return list(_field(row, key, list, where))


def _natural(row: Any, key: str, where: str) -> int:
    value = int(_field(row, key, int, where))
    if not 0 <= value < 1 << 62:
        _bad(f"{where}: {key} is {value}")
    return value


def _hex(row: Any, key: str, where: str) -> str:
    value = _text(row, key, where)
    if not _HEX.fullmatch(value):
        _bad(f"{where}: {key} is {value[:40]!r}, not 32 hexadecimal digits")
    return value


def _one_of(row: Any, key: str, allowed: Iterable[str], where: str) -> str:
    value = _text(row, key, where)
    if value not in allowed:
        _bad(f"{where}: {key} {value[:40]!r} is unknown")
    return value


def _span(row: Any, payload: int, where: str) -> tuple[int, int]:
    at, length = _natural(row, "at", where), _natural(row, "length", where)
    if at + length > payload:
        _bad(f"{where}: its stream ends at byte {at + length} of a payload of {payload}")
    return at, length


def _path(row: Any) -> str:
    """A relative path that stays below the directory it is joined to, on every system."""
    path = _text(row, "path", "file")
    parts = PurePosixPath(path).parts
    usable = path == "/".join(parts) and parts and ".." not in parts and not path.startswith("/")
    if not usable or len(path) > _LONGEST_PATH or _DRIVE.match(path):
        _bad(f"the path {path[:80]!r} is not inside a directory")
    if any(character in path for character in "\\:\0") or not path.isprintable():
        _bad(f"the path {path[:80]!r} holds characters that files should not have")
    if any(len(part.encode()) > _LONGEST_PART for part in parts):
        _bad(f"the path {path[:80]!r} has a part of more than {_LONGEST_PART} bytes")
    if len(parts) > _DEEPEST:
        _bad(f"the path {path[:80]!r} has {len(parts)} parts, more than {_DEEPEST}")
    return path


def _check_paths(paths: list[str]) -> None:
    """No path twice (whatever its case), and none that is a directory of another."""
    # with the separator below all characters, what lies in a directory follows its name at once
    folded = sorted(path.casefold().replace("/", "\0") for path in paths)
    for one, following in pairwise(folded):
        if one == following:
            _bad("two files have the same path")
        if following.startswith(one + "\0"):
            _bad("a file is also the directory of another")
