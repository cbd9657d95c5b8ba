"""Draws for the tests of SparseAdamW, and torch's own AdamW on a vector."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

BLOCK = 1 << 16
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torch's own kernels here use fused multiply-adds, as SparseAdamW's always do."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as integers, sharing its memory."""
    return tensor.detach().view(_WORDS[tensor.element_size()])


def draw(
    shape: tuple[int, ...], density: float, dtype: torch.dtype, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal weights and a random mask."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
    return p.to(dtype), torch.rand(shape, generator=generator) < density


def gradients(shape: tuple[int, ...], steps: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Normal gradients whose scale changes from step to step."""
    generator = torch.Generator().manual_seed(steps)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (i % 4 - 3)).to(
            dtype
        )
        for i in range(steps)
    ]


def padded(vector: torch.Tensor) -> torch.Tensor:
    """Zeros added to a multiple of 16: torch's fused kernel rounds what is left in another way."""
    return torch.nn.functional.pad(vector, (0, -vector.numel() % 16))


class Vector:
    """torch.optim.AdamW on float32 (float64 for float64) copies of a vector's entries."""

    def __init__(self, start: torch.Tensor, *, fused: bool, **settings: Any) -> None:
        wide = torch.float64 if start.dtype == torch.float64 else torch.float32
        self._count, self._fused = start.numel(), fused
        self._held = Parameter(self._fit(start.detach().to(wide, copy=True)))
        kind = {"fused": True} if fused else {"foreach": False}
        self._optimizer = torch.optim.AdamW([self._held], **settings, **kind)

    def _fit(self, vector: torch.Tensor) -> torch.Tensor:
        return padded(vector) if self._fused else vector

    def step(self, gradient: torch.Tensor) -> None:
        self._held.grad = self._fit(gradient.to(self._held.dtype))
        self._optimizer.step()

    @property
    def values(self) -> torch.Tensor:
        return self._held.detach()[: self._count]
