"""A mask and a model: the same base? And the mask under the names that a model has in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from offaxis.checkpoint import Aligned, align
from offaxis.checkpoint.align import cut
from offaxis.checkpoint.dtypes import torch_dtype
from offaxis.checkpoint.types import Checkpoint, TensorSpec, View
from offaxis.errors import InputError
from offaxis.masks.mask import Mask, origin_of

__all__ = ["check_base", "fitted"]


class _Shapes(Checkpoint):
    """The tensors that a mask covers, by their headers; `[name]` gives the mask's flags."""

    def __init__(self, mask: Mask) -> None:
        self.source = "the mask"
        self.config = {}
        self.mask = mask
        self.specs = {
            name: TensorSpec(name, mask.shapes[name], mask.origins[name].dtype, self.source)
            for name in mask
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.mask[name]


def _aligned(mask: Mask, model: Checkpoint) -> Aligned:
    """The parts of the mask's tensors, matched with the model's. InputError where one is absent."""
    found = align(_Shapes(mask), model)
    for row in found.mismatches:
        if row.status in ("missing", "reshaped"):
            raise InputError(
                f"{model.source} does not fit the mask: {row.tensor}: {row.detail}; make the mask "
                "from this model"
            )
    return found


def _paste(target: torch.Tensor, view: View, part: torch.Tensor) -> None:
    """Write one part where `view` says that it lies."""
    into = target
    if view.slices is not None:
        into = into[tuple(slice(start, stop) for start, stop in view.slices)]
    if view.drop_leading:
        into = into[0]
    into.copy_(part.T if view.turned else part)


def check_base(mask: Mask, base: Checkpoint) -> None:
    """InputError, naming the tensor, unless `base` holds what the mask was made from.

    base: stored, or in memory (`MemoryCheckpoint`) under whatever names and stacking transformers
    gives it. A tensor of another dtype passes where casting it to the stored one gives the same
    bytes: a bf16 base loaded in float32 does.
    """
    found = _aligned(mask, base)
    rebuilt: dict[str, torch.Tensor] = {}
    pending = dict.fromkeys(mask, 0)
    for pair in found.pairs:
        pending[pair.base.name] += 1
    for pair in found.pairs:
        name = pair.base.name
        dtype = torch_dtype(mask.origins[name].dtype)
        assert dtype is not None
        whole = rebuilt.setdefault(name, torch.empty(mask.shapes[name], dtype=dtype))
        _paste(whole, pair.base, cut(base[pair.tuned.name], pair.tuned).to(dtype))
        pending[name] -= 1
        if pending[name] == 0:
            _same(mask, name, rebuilt.pop(name), base)


def _same(mask: Mask, name: str, tensor: torch.Tensor, base: Checkpoint) -> None:
    origin = mask.origins[name]
    found = origin_of(tensor, origin.dtype)
    if found != origin:
        raise InputError(
            f"{base.source} is not the base of this mask ({mask.rule}): {name} has checksum "
            f"{found.checksum} as {origin.dtype}, and the mask was made from {origin.checksum}; "
            "give the model that the mask was made from, or make a mask from this one"
        )


def fitted(mask: Mask, model: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in `model`, boolean tensor of its shape there), one at a time, for every masked tensor.

    Experts that are stored apart and stacked in memory are put together. InputError where the
    model lacks a tensor of the mask or has it in another shape.
    """
    found = _aligned(mask, model)
    shapes = {name: spec.shape for name, spec in model.specs.items()}
    by_tuned: dict[str, list[tuple[View, View]]] = {}
    for pair in found.pairs:
        by_tuned.setdefault(pair.tuned.name, []).append((pair.base, pair.tuned))
    for name, views in by_tuned.items():
        whole = torch.zeros(shapes[name], dtype=torch.bool)
        for ours, theirs in views:
            _paste(whole, theirs, cut(mask[ours.name], ours))
        yield name, whole
