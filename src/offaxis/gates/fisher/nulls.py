"""Directions as long as Δ in every part, and otherwise random: what Δ's curvature is held against.

Each keeps the norm of every part. Their expected curvature has a closed form in the gradient of one
probe (see `probes`), so that it need not be drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offaxis.checkpoint.digest import checksum
from offaxis.gates.fisher.forms import Direction
from offaxis.gates.fisher.move import Move
from offaxis.kernels import MAGNITUDE_BINS, bf16_codes

__all__ = ["NULLS", "Shuffle", "binned", "drawn", "magnitude_bins", "real"]

Floats = NDArray[np.float64]
Draw = Callable[[Floats, NDArray[np.intp], np.random.Generator], Floats]


def magnitude_bins(base: Tensor) -> NDArray[np.intp]:
    """The bin of equal |W₀| of each entry, flat: bf16 exponent and top three mantissa bits."""
    return ((bf16_codes(base.cpu()) & np.uint16(0x7FFF)) >> np.uint16(4)).astype(np.intp)


def binned(groups: NDArray[np.intp], values: Floats, size: int = MAGNITUDE_BINS) -> Floats:
    """Σ of `values` in each group."""
    return np.bincount(groups, values, size).astype(np.float64)


def _gaussian(delta: Floats, _: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    noise = rng.standard_normal(delta.size)
    return noise * (np.linalg.norm(delta) / np.linalg.norm(noise))


def _permuted(delta: Floats, _: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    return rng.permutation(delta)


def _in_bins(delta: Floats, bins: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    out = np.empty_like(delta)
    out[np.argsort(bins, kind="stable")] = delta[np.lexsort((rng.random(delta.size), bins))]
    return out


def _signs(delta: Floats, _: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    return np.where(rng.random(delta.size) < 0.5, -delta, delta)


NULLS: MappingProxyType[str, Draw] = MappingProxyType(
    {"gaussian": _gaussian, "permuted": _permuted, "permuted_in_bins": _in_bins, "signs": _signs}
)
"""Gaussian noise; Δ's entries permuted; permuted within bins of |W₀|; each with a random sign."""


def real(move: Move) -> Direction:
    """Δ itself."""
    return lambda number: move.delta[number]


def drawn(move: Move, kind: str, *, draw: int, seed: int) -> Direction:
    """Draw number `draw` of a null.

    A unit's numbers come from the seed, the null, the draw and the unit's name alone.
    """

    def values(number: int) -> Tensor:
        unit, delta = move.units[number], move.delta[number]
        if not bool(delta.any()):
            return torch.zeros_like(delta)
        key = checksum(f"{seed}\n{kind}\n{draw}\n{unit.name}".encode())
        rng = np.random.Generator(np.random.PCG64(int(key, 16)))
        flat = delta.cpu().numpy().reshape(-1)
        bins = magnitude_bins(unit.of(move.origin)) if kind == "permuted_in_bins" else _NO_BINS
        made = NULLS[kind](flat, bins, rng)
        return torch.from_numpy(made).reshape(delta.shape).to(delta.device)

    return values


_NO_BINS = np.zeros(0, np.intp)


class Shuffle:
    """The moments of gᵀd over the nulls of one part, for any g."""

    def __init__(self, delta: Floats, bins: NDArray[np.intp]) -> None:
        self._squares = delta**2
        self._norm = float(self._squares.sum())
        self._bins = bins
        self._whole = _Sums.of(delta, np.zeros(delta.size, np.intp), 1)
        self._binned = _Sums.of(delta, bins, MAGNITUDE_BINS)

    def moments(self, gradient: Floats, squares: Floats, in_bins: Floats) -> dict[str, Any]:
        """Null → (E gᵀd, Var gᵀd). squares: g², in_bins: Σ g² of every bin."""
        total = float(squares.sum())
        sums = binned(self._bins, gradient)
        whole = np.array([total])
        return {
            "gaussian": (0.0, total * self._norm / gradient.size),
            "permuted": self._whole.moments(np.array([gradient.sum()]), whole),
            "permuted_in_bins": self._binned.moments(sums, in_bins),
            "signs": (0.0, float(squares @ self._squares)),
        }


class _Sums:
    """Counts, means and centred squares of a vector within groups that are permuted apart."""

    def __init__(self, count: Floats, sums: Floats, squares: Floats) -> None:
        self.count = np.maximum(count, 1)
        self.mean = sums / self.count
        self.centred = np.maximum(squares - sums * self.mean, 0.0)

    @classmethod
    def of(cls, values: Floats, groups: NDArray[np.intp], size: int) -> _Sums:
        count = np.bincount(groups, minlength=size).astype(np.float64)
        return cls(count, binned(groups, values, size), binned(groups, values**2, size))

    def moments(self, sums: Floats, squares: Floats) -> tuple[float, float]:
        """E and Var of Σ g_i d_p(i): Σ n ḡ d̄, and Σ S_gg S_dd / (n − 1), over the groups."""
        other = np.maximum(squares - sums**2 / self.count, 0.0)
        variance = other * self.centred / np.maximum(self.count - 1, 1)
        return float(sums @ self.mean), float(variance.sum())
