"""How far a mask is another one, beside what chance and the sizes of the weights alone give."""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from os import fspath
from pathlib import Path
from typing import Any

from offaxis import measures
from offaxis.checkpoint import Checkpoint
from offaxis.errors import InputError
from offaxis.kernels import bin_counts, popcount
from offaxis.masks.building import AnyPath, Progress, ground_of, matrices, over_parts
from offaxis.masks.describing import info
from offaxis.masks.expression import filled, parse
from offaxis.masks.file import load
from offaxis.masks.mask import Bits, Mask
from offaxis.masks.side import Side
from offaxis.masks.sources import Sources
from offaxis.measures.number import Number

__all__ = ["inspect", "mask_or_rule"]

FIXED = ("principal", "low_magnitude")
"""The rules that every mask is held against."""

_RANGES = 4
_ITSELF, _OTHER = "itself", "other"


def mask_or_rule(text: str) -> Mask | str:
    """The mask in the file of that name where there is one, else the text, a rule.

    InputError where it is neither.
    """
    if Path(text).expanduser().exists():
        return load(text)
    try:
        parse(text)
    except InputError as error:
        raise InputError(f"{text!r:.200} is no file, and as a rule: {error}") from error
    return text


def inspect(
    mask: Mask | AnyPath,
    base: AnyPath | Checkpoint,
    *,
    other: Mask | str | None = None,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Check a mask against its base, and say how far it is the fixed masks, and `other`.

    other: a mask, or a rule. Returns what `info` does, `roles` in at most four runs of layers, and
    `against`, one row for `principal`, for `low_magnitude` and for `other`: its `rule`, and means
    over the matrices where they are defined (null where none is):

    - `share`: |A ∩ B| / |A|, A the mask, B the row's; `share_of_rule`: |A ∩ B| / |B|; `jaccard`:
      |A ∩ B| / |A ∪ B|;
    - each with `_chance`, what random masks of these densities give, and `_magnitude_null`, what
      masks with as many entries in each bin of |W₀| give (`offaxis.measures`).

    Raises InputError where the mask is not of this base.
    """
    chosen = mask if isinstance(mask, Mask) else load(fspath(mask))
    ground = ground_of(base, allow_pickle=allow_pickle)
    parts = matrices(ground)
    sources = Sources(ground, parts, scores={}, allow_pickle=allow_pickle)
    sources.give(_ITSELF, chosen)
    rules = {rule: filled(parse(rule), {}) for rule in FIXED}
    if isinstance(other, Mask):
        sources.give(_OTHER, other)
    elif other is not None:
        rules[_OTHER] = filled(parse(other), {})
    for node in rules.values():
        for call in node.calls():
            sources.provide(call)
    told = {name: str(node) for name, node in rules.items()}
    if isinstance(other, Mask):
        told[_OTHER] = other.rule

    def compared(side: Side) -> dict[str, dict[str, Number]]:
        ours = sources.saved(_ITSELF, side.view)
        masks = {name: node.bits(side) for name, node in rules.items()}
        if isinstance(other, Mask):
            masks[_OTHER] = sources.saved(_OTHER, side.view)
        return {name: _numbers(side, ours, bits) for name, bits in masks.items()}

    found = list(over_parts(compared, ground, parts, elsewhere=sources, progress=progress))
    against = [{"rule": told[name]} | _means([one[name] for one in found]) for name in told]
    return info(chosen, ranges=_RANGES) | {"against": against}


def _numbers(side: Side, first: Bits, second: Bits) -> dict[str, Number]:
    """All that one matrix tells of two masks."""
    ours, its = bin_counts(side.codes, first), bin_counts(side.codes, second)
    p, q = popcount(first) / side.entries, popcount(second) / side.entries
    return {
        "share": measures.overlap(first, second),
        "share_chance": Number(q) if p else measures.overlap(first, second),
        "share_magnitude_null": measures.magnitude_null(side.bins, ours, its),
        "share_of_rule": measures.overlap(second, first),
        "share_of_rule_chance": Number(p) if q else measures.overlap(second, first),
        "share_of_rule_magnitude_null": measures.magnitude_null(side.bins, its, ours),
        "jaccard": measures.jaccard(first, second),
        "jaccard_chance": measures.jaccard_chance(p, q),
        "jaccard_magnitude_null": measures.jaccard_magnitude_null(side.bins, ours, its),
    }


def _means(rows: list[dict[str, Number]]) -> dict[str, float | None]:
    """The mean of each number over the matrices that have it."""
    out: dict[str, float | None] = {}
    for name in rows[0]:
        values = [row[name].value for row in rows]
        there = [value for value in values if value is not None]
        out[name] = fsum(there) / len(there) if there else None
    return out
