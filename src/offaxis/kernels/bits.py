"""Bit-level loops over segments: bfloat16 codes, ULP distances, packed masks.

A *code* is the 16 bits of a value rounded to bfloat16, to nearest even. Its ULP position orders
the codes along the real line (both zeros share one position), so that the distance of two
positions counts the bfloat16 values between them.

Every function here takes whole slices and starts at index 0: only then does LLVM drop the
negative-index test and vectorise the loop.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types
from numba.extending import overload

from offaxis.kernels.pool import for_each, spans

__all__ = [
    "FAST",
    "bf16_codes",
    "codes_of",
    "fill_values",
    "flag_changed",
    "pack_flags",
    "raw_bits",
    "ulp_distance",
]

FAST = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, which vectorises them; NaN and infinity keep their meaning."""


@njit(nogil=True, cache=True)
def _codes_from_f32(bits: Any, out: Any) -> None:
    """IEEE binary32 bit patterns to bfloat16 codes, to nearest even; a NaN stays a NaN."""
    for i in range(bits.size):
        u = bits[i]
        rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (u >> np.uint32(16)) | np.uint32(0x40)
        out[i] = quiet if (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded


@njit(nogil=True, cache=True)
def _narrow_to_odd(values: Any, singles: Any, bits: Any) -> None:
    """float64 to float32, rounding to odd, so that a second rounding is as good as one."""
    for i in range(values.size):
        singles[i] = values[i]
        back = np.float64(singles[i])
        u = bits[i]
        exact = back == values[i] or np.isnan(back)
        if not exact and (u & np.uint32(1)) == 0:
            away = abs(back) < abs(values[i])
            bits[i] = u + np.uint32(1) if away else u - np.uint32(1)


def codes_of(raw: Any, single: Any, out: Any) -> Any:
    """The bfloat16 codes of `raw` (uint16 codes, float32 or float64): `raw` itself, or `out`."""
    raise TypeError("for compiled code only")


@overload(codes_of)
def _codes_of(raw: Any, single: Any, out: Any) -> Any:
    if raw.dtype == types.uint16:

        def fill(raw: Any, single: Any, out: Any) -> Any:
            return raw
    elif raw.dtype == types.float32:

        def fill(raw: Any, single: Any, out: Any) -> Any:
            _codes_from_f32(raw.view(np.uint32), out)
            return out
    else:

        def fill(raw: Any, single: Any, out: Any) -> Any:
            _narrow_to_odd(raw, single, single.view(np.uint32))
            _codes_from_f32(single.view(np.uint32), out)
            return out

    return fill


@njit(nogil=True, cache=True)
def _round_all(raw: Any, single: Any, out: Any) -> None:
    codes_of(raw, single, out)


def raw_bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor as the kernels take it: bfloat16 as uint16 codes, float32 and float64 as they are.

    Narrower floats (float16, float8) are widened to float32, which holds them exactly.
    """
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor.contiguous().numpy()


def bf16_codes(tensor: torch.Tensor) -> npt.NDArray[np.uint16]:
    """The bfloat16 codes of a tensor, flat: rounded once, to nearest even, from any float dtype."""
    raw = raw_bits(tensor).reshape(-1)
    if raw.dtype == np.uint16:
        return raw
    out = np.empty(raw.size, np.uint16)

    def one(span: tuple[int, int]) -> None:
        start, stop = span
        _round_all(raw[start:stop], np.empty(stop - start, np.float32), out[start:stop])

    for_each(one, spans(raw.size, smallest=1 << 16))
    return out


def fill_values(raw: Any, single: Any, out: Any) -> None:
    """Write the values of `raw` (uint16 bfloat16 codes, float32 or float64) to `out`."""
    raise TypeError("for compiled code only")


@overload(fill_values)
def _fill_values(raw: Any, single: Any, out: Any) -> Any:
    if raw.dtype == types.uint16 and out.dtype == types.float32:

        def fill(raw: Any, single: Any, out: Any) -> None:
            bits = out.view(np.uint32)
            for i in range(raw.size):
                bits[i] = np.uint32(raw[i]) << np.uint32(16)
    elif raw.dtype == types.uint16:

        def fill(raw: Any, single: Any, out: Any) -> None:
            bits = single.view(np.uint32)
            for i in range(raw.size):
                bits[i] = np.uint32(raw[i]) << np.uint32(16)
            for i in range(single.size):
                out[i] = single[i]
    else:

        def fill(raw: Any, single: Any, out: Any) -> None:
            for i in range(raw.size):
                out[i] = raw[i]

    return fill


@njit(nogil=True, cache=True)
def ulp_distance(a: Any, b: Any, out: Any) -> None:
    """out[i] = how many bfloat16 values lie between codes a[i] and b[i]; both zeros are one."""
    for i in range(a.size):
        x = np.uint16((0 - a[i]) if a[i] >= 0x8000 else (a[i] | 0x8000))
        y = np.uint16((0 - b[i]) if b[i] >= 0x8000 else (b[i] | 0x8000))
        out[i] = (x - y) if x > y else (y - x)


@njit(nogil=True, cache=True)
def flag_changed(distance: Any, flags: Any, columns: Any) -> None:
    """flags[i] = distance[i] != 0, added to `columns`."""
    for i in range(distance.size):
        flags[i] = distance[i] != 0
    for i in range(distance.size):
        columns[i] += flags[i]


@njit(nogil=True, cache=True)
def pack_flags(flags: Any, start: int, out: Any) -> None:
    """Write 0/1 bytes as bits (lowest first) at bit `start` of `out`."""
    if start % 8 == 0 and flags.size % 8 == 0:
        eights = flags.view(np.uint64)
        target = out[start // 8 : (start + flags.size) // 8]
        for i in range(target.size):
            target[i] = (eights[i] * np.uint64(0x0102040810204080)) >> np.uint64(56)
    else:
        for i in range(flags.size):
            bit = start + i
            out[bit >> 3] |= np.uint8(flags[i] << np.uint8(bit & 7))
