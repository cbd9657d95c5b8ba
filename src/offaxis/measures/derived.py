"""Numbers that follow from those of a comparison: no entry is read again."""

import math

import numpy as np
import numpy.typing as npt

from offaxis.measures.number import Number, undefined

__all__ = ["containment", "intersection", "stable_rank", "update_rank"]

Floats = npt.NDArray[np.float64]

_TOLERANCE = 2.0**-26
"""√ε of float64: what a Gram leaves of singular values far below the first."""


def intersection(overlap: float, first: float, second: float) -> float:
    """|A ∩ B| as a share of all entries, from the Jaccard overlap and the densities of A and B.

    J = I / (p + q − I), so I = J (p + q) / (1 + J), in [0, min(p, q)].
    """
    return overlap * (first + second) / (1 + overlap)


def containment(overlap: float, first: float, second: float) -> Number:
    """|A ∩ B| / |A|, in [0, 1]: the share of A that lies in B.

    With A the mask of a run's last checkpoint and B that of an earlier one it is the share of the
    finally changed entries that had changed by then (The Path Not Taken, section 2.2, temporal
    stability); of a null's Jaccard overlap, what the null expects. Undefined for an empty A.
    """
    if first == 0:
        return undefined("no_change")
    return Number(min(1.0, intersection(overlap, first, second) / first))


def stable_rank(rank1_energy: float) -> Number:
    """‖ΔW‖_F² / ‖ΔW‖₂², in [1, min(m, n)]: the reciprocal of `rank1_energy`."""
    if not 0 < rank1_energy <= 1:
        return undefined("no_update")
    return Number(1 / rank1_energy)


def update_rank(values: Floats, shape: tuple[int, int]) -> Number:
    """The numerical rank of ΔW as a share of min(m, n), in (0, 1].

    Singular values above max(m, n) · √ε · σ₁ count, ε that of float64: below that, those of a Gram
    are rounding. values: descending, shape (min(m, n),). Undefined where nothing moved. "RL
    finetunes small subnetworks" (2505.11711) finds sparse updates of nearly full rank.
    """
    if not values.size or not values[0] > 0 or not math.isfinite(float(values[0])):
        return undefined("no_update")
    above = int((values > max(shape) * _TOLERANCE * values[0]).sum())
    return Number(above / min(shape))
