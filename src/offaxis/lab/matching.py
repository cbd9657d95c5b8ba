"""Contrasts of two runs at equal step, equal update norm and equal accuracy.

At equal learning rate and steps two methods still take steps of different size, and most measures
grow with the size of the step. So a measure is also read where both runs have gone equally far:
each tensor's value is interpolated along the run's checkpoints to a common point.

The intervals are over the tensors of ONE run of each method. They say how far a difference holds
across the model's matrices; they say nothing about another seed, and the matrices of one model
are not independent. No correction is made for the number of contrasts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from offaxis.evaluate import bootstrap_mean

__all__ = ["CONTRASTS", "MEASURES", "Point", "Series", "common_point", "contrasts", "position"]

MatchedBy = Literal["step", "norm", "accuracy"]
_MATCHINGS: tuple[MatchedBy, ...] = ("step", "norm", "accuracy")

MEASURES = (
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "rank1_energy",
    "effective_rank",
    "principal_overlap_excess",
    "low_magnitude_overlap_excess",
    "unchanged_bf16",
)
"""Per-matrix measures that are contrasted. An `_excess` is the overlap minus its magnitude null."""

_EXCESS = {f"{name}_excess": name for name in ("principal_overlap", "low_magnitude_overlap")}
_MARK = "low_magnitude_overlap"  # measured for matrices and nothing else

CONTRASTS = {
    "measure": pl.String,
    "matched_by": pl.String,
    "at": pl.Float64,
    "a": pl.String,
    "b": pl.String,
    "a_value": pl.Float64,
    "b_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "verdict": pl.String,
}
"""Columns of `contrasts.parquet`. Values are means over `n` tensors, `difference` is a − b."""

Values = Mapping[tuple[str, str], Mapping[str, float]]  # (tuned, measure) -> tensor -> value


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint of a run: its name in the measurements and what it can be matched by."""

    tuned: str
    step: int
    norm: float | None
    """`relative_update_norm` of the whole model."""
    accuracy: float | None
    """avg@k."""

    def coordinate(self, matched_by: MatchedBy) -> float | None:
        """The step, ln(norm) or accuracy; None where it is not known."""
        if matched_by == "step":
            return float(self.step)
        if matched_by == "norm":
            return math.log(self.norm) if self.norm else None
        return self.accuracy


@dataclass(frozen=True, slots=True)
class Series:
    """A run: its name and its checkpoints in step order."""

    name: str
    points: tuple[Point, ...]


def common_point(a: Sequence[float], b: Sequence[float], *, last: bool = False) -> float | None:
    """The middle of the overlap of two ranges, or None where they do not overlap.

    With `last`, the largest value that both sequences hold (the last common step).
    """
    if not a or not b:
        return None
    if last:
        return max(set(a) & set(b), default=None)
    low, high = max(min(a), min(b)), min(max(a), max(b))
    return (low + high) / 2 if low <= high else None


def position(coordinates: Sequence[float], target: float) -> float | None:
    """Where a sequence first reaches `target`: an index plus the fraction to the next, or None.

    Linear between neighbours; the sequence need not be monotonic (accuracy is noisy).
    """
    for index, value in enumerate(coordinates):
        if value == target:
            return float(index)
        if index + 1 < len(coordinates):
            after = coordinates[index + 1]
            if min(value, after) < target < max(value, after):
                return index + (target - value) / (after - value)
    return None


def _values(measurements: pl.DataFrame) -> Values:
    """Every matrix's value of every measure, derived excesses included, nulls left out."""
    needed = {
        *MEASURES,
        *_EXCESS.values(),
        *(f"{name}_magnitude_null" for name in _EXCESS.values()),
    }
    matrices = set(measurements.filter(pl.col("measure") == _MARK)["tensor"].to_list())
    found: dict[tuple[str, str], dict[str, float]] = {}
    rows = measurements.filter(pl.col("measure").is_in(needed), pl.col("value").is_not_null())
    for tuned, tensor, measure, value in rows.select(
        "tuned", "tensor", "measure", "value"
    ).iter_rows():
        if tensor in matrices:
            found.setdefault((tuned, measure), {})[tensor] = value
    for tuned in {tuned for tuned, _ in found}:
        for excess, name in _EXCESS.items():
            null = found.get((tuned, f"{name}_magnitude_null"), {})
            observed = found.get((tuned, name), {})
            found[tuned, excess] = {t: observed[t] - null[t] for t in observed if t in null}
    return found


def _interpolated(
    values: Values, series: Sequence[Point], measure: str, at: float
) -> dict[str, float]:
    """Each tensor's value at a fractional index of the series, tensors known at both ends."""
    index = min(int(at), len(series) - 1)
    fraction = at - index
    here = values.get((series[index].tuned, measure), {})
    if fraction == 0:
        return dict(here)
    after = values.get((series[index + 1].tuned, measure), {})
    return {t: (1 - fraction) * here[t] + fraction * after[t] for t in here if t in after}


def _contrast(
    first: Mapping[str, float], second: Mapping[str, float], seed: int
) -> dict[str, object] | None:
    """Means over the tensors known on both sides, and their paired difference with its interval."""
    tensors = sorted(first.keys() & second.keys())
    if not tensors:
        return None
    a = np.array([first[tensor] for tensor in tensors])
    b = np.array([second[tensor] for tensor in tensors])
    difference, low, high = bootstrap_mean(a - b, seed=seed)
    apart = len(tensors) > 1 and (low > 0 or high < 0)
    return {
        "a_value": float(a.mean()),
        "b_value": float(b.mean()),
        "difference": difference,
        "low": low if len(tensors) > 1 else None,
        "high": high if len(tensors) > 1 else None,
        "n": len(tensors),
        "verdict": "differ" if apart else "cannot tell",
    }


def contrasts(measurements: pl.DataFrame, a: Series, b: Series, *, seed: int = 0) -> pl.DataFrame:
    """Paired differences a − b over matrices, with the columns `CONTRASTS`.

    `measurements` is a `compare` table that holds the checkpoints of both runs. Runs are matched
    at their last common step, at the geometric middle of their common range of
    `relative_update_norm`, and at the middle of their common range of accuracy. A matching whose
    ranges do not overlap has no rows; "cannot tell" means that the 95 % interval holds zero or
    that there is a single matrix.
    """
    values = _values(measurements)
    rows: list[dict[str, object]] = []
    for matched_by in _MATCHINGS:
        sides = []
        for series in (a, b):
            known = [(p, x) for p in series.points if (x := p.coordinate(matched_by)) is not None]
            sides.append(([p for p, _ in known], [x for _, x in known]))
        (points_a, xs_a), (points_b, xs_b) = sides
        target = common_point(xs_a, xs_b, last=matched_by == "step")
        if target is None:
            continue
        at_a, at_b = position(xs_a, target), position(xs_b, target)
        if at_a is None or at_b is None:
            continue
        shown = math.exp(target) if matched_by == "norm" else target
        for measure in MEASURES:
            contrast = _contrast(
                _interpolated(values, points_a, measure, at_a),
                _interpolated(values, points_b, measure, at_b),
                seed,
            )
            if contrast is not None:
                keys = {"measure": measure, "matched_by": matched_by, "at": shown}
                rows.append({**keys, "a": a.name, "b": b.name, **contrast})
    return pl.DataFrame(rows, schema=CONTRASTS)
