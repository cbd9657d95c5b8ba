"""Row and column profiles: of a matrix, over the steps of a run, and beside their nulls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from offaxis import measures
from offaxis.kernels import bin_counts
from offaxis.measures import Number, Profiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offaxis.comparison.base import BaseSide
    from offaxis.comparison.entries import CurveData
    from offaxis.comparison.measure import Measured
    from offaxis.kernels import Scan

__all__ = [
    "PROFILE_CORRELATIONS",
    "finals",
    "look",
    "profile_curves",
    "profile_numbers",
    "runs_of",
    "series_numbers",
    "step_of",
]

_PICTURE_SIDE = 96
_SIDES = ("row", "column")
PROFILE_CORRELATIONS = tuple(
    f"{side}_profile_correlation{null}" for side in _SIDES for null in ("", "_magnitude_null")
)
_STEP = re.compile(r"(?:^|(?<=[-_/.]))(?:checkpoint|global_step|step|iter|epoch)[-_]?(\d+)")


def look(
    found: Scan, base: BaseSide, bins: npt.NDArray[np.int64]
) -> tuple[Profiles, Profiles] | None:
    """The profiles of a matrix and their magnitude null, turned as the model uses it."""
    if not base.part.is_matrix or found.mask is None:
        return None
    rows, cols = base.part.shape
    seen = measures.observed_profiles(found, (rows, cols), side=_PICTURE_SIDE)
    null = measures.null_profiles(base.codes, (rows, cols), base.bins, bins, side=_PICTURE_SIDE)
    return (seen.turned(), null.turned()) if base.part.transposed else (seen, null)


def profile_curves(seen: Profiles, null: Profiles) -> Iterator[tuple[str, CurveData]]:
    """Every row and column share, the mask picture, and the null of the shares, in stretches."""
    yield "row_changed", (seen.rows.shape, seen.rows)
    yield "column_changed", (seen.columns.shape, seen.columns)
    yield "mask_picture", (seen.picture.shape, seen.picture.reshape(-1))
    for name, values in (("row", null.rows), ("column", null.columns)):
        short = measures.binned(values)
        yield f"{name}_changed_magnitude_null", (short.shape, short)


def profile_numbers(
    seen: Profiles, null: Profiles, base: BaseSide, bins: npt.NDArray[np.int64]
) -> Iterator[tuple[str, Number]]:
    """How far rows and columns stand out beyond what entry size predicts."""
    yield "row_stripes", measures.stripes(seen.rows, null.rows, base.bins, bins)
    yield "column_stripes", measures.stripes(seen.columns, null.columns, base.bins, bins)


def series_numbers(
    base: BaseSide, found: Sequence[Measured | None], labels: Sequence[str]
) -> Iterator[tuple[int, str, Number]]:
    """For each checkpoint but the last of its run: its profiles against the last one's.

    Yields (index of the checkpoint, measure, number).
    """
    for members in runs_of(labels).values():
        last = found[members[-1]]
        for index in members[:-1]:
            one = found[index]
            if one is not None and last is not None:
                for name, number in _against(base, one, last):
                    yield index, name, number


def _against(base: BaseSide, one: Measured, last: Measured) -> Iterator[tuple[str, Number]]:
    if one.seen is None or one.null is None or last.seen is None or last.null is None:
        return
    assert one.scan.mask is not None
    assert last.scan.mask is not None
    assert one.bins is not None
    assert last.bins is not None
    both = bin_counts(base.codes, one.scan.mask & last.scan.mask)
    pairs = (
        ("row", (one.seen.rows, last.seen.rows), (one.null.rows, last.null.rows)),
        ("column", (one.seen.columns, last.seen.columns), (one.null.columns, last.null.columns)),
    )
    for side, seen, null in pairs:
        name = f"{side}_profile_correlation"
        yield name, measures.profile_correlation(*seen)
        expected = measures.profile_correlation_null(null, base.bins, (one.bins, last.bins), both)
        yield f"{name}_magnitude_null", expected


def step_of(tuned: str) -> tuple[str, int | None]:
    """(run, step) read from names such as `rl/checkpoint-20` or `global_step_20/actor`.

    The last number that names a step counts, and the run is what stands around it.
    """
    found = list(_STEP.finditer(tuned))
    if not found:
        return tuned, None
    last = found[-1]
    around = (tuned[: last.start()].rstrip("-_/."), tuned[last.end() :].strip("/"))
    return "/".join(part for part in around if part), int(last[1])


def runs_of(labels: Sequence[str]) -> Mapping[str, list[int]]:
    """Run → indices of its checkpoints in step order. A name without a step is a run by itself."""
    steps = [step_of(label) for label in labels]
    runs: dict[str, list[int]] = {}
    for index, (run, step) in enumerate(steps):
        runs.setdefault(f"{run}\0{index}" if step is None else run, []).append(index)
    return {run: sorted(members, key=lambda i: steps[i][1] or 0) for run, members in runs.items()}


def finals(labels: Sequence[str]) -> list[int]:
    """The last checkpoint of each run, in command-line order."""
    return sorted(members[-1] for members in runs_of(labels).values())
