"""Rows that one bit scan gives: counts, overlaps with the fixed masks, and their nulls."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from offaxis import measures
from offaxis.kernels import Scan, bin_counts
from offaxis.measures import Number, undefined

if TYPE_CHECKING:
    from offaxis.checkpoint import TensorPair
    from offaxis.comparison.base import BaseSide

__all__ = [
    "CurveData",
    "entry_numbers",
    "histogram_curve",
    "overlap_numbers",
    "update_numbers",
]

CurveData = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape, and flat row-major values."""

_TOP_SHARE = 0.05
_ENTRIES_PER_NULL = 2_000_000


def entry_numbers(found: Scan) -> Iterator[tuple[str, Number]]:
    """How much changed; what is not finite, where anything is."""
    yield "unchanged_bf16", measures.unchanged_bf16(found)
    yield "unchanged_stored", measures.unchanged_stored(found)
    yield "relative_update_norm", measures.relative_update_norm(found)
    yield "correlation", measures.correlation(found)
    if found.nonfinite_base or found.nonfinite_tuned:
        yield "nonfinite_base", Number(float(found.nonfinite_base))
        yield "nonfinite_tuned", Number(float(found.nonfinite_tuned))


def histogram_curve(found: Scan) -> CurveData:
    """Entries by ULP distance, in the bins of `kernels.ULP_BINS`."""
    assert found.ulp_histogram is not None
    return found.ulp_histogram.shape, found.ulp_histogram.astype(np.float64)


def overlap_numbers(
    base: BaseSide, mask: npt.NDArray[np.uint8], bins: npt.NDArray[np.int64]
) -> Iterator[tuple[str, Number]]:
    """Overlap of the update mask with each fixed mask, and its magnitude null."""
    for name in ("low_magnitude_overlap", "principal_overlap", "principal_not_low_overlap"):
        fixed = base.fixed.get(name)
        if fixed is None:
            yield name, undefined(base.why_not)
            yield f"{name}_magnitude_null", undefined(base.why_not)
            continue
        yield name, measures.overlap(mask, fixed.bits)
        yield f"{name}_magnitude_null", measures.magnitude_null(base.bins, bins, fixed.bins)


def update_numbers(
    base: BaseSide, pair: TensorPair, update: torch.Tensor | None, changed: int, *, wide: bool
) -> Iterator[tuple[str, Number]]:
    """Overlaps at fixed density with their magnitude null, and the rounding null.

    update: ΔW in float64, None where it is not finite. wide: the tuned side is stored wider than
    bfloat16, so that its ΔW has not been rounded yet.
    """
    names = ("low_magnitude_overlap", "principal_overlap")
    present = [name for name in names if name in base.fixed]
    nulls = dict(zip(present, _rounding(base, pair, update, present, changed, wide), strict=True))
    top = measures.top_update_mask(update, share=_TOP_SHARE) if update is not None else None
    top_bins = bin_counts(base.codes, top.mask) if top is not None else None
    for name in names:
        fixed = base.fixed.get(name)
        if fixed is None or top is None or top_bins is None:
            reason = undefined(base.why_not if fixed is None else "nonfinite")
            seen, null = reason, reason
        else:
            seen = measures.overlap(top.mask, fixed.bits)
            if top.count < round(_TOP_SHARE * pair.base.numel()) and seen.status == "ok":
                seen = seen._replace(status="fewer_than_5_percent_moved")
            null = measures.magnitude_null(base.bins, top_bins, fixed.bins)
        yield f"{name}_top5", seen
        yield f"{name}_top5_magnitude_null", null
        yield f"{name}_rounding_null", nulls.get(name, undefined(base.why_not))


def _rounding(
    base: BaseSide,
    pair: TensorPair,
    update: torch.Tensor | None,
    present: list[str],
    changed: int,
    wide: bool,
) -> list[Number]:
    if not base.settings.rounding_null:
        reason = "not_asked_for"
    elif not wide:
        reason = "tuned_not_wider_than_bf16"
    elif update is None:
        reason = "nonfinite"
    elif changed == 0:
        reason = "no_change"
    else:
        return measures.rounding_null(
            pair.base.to(torch.float64),
            update,
            [base.fixed[name].bits for name in present],
            seed=zlib.crc32(pair.part.tensor.encode()) ^ base.settings.seed,
            draws=max(1, min(16, _ENTRIES_PER_NULL // update.numel())),
        )
    return [undefined(reason)] * len(present)
