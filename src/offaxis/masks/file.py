"""Masks in files: a safetensors file of coded flags (docs/mask-format.md)."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from offaxis.checkpoint.digest import Digest
from offaxis.errors import InputError
from offaxis.kernels.pool import for_each
from offaxis.masks.coding import Coded, decode, encode
from offaxis.masks.header import (
    FORMAT,
    HEADER_LIMIT,
    VERSION,
    Plan,
    TensorPlan,
    described,
    read_plan,
)
from offaxis.masks.mask import Bits, Mask
from offaxis.names import natural_key
from offaxis.output import explained, staged_file

__all__ = ["load", "save"]

_BLOCK = 1 << 22


def _natural(name: str) -> tuple[Any, str]:
    return natural_key(name), name


def save(mask: Mask, path: str | PathLike[str]) -> None:
    """Write a mask to a file of exactly this name; the same mask always gives the same bytes.

    Parents are created; a file that is there is replaced. Raises OutputError where it cannot be
    written, InputError where the mask has more tensors or a longer rule than the format allows.
    """
    out = Path(path)
    names = sorted(mask, key=_natural)
    coded = for_each(lambda name: encode(mask.bits[name], mask.entries(name)), names)
    plans = [_plan(mask, name, one) for name, one in zip(names, coded, strict=True)]
    metadata = {"format": FORMAT, "version": VERSION, "rule": mask.rule}
    metadata |= {"density": repr(mask.density), "base": mask.base_digest}
    metadata["tensors"] = described(plans)
    digest = Digest(_prelude(metadata))
    for one in coded:
        digest.update(one.data.data)
    metadata["content"] = digest.hexdigest()
    header = _header(metadata, plans, out)
    with staged_file(out) as staged, explained(out), staged.open("wb") as file:
        file.write(header)
        for one in coded:
            file.write(one.data.data)
        file.flush()
        os.fsync(file.fileno())


def _plan(mask: Mask, name: str, coded: Coded) -> TensorPlan:
    return TensorPlan(
        name=name,
        shape=mask.shapes[name],
        origin=mask.origins[name],
        selected=mask.count(name),
        coding=coded.coding,
        parameter=coded.parameter,
        size=coded.data.size,
    )


def _header(metadata: dict[str, str], plans: Sequence[TensorPlan], out: Path) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces to a multiple of eight."""
    document: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for plan in plans:
        ends = [at, at + plan.size]
        document[plan.name] = {"dtype": "U8", "shape": [plan.size], "data_offsets": ends}
        at += plan.size
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    if len(text) > HEADER_LIMIT:
        raise InputError(
            f"{out}: the mask's description takes {len(text)} bytes, above the format's limit of "
            f"{HEADER_LIMIT}; make it with a shorter rule, or from a model of fewer tensors"
        )
    return struct.pack("<Q", len(text)) + text


def _prelude(metadata: dict[str, str]) -> bytes:
    """What the content checksum covers before the tensors' bytes."""
    return "".join(f"{metadata[key]}\n" for key in ("rule", "density", "base", "tensors")).encode()


def load(path: str | PathLike[str]) -> Mask:
    """The mask in a file that `save` or `offaxis mask` wrote.

    Every byte is checked. Raises InputError, naming the file and the tensor, where the file is
    missing, no mask, of another version, truncated or damaged anywhere.
    """
    file = Path(fspath(path)).expanduser()
    plan = read_plan(file)
    _check_content(plan)
    bits: dict[str, Bits] = {}
    with file.open("rb") as stream:
        stream.seek(plan.start)
        for one in plan.tensors:
            bits[one.name] = _bits(plan, one, stream.read(one.size))
    inside = sorted(plan.tensors, key=lambda one: _natural(one.name))
    mask = Mask(
        {one.name: bits[one.name] for one in inside},
        {one.name: one.shape for one in inside},
        {one.name: one.origin for one in inside},
        plan.metadata["rule"],
    )
    _check_totals(plan, mask)
    return mask


def _check_totals(plan: Plan, mask: Mask) -> None:
    """That the metadata tells the density and the base's digest as they are."""
    said = plan.metadata["density"]
    try:
        sound = float(said) == mask.density
    except ValueError:
        sound = False
    if not sound:
        plan.bad(f"its density is {mask.density!r}, not {said!r:.40}")
    if plan.metadata["base"] != mask.base_digest:
        plan.bad(f"its base has digest {mask.base_digest}, not {plan.metadata['base']!r:.40}")


def _check_content(plan: Plan) -> None:
    digest = Digest(_prelude(dict(plan.metadata)))
    left = sum(one.size for one in plan.tensors)
    with plan.path.open("rb") as stream:
        stream.seek(plan.start)
        while left and (block := stream.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest() != plan.metadata["content"]:
        plan.bad("its checksum does not match its content: it is damaged")


def _bits(plan: Plan, one: TensorPlan, raw: bytes) -> Bits:
    data = np.frombuffer(raw, np.uint8)
    try:
        return decode(Coded(one.coding, one.parameter, data), one.entries, selected=one.selected)
    except ValueError as error:
        plan.bad(f"tensor {one.name!r}: {error}")
    except MemoryError:
        plan.bad(f"tensor {one.name!r} of shape {list(one.shape)} does not fit into memory")
