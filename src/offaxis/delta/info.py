"""What a delta says of itself: sizes, what changed by layer and role, what is worth knowing."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from offaxis.checkpoint.header import Entry
from offaxis.delta.container import FORMAT, VERSION
from offaxis.delta.folder import is_state, resumes
from offaxis.delta.opened import Delta
from offaxis.delta.plan import TensorPlan
from offaxis.delta.words import words_of
from offaxis.names import place

__all__ = ["delta_info", "describe"]

_MOVES_ALL = 0.9


def delta_info(path: str | Path) -> dict[str, Any]:
    """What is in a delta file, as plain values that JSON can hold.

    Keys: `schema`, `file`, `bytes`, `format`, `version`, `codec`, `writer`; `base` and `tuned`
    (content digests); `rounded_to` (null, or the dtype of an export); `entries`, `changed`,
    `changed_share`; `tensors`, `unchanged_tensors`, `removed` (names), `codecs` (tensors by
    codec); `export` (weights, configuration, tokenizer) and `resumable` (everything; null where
    nothing can be resumed from it), each with `bytes`, `delta` and `saved`; `roles` (one
    row a layer and role: `layer`, `role`, `tensors`, `entries`, `changed`, `bytes`, `delta`);
    `notes`. Raises DeltaError where the file is damaged.
    """
    return describe(Delta.open(path))


def describe(delta: Delta) -> dict[str, Any]:
    """`delta_info` of an opened delta."""
    plan, container = delta.plan, delta.container
    entries = sum(_entries(entry) for _, entry, _ in delta.entries)
    changed = sum(one.changed for _, _, one in delta.entries)
    codecs: dict[str, int] = defaultdict(int)
    for _, _, one in delta.entries:
        codecs[one.codec] += 1
    return {
        "schema": 1,
        "file": str(delta.path),
        "bytes": container.size,
        "format": FORMAT,
        "version": VERSION,
        "codec": container.metadata.get("codec"),
        "writer": container.metadata.get("writer"),
        "base": plan.base,
        "tuned": plan.tuned,
        "rounded_to": plan.export,
        "entries": entries,
        "changed": changed,
        "changed_share": changed / entries if entries else None,
        "tensors": len(delta.entries),
        "unchanged_tensors": codecs.get("same", 0),
        "removed": list(plan.removed),
        "codecs": dict(sorted(codecs.items())),
        **_savings(delta),
        "roles": _roles(delta),
        "notes": _notes(delta),
    }


def _entries(entry: Entry) -> int:
    """Words of a tensor: its elements, but two for a complex number, and bytes below a byte."""
    return (entry.stop - entry.start) * 8 // words_of(entry.dtype).bits


def _savings(delta: Delta) -> dict[str, Any]:
    """Sizes apart for what is exported and for what can be resumed from."""
    state = [other for other in delta.plan.others if is_state(other.path)]
    resumable = any(resumes(other.path) for other in state)
    state_bytes = sum(other.size for other in state)
    state_delta = sum(other.length for other in state)
    whole = _saving(delta.plan.size, delta.container.size)
    export = _saving(delta.plan.size - state_bytes, delta.container.size - state_delta)
    return {"export": export, "resumable": whole if resumable else None}


def _saving(size: int, delta: int) -> dict[str, Any]:
    return {"bytes": size, "delta": delta, "saved": 1 - delta / size if size else None}


def _roles(delta: Delta) -> list[dict[str, Any]]:
    """One row a layer and role, layers first to last, tensors without a layer at the end."""
    rows: dict[tuple[int | None, str], list[tuple[Entry, TensorPlan]]] = defaultdict(list)
    shapes = {entry.name: entry.shape for _, entry, _ in delta.entries}
    for _, entry, plan in delta.entries:
        found = place(entry.name, entry.shape, shapes=shapes)
        rows[found.layer, found.role].append((entry, plan))
    order = sorted(rows, key=lambda key: (key[0] is None, key[0] or 0, key[1]))
    return [
        {
            "layer": layer,
            "role": role,
            "tensors": len(rows[layer, role]),
            "entries": sum(_entries(entry) for entry, _ in rows[layer, role]),
            "changed": sum(plan.changed for _, plan in rows[layer, role]),
            "bytes": sum(entry.stop - entry.start for entry, _ in rows[layer, role]),
            "delta": sum(plan.length for _, plan in rows[layer, role]),
        }
        for layer, role in order
    ]


def _notes(delta: Delta) -> list[str]:
    """What a user should know, in whole sentences."""
    out = []
    wide = [(e, p) for _, e, p in delta.entries if e.dtype == "F32"]
    entries = sum(_entries(entry) for entry, _ in wide)
    changed = sum(plan.changed for _, plan in wide)
    if entries and changed > _MOVES_ALL * entries:
        out.append(
            f"{changed / entries:.1%} of {entries:,} float32 entries changed, as in any step. To "
            "keep the weights for serving, --export bf16 rounds them first (each by at most 1 part "
            "in 256): entries that moved by less than that fall back onto the base's, and the file "
            "shrinks. Training cannot be resumed exactly from it."
        )
    if delta.plan.removed:
        out.append(f"{len(delta.plan.removed)} tensors of the base are not in the tuned model.")
    return out
