"""Steps counted from an entry's admission, where the optimizer counts one number a tensor.

torch's Adam divides moments by 1 − βᵗ, t the steps of the whole tensor. For an entry admitted at
step b by a refresh, whose moments began at zero then, t must be the tensor's step less b. With the
tensor's own, its first step would be (1 − β₁) / √(1 − β₂) times the right one: 3.2 times, with 0.9
and 0.999. So its value is computed again after each step, from the one before it.
"""

from __future__ import annotations

from typing import Any

import torch

from offaxis.train.sparse.engines import local
from offaxis.train.sparse.packed import Packed

__all__ = ["Ages"]


class Ages:
    """The entries that are younger than their tensor, by the step at which they were admitted."""

    def __init__(self) -> None:
        self._young: dict[torch.Tensor, dict[int, torch.Tensor]] = {}
        self._before: dict[torch.Tensor, dict[int, torch.Tensor]] = {}

    def admit(self, tensor: torch.Tensor, new: Packed, survive: Packed, step: int) -> None:
        """Note the entries of `new` that did not survive a refresh; forget those that left."""
        young, lasting = self._young.setdefault(tensor, {}), survive.flags().reshape(-1)
        for birth, places in young.items():
            young[birth] = places[lasting[places]]
        admitted = (new.flags().reshape(-1) & ~lasting).nonzero().reshape(-1)
        if step:
            young[step] = admitted

    def births(self, tensor: torch.Tensor) -> torch.Tensor:
        """int32, of the tensor's (local) shape: when each entry was admitted; 0 = at the start."""
        held = local(tensor.detach())
        found = torch.zeros(held.shape, dtype=torch.int32, device=held.device)
        for birth, places in self._young.get(tensor, {}).items():
            found.put_(places, torch.full_like(places, birth, dtype=torch.int32))
        return found

    def restore(self, tensor: torch.Tensor, births: torch.Tensor) -> None:
        """Take up what `births` gave."""
        flat = births.reshape(-1)
        self._young[tensor] = {
            birth: (flat == birth).nonzero().reshape(-1) for birth in set(flat.tolist()) - {0}
        }

    def note(self, tensor: torch.Tensor) -> None:
        """Keep the young entries' values before a step."""
        if young := self._young.get(tensor):
            held = local(tensor.detach())
            self._before[tensor] = {birth: held.take(at) for birth, at in young.items()}

    def settle(self, optimizer: Any) -> None:
        """After the step: give each young entry the value that its own age makes."""
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor in self._before:
                    self._settle(tensor, optimizer.state[tensor], group, self._before.pop(tensor))

    def _settle(
        self,
        tensor: torch.Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        before: dict[int, torch.Tensor],
    ) -> None:
        held, step = local(tensor.detach()), int(state["step"])
        m, v = local(state["exp_avg"]), local(state["exp_avg_sq"])
        lr, decay = group["lr"], group["weight_decay"]
        for birth, values in before.items():
            places = self._young[tensor][birth]
            first, second = (1 - beta ** float(step - birth) for beta in group["betas"])
            if decay and group["decoupled_weight_decay"]:
                values.mul_(1 - lr * decay)
            spread = (v.take(places).sqrt() / second**0.5).add_(group["eps"])
            held.put_(places, values.addcdiv_(m.take(places), spread, value=-float(lr / first)))
