"""What a reader knows about an entry before it is coded: its base's exponent, its row, its column.

How often an entry moves depends on its size (The Path Not Taken, Gate III): a step of a given
length spans twice as many ULPs of an entry whose exponent is one lower. It also depends on how far
its row and its column moved on the whole. Both act on the step's length in ULPs, so they add up in
its logarithm: the context of an entry with exponent field e in row i and column j is

    k = e                                      (plain), or
    k = clamp(2e - R_i - C_j, 0, 2E - 1)       (shifted)

with integers R_i, C_j in half octaves, chosen by the writer, and E the number of exponents.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from offaxis.delta.words import Words

__all__ = [
    "SHIFT_LIMIT",
    "Shifts",
    "Sums",
    "add_expected",
    "add_moved",
    "offsets",
    "plain",
    "shifted",
    "shifts_of",
    "spread",
]

Array = npt.NDArray[Any]
Shifts = tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]
"""R, (rows,), and C, (columns,)."""
Offsets = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]
Sums = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

SHIFT_LIMIT = 12
"""R and C lie in [-12, 12]: a factor of 64 either way."""

_MOVED = np.minimum((np.arange(256) + 1) // 2, 8).astype(np.uint8)
"""How far a token says that an entry moved, in ULPs, at most 8."""
_FIXED = 12  # fractional bits of an expected move
_RATIO = 20  # fractional bits of a ratio
_PRIOR = 2 << _FIXED  # two ULPs are added to what was seen and to what was expected


@njit(nogil=True, cache=True)
def _plain(base: Any, shift: Any, mask: Any, table_of: Any, out: Any) -> None:
    for i in range(base.size):
        out[i] = table_of[(base[i] >> shift) & mask]


@njit(nogil=True, cache=True)
def _shifted_row(base: Any, columns: Any, shift: Any, mask: Any, table_of: Any, out: Any) -> None:
    for j in range(base.size):
        out[j] = table_of[np.uint32(columns[j]) + np.uint32((base[j] >> shift) & mask)]


@njit(nogil=True, cache=True)
def _shifted(base: Any, start: int, where: Any, field: Any, table_of: Any, out: Any) -> None:
    """table_of is flat: one row of the exponents' tables for each sum of shifts."""
    rows, columns = where
    shift, mask = field
    width = columns.size
    at = 0
    row, column = start // width, start % width
    while at < base.size:
        stop = min(at + width - column, base.size)
        _shifted_row(base[at:stop], columns[column:], shift, mask, table_of[rows[row] :],
                     out[at:stop])  # fmt: skip
        at, row, column = stop, row + 1, 0


@njit(nogil=True, cache=True)
def _add_rows_and_columns(keys: Any, value_of: Any, rows: Any, columns: Any) -> None:
    """rows[i] and columns[j] += value_of[key] for the keys of whole rows, row-major."""
    width = columns.size
    for i in range(rows.size):
        total = np.int64(0)
        for j in range(width):
            value = np.int64(value_of[keys[i * width + j]])
            total += value
            columns[j] += value
        rows[i] += total


def plain(base: Array, words: Words, table_of: Array) -> Array:
    """table_of[e] for every word of `base`, (n,)."""
    out = np.empty(base.size, dtype=table_of.dtype)
    kind = base.dtype.type
    _plain(base, kind(words.shift), kind(words.exponents - 1), table_of, out)
    return out


def spread(table_of: Array) -> Array:
    """`table_of`, by k, as `shifted` wants it: by sum of shifts and exponent, flat."""
    exponents = table_of.size // 2
    sums = np.arange(-2 * SHIFT_LIMIT, 2 * SHIFT_LIMIT + 1)[:, None]
    k = 2 * np.arange(exponents)[None, :] - sums
    out: Array = table_of[np.clip(k, 0, table_of.size - 1)].reshape(-1)
    return out


def offsets(shifts: Shifts, words: Words) -> Offsets:
    """Where each row's and each column's part of a context lies in a spread table."""
    rows, columns = (
        (side.astype(np.int16) + SHIFT_LIMIT).astype(np.uint16) * np.uint16(words.exponents)
        for side in shifts
    )
    return rows, columns


def shifted(base: Array, start: int, words: Words, where: Offsets, spread_table: Array) -> Array:
    """The table of each word of `base`, the entries of a matrix from `start` on."""
    out = np.empty(base.size, dtype=spread_table.dtype)
    kind = base.dtype.type
    field = (kind(words.shift), kind(words.exponents - 1))
    _shifted(base, start, where, field, spread_table, out)
    return out


def add_moved(tokens: Array, sums: Sums) -> None:
    """Add how far entries moved (ULPs, at most 8 each) to their rows' and columns' sums."""
    _add_rows_and_columns(tokens, _MOVED, *sums)


def add_expected(base: Array, words: Words, counts: npt.NDArray[np.int64], sums: Sums) -> None:
    """Add how far entries of such exponents move on average, in units of 2**-12 ULP.

    counts: (exponents, tokens) over the whole tensor.
    """
    seen = np.maximum(counts.sum(axis=1), 1)
    moved = counts @ _MOVED[: counts.shape[1]].astype(np.int64)
    mean = ((moved << _FIXED) // seen).astype(np.uint16)
    own = np.arange(words.exponents).astype(np.uint8)
    _add_rows_and_columns(plain(base, words, own), mean, *sums)


def shifts_of(moved: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> Any:
    """R (or C) from the sums by row (or column): 2 log2(moved / expected) rounded, (n,) int8.

    Integers alone, so that every machine finds the same: 20 fractional bits of the ratio against
    2**((2q - 1) / 4), where q begins.
    """
    ratio = (((moved << _FIXED) + _PRIOR) << _RATIO) // (expected + _PRIOR)
    edges = [
        isqrt(isqrt(1 << (4 * _RATIO + 2 * q - 1))) for q in range(1 - SHIFT_LIMIT, SHIFT_LIMIT + 1)
    ]
    return (np.searchsorted(edges, ratio, side="right") - SHIFT_LIMIT).astype(np.int8)
