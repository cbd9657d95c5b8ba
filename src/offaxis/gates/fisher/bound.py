"""Proposition 3.2, ‖Δ‖ ≤ √(2K/μ): where it says something, and where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bound", "bounds"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """The bound on one subspace that holds Δ. measured ‖Δ‖ ≤ bound; ratio = measured / bound."""

    subspace: str
    dimension: int
    mu: float | None
    """λ_min of F on the subspace."""
    mu_max: float | None
    """λ_max of it."""
    measured: float
    bound: float | None
    ratio: float | None
    status: str
    """ok, identity, vacuous, or no_move."""
    reason: str


def bounds(
    gram: Floats, norms: Floats, *, kl: float, parameters: int, positions: int, vocabulary: int
) -> tuple[Bound, ...]:
    """The full space, the span of Δ, and the span of Δ's single-part pieces.

    gram: Δ_iᵀFΔ_j of the parts, a sequence. norms: ‖Δ_i‖. kl: K, KL(π₊ ‖ π) a sequence, on the same
    prefixes. positions: of all sequences, so that rank F ≤ positions · (vocabulary − 1).
    """
    length = float(np.linalg.norm(norms))
    form = float(gram.sum())
    rank = positions * (vocabulary - 1)
    full = Bound(
        "all parameters", parameters, 0.0 if rank < parameters else None, None, length, None, None,
        "vacuous" if rank < parameters else "undetermined", _full_reason(rank, parameters),
    )  # fmt: skip
    return full, _span(form, length, kl), _parts(gram, norms, length, kl)


def _full_reason(rank: int, parameters: int) -> str:
    if rank < parameters:
        return (
            f"F has rank {rank} at most (positions times vocabulary less one) on {parameters} "
            "parameters: μ = 0"
        )
    return (
        "λ_min is not computed; symmetries of the model (a norm's weights against those of the "
        "layers that it feeds) make it 0 for every transformer"
    )


def _span(form: float, length: float, kl: float) -> Bound:
    if length == 0:
        return Bound("span of Δ", 0, None, None, 0.0, None, None, "no_move", "Δ is 0")
    mu = form / length**2
    limit = sqrt(2 * kl / mu) if mu > 0 else None
    return Bound(
        "span of Δ", 1, mu, mu, length, limit, length / limit if limit else None,
        "identity" if mu > 0 else "vacuous",
        "μ is Δ's own Rayleigh quotient: the ratio is √(½ΔᵀFΔ / KL), whatever Δ is",
    )  # fmt: skip


def _parts(gram: Floats, norms: Floats, length: float, kl: float) -> Bound:
    moved: Sequence[int] = np.flatnonzero(norms > 0).tolist()
    name = "span of Δ's single parts"
    if not moved:
        return Bound(name, 0, None, None, 0.0, None, None, "no_move", "Δ is 0")
    scaled = gram[np.ix_(moved, moved)] / np.outer(norms[moved], norms[moved])
    eigenvalues = np.linalg.eigvalsh(scaled)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    if low <= np.finfo(np.float64).eps * len(moved) * high:
        return Bound(
            name, len(moved), low, high, length, None, None, "vacuous", "λ_min is 0 to rounding"
        )
    limit = sqrt(2 * kl / low)
    return Bound(
        name, len(moved), low, high, length, limit, length / limit if limit else None, "ok",
        "named before it was measured; one dimension a part of the model",
    )  # fmt: skip
