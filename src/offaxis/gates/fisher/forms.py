"""dᵀFd for many directions d at once, exactly, by Jacobian-vector products.

F is the token-level Fisher matrix of the base π on fixed prefixes, summed over a sequence's
positions: dᵀFd = Σ_positions Var_{v∼π}((J d)_v), J the Jacobian of the logits, the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offaxis.gates.fisher.exact import Derivative, exactly
from offaxis.gates.fisher.move import Move
from offaxis.gates.fisher.prefixes import Batch, Prefixes

__all__ = ["Direction", "Forms", "quadratic_forms"]

Direction = Callable[[int], Tensor]
"""Number of a unit → the direction's values there, in the unit's shape."""

_NUMBERS = 2**22  # float64 held for one batch's derivatives, about: 32 MiB


@dataclass(frozen=True, eq=False)
class Forms:
    """values: (directions, sets, sequences). gram: (slabs, slabs), of the first direction.

    gram: Σ over sequences of (d_i)ᵀF d_j, d_i the direction's part in slab i.
    """

    values: NDArray[np.float64]
    gram: NDArray[np.float64]


def quadratic_forms(
    move: Move,
    prefixes: Prefixes,
    directions: Sequence[Direction],
    *,
    slabs: Sequence[Sequence[int]],
    sets: Sequence[Sequence[int]],
    derivative: Derivative,
) -> Forms:
    """dᵀFd of every direction, restricted to each set of slabs, for every sequence.

    slabs: the units that are differentiated along together, one pass each. sets: of slabs; the
    derivative is linear, so that any set's costs nothing more. Memory: 8 · slabs · directions ·
    positions · vocabulary bytes for the longest sequence, and 32 MiB at least.
    """
    values = np.zeros((len(directions), len(sets), len(prefixes.prompts)))
    gram = np.zeros((len(slabs), len(slabs)))
    for batch in prefixes.batches(_positions(move, len(slabs) * len(directions))):
        with exactly(), torch.no_grad():
            weights = torch.softmax(batch.logits(move.base)({}), dim=-1).sqrt()
            spread = torch.stack(
                [_spread(move, batch, weights, directions, slab, derivative) for slab in slabs]
            )
        place = batch.line.to(spread.device)
        for number, inside in enumerate(sets):
            each = spread[list(inside)].sum(0).square().sum(-1)
            into = each.new_zeros((len(directions), len(batch.rows)))
            values[:, number, list(batch.rows)] = into.index_add_(1, place, each).cpu().numpy()
        first = spread[:, 0].flatten(1)
        gram += (first @ first.T).cpu().numpy()
    return Forms(values, gram)


def _positions(move: Move, stack: int) -> int:
    words: int = move.base.model.config.get_text_config().vocab_size
    return max(1, _NUMBERS // (words * max(1, stack)))


def _spread(
    move: Move,
    batch: Batch,
    weights: Tensor,
    directions: Sequence[Direction],
    slab: Sequence[int],
    derivative: Derivative,
) -> Tensor:
    """√π ∘ (Jd − Σ π Jd): its squares sum to the variance. (directions, positions, vocabulary)."""
    tangents: dict[str, Tensor] = {}
    for number in slab:
        unit = move.units[number]
        values = torch.stack([one(number) for one in directions])
        whole = unit.placed(values, move.origin[unit.view.name].shape)
        before = tangents.get(unit.view.name)
        tangents[unit.view.name] = whole if before is None else before + whole
    at = {name: move.origin[name] for name in tangents}
    change = derivative.along(batch.logits(move.base), at, tangents)
    mean = (weights.square() * change).sum(-1, keepdim=True)
    return weights * (change - mean)
