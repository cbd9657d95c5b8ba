"""Rows of several batches of samples put together into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Pick", "assemble"]

_LEFT = ("prompt_ids", "prompt_mask")  # prompts are padded on the left, all else on the right


@dataclass(frozen=True, slots=True)
class Pick:
    """One group: which batch, and its place in it."""

    batch: int
    group: int


def assemble(
    batches: Sequence[dict[str, Any]], picks: Sequence[Pick], size: int, pad: int
) -> dict[str, Any]:
    """The picked groups of `size` rows each, in order, as one batch.

    Tensors of shape (rows,) or (rows, width) are taken row by row and padded to the widest: token
    ids with `pad`, all else with 0. Numbers without rows are the first batch's.
    """
    found: dict[str, Any] = {}
    for name, example in batches[0].items():
        if not isinstance(example, torch.Tensor) or example.ndim == 0:
            found[name] = example
            continue
        value = pad if name.endswith("_ids") else 0
        parts = [
            batches[pick.batch][name][pick.group * size : (pick.group + 1) * size] for pick in picks
        ]
        if example.ndim > 1:
            width = max(part.shape[1] for part in parts)
            parts = [_widened(part, width, value, left=name in _LEFT) for part in parts]
        found[name] = torch.cat(parts)
    return found


def _widened(part: torch.Tensor, width: int, value: int, *, left: bool) -> torch.Tensor:
    more = width - part.shape[1]
    return torch.nn.functional.pad(part, (more, 0) if left else (0, more), value=value)
