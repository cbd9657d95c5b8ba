"""`describe`: what is in a checkpoint, from its headers alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from offaxis.checkpoint.adapter import AdapterCheckpoint
from offaxis.checkpoint.dtypes import FLOATS, WIDTHS
from offaxis.checkpoint.locate import Located, locate
from offaxis.checkpoint.opening import open_any
from offaxis.checkpoint.quantised import quantised
from offaxis.checkpoint.tied import find_head
from offaxis.checkpoint.types import Checkpoint, TensorSpec
from offaxis.names import Piece, pieces

__all__ = ["describe"]


def describe(
    source: str | Path, *, allow_pickle: bool = False, revision: str | None = None
) -> dict[str, Any]:
    """What is in a checkpoint, as plain values that JSON can hold.

    Keys: `source`, `kind`, `family`, `files` (name, bytes, tensors), `bytes` (of tensors),
    `parameters` (floating-point, a tied head counted once), `tensors`, `matrices`, `layers`,
    `experts`, `dtypes`, `roles` (one row a role and shape, with the layers that have it), `tied`,
    `quantised` (null, or why it cannot be compared), `adapter` (null, or its settings), `notes`.

    A quantised checkpoint is described, not refused. Raises CheckpointError as `open_checkpoint`.
    """
    located = locate(source, allow_pickle=allow_pickle, revision=revision)
    checkpoint = open_any(located)
    specs = checkpoint.specs
    shapes = {name: spec.shape for name, spec in specs.items()}
    parts = pieces(shapes, config=checkpoint.config)
    head = find_head(checkpoint, parts)
    reason = quantised(checkpoint.config, specs)
    tied = None if head.embedding is None or reason is not None else head.tied()
    skip = head.head.name if tied and head.head is not None else None
    counted = [
        part
        for part in parts
        if specs[part.name].dtype in FLOATS and not part.place.buffer and part.name != skip
    ]
    return {
        "source": str(source),
        "kind": _kind(located),
        "family": checkpoint.config.get("model_type"),
        "files": _files(located, specs),
        "bytes": sum(map(_bytes, specs.values())),
        "parameters": sum(_numel(part.shape) for part in counted),
        "tensors": len(specs),
        "matrices": sum(part.is_matrix for part in counted),
        "layers": len({p.place.layer for p in parts if not p.place.tower} - {None}),
        "experts": len({part.place.expert for part in parts} - {None}),
        "dtypes": _dtypes(specs.values()),
        "roles": _roles(parts, specs),
        "tied": tied,
        "quantised": reason,
        "adapter": _adapter(checkpoint),
        "notes": _notes(parts, tied=tied, head_stored=head.head is not None),
    }


def _kind(located: Located) -> str:
    if located.adapter is not None:
        return "adapter"
    kind = "pickle" if located.pickled else "safetensors"
    return f"{kind}, {len(located.files)} shards" if len(located.files) > 1 else kind


def _numel(shape: Iterable[int]) -> int:
    out = 1
    for extent in shape:
        out *= extent
    return out


def _bytes(spec: TensorSpec) -> int:
    return spec.numel * WIDTHS[spec.dtype] // 8


def _files(located: Located, specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    tensors: dict[str, int] = defaultdict(int)
    for spec in specs.values():
        tensors[spec.shard] += 1
    return [
        {
            "name": path.relative_to(located.root).as_posix(),
            "bytes": path.stat().st_size,
            "tensors": tensors[path.relative_to(located.root).as_posix()],
        }
        for path in located.files
    ]


def _dtypes(specs: Iterable[TensorSpec]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for spec in specs:
        row = out.setdefault(spec.dtype, {"tensors": 0, "elements": 0, "bytes": 0})
        row["tensors"] += 1
        row["elements"] += spec.numel
        row["bytes"] += _bytes(spec)
    return dict(sorted(out.items()))


def _roles(parts: Iterable[Piece], specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    """One row for each role, shape and dtype, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Piece]] = {}
    for part in parts:
        key = (part.place.role, part.shape, specs[part.name].dtype, part.place.transposed)
        groups.setdefault(key, []).append(part)
    return [
        {
            "role": role,
            "shape": list(shape),
            "dtype": dtype,
            "transposed": transposed,
            "matrix": members[0].is_matrix,
            "parts": len(members),
            "elements": sum(_numel(member.shape) for member in members),
            "layers": sorted({m.place.layer for m in members if m.place.layer is not None}),
        }
        for (role, shape, dtype, transposed), members in groups.items()
    ]


def _adapter(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not isinstance(checkpoint, AdapterCheckpoint):
        return None
    keys = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "use_dora")
    return {key: checkpoint.adapter.get(key) for key in keys}


def _notes(parts: Iterable[Piece], *, tied: bool | None, head_stored: bool) -> list[str]:
    """What a reader of the table should know: fused, stacked, tied and turned weights."""
    fused = {part.name for part in parts if part.slices is not None and not part.drop_leading}
    stacked = {part.name for part in parts if part.drop_leading}
    turned = {part.name for part in parts if part.place.transposed}
    notes = []
    if fused:
        notes.append(f"{len(fused)} fused tensors are split into projections ({min(fused)}, ...)")
    if stacked:
        notes.append(f"{len(stacked)} stacked tensors are split into experts ({min(stacked)}, ...)")
    if turned:
        notes.append(f"{len(turned)} weights are stored transposed, (in, out) ({min(turned)}, ...)")
    if tied:
        how = "stored twice, counted once" if head_stored else "not stored"
        notes.append(f"the LM head is tied to the embedding ({how})")
    return notes
