"""What a mask file says of itself, read as if an enemy had written it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from offaxis.checkpoint.dtypes import FLOATS
from offaxis.checkpoint.header import HEADER_LIMIT as SAFETENSORS_LIMIT
from offaxis.checkpoint.header import Header, read_header
from offaxis.errors import InputError
from offaxis.masks.coding import CODINGS
from offaxis.masks.mask import Origin

__all__ = ["FORMAT", "HEADER_LIMIT", "VERSION", "Plan", "TensorPlan", "described", "read_plan"]

FORMAT, VERSION = "offaxis-mask", "1"
HEADER_LIMIT = 1 << 25
"""The longest header, in bytes: 32 MiB, some 120,000 tensors."""
ENTRIES_LIMIT = 1 << 40
"""The most entries of a tensor."""

_BRACKETS_LIMIT = 1 << 20
_KEYS = ("format", "version", "rule", "density", "base", "tensors", "content")
_FIELDS = {"shape", "dtype", "base", "selected", "coding", "parameter"}
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_AGAIN = "copy or make it again"
_NO_MASK = "give a file that `offaxis mask` wrote"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor's line of a mask file."""

    name: str
    shape: tuple[int, ...]
    origin: Origin
    selected: int
    coding: str
    parameter: int
    size: int
    """Bytes in the file."""

    @property
    def entries(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """A mask file's header, checked; the tensors' bytes follow one another from `start` on."""

    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[TensorPlan, ...]
    start: int

    def bad(self, what: str) -> NoReturn:
        _bad(self.path, what)


def described(plans: Iterable[TensorPlan]) -> str:
    """The JSON of all tensors' lines."""
    rows = {
        one.name: {
            "shape": list(one.shape),
            "dtype": one.origin.dtype,
            "base": one.origin.checksum,
            "selected": one.selected,
            "coding": one.coding,
            "parameter": one.parameter,
        }
        for one in plans
    }
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def read_plan(path: Path) -> Plan:
    """Read and check all of a mask file but its tensors' bytes. InputError as `load`."""
    _check_size(path)
    header = read_header(path)
    metadata = _metadata(header)
    rows = _rows(path, metadata["tensors"])
    names = [entry.name for entry in header.entries]
    if set(rows) != set(names):
        odd = sorted(set(rows) ^ set(names))[0]
        _bad(path, f"tensor {odd!r} is not both in its header and in its description")
    plans = []
    for entry in header.entries:
        if entry.dtype != "U8" or len(entry.shape) != 1:
            _bad(path, f"tensor {entry.name!r} is {entry.dtype} of shape {entry.shape!s:.80}, "
                 "not a row of bytes")  # fmt: skip
        plans.append(_tensor(path, entry.name, rows[entry.name], entry.stop - entry.start))
    plan = Plan(path, metadata, tuple(plans), header.data_start)
    _check_memory(plan)
    return plan


def _bad(path: Path, what: str, remedy: str = _AGAIN) -> NoReturn:
    raise InputError(f"{path}: {what}; {remedy}")


def _check_size(path: Path) -> None:
    """Before the header is parsed: that it is short, and has few arrays and objects.

    Each of these takes a hundred bytes of memory and more, for one or two in the file.
    """
    try:
        with path.open("rb") as file:
            announced = int.from_bytes(file.read(8), "little")
            if announced > SAFETENSORS_LIMIT:
                return  # `read_header` says what is wrong
            if announced > HEADER_LIMIT:
                _bad(path, f"no offaxis mask (a header of {announced} bytes)", _NO_MASK)
            text = file.read(announced)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    if text.count(b"[") + text.count(b"{") > _BRACKETS_LIMIT:
        _bad(path, f"no offaxis mask (more than {_BRACKETS_LIMIT} arrays and objects)", _NO_MASK)


def _metadata(header: Header) -> Mapping[str, str]:
    """The strings of a mask of this version, all of them there and valid text."""
    path, found = header.path, header.metadata
    if found.get("format") != FORMAT:
        _bad(path, "no offaxis mask (its metadata does not say so)", _NO_MASK)
    if found.get("version") != VERSION:
        _bad(path, f"has format version {found.get('version')!r:.40}, and this offaxis reads "
             f"{VERSION}", "use the offaxis that wrote it, or a newer one")  # fmt: skip
    for key in _KEYS:
        if key not in found:
            _bad(path, f"its metadata has no {key!r}")
        if any(0xD800 <= ord(character) <= 0xDFFF for character in found[key]):
            _bad(path, f"its {key!r} is not valid text")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the name {key!r:.80} occurs twice")
        out[key] = value
    return out


def _rows(path: Path, text: str) -> dict[str, Any]:
    try:
        rows = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its tensors are not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(rows, dict):
        _bad(path, "its description of tensors is no JSON object")
    return rows


def _natural(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _tensor(path: Path, name: str, row: Any, size: int) -> TensorPlan:
    where = f"tensor {name!r}"
    if not isinstance(row, dict) or set(row) != _FIELDS:
        _bad(path, f"{where} does not have exactly {', '.join(sorted(_FIELDS))}")
    shape = row["shape"]
    sound = isinstance(shape, list) and 1 <= len(shape) <= 8
    if not sound or not all(_natural(extent, ENTRIES_LIMIT) and extent for extent in shape):
        _bad(path, f"{where} has the shape {shape!s:.80}, not one to eight extents from 1 to 2^40")
    entries = prod(shape)
    if entries > ENTRIES_LIMIT:
        _bad(path, f"{where} of shape {shape!s:.80} has more than 2^40 entries")
    if not isinstance(row["dtype"], str) or row["dtype"] not in FLOATS:
        _bad(path, f"{where} has the dtype {row['dtype']!r:.40}, none of {', '.join(FLOATS)}")
    if not isinstance(row["base"], str) or not _CHECKSUM.fullmatch(row["base"]):
        _bad(path, f"{where}: its base is {row['base']!r:.80}, not 32 hexadecimal digits")
    if not _natural(row["selected"], entries):
        _bad(path, f"{where}: {row['selected']!s:.40} of {entries} entries cannot be selected")
    if row["coding"] not in CODINGS:
        _bad(path, f"{where}: its coding {row['coding']!r:.40} is none of {', '.join(CODINGS)}")
    if not _natural(row["parameter"], 63):
        _bad(path, f"{where}: its parameter is {row['parameter']!s:.40}, not 0 to 63")
    origin = Origin(row["dtype"], row["base"])
    return TensorPlan(
        name, tuple(shape), origin, row["selected"], row["coding"], row["parameter"], size
    )


def _check_memory(plan: Plan) -> None:
    """A few bytes of file may stand for any number of entries: refuse more than memory can hold."""
    needed = sum(-(-one.entries // 8) for one in plan.tensors)
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not hasattr(os, "sysconf") or not set(names) <= set(os.sysconf_names):
        return
    most = prod(os.sysconf(name) for name in names)
    if needed > most:
        largest = max(plan.tensors, key=lambda one: one.entries)
        plan.bad(
            f"its flags take {needed} bytes ({largest.name!r} alone has the shape "
            f"{list(largest.shape)}), and this machine has {most}"
        )
