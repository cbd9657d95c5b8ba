"""What depends on one base tensor alone, computed once however many tuned checkpoints there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from offaxis import measures
from offaxis.kernels import bf16_codes, bin_counts
from offaxis.linalg import Basis, Spectrum, angle_rank, principal_rank, spectrum_and_basis

if TYPE_CHECKING:
    from offaxis.checkpoint import Part

__all__ = ["BaseSide", "FixedMask", "Settings", "Spectral"]

Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """How to measure. `angle_rank` and `principal_rank` None are DESIGN's defaults."""

    alpha: float = measures.ALPHA
    angle_rank: int | None = None
    principal_rank: int | None = None
    seed: int = 0
    rounding_null: bool = True

    def ranks(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(k, r) for a matrix of `shape`, never beyond its rank."""
        rows, cols = shape
        most = min(rows, cols)
        k = self.angle_rank or angle_rank(rows, cols)
        r = self.principal_rank or principal_rank(rows, cols)
        return min(k, most), min(r, most)


@dataclass(frozen=True)
class FixedMask:
    """A mask that depends on the base alone, and its count in each magnitude bin."""

    bits: Bits
    bins: Counts


@dataclass(frozen=True)
class Spectral:
    """The base's spectrum and subspaces. `matrix` is float64 and turned as the model uses it."""

    matrix: torch.Tensor
    spectrum: Spectrum
    basis: Basis
    angle_rank: int
    principal_rank: int
    near_threshold: int

    def top(self, rank: int) -> Basis:
        """The first `rank` columns of both bases."""
        return Basis(self.basis.left[:, :rank], self.basis.right[:, :rank], self.basis.angle_error)


@dataclass
class BaseSide:
    """One base tensor with its fixed masks and, where asked for, its spectrum.

    why_not: why `spectral` is None: `not_asked_for`, `not_sampled`, `not_a_matrix`, `nonfinite`.
    """

    part: Part
    stored: torch.Tensor
    settings: Settings
    why_not: str = ""
    codes: npt.NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    bins: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    fixed: dict[str, FixedMask] = field(default_factory=dict)
    spectral: Spectral | None = None

    def __post_init__(self) -> None:
        if not self.part.is_matrix:
            self.why_not = "not_a_matrix"
            return
        self.codes = bf16_codes(self.stored)
        self.bins = bin_counts(self.codes)
        low = measures.low_magnitude_mask(self.stored, alpha=self.settings.alpha)
        self._fix("low_magnitude_overlap", low.mask)
        if not self.why_not and not bool(torch.isfinite(self.stored).all()):
            self.why_not = "nonfinite"
        if not self.why_not:
            self._decompose(low.mask)

    def _fix(self, measure: str, bits: Bits) -> None:
        self.fixed[measure] = FixedMask(bits, bin_counts(self.codes, bits))

    def _decompose(self, low: Bits) -> None:
        base = self.stored.to(torch.float64)
        turned = base.T if self.part.transposed else base
        k, r = self.settings.ranks(self.stored.shape)
        spectrum, basis = spectrum_and_basis(turned, rank=max(k, r))
        stored_left = basis.right if self.part.transposed else basis.left
        principal = measures.principal_mask(base, stored_left[:, :r], alpha=self.settings.alpha)
        self._fix("principal_overlap", principal.mask)
        self._fix("principal_not_low_overlap", principal.mask & ~low)
        self.spectral = Spectral(turned, spectrum, basis, k, r, principal.near)
