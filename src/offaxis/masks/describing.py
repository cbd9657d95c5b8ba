"""What a mask holds: its rule, its density, and where in the model that lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offaxis.kernels import popcount, unpack
from offaxis.masks.mask import Mask
from offaxis.names import Piece, pieces

__all__ = ["info"]

_Count = tuple[int, int]


def info(mask: Mask, *, ranges: int = 1) -> dict[str, Any]:
    """What a mask holds, as plain values that JSON can hold.

    Keys: `schema`, `rule`, `density`, `selected`, `entries`, `tensors`, `base` (digest), and
    `roles`: one row for each role and each of at most `ranges` runs of its layers (`role`, `layers`
    [first, last] or null, `matrices`, `entries`, `selected`, `density`). Fused and stacked tensors
    count as their parts.
    """
    return {
        "schema": 1,
        "rule": mask.rule,
        "density": mask.density,
        "selected": mask.selected,
        "entries": sum(map(mask.entries, mask)),
        "tensors": len(mask),
        "base": mask.base_digest,
        "roles": _roles(mask, ranges),
    }


def _roles(mask: Mask, ranges: int) -> list[dict[str, Any]]:
    found: dict[str, dict[int | None, list[_Count]]] = {}
    for piece, count in _counts(mask):
        found.setdefault(piece.place.role, {}).setdefault(piece.place.layer, []).append(count)
    rows = []
    for role, by_layer in found.items():
        layers = sorted(layer for layer in by_layer if layer is not None)
        runs = [run.tolist() for run in np.array_split(layers, ranges) if run.size]
        for run in [*runs, *([[None]] if None in by_layer else [])]:
            counts = [count for layer in run for count in by_layer[layer]]
            selected, entries = (sum(one) for one in zip(*counts, strict=True))
            rows.append(
                {
                    "role": role,
                    "layers": None if run == [None] else [run[0], run[-1]],
                    "matrices": len(counts),
                    "entries": entries,
                    "selected": selected,
                    "density": selected / entries,
                }
            )
    return rows


def _counts(mask: Mask) -> Iterator[tuple[Piece, _Count]]:
    """(part, (selected, entries)) of every part of every tensor."""
    flags, unpacked = np.zeros(0, np.bool_), ""
    for piece in pieces(mask.shapes):
        if piece.slices is None:
            yield piece, (popcount(mask.bits[piece.name]), mask.entries(piece.name))
            continue
        if unpacked != piece.name:
            flags, unpacked = unpack(mask.bits[piece.name], mask.shapes[piece.name]), piece.name
        inside = flags[tuple(slice(start, stop) for start, stop in piece.slices)]
        yield piece, (int(np.count_nonzero(inside)), inside.size)
