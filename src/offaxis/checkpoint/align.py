"""Match the tensors of a tuned checkpoint with those of its base, from headers alone.

Both sides are cut into pieces under names that do not depend on fusing or stacking; the best
renaming carries the tuned names onto the base's; experts that the two sides store in different
orientations are read as the base stores them; what stays unmatched becomes an explicit row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from offaxis.checkpoint.dtypes import FLOATS
from offaxis.checkpoint.tied import Head, find_head
from offaxis.checkpoint.types import (
    Aligned,
    Checkpoint,
    Mismatch,
    Part,
    PartPair,
    TensorPair,
    View,
)
from offaxis.checkpoint.wording import check_alike, check_unique, check_whole, words
from offaxis.names import Piece, Rule, pieces, rename

__all__ = ["align", "cut", "read_pair"]

Status = Literal["missing", "extra", "reshaped", "tied", "not_float", "buffer"]


def align(base: Checkpoint, tuned: Checkpoint) -> Aligned:
    """The plan for one pair: matched parts, and one row for everything without a counterpart.

    Parts come in natural order of the base's names. No tensor is read, except a few windows of an
    LM head and an embedding where the config does not say whether they are tied.

    Raises AlignmentError where nothing matches, or the two are different architectures.
    """
    check_whole(base)
    check_whole(tuned)
    ours, theirs = _pieces(base), _pieces(tuned)
    check_unique(base, ours)
    check_unique(tuned, theirs)
    renaming = rename(
        {piece.key: piece.extent for piece in ours}, {piece.key: piece.extent for piece in theirs}
    )
    landed = {new: old for old, new in renaming.names.items()}
    by_key = {piece.key: piece for piece in theirs}
    found = [(piece, by_key.get(landed.get(piece.key, ""))) for piece in ours]
    couples = [(one, other and other.facing(one)) for one, other in found]
    rest = [piece for piece in theirs if piece.key not in renaming.names]
    matched = [(one, other) for one, other in couples if other is not None]
    check_alike(base, tuned, couples)
    sides = _Sides(base, tuned, find_head(base, ours), find_head(tuned, theirs))
    rows: list[Mismatch] = []
    pairs: list[PartPair] = []
    for one, other in couples:
        row = sides.mismatch(one, other)
        if row is not None:
            rows.append(row)
        elif other is not None:
            pairs.append(sides.pair(one, other))
    rows.extend(sides.leftover(piece) for piece in rest)
    renamed = {other.label: one.label for one, other in matched if other.name != one.name}
    return Aligned(tuple(pairs), tuple(rows), _words(renaming.rules, matched), renamed)


def _words(rules: Sequence[Rule], matched: Sequence[tuple[Piece, Piece]]) -> str:
    """The renaming in words, and whether experts had to be turned."""
    said = words(rules, matched)
    if not any(other.turned for _, other in matched):
        return said
    return "turned experts" if said == "identity" else f"{said}; turned experts"


def read_pair(base: Checkpoint, tuned: Checkpoint, pair: PartPair) -> TensorPair:
    """The values of one matched part: contiguous, in stored dtype and the base's orientation."""
    return TensorPair(
        pair.part, cut(base[pair.base.name], pair.base), cut(tuned[pair.tuned.name], pair.tuned)
    )


def cut(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """The part of a stored tensor that `view` says: contiguous, in its dtype."""
    if view.slices is not None:
        tensor = tensor[tuple(slice(start, stop) for start, stop in view.slices)]
    if view.drop_leading:
        tensor = tensor[0]
    if view.turned:
        tensor = tensor.T
    return tensor.contiguous()


def _pieces(checkpoint: Checkpoint) -> list[Piece]:
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    return pieces(shapes, config=checkpoint.config)


class _Sides:
    """What is needed to judge one couple of pieces: both checkpoints and their heads."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, ours: Head, theirs: Head) -> None:
        self.base = base
        self.tuned = tuned
        self.heads = (ours, theirs)
        self.tied = self._both_tied()

    def _both_tied(self) -> bool:
        stored = [head for head in self.heads if head.head is not None]
        return bool(stored) and all(head.tied() for head in self.heads)

    def mismatch(self, one: Piece, other: Piece | None) -> Mismatch | None:
        """The row of a base piece that cannot be measured, or None where it can."""
        codes = [self.base.specs[one.name].dtype]
        if other is not None:
            codes.append(self.tuned.specs[other.name].dtype)
        if not FLOATS.issuperset(codes):
            return _row(one, "not_float", _dtypes(codes, one_sided=other is None))
        if one.place.buffer:
            return _row(one, "buffer", "a constant of the model, not a parameter")
        if one.place.role == "lm_head" and self.tied:
            return _row(one, "tied", self._same_as(self.heads[0]))
        if other is None:
            return _row(one, "missing", f"base {one.shape}, not in tuned")
        if one.shape != other.shape:
            return _row(one, "reshaped", f"base {one.shape}, tuned {other.shape}")
        return None

    def leftover(self, piece: Piece) -> Mismatch:
        """The row of a tuned piece that lands on no base tensor."""
        code = self.tuned.specs[piece.name].dtype
        if code not in FLOATS:
            return _row(piece, "not_float", f"{code}, in tuned only")
        if piece.place.buffer:
            return _row(piece, "buffer", "a constant of the model, in tuned only")
        if piece.place.role == "lm_head" and self.tied:
            return _row(piece, "tied", self._same_as(self.heads[1]))
        return _row(piece, "extra", f"tuned {piece.shape}, not in base")

    @staticmethod
    def _same_as(head: Head) -> str:
        assert head.embedding is not None  # a tied head has one
        return f"same tensor as {head.embedding.name}"

    def pair(self, one: Piece, other: Piece) -> PartPair:
        return PartPair(
            part=_part(one),
            base=_view(one),
            tuned=_view(other),
            base_dtype=self.base.specs[one.name].dtype,
            tuned_dtype=self.tuned.specs[other.name].dtype,
        )


def _dtypes(codes: Sequence[str], *, one_sided: bool) -> str:
    if one_sided:
        return f"{codes[0]}, in base only"
    return f"{codes[0]} in both" if codes[0] == codes[1] else f"base {codes[0]}, tuned {codes[1]}"


def _row(piece: Piece, status: Status, detail: str) -> Mismatch:
    where = piece.place
    return Mismatch(piece.label, where.layer, where.role, where.expert, piece.shape, status, detail)


def _part(piece: Piece) -> Part:
    where = piece.place
    return Part(
        tensor=piece.label,
        layer=where.layer,
        role=where.role,
        expert=where.expert,
        shape=piece.shape,
        is_matrix=piece.is_matrix,
        transposed=where.transposed,
    )


def _view(piece: Piece) -> View:
    return View(piece.name, piece.slices, piece.drop_leading, piece.turned)
