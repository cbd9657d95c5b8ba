"""Exact selection of the largest or smallest entries.

Magnitudes are compared as unsigned integers: with the sign bit cleared, the bits of a float order
as its absolute value does (a NaN above infinity). The threshold comes from one histogram over the
leading 16 bits, then of the next 16 among the few entries in that bin, and so on: no sort.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from offaxis.kernels.pool import for_each, spans

__all__ = ["Selection", "magnitude_codes", "select"]

_LEADING = 16
_SMALLEST_SPAN = 1 << 16

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Selection:
    """A packed mask with exactly `count` entries, and what decided it.

    `near` counts entries within 1e-12 relative of the threshold (itself included): those may fall
    on either side on another machine.
    """

    mask: Bits
    count: int
    near: int


def magnitude_codes(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Unsigned integers that order as |tensor| does, flat, in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    width = flat.element_size()
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    limit = torch.iinfo(signed).max
    return (flat.view(signed) & limit).numpy().view(f"u{width}")


@njit(nogil=True, cache=True)
def _leading_histogram(codes: Any, shift: Any, counts: Any) -> None:
    for i in range(codes.size):
        counts[codes[i] >> shift] += 1


@njit(nogil=True, cache=True)
def _gather_low(codes: Any, shift: Any, leading: Any, out: Any) -> None:
    """The bits below `shift` of the codes whose bits above it are `leading`."""
    k = 0
    for i in range(codes.size):
        if (codes[i] >> shift) == leading:
            out[k] = codes[i] ^ (leading << shift)
            k += 1


@njit(nogil=True, cache=True)
def _count_equal(codes: Any, value: Any) -> int:
    total = 0
    for i in range(codes.size):
        total += codes[i] == value
    return total


@njit(nogil=True, cache=True)
def _mark(codes: Any, value: Any, largest: bool, quota: int, out: Any) -> None:
    """Set the bit of every entry beyond `value`, and of the first `quota` equal to it."""
    for i in range(codes.size):
        code = codes[i]
        take = code > value if largest else code < value
        if code == value and quota > 0:
            take = True
            quota -= 1
        out[i >> 3] |= np.uint8(np.uint8(take) << np.uint8(i & 7))


@njit(nogil=True, cache=True)
def _count_between(codes: Any, low: Any, high: Any) -> int:
    total = 0
    for i in range(codes.size):
        total += (codes[i] >= low) & (codes[i] <= high)
    return total


def _near(codes: npt.NDArray[Any], value: Any) -> int:
    """Entries within 1e-12 relative of the threshold; only float64 has neighbours that close."""
    reach = 1 << 14 if codes.itemsize == 8 else 0  # 2^14 ulp of float64: 1.8e-12 to 3.6e-12
    kind = codes.dtype.type
    return int(_count_between(codes, kind(max(0, int(value) - reach)), kind(int(value) + reach)))


def _histogram(codes: npt.NDArray[Any], shift: int) -> npt.NDArray[np.int64]:
    def one(span: tuple[int, int]) -> npt.NDArray[np.int64]:
        counts = np.zeros(1 << _LEADING, np.int64)
        _leading_histogram(codes[span[0] : span[1]], codes.dtype.type(shift), counts)
        return counts

    parts = for_each(one, spans(codes.size, smallest=_SMALLEST_SPAN))
    return np.asarray(np.sum(parts, axis=0), np.int64)


def _rank_value(codes: npt.NDArray[Any], rank: int) -> Any:
    """The code at 0-based position `rank` in ascending order: a radix descent, 16 bits a level."""
    kind = codes.dtype.type
    bits = codes.itemsize * 8 - 1  # the sign bit is clear
    value = 0
    while True:
        shift = max(0, bits - _LEADING)
        counts = _histogram(codes, shift)
        below = np.cumsum(counts)
        leading = int(np.searchsorted(below, rank, side="right"))
        value |= leading << shift
        if shift == 0:
            return kind(value)
        rank -= int(below[leading] - counts[leading])
        low = np.empty(int(counts[leading]), codes.dtype)
        _gather_low(codes, kind(shift), kind(leading), low)
        codes, bits = low, shift


def select(
    codes: npt.NDArray[Any], count: int, *, side: Literal["largest", "smallest"]
) -> Selection:
    """The `count` largest or smallest entries of `codes` (see `magnitude_codes`), exactly.

    Ties go to the lower index. Range of `count`: 0 to `codes.size`, else ValueError.
    """
    if not 0 <= count <= codes.size:
        raise ValueError(f"cannot select {count} of {codes.size} entries")
    mask = np.zeros(-(-codes.size // 8), np.uint8)
    if count == 0:
        return Selection(mask, 0, 0)
    largest = side == "largest"
    value = _rank_value(codes, codes.size - count if largest else count - 1)
    pieces = spans(codes.size, multiple=8, smallest=_SMALLEST_SPAN)

    def census(span: tuple[int, int]) -> tuple[int, int]:
        piece = codes[span[0] : span[1]]
        beyond = np.count_nonzero(piece > value if largest else piece < value)
        return int(beyond), int(_count_equal(piece, value))

    found = for_each(census, pieces)
    left = count - sum(beyond for beyond, _ in found)
    quotas = []
    for _, equal in found:
        quotas.append(min(left, equal))
        left -= quotas[-1]

    def mark(task: tuple[tuple[int, int], int]) -> None:
        (start, stop), quota = task
        _mark(codes[start:stop], value, largest, quota, mask[start // 8 : -(-stop // 8)])

    for_each(mark, zip(pieces, quotas, strict=True))
    return Selection(mask, count, _near(codes, value))
