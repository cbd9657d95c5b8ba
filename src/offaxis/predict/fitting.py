"""Predictions that are combinations of the checkpoints: what `relex`, `linear`, `scale` and `stop`
share.

With rows x_t = θ_t − θ_BASE the prediction of such a method is Σ_t w_t x_t, so that a fit is T
numbers a tensor, found from the T×T Gram of the rows; the rows are read again when the prediction
is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from offaxis.errors import InputError
from offaxis.predict.methods import Floats, Timeline, Trail

__all__ = ["Combination", "gram", "line_facts", "line_weights", "stretches"]

_ENTRIES = 1 << 22
"""Entries that are held at once, over all checkpoints: 32 MB in float64."""


def stretches(size: int, rows: int) -> Iterator[slice]:
    """Slices that cut `size` flattened entries so that `rows` of them fit into memory together."""
    width = max(1 << 10, _ENTRIES // max(2, rows))
    for start in range(0, size, width):
        yield slice(start, min(size, start + width))


def gram(trail: Trail) -> Floats:
    """(T, T): the inner products x_i·x_j of a tensor's rows, float64, in O(stretch) memory."""
    out = torch.zeros(len(trail), len(trail), dtype=torch.float64)
    for part in stretches(prod(trail.shape), len(trail)):
        block = torch.from_numpy(np.stack([trail.rows(t, part) for t in range(len(trail))]))
        out += block @ block.T
    return np.asarray(out.numpy(), dtype=np.float64)


def line_weights(steps: Floats, at: float, *, through_base: bool = False) -> Floats:
    """(T,): h with Σ_t h_t y_t the value at `at` of the least squares line through (s_t, y_t).

    With an intercept: h_t = 1/T + (at − s̄)(s_t − s̄)/Σ(s − s̄)², T ≥ 2.
    through_base: the line through (0, 0), h_t = at·s_t/Σs².
    """
    if through_base:
        return np.asarray(at * steps / (steps @ steps), dtype=np.float64)
    if len(steps) < 2:
        raise InputError("a line needs at least 2 checkpoints; name another, or use `stop`")
    away = steps - steps.mean()
    return np.asarray(1 / len(steps) + (at - steps.mean()) * away / (away @ away), dtype=np.float64)


def line_facts(inner: Floats, steps: Floats, *, through_base: bool = False) -> dict[str, float]:
    """How well a line in the step describes rows with the Gram `inner` (T, T).

    `r2`: 1 − residual/total sum of squares, total about the mean row (about the base where the
    line goes through it); 1 by construction for as many rows as coefficients. `residual`: the
    residual's norm over that of all rows.
    """
    size = len(steps)
    hat = np.stack([line_weights(steps, step, through_base=through_base) for step in steps])
    left = np.eye(size) - hat
    centre = np.eye(size) - (0 if through_base else 1 / size)
    residual = max(0.0, float(np.trace(left @ inner @ left.T)))
    total, whole = float(np.trace(centre @ inner @ centre)), float(np.trace(inner))
    facts = {"residual": float(np.sqrt(residual / whole)) if whole > 0 else 0.0}
    if total > 0:
        facts["r2"] = 1 - residual / total
    return facts


@dataclass(frozen=True, eq=False)
class Combination:
    """A fit whose prediction is Σ_t w_t (θ_t − θ_BASE) (`methods.Weighted`)."""

    trail: Trail
    timeline: Timeline
    weigh: Callable[[float | None], Floats]
    """From the step asked for to (T,) weights."""
    still: bool = False
    """The tensor did not move at any checkpoint."""
    facts: Mapping[str, float] = field(default_factory=dict)

    def weights(self, at: float | None = None) -> Floats:
        """(T,): w at a step (None: the timeline's)."""
        return self.weigh(self.timeline.at if at is None else at)

    def update(self, at: float | None = None) -> Floats | None:
        """Σ_t w_t (θ_t − θ_BASE) at a step (None: the timeline's); None where nothing moved."""
        if self.still:
            return None
        weights = self.weights(at)
        out = np.zeros(prod(self.trail.shape))
        used: Sequence[int] = [t for t, weight in enumerate(weights) if weight != 0]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            for part in stretches(out.size, max(1, len(used))):
                for t in used:
                    out[part] += weights[t] * self.trail.rows(t, part)
        return out.reshape(self.trail.shape)
