"""Exact random masks: so many entries of each bin, every such choice equally likely."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from offaxis.kernels.counts import MAGNITUDE_BINS

__all__ = ["draw", "draw_in_bins"]

Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


@njit(nogil=True, cache=True)
def _uniform(state: Any) -> float:
    """The next number in [0, 1) of a SplitMix64 sequence (Steele, Lea and Flood, 2014)."""
    z = state[0] + np.uint64(0x9E3779B97F4A7C15)
    state[0] = z
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@njit(nogil=True, cache=True)
def _draw(entries: int, count: int, state: Any, out: Any) -> None:
    """Selection sampling (Knuth, algorithm S): entry i is taken with probability needed / left.

    Adding the outcome, not branching on it, is twice as fast where half of the entries are taken.
    """
    need = float(count)
    left = float(entries)
    for i in range(entries):
        take = _uniform(state) * left < need
        out[i >> 3] |= np.uint8(np.uint8(take) << np.uint8(i & 7))
        need -= take
        left -= 1.0


@njit(nogil=True, cache=True)
def _draw_in_bins(codes: Any, need: Any, left: Any, state: Any, out: Any) -> None:
    for i in range(codes.size):
        place = (codes[i] & np.uint16(0x7FFF)) >> np.uint16(4)
        take = _uniform(state) * left[place] < need[place]
        out[i >> 3] |= np.uint8(np.uint8(take) << np.uint8(i & 7))
        need[place] -= take
        left[place] -= 1.0


def draw(entries: int, count: int, *, seed: int) -> Bits:
    """A packed mask of exactly `count` of `entries`, uniform over all such masks.

    0 <= count <= entries, else ValueError. seed: 64 bits; the same on every machine.
    """
    if not 0 <= count <= entries:
        raise ValueError(f"cannot draw {count} of {entries} entries")
    out = np.zeros(-(-entries // 8), np.uint8)
    _draw(entries, count, np.array([seed], np.uint64), out)
    return out


def draw_in_bins(
    codes: npt.NDArray[np.uint16], total: Counts, wanted: Counts, *, seed: int
) -> Bits:
    """A packed mask with exactly `wanted[b]` entries in each magnitude bin b, uniform over these.

    codes: bf16 codes of W₀, flat; total, wanted: counts of shape (`MAGNITUDE_BINS`,), `total` being
    `bin_counts(codes)`. ValueError where more are wanted than there are.
    """
    if total.shape != (MAGNITUDE_BINS,) or bool(((wanted < 0) | (wanted > total)).any()):
        raise ValueError("more entries are wanted of a magnitude bin than it has")
    out = np.zeros(-(-codes.size // 8), np.uint8)
    state = np.array([seed], np.uint64)
    _draw_in_bins(codes, wanted.astype(np.float64), total.astype(np.float64), state, out)
    return out
