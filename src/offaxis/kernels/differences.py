"""Products with the difference of two stored matrices, which is never formed.

D = tuned − base is exact in float64 for stored bfloat16. A few of its rows are made at a time, in
the processor's cache, and serve y = D x and w = Dᵀ y at once: one pass over the stored entries
multiplies by DᵀD. For bfloat16 that reads 4 bytes an entry, where a float64 copy of D is written
once with 8 and then read twice a step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types
from numba.extending import overload

from offaxis.kernels.bits import FAST, raw_bits
from offaxis.kernels.pool import for_each

__all__ = ["Difference", "Size"]

Floats = npt.NDArray[np.float64]

_ROWS = 4
"""Rows made at once: each entry of x and of w is then read once for four of D."""
_SPANS = 8
_SMALLEST_SPAN = 1 << 16


def _value(row: Any, j: int) -> float:
    """Entry j of a row of `raw_bits`, float64."""
    raise TypeError("for compiled code only")


@overload(_value)
def _value_of(row: Any, j: Any) -> Any:
    def wide(row: Any, j: Any) -> Any:
        return np.float64(np.uint32(np.uint32(row[j]) << np.uint32(16)).view(np.float32))

    def plain(row: Any, j: Any) -> Any:
        return np.float64(row[j])

    return wide if row.dtype == types.uint16 else plain


def _write(base: Any, tuned: Any, i: int, scale: float, out: Any) -> None:
    """out = scale · row i of tuned − base, float64."""
    raise TypeError("for compiled code only")


@overload(_write)
def _write_row(base: Any, tuned: Any, i: Any, scale: Any, out: Any) -> Any:
    def alone(base: Any, tuned: Any, i: Any, scale: Any, out: Any) -> Any:
        after = tuned[i]
        for j in range(out.size):
            out[j] = scale * _value(after, j)

    def less(base: Any, tuned: Any, i: Any, scale: Any, out: Any) -> Any:
        before, after = base[i], tuned[i]
        for j in range(out.size):
            out[j] = scale * (_value(after, j) - _value(before, j))

    return alone if isinstance(base, types.NoneType) else less


@njit(nogil=True, cache=True, fastmath=FAST)
def _dots(d: Any, x: Any, out: Any) -> None:
    """out[k, c] = d[k] · x[c] for four rows d and two x."""
    d0, d1, d2, d3 = d[0], d[1], d[2], d[3]
    x0, x1 = x[0], x[1]
    a0 = a1 = b0 = b1 = c0 = c1 = e0 = e1 = 0.0
    for j in range(x0.size):
        p, q = x0[j], x1[j]
        a0 += d0[j] * p
        a1 += d0[j] * q
        b0 += d1[j] * p
        b1 += d1[j] * q
        c0 += d2[j] * p
        c1 += d2[j] * q
        e0 += d3[j] * p
        e1 += d3[j] * q
    out[0, 0], out[0, 1], out[1, 0], out[1, 1] = a0, a1, b0, b1
    out[2, 0], out[2, 1], out[3, 0], out[3, 1] = c0, c1, e0, e1


@njit(nogil=True, cache=True, fastmath=FAST)
def _add(d: Any, y: Any, w: Any) -> None:
    """w[c] += Σ_k y[k, c] d[k] for four rows d and two w."""
    d0, d1, d2, d3 = d[0], d[1], d[2], d[3]
    w0, w1 = w[0], w[1]
    a0, a1, b0, b1 = y[0, 0], y[0, 1], y[1, 0], y[1, 1]
    c0, c1, e0, e1 = y[2, 0], y[2, 1], y[3, 0], y[3, 1]
    for j in range(w0.size):
        w0[j] += a0 * d0[j] + b0 * d1[j] + c0 * d2[j] + e0 * d3[j]
        w1[j] += a1 * d0[j] + b1 * d1[j] + c1 * d2[j] + e1 * d3[j]


@njit(nogil=True, cache=True)
def _both(base: Any, tuned: Any, scale: float, x: Any, y: Any, w: Any) -> None:
    """y = scale·D x, w = scale·Dᵀ y for rows of D; w comes in as zero."""
    rows = tuned.shape[0]
    d = np.zeros((_ROWS, tuned.shape[1]))
    four = np.zeros((_ROWS, 2))
    for start in range(0, rows, _ROWS):
        count = min(_ROWS, rows - start)
        for k in range(_ROWS):
            if k < count:
                _write(base, tuned, start + k, scale, d[k])
            else:
                d[k] = 0.0
        _dots(d, x, four)
        for k in range(count):
            y[start + k, 0] = four[k, 0]
            y[start + k, 1] = four[k, 1]
        _add(d, four, w)


@njit(nogil=True, cache=True, fastmath=FAST)
def _square(d: Any) -> float:
    total = 0.0
    for j in range(d.size):
        total += d[j] * d[j]
    return total


@njit(nogil=True, cache=True)
def _largest(d: Any) -> float:
    """max |d|, infinite where an entry is NaN."""
    largest = np.uint64(0)
    bits = d.view(np.uint64)
    for j in range(d.size):
        largest = max(largest, bits[j] & np.uint64(0x7FFFFFFFFFFFFFFF))
    if largest >= np.uint64(0x7FF0000000000000):
        return np.inf
    return np.uint64(largest).view(np.float64)


@njit(nogil=True, cache=True)
def _size(base: Any, tuned: Any, scale: float, out: Any) -> None:
    """out = (Σ(scale·d)², max |scale·d|), rows summed one by one."""
    d = np.empty(tuned.shape[1])
    for i in range(tuned.shape[0]):
        _write(base, tuned, i, scale, d)
        out[1] = max(out[1], _largest(d))
        out[0] += _square(d)


@dataclass(frozen=True)
class Size:
    """norm: ‖D‖_F. largest: max |dᵢⱼ|, infinite where an entry is NaN or infinite."""

    norm: float
    largest: float


@dataclass(frozen=True, eq=False)
class Difference:
    """D = tuned − base as an operator; without a base, D = tuned. Both (m, n), read row by row.

    base, tuned: as `raw_bits` gives them (bfloat16 as uint16 codes, float32, float64). The entries
    are those of the stored tensors: nothing is copied but what is narrower than bfloat16 or lies in
    memory with gaps. Sums are float64, in an order that depends on the shape alone.
    """

    base: npt.NDArray[Any] | None
    tuned: npt.NDArray[Any]

    @staticmethod
    def of(tuned: torch.Tensor, base: torch.Tensor | None = None) -> "Difference":
        """From tensors of any float dtype. ValueError for shapes that differ or are no matrix."""
        if tuned.ndim != 2 or (base is not None and base.shape != tuned.shape):
            shapes = [tuple(one.shape) for one in (base, tuned) if one is not None]
            raise ValueError(f"a difference of matrices of one shape, not of {shapes}")
        return Difference(None if base is None else raw_bits(base), raw_bits(tuned))

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.tuned.shape
        return rows, cols

    def _spans(self) -> list[slice]:
        rows, cols = self.shape
        count = max(1, min(_SPANS, rows * cols // _SMALLEST_SPAN))
        step = -(-rows // (count * _ROWS)) * _ROWS
        return [slice(at, min(at + step, rows)) for at in range(0, rows, max(1, step))]

    def _part(self, rows: slice) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any]]:
        return None if self.base is None else self.base[rows], self.tuned[rows]

    def size(self) -> Size:
        """‖D‖_F and the largest entry, without overflow or underflow in the squares."""
        found = self._sizes(1.0)
        if 0 < found.largest < np.inf and not 1e-100 < found.largest < 1e100:
            scale = scale_of(found.largest)
            return Size(self._sizes(scale).norm / scale, found.largest)
        return found

    def _sizes(self, scale: float) -> Size:
        def one(rows: slice) -> Floats:
            out = np.zeros(2)
            _size(*self._part(rows), scale, out)
            return out

        parts = np.array(for_each(one, self._spans())).reshape(-1, 2)
        norm = float(np.sqrt(parts[:, 0].sum()))
        return Size(norm, float(parts[:, 1].max(initial=0.0)))

    def both(self, x: Floats, *, scale: float = 1.0) -> tuple[Floats, Floats]:
        """(s·D x, s²·DᵀD x) for x of shape (2, n), as (2, m) and (2, n), in one pass over D."""
        image = np.empty((self.shape[0], 2))
        x = np.ascontiguousarray(x, dtype=np.float64)

        def one(rows: slice) -> Floats:
            back = np.zeros_like(x)
            _both(*self._part(rows), scale, x, image[rows], back)
            return back

        back = np.sum(for_each(one, self._spans()), axis=0)
        return image.T, back

    def dense(self) -> Floats:
        """D whole, float64."""
        out: Floats = _values(self.tuned)
        if self.base is not None:
            out -= _values(self.base)
        return out


def scale_of(largest: float) -> float:
    """A power of two that brings `largest` near 1."""
    return float(2.0 ** -np.clip(np.frexp(largest)[1], -1000, 1000))


def _values(raw: npt.NDArray[Any]) -> Floats:
    """What `raw_bits` gave, as a float64 copy."""
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)
