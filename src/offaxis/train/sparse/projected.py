"""The projected strategy: any optimizer, its gradients masked, frozen entries kept to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from offaxis.train.sparse.ages import Ages
from offaxis.train.sparse.engines import local
from offaxis.train.sparse.packed import Packed

__all__ = ["Projection"]

_INERT = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
"""Optimizers that leave an entry alone whose gradients were always zero, but for weight decay."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


class Projection:
    """Holds every entry outside the masks as it is while any torch optimizer trains the rest.

    trained: tensor that the optimizer steps -> its trained entries, as this process holds it.
    Before each step gradients of frozen entries are set to zero, so that moments stay zero. Where
    the optimizer would move an entry without a gradient (weight decay; an optimizer that mixes
    entries), the values before the step are put back after it: one copy of the tensors while the
    step lasts.
    """

    def __init__(self, trained: Mapping[torch.Tensor, Packed]) -> None:
        self.trained = dict(trained)
        self.ages = Ages()
        self._optimizer: Any = None
        self._handles: list[Any] = []
        self._before: dict[torch.Tensor, torch.Tensor] = {}
        self._fragile: set[torch.Tensor] = set()

    def mask_gradients(self) -> None:
        """Set the gradients of frozen entries to +0, whatever they were (NaN included)."""
        for tensor, packed in self.trained.items():
            if tensor.grad is not None:
                packed.clear(local(tensor.grad))

    def attach(self, optimizer: Any) -> None:
        """Do so before each step of `optimizer`, and keep frozen entries through it."""
        self.detach()
        self._optimizer = optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]
        for tensor, packed in self.trained.items():
            if bool(local(tensor.detach()).isnan().any()):  # plus zero, a signalling one is quiet
                self._fragile.add(tensor)
            _quieten(optimizer.state.get(tensor, {}), packed)

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def refresh(self, trained: Mapping[torch.Tensor, Packed]) -> None:
        """Go on with other masks, of the same tensors.

        Survivors keep their moments; the others' are set to zero. Entries that are admitted count
        their steps from here (`Ages`).
        """
        for tensor, new in trained.items():
            state = self._optimizer.state.get(tensor, {})
            both = self.trained[tensor].flags() & new.flags()
            survive = Packed(both.cpu(), both.device)
            _quieten(state, survive)
            if "step" in state:
                self.ages.admit(tensor, new, survive, int(state["step"]))
        self.trained = dict(trained)

    @torch.no_grad()
    def _pre(self, optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            still = type(optimizer) in _INERT and not group["weight_decay"]
            still = still and bool(group.get("eps", 1)) and not group.get("maximize")
            for tensor in group["params"]:
                if tensor not in self.trained or tensor.grad is None:
                    continue
                packed = self.trained[tensor]
                packed.clear(local(tensor.grad))  # again: clipping by a NaN norm spreads it
                if not (packed.full or (still and tensor not in self._fragile)):
                    self._before[tensor] = local(tensor.detach()).clone()
                self.ages.note(tensor)

    @torch.no_grad()
    def _post(self, optimizer: Any, *_: Any) -> None:
        for tensor, before in self._before.items():
            self.trained[tensor].restore(local(tensor.detach()), before)
        self._before.clear()
        self.ages.settle(optimizer)


def _quieten(state: Mapping[str, Any], packed: Packed) -> None:
    """Set the moments of entries that are not trained to zero."""
    for key in _MOMENTS:
        if state.get(key) is not None:
            packed.clear(local(state[key]))
