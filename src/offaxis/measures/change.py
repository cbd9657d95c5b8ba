"""How much changed, and where along rows and columns: plain readings of one bit scan."""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from offaxis.kernels import Scan, block_counts
from offaxis.measures.number import Number, undefined

__all__ = [
    "Squares",
    "block_sizes",
    "column_changed",
    "correlation",
    "mask_picture",
    "relative_update_norm",
    "row_changed",
    "unchanged_bf16",
    "unchanged_stored",
]

Floats = npt.NDArray[np.float64]


class Squares(Protocol):
    """Sums of ΔW², W₀² and W₀·W₊: of one scan, or added up over tensors."""

    @property
    def update_square(self) -> float: ...
    @property
    def base_square(self) -> float: ...
    @property
    def cross(self) -> float: ...


def unchanged_bf16(scan: Scan) -> Number:
    """Share of entries whose value, rounded to bfloat16 to nearest even, is the same in both.

    In [0, 1]; +0 and −0 are the same, a NaN is unchanged only if bit-identical. The Path Not
    Taken, definitions 2.1 and 2.2.
    """
    return _share(scan.entries - scan.changed, scan.entries)


def unchanged_stored(scan: Scan) -> Number:
    """Share of entries that are equal after promoting both sides to the wider stored dtype."""
    return _share(scan.entries - scan.changed_stored, scan.entries)


def relative_update_norm(sums: Squares) -> Number:
    """‖ΔW‖_F / ‖W₀‖_F over finite entries, in [0, ∞)."""
    if sums.base_square == 0:
        return undefined("base_is_zero")
    return Number(math.sqrt(sums.update_square / sums.base_square))


def correlation(sums: Squares) -> Number:
    """Cosine between W₀ and W₊ as vectors, in [−1, 1]; near 0 for unrelated models."""
    tuned_square = max(0.0, sums.update_square - sums.base_square + 2 * sums.cross)
    scale = math.sqrt(sums.base_square) * math.sqrt(tuned_square)
    return Number(max(-1.0, min(1.0, sums.cross / scale))) if scale else undefined("zero_norm")


def row_changed(scan: Scan) -> Floats:
    """Share of changed entries in each row (the paper's ρ), shape (m,)."""
    rows = np.zeros(0, np.int64) if scan.rows is None else scan.rows
    return rows / max(1, scan.entries // max(1, rows.size))


def column_changed(scan: Scan) -> Floats:
    """Share of changed entries in each column (the paper's κ), shape (n,)."""
    columns = np.zeros(0, np.int64) if scan.columns is None else scan.columns
    return columns / max(1, scan.entries // max(1, columns.size))


def mask_picture(mask: npt.NDArray[np.uint8], shape: tuple[int, int], *, side: int = 96) -> Floats:
    """The update mask as a picture: shares of changed entries in blocks, at most side × side."""
    rows, cols = (block_sizes(extent, side) for extent in shape)
    shares: Floats = block_counts(mask, rows, cols) / np.outer(rows, cols)
    return shares


def block_sizes(extent: int, side: int) -> npt.NDArray[np.int64]:
    """Cut `extent` into at most `side` blocks of nearly equal size."""
    edges = np.linspace(0, extent, min(side, extent) + 1).astype(np.int64)
    return edges[1:] - edges[:-1]


def _share(part: int, whole: int) -> Number:
    return Number(part / whole) if whole else undefined("no_entries")
