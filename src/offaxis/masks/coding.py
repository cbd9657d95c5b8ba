"""A tensor's flags as bytes: the packed bits, or coded gaps, whichever is smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offaxis.kernels import popcount
from offaxis.kernels.gaps import MOST_BITS, gap_bits, read_gaps, write_gaps
from offaxis.masks.mask import Bits, inverted

__all__ = ["CODINGS", "Coded", "decode", "encode"]

CODINGS = ("bitmap", "ones", "zeros")
"""The packed bits; the gaps between selected entries; the gaps between the others."""


@dataclass(frozen=True)
class Coded:
    """Bytes, and what a reader must know to turn them into flags."""

    coding: str
    parameter: int
    """k of the Rice code; 0 for a bitmap."""
    data: Bits


def encode(bits: Bits, entries: int) -> Coded:
    """The gaps of the entries that are fewer, under the best parameter, or the packed bits.

    Whichever has fewer bytes; of equals, the packed bits and the least parameter. No bytes for an
    empty mask (`ones`) and for a full one (`zeros`).
    """
    flip = 2 * popcount(bits) > entries
    _, sizes = gap_bits(bits, entries, flip=flip)
    parameter = int(np.argmin(sizes))
    size = int(sizes[parameter])
    if -(-size // 8) >= bits.size:
        return Coded("bitmap", 0, bits)
    data = write_gaps(bits, entries, parameter=parameter, size=size, flip=flip)
    return Coded("zeros" if flip else "ones", parameter, data)


def decode(coded: Coded, entries: int, *, selected: int) -> Bits:
    """The packed bits of a tensor with `selected` of `entries` selected; the bytes may be hostile.

    Raises ValueError where they are not exactly a code of such a mask.
    """
    if coded.coding == "bitmap":
        return _bitmap(coded, entries, selected)
    if coded.coding not in CODINGS:
        raise ValueError(f"coding {coded.coding!r} is none of {', '.join(CODINGS)}")
    if coded.parameter > MOST_BITS:
        raise ValueError(f"the parameter {coded.parameter} is above {MOST_BITS}")
    count = selected if coded.coding == "ones" else entries - selected
    bits = read_gaps(coded.data, entries, count=count, parameter=coded.parameter)
    return bits if coded.coding == "ones" else inverted(bits, entries)


def _bitmap(coded: Coded, entries: int, selected: int) -> Bits:
    bits = coded.data
    if coded.parameter or bits.size != -(-entries // 8):
        raise ValueError(
            f"a bitmap of {entries} entries has parameter 0 and {-(-entries // 8)} bytes, not "
            f"parameter {coded.parameter} and {bits.size} bytes"
        )
    if entries % 8 and bits[-1] >> (entries % 8):
        raise ValueError(f"bits are set after the last of {entries} entries")
    if popcount(bits) != selected:
        raise ValueError(f"{popcount(bits)} entries are selected, and {selected} are announced")
    return bits
