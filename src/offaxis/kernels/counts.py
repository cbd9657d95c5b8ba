"""Counts over packed masks: within magnitude bins, within blocks, and across runs.

A packed mask holds entry i (row-major) in bit i % 8, lowest first, of byte i // 8.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from offaxis.kernels.bits import FAST
from offaxis.kernels.pool import for_each, spans

__all__ = [
    "MAGNITUDE_BINS",
    "bin_counts",
    "block_counts",
    "pack",
    "popcount",
    "rate_sums",
    "run_counts",
    "unpack",
]

MAGNITUDE_BINS = 2048
"""Bins of equal |W₀|: the eight exponent bits and the top three mantissa bits of its bf16 code."""

_SMALLEST_SPAN = 1 << 16

Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


@njit(nogil=True, cache=True)
def _bin_all(codes: Any, counts: Any) -> None:
    for i in range(codes.size):
        counts[(codes[i] & np.uint16(0x7FFF)) >> np.uint16(4)] += 1


@njit(nogil=True, cache=True)
def _bin_masked(codes: Any, mask: Any, counts: Any) -> None:
    """counts: four rows, summed by the caller, so that neighbours in one bin need not wait.

    Adding the bit, not branching on it, is four times as fast where half of the bits are set.
    """
    whole = codes.size // 8
    for byte in range(whole):
        bits = np.uint32(mask[byte])
        if bits == 0:
            continue
        for k in range(8):
            place = (codes[8 * byte + k] & np.uint16(0x7FFF)) >> np.uint16(4)
            counts[k & 3, place] += (bits >> np.uint32(k)) & np.uint32(1)
    for i in range(8 * whole, codes.size):
        place = (codes[i] & np.uint16(0x7FFF)) >> np.uint16(4)
        counts[0, place] += (mask[i >> 3] >> (i & 7)) & 1


def bin_counts(codes: npt.NDArray[np.uint16], mask: Bits | None = None) -> npt.NDArray[np.int64]:
    """How many entries (of the mask, if given) lie in each of the `MAGNITUDE_BINS` bins.

    codes: bf16 codes of W₀, flat. Returns int64 of shape (2048,).
    """

    def one(span: tuple[int, int]) -> npt.NDArray[np.int64]:
        start, stop = span
        counts = np.zeros((4, MAGNITUDE_BINS), np.int64)
        if mask is None:
            _bin_all(codes[start:stop], counts[0])
        else:
            _bin_masked(codes[start:stop], mask[start // 8 : -(-stop // 8)], counts)
        total: npt.NDArray[np.int64] = counts.sum(axis=0)
        return total

    parts = for_each(one, spans(codes.size, multiple=8, smallest=_SMALLEST_SPAN))
    return np.sum(parts, axis=0, dtype=np.int64) if parts else np.zeros(MAGNITUDE_BINS, np.int64)


def popcount(mask: Bits) -> int:
    """How many bits of a packed mask are set."""
    return int(np.bitwise_count(mask).sum(dtype=np.int64))


def pack(mask: torch.Tensor | npt.NDArray[np.bool_]) -> Bits:
    """A boolean mask as bits, lowest first, in row-major order."""
    array = mask.numpy() if isinstance(mask, torch.Tensor) else mask
    return np.packbits(array.reshape(-1), bitorder="little")


def unpack(mask: Bits, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The boolean mask of `shape` behind packed bits."""
    count = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(mask, count=count, bitorder="little").astype(bool).reshape(shape)


@njit(nogil=True, cache=True)
def _tally(masks: Any, entries: int, counts: Any) -> None:
    for byte in range(masks.shape[1]):
        for k in range(min(8, entries - 8 * byte)):
            runs = 0
            for r in range(masks.shape[0]):
                runs += (masks[r, byte] >> k) & 1
            counts[runs] += 1


def run_counts(masks: Sequence[Bits], entries: int) -> Counts:
    """How many of `entries` are set in exactly r of the R masks: shape (R + 1,)."""
    stacked = np.stack(masks)

    def one(span: tuple[int, int]) -> Counts:
        counts = np.zeros(len(masks) + 1, np.int64)
        start, stop = span
        _tally(stacked[:, start // 8 : -(-stop // 8)], stop - start, counts)
        return counts

    parts = for_each(one, spans(entries, multiple=8, smallest=_SMALLEST_SPAN))
    empty = np.zeros(len(masks) + 1, np.int64)
    return np.sum(parts, axis=0, dtype=np.int64) if parts else empty


@njit(nogil=True, cache=True)
def _count_blocks(mask: Any, row_block: Any, col_block: Any, counts: Any) -> None:
    cols = col_block.size
    for i in range(row_block.size):
        line = counts[row_block[i]]
        for j in range(cols):
            bit = i * cols + j
            line[col_block[j]] += (mask[bit >> 3] >> (bit & 7)) & 1


def block_counts(mask: Bits, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> Counts:
    """Set entries in each block of a matrix whose rows and columns are cut at given sizes.

    rows, cols: how many rows (columns) each block spans; they sum to the matrix's shape.
    """
    counts = np.zeros((rows.size, cols.size), np.int64)
    by_row, by_col = (np.repeat(np.arange(sizes.size), sizes) for sizes in (rows, cols))
    _count_blocks(mask, by_row, by_col, counts)
    return counts


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_row(codes: Any, rates: Any, band: Any) -> float:
    """band[j] += the rate of entry j's magnitude bin; returns their sum over the row."""
    total = 0.0
    for j in range(codes.size):
        rate = rates[(codes[j] & np.uint16(0x7FFF)) >> np.uint16(4)]
        band[j] += rate
        total += rate
    return total


@njit(nogil=True, cache=True)
def _add_rates(codes: Any, rates: Any, row_block: Any, col_block: Any, sums: Any) -> None:
    rows, columns, blocks = sums
    width = col_block.size
    band = np.zeros(width)
    for i in range(row_block.size):
        rows[i] = _add_row(codes[i * width : (i + 1) * width], rates, band)
        if i + 1 == row_block.size or row_block[i + 1] != row_block[i]:
            line = blocks[row_block[i]]
            for j in range(width):
                line[col_block[j]] += band[j]
                columns[j] += band[j]
            band[:] = 0.0


def rate_sums(
    codes: npt.NDArray[np.uint16],
    rates: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sums of each entry's rate over every row, every column and every block of a matrix.

    codes: bf16 codes of W₀, flat. rates: one number a magnitude bin, shape (2048,). rows, cols: how
    many rows (columns) each block spans, as for `block_counts`. One pass, on the calling thread.
    """
    by_row, by_col = (np.repeat(np.arange(sizes.size), sizes) for sizes in (rows, cols))
    sums = np.zeros(by_row.size), np.zeros(by_col.size), np.zeros((rows.size, cols.size))
    _add_rates(codes, rates, by_row, by_col, sums)
    return sums
