"""Where each matrix's first singular direction goes over the checkpoints (AlphaRL, section 3.1).

u_t is the first left singular vector of ΔW_t, turned to the output side where a model stores a
matrix transposed. It has no sign of its own; signs are chosen from the last checkpoint backwards
so that neighbours do not point against each other, and (u_t, v_t) turn together. *raw* is u_t;
*scaled* is α_t σ_t u_t with α_t = ‖ΔW_t‖_F / σ_t, that is ‖ΔW_t‖_F · u_t (section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offaxis.predict.series import Series
from offaxis.predict.solver import triplets
from offaxis.predict.trails import SeriesTrail

__all__ = ["KINDS", "Trajectory", "aligned_signs", "matrix_trails", "trajectory"]

Floats = NDArray[np.float64]

KINDS = ("raw", "scaled")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One matrix over T checkpoints, (m, n) with m the output side.

    left: u_t, (T, m), signs aligned; a row of zeros where ΔW_t is zero. right: v_t of the last
    checkpoint, (n,). sigma, norms: σ₁ and ‖ΔW_t‖_F, (T,). tied: checkpoints at which σ₁ and σ₂ are
    so close that u_t is one of many.
    """

    tensor: str
    layer: int | None
    role: str
    expert: int | None
    shape: tuple[int, int]
    transposed: bool
    left: Floats
    right: Floats
    sigma: Floats
    norms: Floats
    tied: tuple[bool, ...]

    def rows(self, kind: str) -> Floats:
        """The trajectory (T, m): `raw` or `scaled`."""
        return self.left if kind == "raw" else self.left * self.norms[:, None]

    def last_update(self, length: float | None = None) -> Floats:
        """The last u v^T as it is stored (transposed again where the model stores it so).

        length: its Frobenius norm; None: ‖ΔW_T‖_F (AlphaRL, eq. 3).
        """
        scale = float(self.norms[-1]) if length is None else length
        found: Floats = scale * np.outer(self.left[-1], self.right)
        return found.T if self.transposed else found


def matrix_trails(series: Series) -> Iterator[SeriesTrail]:
    """The matrices of a series, fused tensors cut into their parts."""
    return (trail for trail in series.trails(cut=True) if trail.is_matrix)


def trajectory(trail: SeriesTrail) -> Trajectory:
    """σ₁, u₁ and v₁ of every ΔW_t of one matrix, each search begun where the last one ended.

    One ΔW_t is in memory at a time. Raises CheckpointError where an entry is NaN or infinite.
    """
    turned = trail.part.transposed
    rows, cols = (trail.shape[1], trail.shape[0]) if turned else (trail.shape[0], trail.shape[1])
    left, sigma, norms = np.zeros((len(trail), rows)), np.zeros(len(trail)), np.zeros(len(trail))
    right, tied = np.zeros((len(trail), cols)), [False] * len(trail)
    for t, found in enumerate(triplets(trail)):
        sigma[t], norms[t] = found.sigma, found.norm
        if found.norm > 0:
            left[t], right[t], tied[t] = found.u, found.v, found.tied
    signs = aligned_signs(left)
    return Trajectory(
        tensor=trail.name, layer=trail.part.layer, role=trail.part.role, expert=trail.part.expert,
        shape=(rows, cols), transposed=turned, left=left * signs[:, None],
        right=right[-1] * signs[-1], sigma=sigma, norms=norms, tied=tuple(tied),
    )  # fmt: skip


def aligned_signs(left: Floats) -> Floats:
    """One sign a row of left (T, m), walking backwards: u_t · u_t' >= 0 for the next row t' ≠ 0.

    The last row's largest entry is made positive, so that a result does not depend on a library's
    choice.
    """
    signs = np.ones(len(left))
    ahead = np.zeros(left.shape[1])
    for t in range(len(left) - 1, -1, -1):
        if not left[t].any():
            continue
        reference = (
            float(left[t] @ ahead) if ahead.any() else float(left[t][np.abs(left[t]).argmax()])
        )
        signs[t] = -1.0 if reference < 0 else 1.0
        ahead = left[t] * signs[t]
    return signs
