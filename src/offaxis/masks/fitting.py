"""A mask and a model: the same base? And the mask under the names that a model has in memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from offaxis.checkpoint import Aligned, PartPair, align
from offaxis.checkpoint.align import cut
from offaxis.checkpoint.dtypes import torch_dtype
from offaxis.checkpoint.types import Checkpoint, TensorSpec, View
from offaxis.errors import InputError
from offaxis.masks.mask import Mask, origin_of
from offaxis.names import unwrap

__all__ = ["check_base", "fitted"]

_INTERLEAVED = ".experts.gate_up_proj"
"""A stack whose gate and up rows alternate, and so cannot be cut, has a bias under `.._bias`."""


class _Covered(Checkpoint):
    """The tensors that a mask covers, by their headers; `[name]` gives the mask's flags.

    What decides how a fused tensor is cut, and is no matrix itself, comes from the model: its
    config, and whether its stacks of experts have biases.
    """

    def __init__(self, mask: Mask, model: Checkpoint) -> None:
        self.source = "the mask"
        self.config = model.config
        self.specs = {
            name: TensorSpec(name, mask.shapes[name], mask.origins[name].dtype, self.source)
            for name in mask
        }
        if any(unwrap(name).endswith(f"{_INTERLEAVED}_bias") for name in model):
            for name in mask:
                if name.endswith(_INTERLEAVED):
                    bias = f"{name}_bias"
                    shape = (mask.shapes[name][0], max(mask.shapes[name][1:]))
                    self.specs[bias] = TensorSpec(bias, shape, "BF16", self.source)
        self._last = _Last(mask)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._last[name]


class _Last:
    """A mapping's tensors, the last of which is kept: parts of one tensor follow one another."""

    def __init__(self, tensors: Mask | Checkpoint) -> None:
        self._tensors = tensors
        self._name, self._tensor = "", torch.empty(0)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name != self._name:
            self._name, self._tensor = "", torch.empty(0)  # never two at once
            self._name, self._tensor = name, self._tensors[name]
        return self._tensor


def _aligned(mask: Mask, model: Checkpoint) -> tuple[PartPair, ...]:
    """The parts of the mask's tensors, matched with the model's. InputError where one is absent."""
    found = align(_Covered(mask, model), model)
    pairs = tuple(pair for pair in found.pairs if pair.base.name in mask)
    covered = dict.fromkeys(mask, 0)
    for pair in pairs:
        covered[pair.base.name] += prod(pair.part.shape)
    for name in mask:
        if covered[name] != mask.entries(name):
            raise InputError(
                f"{model.source} does not fit the mask ({mask.rule}): {_why(found, name)}; give "
                "the model that the mask was made from, or make a mask from this one"
            )
    return pairs


def _why(found: Aligned, name: str) -> str:
    """What became of a tensor of the mask that the model does not have whole."""
    for row in found.mismatches:
        if row.tensor.partition("[")[0] == name and row.status != "extra":
            detail = row.detail.replace("tuned", "the model").replace("base", "the mask")
            return f"{row.tensor}: {detail}"
    return f"{name} is not in it"


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
    pairs = _aligned(mask, base)
    left = dict.fromkeys(mask, 0)
    for pair in pairs:
        left[pair.base.name] += 1
    rebuilt: dict[str, torch.Tensor] = {}
    tensors = _Last(base)
    for pair in pairs:
        name = pair.base.name
        dtype = torch_dtype(mask.origins[name].dtype)
        if dtype is None:
            raise InputError(
                f"{name}: no base of dtype {mask.origins[name].dtype} can be read; make the mask "
                "again from a model of floating-point weights"
            )
        part = cut(tensors[pair.tuned.name], pair.tuned).to(dtype)
        if name not in rebuilt:
            rebuilt[name] = torch.empty(mask.shapes[name], dtype=dtype)
        _paste(rebuilt[name], pair.base, part)
        left[name] -= 1
        if left[name] == 0:
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

    Experts that are stored apart and stacked in memory are put together, and the other way round.
    InputError where the model lacks a tensor of the mask or has it in another shape.
    """
    pairs = _aligned(mask, model)
    by_name: dict[str, list[PartPair]] = {}
    for pair in pairs:
        by_name.setdefault(pair.tuned.name, []).append(pair)
    flags = _Last(mask)
    for name, inside in by_name.items():
        whole = torch.zeros(model.specs[name].shape, dtype=torch.bool)
        for pair in inside:
            _paste(whole, pair.tuned, cut(flags[pair.base.name], pair.base))
        yield name, whole
