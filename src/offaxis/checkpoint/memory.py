"""Tensors in memory as a checkpoint: what is aligned, cut and measured like a stored one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from offaxis.checkpoint.dtypes import code_of
from offaxis.checkpoint.types import Checkpoint, TensorSpec
from offaxis.names import natural_key

__all__ = ["MemoryCheckpoint"]


class MemoryCheckpoint(Checkpoint):
    """Named tensors, such as `dict(model.named_parameters())`, under the interface of a file.

    Tensors are held as they are, not copied; `checkpoint[name]` gives the present value on the CPU,
    whole where it is sharded (then every process must ask for it).
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        source: str = "the model in memory",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        names = sorted(tensors, key=lambda name: (natural_key(name), name))
        self._tensors = {name: tensors[name] for name in names}
        self.source = source
        self.collective = any(hasattr(one, "full_tensor") for one in self._tensors.values())
        """True where tensors are sharded: all processes must read them, in one order."""
        self.config = dict(config or {})
        self.specs = {
            name: TensorSpec(name, tuple(one.shape), code_of(one.dtype) or str(one.dtype), source)
            for name, one in self._tensors.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._tensors[name].detach()
        if hasattr(found, "full_tensor"):
            found = found.full_tensor()
        return found.cpu()
