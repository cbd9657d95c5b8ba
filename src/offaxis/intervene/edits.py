"""What an edit does to one tensor, and how it is undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from offaxis.errors import InputError
from offaxis.intervene.blocks import Heads, Slot
from offaxis.intervene.drawing import Order

__all__ = ["Edit", "Gather", "Turn", "gathers", "turns"]


@dataclass(frozen=True, eq=False)
class Gather:
    """PERMUTE on one tensor: along `axis`, place i gets what was in place index[i]. Exact."""

    axis: int
    index: torch.Tensor

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._select(tensor, self.index)

    def undo(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._select(tensor, torch.argsort(self.index))

    def _select(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        _check_extent(tensor, self.axis, index.numel())
        if tensor.itemsize == 1:  # torch gathers no float8
            return tensor.view(torch.uint8).index_select(self.axis, index).view(tensor.dtype)
        return tensor.index_select(self.axis, index)


@dataclass(frozen=True, eq=False)
class Turn:
    """ROTATE on one tensor, in float64: along `axis`, each head's channels x become Rᵀx.

    With rows of v_proj that is RᵀW_v, with columns of o_proj W_oR.
    """

    axis: int
    extent: int
    starts: tuple[int, ...]
    matrices: tuple[torch.Tensor, ...]
    """R of each head, (D, D) float64."""

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._turned(tensor, [one.T for one in self.matrices])

    def undo(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._turned(tensor, self.matrices)

    def _turned(self, tensor: torch.Tensor, by: Sequence[torch.Tensor]) -> torch.Tensor:
        _check_extent(tensor, self.axis, self.extent)
        out = tensor.to(torch.float64, copy=True)
        for start, matrix in zip(self.starts, by, strict=True):
            channels = out.narrow(self.axis, start, len(matrix)).movedim(self.axis, 0)
            channels.copy_(matrix @ channels)
        return out


Edit = Gather | Turn


def turns(
    heads: Heads, rotations: npt.NDArray[np.float64], extents: Mapping[str, tuple[int, ...]]
) -> dict[str, Turn]:
    """Tensor -> its rotation. rotations: (1, D, D), or (KV heads, D, D)."""
    each = heads.query // heads.key_value
    drawn = [torch.from_numpy(one) for one in rotations]
    out: dict[str, Turn] = {}
    for slot in heads.slots:
        if slot.turns:
            shared = [at // each if slot.per == "query" else at for at in range(len(slot.starts))]
            matrices = tuple(drawn[one if len(drawn) > 1 else 0] for one in shared)
            extent = extents[slot.name][slot.axis]
            out[slot.name] = Turn(slot.axis, extent, slot.starts, matrices)
    return out


def gathers(
    heads: Heads, order: Order, extents: Mapping[str, tuple[int, ...]]
) -> dict[str, Gather]:
    """Tensor -> its permutation, where it has one. Channels that belong to no head stay."""
    slots: dict[str, list[Slot]] = {}
    for slot in heads.slots:
        slots.setdefault(slot.name, []).append(slot)
    out: dict[str, Gather] = {}
    for name, parts in slots.items():
        axis = parts[0].axis
        index = torch.arange(extents[name][axis])
        for slot in parts:
            moved = order[0] if slot.per == "query" else order[1]
            for to, origin in zip(slot.starts, (slot.starts[one] for one in moved), strict=True):
                index[to : to + slot.size] = torch.arange(origin, origin + slot.size)
        if not torch.equal(index, torch.arange(len(index))):
            out[name] = Gather(axis, index)
    return out


def _check_extent(tensor: torch.Tensor, axis: int, extent: int) -> None:
    if axis >= tensor.ndim or tensor.shape[axis] != extent:
        raise InputError(
            f"a tensor of the shape {tuple(tensor.shape)} has not {extent} channels on axis "
            f"{axis}; give one of the edited model, in its stored shape"
        )
