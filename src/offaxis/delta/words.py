"""Tensors as unsigned words: what each dtype's bits are, and where its exponent lies.

A delta never computes with values. A tensor is a sequence of n-bit unsigned words, whatever its
dtype means by them, and only the *context* of a word, its exponent field, is read from the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from offaxis.checkpoint.dtypes import WIDTHS

__all__ = ["Fitted", "Sequence", "Words", "word_shape", "words_of"]


@dataclass(frozen=True)
class Words:
    """How a dtype is cut into words.

    bits: 8, 16, 32 or 64. The exponent of a word w is (w >> shift) & (2**exponent_bits - 1), of a
    float64 the low eight bits of its field; with `exponent_bits` 0 (integers, booleans, codes) it
    is 0 for every word.
    """

    bits: int
    shift: int = 0
    exponent_bits: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def exponents(self) -> int:
        """How many exponents there are (1 where the dtype has none)."""
        return 1 << self.exponent_bits

    def view(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The words of `raw` bytes, without a copy where they are aligned."""
        if raw.ctypes.data % self.dtype.itemsize:
            raw = raw.copy()
        return raw.view(self.dtype)


class Sequence(Protocol):
    """Words that are read by the slice: an array, or a base made to fit (`Fitted`)."""

    size: int

    def __getitem__(self, span: slice) -> npt.NDArray[Any]: ...


_FLOATS = {
    "F8_E4M3": Words(8, 3, 4),
    "F8_E4M3FNUZ": Words(8, 3, 4),
    "F8_E5M2": Words(8, 2, 5),
    "F8_E5M2FNUZ": Words(8, 2, 5),
    "BF16": Words(16, 7, 8),
    "F16": Words(16, 10, 5),
    "F32": Words(32, 23, 8),
    "C64": Words(32, 23, 8),
    "F64": Words(64, 52, 8),
}


def words_of(dtype: str) -> Words:
    """The words of a safetensors dtype code. Formats below a byte (`F4`, `F6_*`) are bytes."""
    width = WIDTHS[dtype]
    return _FLOATS.get(dtype) or Words(width if width in (8, 16, 32, 64) else 8)


def word_shape(dtype: str, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape of a tensor's `size` words: its own where an element is a word, else (size,)."""
    return shape if WIDTHS[dtype] == words_of(dtype).bits else (size,)


class Fitted:
    """A base tensor's bytes as words of the tuned tensor's dtype and number, read by the slice.

    Between BF16 and F32 words are cast: BF16 to F32 by sixteen zero bits below, F32 to BF16 to
    nearest even, a NaN keeping its upper half with bit 6 set. Missing words at the end are 0.
    """

    def __init__(self, raw: npt.NDArray[np.uint8], *, stored: str, wanted: str, size: int) -> None:
        self._raw = raw
        self._stored, self._wanted = words_of(stored), words_of(wanted)
        self._cast = stored != wanted
        self.size = size

    @staticmethod
    def possible(stored: str, wanted: str) -> bool:
        """Whether words of the dtype `stored` say anything about words of `wanted`."""
        return stored == wanted or {stored, wanted} == {"BF16", "F32"}

    def __getitem__(self, span: slice) -> npt.NDArray[Any]:
        start, stop, _ = span.indices(self.size)
        width = self._stored.bits // 8
        words = self._stored.view(self._raw[start * width : stop * width])
        if self._cast:
            words = _widen(words) if self._wanted.bits == 32 else _narrow(words)
        missing = stop - start - words.size
        return np.pad(words, (0, missing)) if missing else words


def _widen(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return words.astype(np.uint32) << np.uint32(16)


def _narrow(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    upper = words >> np.uint32(16)
    rounded = (words + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    nan = (words & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, upper | np.uint32(0x40), rounded).astype(np.uint16)
