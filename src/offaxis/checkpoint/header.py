"""Safetensors headers, read and checked without reading a tensor.

A file is an 8-byte little-endian length N, N bytes of JSON, and the tensors' bytes. The JSON maps
each name to `dtype`, `shape` and `data_offsets` (relative to byte 8 + N), and the tensors tile
that region exactly: no hole, no overlap, nothing after the last.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from offaxis.checkpoint.dtypes import WIDTHS
from offaxis.errors import CheckpointError

__all__ = ["HEADER_LIMIT", "Entry", "Header", "parse_header", "read_header"]

HEADER_LIMIT = 100_000_000
"""The longest header that safetensors itself accepts, in bytes."""

_TOO_MANY = 1 << 80  # bits

_AGAIN = "download or save the file again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: bytes [start, stop) of the *file*."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header. `entries` are in the order of their bytes."""

    path: Path
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def _bad(path: Path, what: str, remedy: str = _AGAIN) -> NoReturn:
    raise CheckpointError(f"{path}: {what}; {remedy}")


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises CheckpointError, naming file, tensor and numbers, where the file is unreadable or its
    header contradicts itself or the file's size.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            _bad(path, "not a regular file", "give a .safetensors file or a directory of them")
        with path.open("rb") as file:
            size = info.st_size
            raw = _header_bytes(path, file.read(8), size, file)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: cannot be read ({reason}); check the path and its permissions"
        ) from error
    return parse_header(path, raw, size=size)


def parse_header(path: Path, raw: bytes, *, size: int | None = None) -> Header:
    """The checked header whose JSON is `raw`, in a file of `size` bytes (None: as many as it says).

    `path` is named in errors and not opened. Raises CheckpointError as `read_header`.
    """
    data_start = 8 + len(raw)
    document = _parse(path, raw)
    metadata = _metadata(path, document.pop("__metadata__", {}))
    entries = [_entry(path, name, value, data_start) for name, value in document.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    if size is None:
        size = entries[-1].stop if entries else data_start
    _check_tiling(path, entries, data_start, size)
    return Header(path, tuple(entries), metadata, data_start, size)


def _header_bytes(path: Path, prefix: bytes, size: int, file: object) -> bytes:
    """The N bytes of JSON, after checking N against the limit and the file's size."""
    if len(prefix) < 8:
        _bad(path, f"{size} bytes, too short for a safetensors header (8 bytes and more)")
    (length,) = struct.unpack("<Q", prefix)
    if length > HEADER_LIMIT:
        _bad(
            path,
            f"announces a header of {length} bytes, above the limit of {HEADER_LIMIT}",
            "this is no safetensors file, or its start is damaged; " + _AGAIN,
        )
    if 8 + length > size:
        _bad(path, f"truncated: a header of {length} bytes in a file of {size}")
    raw: bytes = file.read(length)  # type: ignore[attr-defined]
    if len(raw) != length:
        _bad(path, f"truncated: {len(raw)} of {length} header bytes could be read")
    return raw


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the name {key!r} occurs twice")
        out[key] = value
    return out


def _parse(path: Path, raw: bytes) -> dict[str, object]:
    if not raw.startswith(b"{"):
        _bad(path, f"header starts with {raw[:1]!r} where safetensors has '{{'")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not valid JSON ({error}); {_AGAIN}") from error
    assert isinstance(document, dict)  # it starts with a brace
    return document


def _metadata(path: Path, value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _bad(path, "__metadata__ is not a mapping of strings to strings")
    return value


def _naturals(value: object) -> tuple[int, ...] | None:
    """`value` as a tuple of integers >= 0, or None where it is anything else."""
    if not isinstance(value, list):
        return None
    if not all(type(item) is int and 0 <= item < 2**63 for item in value):
        return None
    return tuple(value)


def _entry(path: Path, name: str, value: object, data_start: int) -> Entry:
    """One checked entry; its offsets become positions in the file."""
    if not name or any(0xD800 <= ord(character) <= 0xDFFF for character in name):
        _bad(path, f"tensor name {name!r} is empty or not valid text")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _bad(path, f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape = value["dtype"], _naturals(value["shape"])
    offsets = _naturals(value["data_offsets"])
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        _bad(
            path,
            f"tensor {name!r} has the unknown dtype {dtype!r}",
            "known are " + ", ".join(WIDTHS) + "; convert the checkpoint",
        )
    if shape is None:
        _bad(path, f"tensor {name!r} has the shape {value['shape']!r}, not a list of integers >= 0")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        _bad(
            path,
            f"tensor {name!r} has the offsets {value['data_offsets']!r}, not 0 <= start <= stop",
        )
    bits = WIDTHS[dtype] if 0 not in shape else 0
    for extent in shape:
        bits *= extent
        if bits > _TOO_MANY:
            break  # a shape may be long, and its product longer
    length = offsets[1] - offsets[0]
    if bits != 8 * length:
        _bad(
            path,
            f"tensor {name!r}: shape {shape!s:.200} of {dtype} takes {bits / 8:g} bytes, "
            f"its offsets {list(offsets)} span {length}",
        )
    return Entry(name, dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _check_tiling(path: Path, entries: list[Entry], data_start: int, size: int) -> None:
    """Entries in byte order must follow one another from the header's end to the file's end."""
    position, before = data_start, "the header"
    for entry in entries:
        if entry.stop > size:
            _bad(
                path,
                f"truncated: tensor {entry.name!r} ends at byte {entry.stop} of a file of {size}",
            )
        if entry.start != position:
            kind = "overlaps" if entry.start < position else "leaves a hole after"
            _bad(
                path,
                f"tensor {entry.name!r} {kind} {before}: it starts at byte {entry.start}, "
                f"{before} ends at {position}",
            )
        position, before = entry.stop, repr(entry.name)
    if position != size:
        _bad(path, f"{size - position} bytes after the last tensor (of {size} in the file)")
