"""The projected strategy: any optimizer, its gradients masked, frozen entries kept to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

__all__ = ["Projection", "local"]

_INERT = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
"""Optimizers that leave an entry alone whose gradients were always zero, but for weight decay."""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    found: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


class Projection:
    """Holds every entry outside the masks as it is while any torch optimizer trains the rest.

    frozen: parameter -> boolean tensor, True = frozen, of the parameter's (local) shape, on its
    device. Gradients of frozen entries are set to zero (`mask_gradients`), so that moments stay
    zero and clipping sees the trainable gradient alone. Where the optimizer would move an entry
    without a gradient (weight decay; an optimizer that mixes entries), the values before the step
    are put back after it.
    """

    def __init__(self, frozen: Mapping[torch.nn.Parameter, torch.Tensor]) -> None:
        self.frozen = dict(frozen)
        self._before: dict[torch.nn.Parameter, torch.Tensor] = {}

    def mask_gradients(self) -> None:
        """Set the gradients of frozen entries to zero, whatever they were (NaN included)."""
        for parameter, frozen in self.frozen.items():
            if parameter.grad is not None:
                local(parameter.grad).masked_fill_(frozen, 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Do so before each step of `optimizer`, and keep frozen entries through it."""
        optimizer.register_step_pre_hook(self._pre)
        optimizer.register_step_post_hook(self._post)

    @torch.no_grad()
    def _pre(self, optimizer: Any, *_: Any) -> None:
        self.mask_gradients()
        inert = type(optimizer) in _INERT
        for group in optimizer.param_groups:
            if inert and not group["weight_decay"]:
                continue
            for parameter in group["params"]:
                if parameter in self.frozen and parameter.grad is not None:
                    self._before[parameter] = local(parameter.detach()).clone()

    @torch.no_grad()
    def _post(self, *_: Any) -> None:
        for parameter, before in self._before.items():
            frozen = self.frozen[parameter]
            now = local(parameter.detach())
            now.copy_(torch.where(frozen, before, now))
        self._before.clear()
