"""Where Gaussian noise may be confined to in a matrix: coordinate masks and singular subspaces.

Noise uniform in a space S of dimension s has the expected Rayleigh quotient tr(P_S F) / s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.gates.fisher.move import Move, Unit
from offaxis.gates.fisher.nulls import magnitude_bins
from offaxis.kernels import MAGNITUDE_BINS
from offaxis.linalg import principal_rank, spectrum_and_basis
from offaxis.masks import build

__all__ = ["CONTRASTS", "SPACES", "Spaces", "spaces_of"]

Floats = NDArray[np.float64]

SPACES = {
    "all": "every entry",
    "principal": "M_princ, the top half of |W₀⁽ʳ⁾|",
    "non_principal": "its complement",
    "principal_by_magnitude": "entries of the sizes that M_princ has, wherever they lie",
    "low_magnitude": "M_low, the bottom half of |W₀|",
    "high_magnitude": "its complement",
    "top": "top-r left and right singular subspaces at once, U_r · V_rᵀ",
    "left": "top-r left singular subspace",
    "right": "top-r right singular subspace",
    "outside": "outside both",
}
"""By name: what each is."""

CONTRASTS = {
    "principal / non_principal": ("principal", "non_principal"),
    "principal / principal_by_magnitude": ("principal", "principal_by_magnitude"),
    "high_magnitude / low_magnitude": ("high_magnitude", "low_magnitude"),
    "top / outside": ("top", "outside"),
    "left / outside": ("left", "outside"),
    "right / outside": ("right", "outside"),
}


@dataclass(frozen=True, eq=False)
class Spaces:
    """The spaces of one matrix, in its stored orientation."""

    principal: NDArray[np.bool_]
    low: NDArray[np.bool_]
    share: Floats
    """Share of M_princ in each bin of |W₀|."""
    left: Floats
    right: Floats

    @property
    def dims(self) -> Floats:
        """Dimension of each of `SPACES`."""
        rows, cols = self.principal.shape
        rank, entries = self.left.shape[1], rows * cols
        principal, low = int(self.principal.sum()), int(self.low.sum())
        found = [
            entries, principal, entries - principal, principal, low, entries - low,
            rank * rank, rank * cols, rank * rows, (rows - rank) * (cols - rank),
        ]  # fmt: skip
        return np.array(found, np.float64)

    def traces(self, gradient: Floats, squares: Floats, in_bins: Floats) -> Floats:
        """gᵀP_S g in each of `SPACES`. squares: g², in_bins: Σ g² of every bin of |W₀|."""
        total = float(squares.sum())
        principal = float(squares[self.principal].sum())
        low = float(squares[self.low].sum())
        turned = self.left.T @ gradient
        top = float(((turned @ self.right) ** 2).sum())
        left = float((turned**2).sum())
        right = float(((gradient @ self.right) ** 2).sum())
        return np.array([
            total, principal, total - principal, float(in_bins @ self.share), low, total - low,
            top, left, right, total - left - right + top,
        ])  # fmt: skip


def spaces_of(move: Move) -> dict[int, Spaces]:
    """Number of a unit → its spaces, for every matrix. Masks by `offaxis.masks`' rules."""
    numbers = [at for at, unit in enumerate(move.units) if unit.part.is_matrix]
    if not numbers:
        return {}
    ground = MemoryCheckpoint(
        move.origin, source=move.base.source, config=move.base.model.config.to_dict()
    )
    principal, low = build(ground, "principal"), build(ground, "low_magnitude")
    return {at: _spaces(move, move.units[at], principal, low) for at in numbers}


def _spaces(move: Move, unit: Unit, principal: Any, low: Any) -> Spaces:
    name = unit.view.name
    chosen = unit.of({name: principal[name]}).numpy()
    base = unit.of(move.origin).cpu()
    bins = magnitude_bins(base)
    inside = np.bincount(bins[chosen.reshape(-1)], minlength=MAGNITUDE_BINS)
    share = inside / np.maximum(np.bincount(bins, minlength=MAGNITUDE_BINS), 1)
    rank = principal_rank(*base.shape)
    _, basis = spectrum_and_basis(base, rank=rank)
    low_here = unit.of({name: low[name]}).numpy()
    return Spaces(chosen, low_here, share, basis.left.numpy(), basis.right.numpy())
