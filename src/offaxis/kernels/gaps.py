"""Rice codes of the gaps between the selected entries of a packed mask.

Entries in ascending order at i₀ < i₁ < ... leave gaps i₀, i₁ − i₀ − 1, ... Under parameter k a gap
g is g >> k zeros, a one, and the k low bits of g, lowest first; bits fill bytes lowest first. For a
random mask that is within 2.4 % of the entropy up to a density of 0.35 (Rice and Plaunt, 1971).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["MOST_BITS", "gap_bits", "read_gaps", "write_gaps"]

MOST_BITS = 40
"""The largest parameter: a gap is below 2^40, the most entries of a tensor in a mask file."""

Bits = npt.NDArray[np.uint8]

_PADDING = 8


@njit(nogil=True, cache=True)
def _next(bits: Any, flip: int, i: int, entries: int) -> int:
    """The first entry at i or after it that is set (clear, where flip is 255), or `entries`."""
    while i < entries:
        byte = (np.int64(bits[i >> 3]) ^ flip) >> (i & 7)
        if byte:
            while not byte & 1:
                byte >>= 1
                i += 1
            return min(i, entries)
        i = (i | 7) + 1
    return entries


@njit(nogil=True, cache=True)
def _halvings(bits: Any, flip: int, entries: int, sums: Any) -> int:
    """sums[k] += the sum of gap >> k over all gaps; returns how many gaps there are."""
    count, after = 0, 0
    while True:
        i = _next(bits, flip, after, entries)
        if i == entries:
            return count
        gap, k = i - after, 0
        while gap and k < sums.size:
            sums[k] += gap
            gap >>= 1
            k += 1
        count += 1
        after = i + 1


@njit(nogil=True, cache=True)
def _write(bits: Any, flip: int, entries: int, k: int, out: Any) -> None:
    after, at = 0, 0
    while True:
        i = _next(bits, flip, after, entries)
        if i == entries:
            return
        gap = i - after
        at += gap >> k
        out[at >> 3] |= np.uint8(1 << (at & 7))
        at += 1
        for j in range(k):
            out[at >> 3] |= np.uint8(((gap >> j) & 1) << (at & 7))
            at += 1
        after = i + 1


@njit(nogil=True, cache=True)
def _word(coded: Any, at: int) -> Any:
    """At least 57 bits from bit `at` on; `coded` has eight bytes more than it holds."""
    word, start = np.uint64(0), at >> 3
    for j in range(8):
        word |= np.uint64(coded[start + j]) << np.uint64(8 * j)
    return word >> np.uint64(at & 7)


@njit(nogil=True, cache=True)
def _read(coded: Any, k: int, count: int, entries: int, out: Any) -> int:
    """Set the bit of each entry; returns how many bits of `coded` that took, or minus a complaint.

    -1: the code ends before the last gap. -2: a gap leads past the last entry.
    """
    total = 8 * (coded.size - _PADDING)
    low_bits = np.uint64((1 << k) - 1)
    at, i, quotient = 0, 0, 0
    for _ in range(count):
        quotient = 0
        while at < total and not (coded[at >> 3] >> np.uint8(at & 7)) & 1:
            quotient += 1
            at += 1
        at += 1
        if at + k > total:
            return -1
        if quotient > entries >> k:
            return -2
        i += (quotient << k) + int(_word(coded, at) & low_bits)
        at += k
        if i >= entries:
            return -2
        out[i >> 3] |= np.uint8(1 << (i & 7))
        i += 1
    return at


def gap_bits(bits: Bits, entries: int, *, flip: bool = False) -> tuple[int, npt.NDArray[np.int64]]:
    """How many entries are set, and the bits that coding their gaps takes under each parameter.

    The second has shape (`MOST_BITS` + 1,). flip: of the entries that are clear instead.
    """
    sums = np.zeros(MOST_BITS + 1, np.int64)
    count = int(_halvings(bits, 255 * flip, entries, sums))
    return count, sums + count * (1 + np.arange(MOST_BITS + 1))


def write_gaps(bits: Bits, entries: int, *, parameter: int, size: int, flip: bool = False) -> Bits:
    """The code of the gaps, in `size` bits: what `gap_bits` gives for this parameter."""
    out = np.zeros(-(-size // 8), np.uint8)
    _write(bits, 255 * flip, entries, parameter, out)
    return out


def read_gaps(coded: Bits, entries: int, *, count: int, parameter: int) -> Bits:
    """The packed mask of the `count` entries whose gaps are coded; untrusted bytes are welcome.

    Raises ValueError unless the code is of exactly `count` entries below `entries`, in exactly
    `coded.size` bytes, with the bits after the last gap clear.
    """
    if not (0 <= parameter <= MOST_BITS and 0 <= count <= entries):
        raise ValueError(f"no {count} of {entries} entries under the parameter {parameter}")
    if count > 8 * coded.size:
        raise ValueError(f"{coded.size} bytes for {count} gaps: too few")
    out = np.zeros(-(-entries // 8), np.uint8)
    padded = np.concatenate([coded, np.zeros(_PADDING, np.uint8)])
    used = int(_read(padded, parameter, count, entries, out))
    if used == -1:
        raise ValueError(f"the code ends before the last of {count} gaps")
    if used == -2:
        raise ValueError(f"a gap leads past the last of {entries} entries")
    if -(-used // 8) != coded.size:
        raise ValueError(f"{count} gaps take {-(-used // 8)} bytes, and there are {coded.size}")
    if used % 8 and coded[-1] >> (used % 8):
        raise ValueError("bits are set after the last gap")
    return out
