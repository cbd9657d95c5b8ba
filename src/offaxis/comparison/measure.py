"""One matched tensor in, its rows out: what `compare` does for each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from offaxis.comparison.base import BaseSide, Settings
from offaxis.comparison.entries import (
    CurveData,
    entry_numbers,
    histogram_curve,
    overlap_numbers,
    update_numbers,
)
from offaxis.comparison.profiles import look, profile_curves, profile_numbers
from offaxis.comparison.spectra import spectral_numbers
from offaxis.kernels import Scan, bin_counts, scan
from offaxis.measures import MEASURES, Number, Profiles, nss_bound
from offaxis.table import Curve, Measurement

if TYPE_CHECKING:
    from offaxis.checkpoint import Part, TensorPair

__all__ = ["BaseSide", "Measured", "Settings", "measure_pair", "model_shape", "rows_of"]

_UNITS = {measure.name: measure.unit for measure in MEASURES}


@dataclass(frozen=True)
class Measured:
    """All that one tensor of one tuned checkpoint gave.

    For use across runs, and None for what is no matrix: bins, the count of the update mask in each
    magnitude bin; seen and null, its profiles and their magnitude null (drawn matrices alone).
    """

    rows: list[Measurement]
    curves: list[Curve]
    scan: Scan
    bins: npt.NDArray[np.int64] | None
    seen: Profiles | None = None
    null: Profiles | None = None


def measure_pair(
    base: BaseSide, pair: TensorPair, *, tuned: str, wide: bool, draw: bool = True
) -> Measured:
    """All measures of one tensor of one tuned checkpoint.

    tuned: the label for the rows. wide: the tuned side is stored wider than bfloat16, so that the
    rounding null is defined. draw: keep the curves and the picture, not the ULP histogram alone.
    """
    found = scan(pair.base, pair.tuned)
    numbers = dict(entry_numbers(found))
    curves: dict[str, CurveData] = {}
    bins = drawn = None
    if pair.part.is_matrix:
        assert found.mask is not None
        bins = bin_counts(base.codes, found.mask)
        drawn = look(found, base, bins) if draw else None
        if drawn is not None:
            curves |= profile_curves(*drawn)
            numbers |= profile_numbers(*drawn, base, bins)
        numbers |= overlap_numbers(base, found.mask, bins)
        numbers["nss_bound"] = nss_bound(sqrt(found.update_square), sqrt(found.base_square))
        update = None
        if not found.nonfinite_base and not found.nonfinite_tuned:
            update = pair.tuned.to(torch.float64) - pair.base
        numbers |= update_numbers(base, pair, update, found.changed, wide=wide)
        numbers |= spectral_numbers(base, update, curves if draw else {})
    curves["ulp_histogram"] = histogram_curve(found)
    return Measured(
        list(rows_of(pair.part, tuned, numbers)),
        [Curve(tuned, pair.part.tensor, name, *data) for name, data in curves.items()],
        found,
        bins,
        *(drawn or (None, None)),
    )


def model_shape(part: Part) -> tuple[int, int]:
    """Rows and columns as the model uses them: turned where the stored tensor is transposed."""
    if not part.shape:
        return 1, 1
    width = part.shape[-1]
    height = int(np.prod(part.shape[:-1], dtype=np.int64))
    return (width, height) if part.transposed else (height, width)


def rows_of(part: Part, tuned: str, numbers: Mapping[str, Number]) -> Iterator[Measurement]:
    """The table rows of one tensor of one tuned checkpoint."""
    height, width = model_shape(part)
    for name, number in numbers.items():
        yield Measurement(
            tuned=tuned,
            tensor=part.tensor,
            layer=part.layer,
            role=part.role,
            expert=part.expert,
            rows=height,
            cols=width,
            measure=name,
            value=number.value,
            unit=_UNITS[name],
            error=number.error,
            status=number.status,
        )
