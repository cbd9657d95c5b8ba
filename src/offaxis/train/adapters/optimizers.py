"""The optimizers that make LoRA+ and LoRA-FA what they are, for any transformers `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

from offaxis.errors import InputError

__all__ = ["LoraFaAdamW", "LoraFaFactory", "LoraPlusFactory"]


class LoraPlusFactory:
    """What `Trainer.create_optimizer` calls as `LoraPlusFactory()(model, **options)`."""

    def __call__(
        self, model: Any, *, made: Any, ratio: float, weight_decay: float, **more: Any
    ) -> Any:
        """PEFT's `create_loraplus_optimizer`: B, and vectors, at `ratio` times the rate.

        made: the optimizer's class; more: its options, lr among them.
        """
        from peft.optimizers import create_loraplus_optimizer

        found = create_loraplus_optimizer(
            model,
            made,
            loraplus_lr_ratio=ratio,
            loraplus_weight_decay=weight_decay,
            **more,
        )
        found.param_groups[:] = [one for one in found.param_groups if one["params"]]
        return found


class LoraFaFactory:
    """What `Trainer.create_optimizer` calls as `LoraFaFactory()(model, **options)`."""

    def __call__(self, model: Any, *, weight_decay: float, **more: Any) -> LoraFaAdamW:
        """`LoraFaAdamW` over what the model trains, decay on matrices alone."""
        trained = [one for one in model.parameters() if one.requires_grad]
        groups = [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
            {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
        ]
        return LoraFaAdamW([one for one in groups if one["params"]], model=model, **more)


class LoraFaAdamW(torch.optim.AdamW):
    """AdamW on B, its gradient projected: G (A Aᵀ)⁻¹ / s² (LoRA-FA, arXiv 2308.03303).

    A Aᵀ is (r, r); A is frozen, so its inverse is taken once, in float64 (pseudo-inverse with
    1e-8 on the diagonal, as PEFT's LoraFAOptimizer has it). PEFT's own takes it anew at each step
    and multiplies in bfloat16 wherever the machine knows that type, a float32 run included; its
    moments are kept under the names of modules, and its bias correction and eps are not AdamW's.

    model: a PEFT LoRA model, whose A must not be trained.
    """

    def __init__(self, params: Any, *, model: Any, **options: Any) -> None:
        super().__init__(params, **options)
        inverse = dict(_inverses(model))
        self._inverses = [
            (place, number, inverse[id(one)])
            for place, group in enumerate(self.param_groups)
            for number, one in enumerate(group["params"])
            if id(one) in inverse
        ]
        if not self._inverses:
            raise InputError("LoRA-FA: the optimizer was given no lora_B of the model")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Project the gradients of every B, then AdamW's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, number, inverse in self._inverses:
            gradient = self.param_groups[place]["params"][number].grad
            if gradient is not None:
                local = _rows(gradient)
                local.copy_(local.to(inverse.dtype) @ inverse.to(local.device))
        super().step()
        return loss


def _rows(gradient: torch.Tensor) -> torch.Tensor:
    """The rows of a gradient that lie in this process."""
    if not isinstance(gradient, DTensor):
        return gradient
    if any(isinstance(one, Shard) and one.dim != 0 for one in gradient.placements):
        raise InputError("LoRA-FA: lora_B is sharded over its rank; shard it over its rows")
    return gradient.to_local()


def _inverses(model: Any) -> Any:
    """(id of a B, (A Aᵀ)⁻¹ / s²) of each active adapter."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter in layer.active_adapters:
            if adapter not in layer.lora_A:
                continue
            down = layer.lora_A[adapter].weight
            if down.requires_grad:
                raise InputError(f"LoRA-FA: lora_A of {name} would be trained; freeze it")
            whole = down.detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            square = whole.double() @ whole.double().T
            square.diagonal().add_(1e-8)
            inverse = torch.linalg.pinv(square) / layer.scaling[adapter] ** 2
            wide = torch.promote_types(down.dtype, torch.float32)
            yield id(layer.lora_B[adapter].weight), inverse.to(wide)
