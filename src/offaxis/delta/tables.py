"""Probability tables: from counts to what is written, and from what is written to frequencies.

A token's probability p is written as one byte: the code c = 1 + round(-8 log2 p), capped at 127, or
0 where the token does not occur. A reader turns c into the weight w = floor(2**(24 - (c - 1) / 8)),
and the weights of a table into frequencies that sum to 2**14: f = max(1, floor(2**14 w / sum w)),
what is left over (or missing) going to the token of the largest f, the first of equals. All of it
is integer arithmetic, so that every machine finds the same numbers.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from offaxis.delta.rans import PRECISION

__all__ = ["MOST_TABLES", "Tables", "entropy", "fit", "frequencies", "quantise"]

MOST_TABLES = 64
_STEPS = 8
_LAST = 127
_FRACTION = 16  # fractional bits of a number of bits
_UNITS = 1 << PRECISION

Tables = npt.NDArray[np.uint8]
"""Codes, (tables, tokens)."""


def _root8(value: int) -> int:
    """floor(value ** (1/8)), exactly."""
    return isqrt(isqrt(isqrt(value)))


_WEIGHTS = np.array(
    [0, *(_root8(1 << (24 * _STEPS - (c - 1))) for c in range(1, _LAST + 1))], dtype=np.int64
)
_EDGES = np.array(
    [isqrt(_root8(1 << (2 * 32 * _STEPS - (2 * c - 1)))) for c in range(1, _LAST)], dtype=np.int64
)
"""2**32 times the probability halfway (in logarithm) between the codes c and c + 1."""


def frequencies(codes: Tables) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]] | None:
    """Frequencies and their starts, (tables, tokens) each; None where a row cannot be a table."""
    if codes.size == 0 or (codes > _LAST).any() or not codes.any(axis=1).all():
        return None
    weights = _WEIGHTS[codes]
    found = np.maximum(weights * _UNITS // weights.sum(axis=1, keepdims=True), codes > 0)
    rows = np.arange(len(found))
    largest = found.argmax(axis=1)
    found[rows, largest] += _UNITS - found.sum(axis=1)
    if (found[rows, largest] < 1).any():
        return None
    starts = np.cumsum(found, axis=1) - found
    return found.astype(np.uint32, order="C"), starts.astype(np.uint32, order="C")


def quantise(counts: npt.NDArray[np.int64]) -> Tables:
    """The codes of rows of counts, (tables, tokens). A row of zeros becomes "token 0 only"."""
    counts = counts.copy()
    counts[counts.sum(axis=1) == 0, 0] = 1
    excess = max(0, int(counts.sum(axis=1).max()).bit_length() - 31)  # counts << 32 must fit
    counts = np.maximum(counts >> excess, counts > 0)
    shares = (counts << 32) // counts.sum(axis=1, keepdims=True)
    codes = 1 + np.searchsorted(-_EDGES, -shares, side="right")
    return np.where(counts > 0, codes, 0).astype(np.uint8)


@njit(nogil=True, cache=True)
def _log2(n: int) -> int:
    """floor(2**16 log2 n) up to the last bit, from integers alone."""
    whole = 0
    while n >> (whole + 1):
        whole += 1
    mantissa = (
        np.uint64(n) << np.uint64(31 - whole) if whole <= 31 else np.uint64(n >> (whole - 31))
    )
    out = whole
    for _ in range(_FRACTION):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        out <<= 1
        if mantissa >> np.uint64(32):
            mantissa >>= np.uint64(1)
            out |= 1
    return out


@njit(nogil=True, cache=True)
def entropy(counts: Any) -> int:
    """2**16 times the bits that as many symbols take at their own entropy."""
    total, out = 0, 0
    for t in range(counts.size):
        if counts[t]:
            total += counts[t]
            out -= counts[t] * _log2(counts[t])
    return int(out + total * _log2(total)) if total else 0


@njit(nogil=True, cache=True)
def _bits(counts: Any) -> int:
    """2**16 times the bits of a row of counts, and of the table that says so."""
    last = 0
    for t in range(counts.size):
        if counts[t]:
            last = t
    return int(entropy(counts) + ((12 + 4 * last) << _FRACTION))


@njit(nogil=True, cache=True)
def _merge(counts: Any, most: int) -> Any:
    """Join neighbouring rows while that shortens the whole, or while there are too many.

    Returns the first row of each group, and 2**16 times the bits of all.
    """
    groups = counts.shape[0]
    rows = counts.copy()
    first = np.arange(groups)
    own = np.array([_bits(rows[g]) for g in range(groups)])
    gain = np.zeros(max(groups - 1, 1), dtype=np.int64)
    for g in range(groups - 1):
        gain[g] = own[g] + own[g + 1] - _bits(rows[g] + rows[g + 1])
    while groups > 1:
        best = int(np.argmax(gain[: groups - 1]))
        if gain[best] < 0 and groups <= most:
            break
        rows[best] += rows[best + 1]
        own[best] = _bits(rows[best])
        for g in range(best + 1, groups - 1):
            rows[g], own[g], first[g] = rows[g + 1], own[g + 1], first[g + 1]
        for g in range(best, groups - 2):
            gain[g] = gain[g + 1]
        groups -= 1
        for g in range(max(best - 1, 0), min(best + 1, groups - 1)):
            gain[g] = own[g] + own[g + 1] - _bits(rows[g] + rows[g + 1])
    return first[:groups].copy(), own[:groups].sum()


def fit(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Tables, int]:
    """Tables for counts by context, (contexts, tokens): first contexts, codes, and 2**16 bits.

    Neighbouring contexts share a table where that costs less than a table of their own.
    """
    seen = np.flatnonzero(counts.sum(axis=1))
    seen = seen if seen.size else np.zeros(1, dtype=np.int64)
    groups, bits = _merge(counts[seen], MOST_TABLES)
    first = seen[groups]
    first[0] = 0
    codes = quantise(np.add.reduceat(counts, first, axis=0))
    used = np.flatnonzero(codes.max(axis=0))
    return first, codes[:, : int(used[-1]) + 1], int(bits)
