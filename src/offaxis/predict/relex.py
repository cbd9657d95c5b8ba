"""RELEX: the first singular direction of each tensor's trajectory, and a line along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offaxis.errors import InputError
from offaxis.predict.fitting import Combination, gram, line_facts, line_weights
from offaxis.predict.methods import Floats, Timeline, Trail

__all__ = ["Relex"]

_TIE = 1e-6
"""Relative gap of two singular values below which their directions cannot be told apart."""


@dataclass(frozen=True)
class Relex:
    """RELEX (2605.21468): per tensor, X (T, entries) with the rows θ_t − θ_BASE, X = PSVᵀ.

    X is not centred, and the base is no row. The coefficients c_k = s_k p_k of the first `rank`
    right singular directions are continued by least squares on the true steps, with an intercept:
    θ̂ − θ_BASE = Σ_k ĉ_k(at) v_k. As v_k = Xᵀp_k/s_k this is Xᵀw with w = P_k P_kᵀ h(at), h the hat
    vector of the line: T weights a tensor, whose signs and rotations cancel. From the T×T Gram in
    float64. rank = T is `linear`.

    Facts of a tensor: `explained`, Σ_{k≤rank} s_k² / Σ s²; `r2` and `residual` of the line through
    the first coefficient (1 and 0 by construction for two checkpoints); `slope`, its growth a step
    over its last value; `gap`, (s_r − s_{r+1})/s_1 at the rank's edge; `tied` = 1 where that is
    below 1e-6, so that the direction is arbitrary.

    The authors' code casts to float16 before it subtracts, which loses what lies below 6e-5; here
    nothing is rounded before the result.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank {self.rank}: give 1 or more")

    @property
    def name(self) -> str:
        return "relex"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "at"})

    @property
    def least(self) -> int:
        return max(2, self.rank)

    @property
    def cuts(self) -> bool:
        return False

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        """One tensor's fit. InputError for fewer checkpoints than `least`."""
        size = len(trail)
        if size < self.least:
            raise InputError(
                f"relex with rank {self.rank} needs {self.least} checkpoints, and there are {size};"
                " name more, or use `stop` or `scale`"
            )
        inner = gram(trail)
        squares, left = np.linalg.eigh(inner)
        squares, left = squares[::-1].clip(min=0), left[:, ::-1]
        kept = left[:, : self.rank]

        def weigh(at: float | None) -> Floats:
            if at is None:
                raise InputError("relex needs the step to predict; pass at (--at)")
            return np.asarray(kept @ (kept.T @ line_weights(timeline.steps, at)), dtype=np.float64)

        still = not squares[0] > 0
        facts = {} if still else _facts(squares, left, timeline.steps, self.rank)
        return Combination(trail, timeline, weigh, still, facts)


def _facts(squares: Floats, left: Floats, steps: Floats, rank: int) -> dict[str, float]:
    """What the spectrum and the line along the first direction tell."""
    sizes = np.sqrt(squares)
    first = sizes[0] * left[:, 0]
    slope = float((line_weights(steps, 1.0) - line_weights(steps, 0.0)) @ first)
    beyond = float(sizes[rank]) if rank < len(sizes) else 0.0
    gap = (float(sizes[rank - 1]) - beyond) / float(sizes[0])
    tied = rank < len(sizes) and gap < _TIE
    facts = {
        "explained": float(squares[:rank].sum() / squares.sum()),
        "gap": gap,
        "tied": float(tied),
        **line_facts(np.outer(first, first), steps),
    }
    if first[-1] != 0:
        facts["slope"] = slope / float(first[-1])
    return facts
