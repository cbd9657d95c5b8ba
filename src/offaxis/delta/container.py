"""The file around a delta: four tensors of bytes in a safetensors file.

`payload` (coded streams), `tables` and `plan` (zstd frames), and `digest`, the XXH3-128 of all
bytes before it. The header is padded to a fixed length, so that the payload can be written first.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from offaxis.checkpoint.digest import DIGEST_BYTES, file_digest
from offaxis.checkpoint.header import HEADER_LIMIT, Header, read_header
from offaxis.delta.compress import squeeze, unsqueeze
from offaxis.errors import CheckpointError, DeltaError
from offaxis.output import explained

__all__ = ["FORMAT", "VERSION", "Container", "Writer"]

FORMAT, VERSION = "offaxis-delta", "1"
HEADER_BYTES = 640
"""Length prefix and header together, in the files that offaxis writes."""
PLAN_LIMIT, TABLES_LIMIT = 1 << 25, 1 << 25
"""The most bytes that plan and tables may take uncompressed: 32 MiB each."""
BRACKETS_LIMIT = 1 << 20
"""The most arrays and objects in a plan, headers included: each takes a hundred bytes and more."""

_LEVEL = 19
_HEADER_LIMIT = 1 << 16
_ORDER = ("payload", "tables", "plan", "digest")
_SIZE = struct.Struct("<Q")


class Writer:
    """Writes one delta file: streams first, then everything that describes them."""

    def __init__(self, path: Path, *, told: Path) -> None:
        """path: the file to write; told: its name in errors, which are OutputErrors."""
        self._path, self._told = path, told
        with explained(told):
            self._file: BinaryIO = path.open("wb+")
            self._file.write(bytes(HEADER_BYTES))
        self.at = 0
        """Bytes of payload so far."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, *parts: Any) -> tuple[int, int]:
        """Append to the payload; (where it begins there, how long it is)."""
        start = self.at
        with explained(self._told):
            for part in parts:
                self.at += self._file.write(part)
        return start, self.at - start

    def finish(
        self, *, plan: Mapping[str, Any], tables: bytes, metadata: Mapping[str, str]
    ) -> None:
        """Write tables, plan, header and digest, and bring all of it to the disk.

        Raises DeltaError where plan or tables exceed what a reader accepts.
        """
        text = json.dumps(plan, ensure_ascii=False, separators=(",", ":")).encode()
        for name, raw, limit in (("plan", text, PLAN_LIMIT), ("tables", tables, TABLES_LIMIT)):
            if len(raw) > limit:
                raise DeltaError(
                    f"{self._told}: the {name} takes {len(raw)} bytes, above the format's limit of "
                    f"{limit}; pack fewer files into one delta"
                )
        if _brackets(text) > BRACKETS_LIMIT:
            raise DeltaError(
                f"{self._told}: the plan has more than {BRACKETS_LIMIT} arrays and objects, the "
                "format's limit; pack fewer files into one delta"
            )
        parts = [_SIZE.pack(len(raw)) + squeeze(raw, level=_LEVEL) for raw in (tables, text)]
        with explained(self._told):
            for part in parts:
                self._file.write(part)
            self._file.seek(0)
            self._file.write(_header((self.at, *map(len, parts), DIGEST_BYTES), metadata))
            self._file.flush()
            self._file.seek(0, os.SEEK_END)
            self._file.write(file_digest(self._path))
            self._file.flush()
            os.fsync(self._file.fileno())


def _header(sizes: tuple[int, ...], metadata: Mapping[str, str]) -> bytes:
    document: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION, **metadata}}
    at = 0
    for name, size in zip(_ORDER, sizes, strict=True):
        document[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(document, separators=(",", ":")).encode()
    length = HEADER_BYTES - _SIZE.size
    assert len(text) <= length, text
    return _SIZE.pack(length) + text.ljust(length)


@dataclass(frozen=True)
class Container:
    """A delta file whose digest has been checked: its plan, its tables, its payload mapped."""

    path: Path
    metadata: Mapping[str, str]
    plan: Any
    tables: bytes
    payload: memoryview
    size: int

    @classmethod
    def open(cls, path: Path) -> Container:
        """Open and check a delta file.

        Raises DeltaError, naming the file and what is wrong, where it is no delta, of another
        version, truncated, or damaged anywhere.
        """
        try:
            with path.open("rb") as file:
                announced = int.from_bytes(file.read(_SIZE.size), "little")
            if _HEADER_LIMIT < announced <= HEADER_LIMIT:
                _bad(path, f"no offaxis delta (a header of {announced} bytes)", "give a file that "
                     "`offaxis delta pack` wrote")  # fmt: skip
        except OSError as error:
            reason = error.strerror or error
            raise DeltaError(f"{path}: cannot be read ({reason}); check the path") from error
        try:
            header = read_header(path)
        except CheckpointError as error:
            raise DeltaError(str(error)) from error
        found = _regions(header)
        start, stop = found["digest"]
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if len(mapped) != header.size or file_digest(path, stop=start) != mapped[start:stop]:
            _bad(
                path, "its digest does not match its bytes: it is damaged", "copy or make it again"
            )
        tables = _frame(path, "tables", mapped[slice(*found["tables"])], TABLES_LIMIT)
        plan = _frame(path, "plan", mapped[slice(*found["plan"])], PLAN_LIMIT)
        if _brackets(plan) > BRACKETS_LIMIT:
            _bad(
                path, f"its plan has more than {BRACKETS_LIMIT} arrays and objects", "make it again"
            )
        try:
            document = json.loads(plan.decode())
        except (ValueError, RecursionError) as error:
            raise DeltaError(f"{path}: its plan is not JSON ({error}); make it again") from error
        payload = mapped[slice(*found["payload"])]
        return cls(path, header.metadata, document, tables, payload, header.size)


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _bad(path: Path, what: str, remedy: str) -> NoReturn:
    raise DeltaError(f"{path}: {what}; {remedy}")


def _regions(header: Header) -> dict[str, tuple[int, int]]:
    """(start, stop) of the four tensors, after checking that this is a delta of this version."""
    path = header.path
    if header.metadata.get("format") != FORMAT:
        _bad(path, "no offaxis delta (its metadata does not say so)", "give a file that "
             "`offaxis delta pack` wrote")  # fmt: skip
    if header.metadata.get("version") != VERSION:
        _bad(path, f"has format version {header.metadata.get('version')!r}, and this offaxis reads "
             f"{VERSION}", "use the offaxis that wrote it, or a newer one")  # fmt: skip
    names = tuple(entry.name for entry in header.entries)
    sound = names == _ORDER and all(entry.dtype == "U8" for entry in header.entries)
    if not sound or header.entries[-1].shape != (DIGEST_BYTES,):
        _bad(path, f"holds the tensors {list(names)[:6]}, not {list(_ORDER)}", "make it again")
    return {entry.name: (entry.start, entry.stop) for entry in header.entries}


def _frame(path: Path, name: str, region: memoryview, limit: int) -> bytes:
    if len(region) < _SIZE.size:
        _bad(path, f"its {name} has {len(region)} bytes", "make it again")
    (size,) = _SIZE.unpack_from(region)
    if size > limit:
        _bad(
            path,
            f"{size} bytes are announced for its {name}, above the limit of {limit}",
            "make it again",
        )
    try:
        return unsqueeze(region[_SIZE.size :], size)
    except ValueError as error:
        raise DeltaError(f"{path}: its {name} cannot be read ({error}); make it again") from error
