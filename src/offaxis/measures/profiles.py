"""Row and column profiles of the update mask: what entry size predicts, stripes, and persistence.

The Path Not Taken, section 2.2 (figures 2, 3 and 10), shows profiles and maps without a null. Here
each stands beside the *magnitude null*: the changed entries redrawn at random within bins of equal
|W₀| (`kernels.MAGNITUDE_BINS`), everything in closed form. Counts in bins are of shape (2048,).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from offaxis.kernels import Scan, rate_sums
from offaxis.measures.change import block_sizes, column_changed, mask_picture, row_changed
from offaxis.measures.number import Number, undefined

__all__ = [
    "Profiles",
    "binned",
    "change_rates",
    "null_profiles",
    "observed_profiles",
    "profile_correlation",
    "profile_correlation_null",
    "stripes",
]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_ROUNDING = 1e-24
"""A sum of squared deviations below this share of the sum of squares is rounding alone."""


class Profiles(NamedTuple):
    """Changed shares of each row (m,), of each column (n,), and of each block of a picture."""

    rows: Floats
    columns: Floats
    picture: Floats

    def turned(self) -> "Profiles":
        """Those of the transposed matrix."""
        return Profiles(self.columns, self.rows, self.picture.T)


def observed_profiles(scan: Scan, shape: tuple[int, int], *, side: int = 96) -> Profiles:
    """The observed profiles ρ_i = Σ_j M_ij / n and κ_j = Σ_i M_ij / m, and the mask picture."""
    mask = np.zeros(0, np.uint8) if scan.mask is None else scan.mask
    picture = mask_picture(mask, shape, side=side)
    return Profiles(row_changed(scan), column_changed(scan), picture)


def change_rates(total: Counts, update: Counts) -> Floats:
    """p_b = |M_b| / |b|: the changed share of each magnitude bin, 0 where a bin is empty."""
    return update / np.maximum(total, 1)


def null_profiles(
    codes: npt.NDArray[np.uint16],
    shape: tuple[int, int],
    total: Counts,
    update: Counts,
    *,
    side: int = 96,
) -> Profiles:
    """The profiles expected if the changed entries were redrawn within bins of equal |W₀|.

    E[ρ_i] = Σ_j p_b(i,j) / n, and so on for columns and blocks, p_b = |M_b|/|b|: exact. codes: the
    bf16 codes of W₀ (`kernels.bf16_codes`), flat; total, update: entries and changed entries in
    each bin. Shares in [0, 1]; their mean is the changed share of the matrix.
    """
    rows, cols = (block_sizes(extent, side) for extent in shape)
    by_row, by_col, blocks = rate_sums(codes, change_rates(total, update), rows, cols)
    height, width = (max(1, extent) for extent in shape)
    return Profiles(by_row / width, by_col / height, blocks / np.outer(rows, cols))


def stripes(observed: Floats, expected: Floats, total: Counts, update: Counts) -> Number:
    """How much more the rows (columns) differ in changed share than the magnitude null says.

    Var_i(ρ_i) / E[Var_i(ρ_i)], in [0, ∞): about 1 where entry size explains the profile, above 1
    where whole rows move more or less than it predicts. The expectation is the variance of the null
    profile plus the noise of redrawing, Σ_b |b| p_b (1 − p_b) · |b|/(|b| − 1) · (1 − 1/m) / (m n²),
    the entries of a bin being taken as spread evenly over the m rows (else it is an upper bound).

    observed, expected: ρ and its null, shape (m,), for columns κ. Undefined for a profile of fewer
    than two places and where nothing can vary (no entry or every entry changed).
    """
    if observed.size < 2:
        return undefined("one_place")
    rate = change_rates(total, update)
    noise = _noise(total, rate * (1 - rate), observed.size)
    spread = float(expected.var()) + noise
    if spread <= _ROUNDING * float(expected @ expected):
        return undefined("no_variation")
    return Number(float(observed.var()) / spread)


def profile_correlation(first: Floats, second: Floats) -> Number:
    """Pearson correlation of two profiles of one matrix, in [−1, 1].

    Between checkpoints of a run it says how early the pattern is fixed, whatever the density:
    peaks and troughs that persist while the changed share grows give 1. Undefined where either
    profile is constant up to rounding.
    """
    if first.size < 2:
        return undefined("one_place")
    one, other = first - first.mean(), second - second.mean()
    squares = float(one @ one), float(other @ other)
    scales = float(first @ first), float(second @ second)
    if any(square <= _ROUNDING * scale for square, scale in zip(squares, scales, strict=True)):
        return undefined("constant_profile")
    return Number(_ratio(float(one @ other), *squares))


def profile_correlation_null(
    expected: tuple[Floats, Floats], total: Counts, update: tuple[Counts, Counts], both: Counts
) -> Number:
    """The correlation of two profiles expected if both masks were redrawn within magnitude bins.

    The two bits of an entry stay together, so the null keeps that small weights change more easily
    *and* that an entry which has moved mostly stays moved; only rows and columns are forgotten.
    With e, e′ the null profiles, p, p′ and q the shares of a bin changed in the first, the second
    and both, and N(f) = Σ_b |b| f_b · |b|/(|b| − 1) · (1 − 1/m) / (m n²):
    [Cov(e, e′) + N(q − p p′)] / √{[Var e + N(p − p²)] [Var e′ + N(p′ − p′²)]}.

    expected: the null profiles; update, both: counts in bins of each mask and of their
    intersection. As a ratio of expectations it is off by O(1/m).
    """
    first, second = expected
    if first.size < 2:
        return undefined("one_place")
    p, q = (change_rates(total, one) for one in update)
    joint = change_rates(total, both)
    cross = float(np.mean((first - first.mean()) * (second - second.mean())))
    cross += _noise(total, joint - p * q, first.size)
    one = float(first.var()) + _noise(total, p * (1 - p), first.size)
    other = float(second.var()) + _noise(total, q * (1 - q), first.size)
    scales = float(first @ first), float(second @ second)
    if one <= _ROUNDING * scales[0] or other <= _ROUNDING * scales[1]:
        return undefined("constant_profile")
    return Number(_ratio(cross, one, other))


def binned(values: Floats, most: int = 256) -> Floats:
    """A profile as means over at most `most` nearly equal stretches, for storage and display."""
    if values.size <= most:
        return values
    sizes = block_sizes(values.size, most)
    starts = np.cumsum(sizes) - sizes
    means: Floats = np.add.reduceat(values, starts) / sizes
    return means


def _ratio(cross: float, one: float, other: float) -> float:
    return max(-1.0, min(1.0, cross / (math.sqrt(one) * math.sqrt(other))))


def _noise(total: Counts, spread: Floats, places: int) -> float:
    """Mean over `places` rows of the (co)variance of their changed share when bins are redrawn.

    spread: the (co)variance of one entry's bits in each bin. Each row takes |b|/m of a bin's
    entries without replacement, which gives |b|² (1 − 1/m) / (m (|b| − 1)) · spread_b.
    """
    size = total.astype(np.float64)
    without = size / np.maximum(size - 1, 1)  # a bin of one entry has no spread
    width = float(size.sum()) / places
    noise = float((size * without * spread).sum())
    return noise * (1 - 1 / places) / (places * width**2)
