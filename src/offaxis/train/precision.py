"""Float32 master weights: what a bf16 base needs so that small steps are not lost."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

__all__ = ["give_masters", "lost_share"]

_HALF = (torch.bfloat16, torch.float16)
_SAMPLE = 1 << 22  # entries of a tensor that are looked at, evenly spread


def lost_share(model: Any, step: float) -> float:
    """Share of the trainable half-precision entries that a change of `step` leaves as they are.

    A store in bfloat16 (p = 8 significant bits) or float16 (p = 11) keeps w where |step| is below
    half a unit in the last place, 2^(⌊log₂|w|⌋ − p): Gate III of The Path Not Taken (section 4.3).
    AdamW moves an entry by about the learning rate, or less. Large tensors are sampled evenly. Of a
    sharded model every process calls it, and all get the same number.
    """
    lost = total = 0.0
    sharded = False
    for parameter in model.parameters():
        if not parameter.requires_grad or parameter.dtype not in _HALF:
            continue
        local = parameter.detach()
        if isinstance(local, DTensor):
            local, sharded = local.to_local(), True
        if local.numel() == 0:
            continue
        entries = local.reshape(-1)[:: max(1, local.numel() // _SAMPLE)].float()
        moved = (entries + step).to(parameter.dtype).float() != entries
        lost += local.numel() * (1 - moved.float().mean().item())
        total += local.numel()
    if sharded:
        device = next(model.parameters()).device
        sums = torch.tensor([lost, total], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(sums)
        lost, total = sums.tolist()
    return lost / total if total else 0.0


def give_masters(model: Any, *, learning_rate: float, insist: bool) -> str:
    """Make every trainable half-precision parameter float32, unless the user insists otherwise.

    Call it before the optimizer is made. Returns a warning, or nothing where all was float32.
    Frozen parameters keep their dtype, and so does what a trained norm hands on to them.
    """
    half = [p for p in model.parameters() if p.requires_grad and p.dtype in _HALF]
    if not half:
        return ""
    share = lost_share(model, learning_rate)
    name = str(half[0].dtype).removeprefix("torch.")
    what = (
        f"{sum(p.numel() for p in half)} trainable parameters are {name}; there, a step of the "
        f"learning rate's size ({learning_rate:g}) is rounded away on {share:.1%} of them"
    )
    if insist:
        return f"{what}, for good. pure_bf16 is set, so they are trained as they are"
    with torch.no_grad():  # _apply: FSDP2 keeps views of its shards, which .data would leave behind
        model._apply(lambda one: one.float() if one.requires_grad and one.dtype in _HALF else one)
    _keep_outputs(model)
    return f"{what}. They are trained as float32 masters (pure_bf16: true would keep {name})"


def _keep_outputs(model: Any) -> None:
    """Have norms with masters give back their input's dtype, where frozen weights expect it."""
    if not any(p.dtype in _HALF for p in model.parameters()):
        return
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.requires_grad and weight.ndim == 1:
            module.register_forward_hook(_as_input)


def _as_input(module: Any, inputs: Any, output: Any) -> Any:
    given = inputs[0] if inputs else None
    if not isinstance(given, torch.Tensor) or not isinstance(output, torch.Tensor):
        return output
    return output.to(given.dtype) if given.is_floating_point() else output
