"""Where a mask's entries lie in this process: whole parameters, FSDP2's shards, ZeRO's partitions.

Gradients of frozen entries are set to zero as soon as they exist, by hooks that torch offers on
parameters. That is after they are accumulated and reduced, or before, which comes to the same (a
sum of zeros); it is before they are clipped either way, so `max_grad_norm` and the logged norm are
of the trainable gradient. Trainer's own events all come after clipping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from offaxis.errors import InputError
from offaxis.train.sparse.packed import Packed

__all__ = ["here", "hook_gradients", "innermost", "local", "part", "stepped", "whole"]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    found: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def part(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of `values`, which are of the whole parameter's shape."""
    if not isinstance(parameter, DTensor):
        return values
    mesh = parameter.device_mesh
    cut = distribute_tensor(
        values.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None
    )
    return cut.to_local()


def whole(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The way back: all processes' parts together. Every process must ask for it."""
    if not isinstance(parameter, DTensor):
        return values
    found: torch.Tensor = DTensor.from_local(
        values, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    ).full_tensor()  # fmt: skip
    return found


def here(flags: torch.Tensor, parameter: torch.Tensor) -> Packed:
    """A whole parameter's flags, as this process holds the parameter."""
    return Packed(part(flags, parameter).cpu(), local(parameter.detach()).device)


def innermost(optimizer: Any) -> Any:
    """The torch optimizer inside those that accelerate and DeepSpeed put around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def hook_gradients(trained: Mapping[torch.Tensor, Packed], *, reduced: bool) -> list[Any]:
    """Have gradients masked as they appear; the handles, which have `.remove()`.

    reduced: whether DDP or ZeRO reduces them by hooks of its own as they are accumulated: then they
    are masked before that, in a copy. FSDP2 runs the other kind of hook once it has reduced them.
    """
    handles = []
    parameter: Any  # torch's own hooks are untyped
    for parameter, packed in trained.items():
        if packed.full or not parameter.requires_grad:
            continue
        if reduced and not isinstance(parameter, DTensor):
            handles.append(parameter.register_hook(_masking(packed)))
        else:
            handles.append(parameter.register_post_accumulate_grad_hook(_clearing(packed)))
    return handles


def _masking(packed: Packed) -> Any:
    def mask(gradient: torch.Tensor) -> torch.Tensor:
        masked = gradient.clone(memory_format=torch.contiguous_format)
        packed.clear(masked)
        return masked

    return mask


def _clearing(packed: Packed) -> Any:
    def clear(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            packed.clear(local(parameter.grad))

    return clear


def stepped(trained: Mapping[torch.Tensor, Packed], optimizer: Any) -> dict[torch.Tensor, Packed]:
    """The same by the tensors that the innermost optimizer moves.

    These are the parameters, except under ZeRO-1 and ZeRO-2: there each process steps its part of
    all parameters laid end to end, in float32, and DeepSpeed tells where a parameter's piece lies.
    InputError where it does not.
    """
    if not any(hasattr(one, "_hp_mapping") for one in trained):
        return dict(trained)
    outer = optimizer
    while not hasattr(outer, "single_partition_of_fp32_groups"):
        if not hasattr(outer, "optimizer"):
            raise InputError(
                f"DeepSpeed's {type(innermost(optimizer)).__name__} does not show its partitions; "
                "use ZeRO-2 (zero_stage: 2), FSDP2 or DDP"
            )
        outer = outer.optimizer
    flat = outer.single_partition_of_fp32_groups
    flags = [torch.ones(one.numel(), dtype=torch.bool) for one in flat]
    for parameter, packed in trained.items():
        piece = getattr(parameter, "_hp_mapping", None)
        if piece is None:
            continue  # in other processes' partitions alone
        there, ours = piece.hp_fragment_address, piece.lp_fragment_address
        mine = packed.flags().cpu().reshape(-1)[ours.start : ours.start + ours.numel]
        flags[piece.param_group_index][there.start : there.start + there.numel] = mine
    return {one: Packed(flag, one.device) for one, flag in zip(flat, flags, strict=True)}
