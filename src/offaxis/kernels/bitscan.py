"""The fused bit scan: one pass over a pair of tensors, parallel over cores.

For each segment of a row the two sides become bfloat16 codes; their ULP distance then yields the
changed count, row and column counts, the ULP histogram and the packed mask, and the values yield
the norms, all while the segment lies in the first-level cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from offaxis.kernels.bits import (
    FAST,
    codes_of,
    fill_values,
    flag_changed,
    pack_flags,
    raw_bits,
    ulp_distance,
)
from offaxis.kernels.pool import for_each, spans

__all__ = ["ULP_BINS", "Scan", "scan"]

ULP_BINS = ("0", "1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128", "129-256", "257-512",
            "513-1024", ">1024")  # fmt: skip
"""Bins of the ULP-distance histogram."""

_SEGMENT = 1024
_THRESHOLDS = np.array([1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025], dtype=np.uint16)
_SMALLEST_SPAN = 1 << 16

# Columns of the integer totals that a span returns.
_CHANGED, _STORED, _BASE_BAD, _TUNED_BAD = range(4)


@dataclass(frozen=True)
class Scan:
    """What one pass over a pair tells. Counts are exact; sums are float64 over finite entries.

    `changed` counts entries whose bfloat16 rounding differs (DESIGN, `unchanged_bf16`), and
    `changed_stored` those that differ in the wider stored dtype. `mask` holds entry i (row-major)
    in bit i % 8, lowest first, of byte i // 8. A feature not asked for is None, its sums 0.
    """

    entries: int
    changed: int
    changed_stored: int
    rows: npt.NDArray[np.int64] | None
    columns: npt.NDArray[np.int64] | None
    ulp_histogram: npt.NDArray[np.int64] | None
    mask: npt.NDArray[np.uint8] | None
    update_square: float
    base_square: float
    cross: float
    nonfinite_base: int
    nonfinite_tuned: int


@njit(nogil=True, cache=True)
def _has_nonfinite(a: Any, b: Any) -> bool:
    top = np.uint16(0)
    for i in range(a.size):
        top = max(top, np.uint16(a[i] & 0x7FFF), np.uint16(b[i] & 0x7FFF))
    return bool(top >= 0x7F80)


@njit(nogil=True, cache=True)
def _count_changed(a: Any, b: Any) -> int:
    """Codes that differ, both zeros being one."""
    total = 0
    for i in range(a.size):
        total += (a[i] != b[i]) & (((a[i] | b[i]) & np.uint16(0x7FFF)) != 0)
    return total


@njit(nogil=True, cache=True)
def _count_unequal(x: Any, y: Any) -> int:
    total = 0
    for i in range(x.size):
        total += x[i] != y[i]
    return total


@njit(nogil=True, cache=True)
def _add_histogram(distance: Any, at_least: Any) -> int:
    """at_least[k] += how many distances reach the k-th threshold; returns how many reach 1."""
    top = np.uint16(0)
    for i in range(distance.size):
        top = max(top, distance[i])
    changed = 0
    for k in range(_THRESHOLDS.size):
        threshold = _THRESHOLDS[k]
        if threshold > top:
            break
        count = 0
        for i in range(distance.size):
            count += distance[i] >= threshold
        at_least[k] += count
        changed = max(changed, count)
    return changed


@njit(nogil=True, cache=True, fastmath=FAST)
def _squares(x: Any, y: Any, zero: Any) -> Any:
    """Sum (y-x)², sum x², sum x·y, each in the type of `zero`."""
    update, base, cross = zero, zero, zero
    for i in range(x.size):
        p, q = type(zero)(x[i]), type(zero)(y[i])
        d = q - p
        update += d * d
        base += p * p
        cross += p * q
    return update, base, cross


@njit(nogil=True, cache=True, fastmath=FAST)
def _squares_of_codes(x: Any, y: Any) -> Any:
    """`_squares` in float32 of bfloat16 codes, without writing their values down."""
    update, base, cross = np.float32(0), np.float32(0), np.float32(0)
    for i in range(x.size):
        p = np.uint32(np.uint32(x[i]) << np.uint32(16)).view(np.float32)
        q = np.uint32(np.uint32(y[i]) << np.uint32(16)).view(np.float32)
        d = q - p
        update += d * d
        base += p * p
        cross += p * q
    return update, base, cross


@njit(nogil=True, cache=True)
def _add_squares(x: Any, y: Any, sums: Any) -> None:
    """Add the square sums of a segment, in float64, to float64 totals."""
    update, base, cross = _squares(x, y, np.float64(0))
    sums[0] += update
    sums[1] += base
    sums[2] += cross


@njit(nogil=True, cache=True)
def _add_run(run: Any, sums: Any) -> bool:
    """Add float32 sums over a run, if neither underflow nor overflow was near.

    A run has 512 entries and its sum 32 lanes, so 16 terms each: the relative error is below 1e-6
    for a run, and less for many.
    """
    update, base, cross = run
    if not (base > 1e-24 and update + base < 1e30 and (update > 1e-24 or update == 0)):
        return False
    sums[0] += update
    sums[1] += base
    sums[2] += cross
    return True


@njit(nogil=True, cache=True)
def _add_squares_of_codes(p: Any, q: Any, va: Any, vb: Any, sums: Any) -> None:
    """The same for finite bfloat16 codes, in float32 where that is exact enough.

    va, vb: buffers for the values of what is not.
    """
    for start in range(0, p.size, 512):
        x, y = p[start : start + 512], q[start : start + 512]
        if not _add_run(_squares_of_codes(x, y), sums):
            fill_values(x, va[: x.size], va[: x.size])
            fill_values(y, vb[: x.size], vb[: x.size])
            _add_squares(va[: x.size], vb[: x.size], sums)


@njit(nogil=True, cache=True)
def _add_squares_of_singles(x: Any, y: Any, sums: Any) -> None:
    """The same for float32 values."""
    for start in range(0, x.size, 512):
        p, q = x[start : start + 512], y[start : start + 512]
        if not _add_run(_squares(p, q, np.float32(0)), sums):
            _add_squares(p, q, sums)


@njit(nogil=True, cache=True)
def _mend_nonfinite(
    abits: Any, bbits: Any, ca: Any, cb: Any, va: Any, vb: Any, distance: Any, counts: Any
) -> None:
    """Entry by entry where a NaN or infinity is: a NaN is unchanged only if bit-identical.

    Mends `distance`, counts what is not finite and what differs there, and sets both values to
    zero, so that such entries drop out of the sums.
    """
    for i in range(ca.size):
        ma, mb = ca[i] & np.uint16(0x7FFF), cb[i] & np.uint16(0x7FFF)
        if ma < 0x7F80 and mb < 0x7F80:
            continue
        counts[_BASE_BAD] += ma >= 0x7F80
        counts[_TUNED_BAD] += mb >= 0x7F80
        unequal = va[i] != vb[i]
        if ma > 0x7F80 or mb > 0x7F80:
            same = ca[i] == cb[i]
            if abits.itemsize == bbits.itemsize:
                same = abits[i] == bbits[i]
            distance[i] = np.uint16(0) if same else np.uint16(65535)
            unequal = not same
        counts[_STORED] += unequal
        va[i] = 0
        vb[i] = 0


@njit(nogil=True, cache=True)
def _scan_span(
    a: Any, b: Any, abits: Any, bbits: Any, va: Any, vb: Any, width: int,
    mask: Any, rows: Any, columns: Any, at_least: Any, sums: Any, counts: Any
) -> None:  # fmt: skip
    """All features for whole rows of `width` entries; `mask` starts at the first of them."""
    size = va.size
    ca, cb = np.empty(size, np.uint16), np.empty(size, np.uint16)
    distance, flags = np.empty(size, np.uint16), np.empty(size, np.uint8)
    single = np.empty(size, np.float32)
    narrow_columns = np.zeros(width, np.uint16)
    both_bf16 = a.itemsize == 2 and b.itemsize == 2
    for r in range(rows.size):
        for j in range(0, width, size):
            n = min(size, width - j)
            at = r * width + j
            x, y, d = a[at : at + n], b[at : at + n], distance[:n]
            p, q = codes_of(x, single[:n], ca[:n]), codes_of(y, single[:n], cb[:n])
            ulp_distance(p, q, d)
            finite = not _has_nonfinite(p, q)
            if both_bf16 and finite:
                _add_squares_of_codes(p, q, va, vb, sums)
            else:
                fill_values(x, single[:n], va[:n])
                fill_values(y, single[:n], vb[:n])
                if not finite:
                    _mend_nonfinite(
                        abits[at : at + n], bbits[at : at + n], p, q, va[:n], vb[:n], d, counts
                    )
                counts[_STORED] += _count_unequal(va[:n], vb[:n])
                if va.itemsize == 4:
                    _add_squares_of_singles(va[:n], vb[:n], sums)
                else:
                    _add_squares(va[:n], vb[:n], sums)
            flag_changed(d, flags[:n], narrow_columns[j : j + n])
            rows[r] += _add_histogram(d, at_least)
            pack_flags(flags[:n], at, mask)
        if r & 0x7FFF == 0x7FFF or r == rows.size - 1:
            for j in range(width):
                columns[j] += narrow_columns[j]
                narrow_columns[j] = 0
    counts[_CHANGED] += rows.sum()
    if both_bf16:
        counts[_STORED] = counts[_CHANGED]


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(0, -2) if tensor.ndim > 1 else tensor.reshape(1, -1)


def scan(base: torch.Tensor, tuned: torch.Tensor, *, detail: bool = True) -> Scan:
    """Compare two tensors of one shape entry by entry, in one pass over both.

    base, tuned: floating-point tensors on the CPU, any dtypes; leading axes are flattened to rows.
    detail: False gives `changed` and `changed_stored` alone, which is bound by memory bandwidth.
    Raises ValueError where the shapes differ.
    """
    if base.shape != tuned.shape:
        raise ValueError(f"scan needs equal shapes, got {tuple(base.shape)}, {tuple(tuned.shape)}")
    x, y = _as_rows(base), _as_rows(tuned)
    if not detail and base.dtype == tuned.dtype == torch.bfloat16:
        return _counts_alone(raw_bits(x).reshape(-1), raw_bits(y).reshape(-1))
    height, width = x.shape
    mask = np.zeros(-(-height * width // 8), np.uint8)
    rows = np.zeros(height, np.int64)

    def one(span: tuple[int, int]) -> tuple[Any, ...]:
        start, stop = span
        a, b = raw_bits(x[start:stop]).reshape(-1), raw_bits(y[start:stop]).reshape(-1)
        value = np.float64 if np.float64 in (a.dtype, b.dtype) else np.float32
        va, vb = (np.empty(max(1, min(_SEGMENT, width)), value) for _ in "ab")
        columns, counts = np.zeros(width, np.int64), np.zeros(4, np.int64)
        at_least, sums = np.zeros(_THRESHOLDS.size, np.int64), np.zeros(3)
        abits, bbits = (z.view(f"u{z.itemsize}") for z in (a, b))
        _scan_span(a, b, abits, bbits, va, vb, width, mask[start * width // 8 :], rows[start:stop],
                   columns, at_least, sums, counts)  # fmt: skip
        return columns, at_least, sums, counts

    smallest = max(8, _SMALLEST_SPAN // max(1, width))
    parts = for_each(one, spans(height, multiple=8, smallest=smallest) if width else [])
    if not parts:
        return _nothing(height, width)
    columns, at_least, sums, counts = (
        np.sum(column, axis=0) for column in zip(*parts, strict=True)
    )
    reached = np.concatenate(([height * width], at_least, [0]))
    return Scan(
        entries=height * width,
        changed=int(counts[_CHANGED]),
        changed_stored=int(counts[_STORED]),
        rows=rows,
        columns=columns,
        ulp_histogram=reached[:-1] - reached[1:],
        mask=mask,
        update_square=float(sums[0]),
        base_square=float(sums[1]),
        cross=float(sums[2]),
        nonfinite_base=int(counts[_BASE_BAD]),
        nonfinite_tuned=int(counts[_TUNED_BAD]),
    )


def _counts_alone(a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]) -> Scan:
    """Both sides bfloat16: the stored codes decide, so one compare an entry is enough."""

    def one(span: tuple[int, int]) -> int:
        return int(_count_changed(a[span[0] : span[1]], b[span[0] : span[1]]))

    changed = sum(for_each(one, spans(a.size, smallest=4 * _SMALLEST_SPAN)))
    return Scan(a.size, changed, changed, None, None, None, None, 0.0, 0.0, 0.0, 0, 0)


def _nothing(height: int, width: int) -> Scan:
    """The scan of an empty tensor."""
    rows, columns = np.zeros(height, np.int64), np.zeros(width, np.int64)
    histogram, mask = np.zeros(len(ULP_BINS), np.int64), np.zeros(0, np.uint8)
    return Scan(0, 0, 0, rows, columns, histogram, mask, 0.0, 0.0, 0.0, 0, 0)
