"""One file: written whole, and refused unless it is whole and holds what the schema allows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from offaxis.checkpoint.digest import checksum
from offaxis.comparison.contribution.schema import faults, schema
from offaxis.errors import InputError
from offaxis.output import staged_file

__all__ = ["read_contribution", "sealed", "write_contribution"]

_LARGEST = 64_000_000
_SHARES = re.compile("overlap|jaccard|_in_")
"""Measures that are shares or differences of two, whatever their nulls."""
_MEAN = re.compile(r"\[\s+([^\[\]{}\"]+?)\s+\]")


def sealed(told: Mapping[str, Any]) -> dict[str, Any]:
    """The contribution with its checksum: of its JSON without it, keys sorted, no blanks."""
    body = {name: value for name, value in told.items() if name != "checksum"}
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return {**body, "checksum": checksum(text.encode())}


def write_contribution(told: Mapping[str, Any], path: str | PathLike[str]) -> Path:
    """Write a contribution to a file of exactly this name, whole or not at all.

    Raises InputError where it breaks the schema, which then holds something that must not be sent.
    """
    complete = sealed(told)
    wrong = list(itertools.islice(_wrong(complete), 1))
    if wrong:
        raise InputError(
            f"this comparison cannot be contributed: {wrong[0]}; change what it was given (names "
            "of letters, digits and ._+-), or report it"
        )
    with staged_file(Path(path)) as staged:
        text = json.dumps(complete, indent=1, ensure_ascii=True, allow_nan=False)
        staged.write_text(_MEAN.sub(_on_one_line, text) + "\n", encoding="ascii")
    return Path(path)


def _on_one_line(mean: re.Match[str]) -> str:
    return f"[{' '.join(mean[1].split())}]"


def read_contribution(path: str | PathLike[str]) -> dict[str, Any]:
    """A contribution, checked: JSON, schema, checksum, intervals around their means.

    Raises InputError that names the file and the first thing that is wrong with it. The checksum
    tells damage and careless edits; it is no signature.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file}: {file.stat().st_size:,} bytes are no contribution; give one")
        told = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: cannot be read as JSON ({error}); ask its author to send it again"
        ) from error
    if not isinstance(told, dict) or told.get("format") != "offaxis contribution":
        raise InputError(f"{file}: no contribution of offaxis; give what `contribute` wrote")
    for wrong in _wrong(told):
        raise InputError(f"{file}: {wrong}; it needs what `contribute` wrote, unchanged")
    if sealed(told)["checksum"] != told["checksum"]:
        raise InputError(
            f"{file}: its checksum does not fit what it holds: it was damaged or edited; ask its "
            "author to send it again"
        )
    return told


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _wrong(told: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a contribution, the schema first."""
    broken = False
    for fault in faults(dict(told), schema()):
        broken = True
        yield fault
    if broken:
        return
    pairs = len(told["pairs"])
    for index, one in enumerate(told["overlaps"]):
        if not one["first"] < one["second"] < pairs:
            yield f"overlaps[{index}] is of pairs {one['first']} and {one['second']} of {pairs}"
        yield from _intervals(
            {name: mean for name, mean in one.items() if isinstance(mean, list)},
            f"overlaps[{index}]",
        )
    for index, pair in enumerate(told["pairs"]):
        for group in (pair, *pair["roles"], *pair["layers"]):
            yield from _intervals(group["means"], f"pairs[{index}]")


def _intervals(means: Mapping[str, list[float | None]], where: str) -> Iterator[str]:
    """A mean lies within its interval, is there where anything was measured, and can be one."""
    for name, (value, low, high, count) in means.items():
        if value is not None and abs(value) > 1 and _SHARES.search(name):
            yield f"{where}.{name} has a mean of {value}, which no share has"
        if (value is None) != (count == 0) or (low is None) != (high is None):
            yield f"{where}.{name} has a mean of {value} over {count} matrices"
        elif value is None or low is None or high is None:
            if low is not None:
                yield f"{where}.{name} has an interval without a mean"
        elif not low <= value <= high:
            yield f"{where}.{name} has a mean of {value} outside [{low}, {high}]"
