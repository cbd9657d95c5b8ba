"""What rules read beside the base: other checkpoints, scores, saved masks; opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch

from offaxis.checkpoint import (
    AdapterCheckpoint,
    Checkpoint,
    MemoryCheckpoint,
    Part,
    PartPair,
    View,
    align,
    bind,
    open_checkpoint,
)
from offaxis.checkpoint.align import cut
from offaxis.errors import InputError
from offaxis.kernels import pack, unpack
from offaxis.masks.mask import Bits, Mask, flags_at
from offaxis.masks.side import plain

if TYPE_CHECKING:
    from offaxis.masks.expression import Call

__all__ = ["Sources"]


class Sources:
    """Checkpoints, scores and masks by the names that rules give them, matched to the base."""

    def __init__(
        self,
        ground: Checkpoint,
        parts: Mapping[str, Sequence[PartPair]],
        *,
        scores: Mapping[str, Checkpoint],
        allow_pickle: bool,
    ) -> None:
        """parts: stored tensor -> what of it a mask of `ground` is made of."""
        self._ground, self._parts, self._scores = ground, parts, scores
        self._allow_pickle = allow_pickle
        self._sides: dict[str, tuple[Checkpoint, dict[str, PartPair]]] = {}
        self._masks: dict[str, Mask] = {}

    def provide(self, call: Call) -> None:
        """Open what a rule needs and match it, so that errors come before work."""
        if call.name == "subnetwork":
            self._open(call.options["tuned"])
        if call.name in ("gradient", "fisher"):
            if call.name not in self._scores:
                raise InputError(
                    f"rule {call.name} needs scores of every weight: give data to compute them "
                    "from, or build(..., scores={...}) in Python"
                )
            self._match(call.name, self._scores[call.name])
        if call.name == "file" and call.options["path"] not in self._masks:
            from offaxis.masks.file import load

            self.give(call.options["path"], load(call.options["path"]))

    def give(self, name: str, mask: Mask) -> None:
        """Have `saved` know a mask under a name. InputError unless it is of all of this base."""
        mask.check(self._ground)
        for tensor in self._parts:
            if tensor not in mask:
                raise InputError(
                    f"the mask {mask.rule} does not cover {tensor} of {self._ground.source}; make "
                    "it again from this model"
                )
        self._masks[name] = mask

    @property
    def collective(self) -> bool:
        """True where tensors must be read in one order in all processes (`MemoryCheckpoint`)."""
        sides = (self._ground, *(side for side, _ in self._sides.values()))
        return any(isinstance(one, MemoryCheckpoint) and one.collective for one in sides)

    def _open(self, source: str) -> None:
        if source in self._sides:
            return
        found = open_checkpoint(source, allow_pickle=self._allow_pickle)
        self._match(source, bind(found, self._ground) if isinstance(found, AdapterCheckpoint)
                    else found)  # fmt: skip

    def _match(self, name: str, side: Checkpoint) -> None:
        found = align(self._ground, side)
        pairs = {pair.part.tensor: pair for pair in found.pairs}
        why = {row.tensor: f" ({row.detail})" for row in found.mismatches}
        for label in (pair.part.tensor for parts in self._parts.values() for pair in parts):
            if label not in pairs:
                raise InputError(
                    f"{side.source} has nothing to match {label} of {self._ground.source}"
                    f"{why.get(label, '')}; give a checkpoint of the same model"
                )
        self._sides[name] = side, pairs

    def tuned(self, source: str, part: Part) -> torch.Tensor:
        side, pairs = self._sides[source]
        view = pairs[part.tensor].tuned
        return plain(cut(side[view.name], view))

    def scores(self, kind: str, part: Part) -> torch.Tensor:
        found = self.tuned(kind, part)
        bad = int(torch.isnan(found).sum())
        if bad:
            raise InputError(
                f"{part.tensor}: {bad} of {found.numel()} scores for the rule {kind} are NaN, and "
                "have no order; compute them again, in float32"
            )
        return found

    def saved(self, source: str, view: View) -> Bits:
        mask = self._masks[source]
        bits, shape = mask.bits[view.name], mask.shapes[view.name]
        if view.slices is None:
            return bits
        slices = tuple(slice(start, stop) for start, stop in view.slices)
        if not view.drop_leading:
            return pack(unpack(bits, shape)[slices])
        size = prod(shape[1:])  # of one expert, which alone is unpacked
        flags = flags_at(bits, view.slices[0][0] * size, size).reshape(shape[1:])
        return pack(flags[slices[1:]])
