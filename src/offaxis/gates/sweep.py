"""Gate III, the learning-rate sweep: how the share of unchanged weights melts as a step grows.

The update of a real pair is rescaled by factors f, added to W₀ and rounded to bfloat16. Beside the
share that stays stands what it would be if |ΔW| did not depend on |W₀| within a matrix:

    Σ_h (n_h / n) · P(f|ΔW| < h)            a base on the bfloat16 grid, h = ½ULP
    Σ_h (n_h / n) · E[max(0, 1 − f|ΔW|/2h)]  a wider base, whose place in its cell is uniform

with n_h the entries of each binade of |W₀| and P, E over the matrix's own |ΔW|. The difference is
what the placing of the update adds to plain rounding. Source: The Path Not Taken, sections 2.3
and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from offaxis.checkpoint import align, read_pair
from offaxis.comparison import Progress
from offaxis.comparison.plan import AnyPath, open_base, open_tuned
from offaxis.errors import InputError
from offaxis.kernels import bf16_codes

__all__ = ["FACTORS", "Melting", "melting"]

FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

_EXPONENTS = 256
_SIGN = np.uint16(0x7FFF)


@dataclass(frozen=True)
class Melting:
    """The sweep over one pair. Every factor in `factors`, in order.

    table: factor, exponent (of |W₀|: its binade is [2^exponent, 2^(exponent+1)), null for
    subnormals and zero), entries, unchanged, expected (shares). rounded: the share of entries whose
    tuned side is itself stored as bfloat16, so that their ΔW lost what was below half a spacing.
    skipped: entries that are NaN or infinite on a side.
    """

    factors: tuple[float, ...]
    table: pl.DataFrame
    rounded: float
    skipped: int

    def summary(self) -> list[dict[str, float]]:
        """For each factor the share of all entries that stay, and the expected one."""
        totals = self.table.group_by("factor").agg(
            (pl.col("unchanged") * pl.col("entries")).sum() / pl.col("entries").sum(),
            (pl.col("expected") * pl.col("entries")).sum() / pl.col("entries").sum(),
        )
        return totals.sort("factor").to_dicts()


def melting(
    base: AnyPath,
    tuned: AnyPath,
    factors: Sequence[float] = FACTORS,
    *,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Melting:
    """Rescale the update of a pair of checkpoints by `factors` and count what stays in bfloat16.

    All parameters that both sides share, one tensor in memory at a time; 1.0 gives the pair's own
    `unchanged_bf16` (but for NaN). Factors are positive and finite, else InputError. Raises
    CheckpointError and AlignmentError as `compare` does.
    """
    meter = Meter(check_factors(factors))
    ground = open_base(str(base), allow_pickle=allow_pickle)
    side = open_tuned(str(tuned), ground, allow_pickle=allow_pickle)
    pairs = align(ground, side).pairs
    total, done = sum(math.prod(pair.part.shape) for pair in pairs), 0
    for pair in pairs:
        tensors = read_pair(ground, side, pair)
        meter.add(tensors.base, tensors.tuned)
        done += math.prod(pair.part.shape)
        if progress is not None:
            progress(Progress(done, total, pair.part.tensor))
    return meter.result()


def check_factors(factors: Sequence[float]) -> tuple[float, ...]:
    """The factors in ascending order, once each. InputError for one that is not positive."""
    bad = [one for one in factors if not (math.isfinite(one) and one > 0)]
    if bad or not factors:
        raise InputError(f"factors {list(factors)}: give at least one, all positive and finite")
    return tuple(sorted(set(map(float, factors))))


@dataclass
class Meter:
    """Counts for each factor and binade, added up tensor by tensor."""

    factors: tuple[float, ...]
    rounded: int = 0
    skipped: int = 0
    entries: npt.NDArray[np.int64] = field(init=False)
    unchanged: npt.NDArray[np.int64] = field(init=False)
    expected: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = np.zeros(_EXPONENTS, np.int64)
        self.unchanged = np.zeros((len(self.factors), _EXPONENTS), np.int64)
        self.expected = np.zeros((len(self.factors), _EXPONENTS))

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """One tensor of the base and its tuned side, of one shape and any float dtype."""
        before = base.detach().to(torch.float64).reshape(-1)
        after = tuned.detach().to(torch.float64).reshape(-1)
        finite = torch.isfinite(after - before)
        if not bool(finite.all()):
            self.skipped += int((~finite).sum())
            before, after = before[finite], after[finite]
        if before.numel() == 0:
            return
        update = after - before
        codes = _positions(bf16_codes(before))
        binade = (codes & _SIGN) >> 7
        counts = np.bincount(binade, minlength=_EXPONENTS)
        self.entries += counts
        self.rounded += before.numel() if bool(_on_grid(after).all()) else 0
        for row, factor in enumerate(self.factors):
            same = _positions(bf16_codes(before + factor * update)) == codes
            self.unchanged[row] += np.bincount(binade[same], minlength=_EXPONENTS)
        on_grid = _on_grid(before).numpy()
        for there in (True, False):
            own = np.bincount(binade[on_grid == there], minlength=_EXPONENTS)
            if own.any():
                self.expected += own * _expected(update, self.factors, on_grid=there)

    def result(self) -> Melting:
        """The table so far. InputError where nothing was added."""
        total = int(self.entries.sum())
        if total == 0:
            raise InputError("no finite entry on both sides: nothing to rescale; check the pair")
        there = np.flatnonzero(self.entries)
        rows: list[dict[str, Any]] = [
            {
                "factor": factor,
                "exponent": int(code) - 127 if code else None,
                "entries": int(self.entries[code]),
                "unchanged": float(self.unchanged[row, code] / self.entries[code]),
                "expected": float(self.expected[row, code] / self.entries[code]),
            }
            for row, factor in enumerate(self.factors)
            for code in there
        ]
        schema: dict[str, Any] = {
            "factor": pl.Float64,
            "exponent": pl.Int32,
            "entries": pl.Int64,
            "unchanged": pl.Float64,
            "expected": pl.Float64,
        }
        return Melting(
            self.factors, pl.DataFrame(rows, schema=schema), self.rounded / total, self.skipped
        )


def _positions(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """The codes with −0 as +0."""
    return np.where(codes == 0x8000, np.uint16(0), codes)


def _on_grid(values: Tensor) -> Tensor:
    """Which values bfloat16 holds exactly, whatever type they are stored in."""
    return values.to(torch.bfloat16).to(values.dtype) == values


def _expected(
    update: Tensor, factors: Sequence[float], *, on_grid: bool
) -> npt.NDArray[np.float64]:
    """Share expected to stay in each binade, were |ΔW| independent of |W₀|: (factors, 256).

    On the grid an entry stays up to half a spacing, the tie being measured as staying half the
    time. Off it an entry of a cell of width 2h stays with probability 1 − f|ΔW|/2h. The smaller
    cell below a power of two (one value in 128) is left out.
    """
    sizes = np.sort(update.abs().numpy())
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    exponents = np.maximum(np.arange(_EXPONENTS), 1) - 127
    ulp = np.ldexp(1.0, exponents - 7)
    found = np.empty((len(factors), _EXPONENTS))
    for row, factor in enumerate(factors):
        if on_grid:
            half = ulp / 2 / factor
            below = np.searchsorted(sizes, half, "left") + np.searchsorted(sizes, half, "right")
            found[row] = below / (2 * sizes.size)
        else:
            inside = np.searchsorted(sizes, ulp / factor, "left")
            found[row] = (inside - factor * sums[inside] / ulp) / sizes.size
    return found
