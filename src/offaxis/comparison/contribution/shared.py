"""Which runs changed the same entries: over steps of a run, over seeds, over algorithms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.comparison.contribution.numbers import Numbers
from offaxis.comparison.sampling import mean_over
from offaxis.measures.derived import containment

__all__ = ["SHARED", "overlaps"]

SHARED = (
    "jaccard",
    "jaccard_magnitude_null",
    "jaccard_excess",
    "first_in_second",
    "first_in_second_magnitude_null",
    "first_in_second_excess",
    "second_in_first",
    "second_in_first_magnitude_null",
    "second_in_first_excess",
)
"""Each the mean over matrices with its interval; an excess is observed minus null."""

Values = Mapping[str, float]


def overlaps(
    measurements: pl.DataFrame, labels: Sequence[str], numbers: Sequence[Numbers]
) -> list[dict[str, Any]]:
    """One entry a pair of tuned checkpoints of one base, in their order.

    `first` and `second` are indices into `labels`, first < second; `SHARED` the means. With two
    checkpoints of one run in step order, `second_in_first` is the share of the later one's changed
    entries that the earlier one had changed already, and `first_in_second` the share that stayed
    changed. The null takes the masks to be independent within bins of equal |W₀|; checkpoints of
    one run are not, since what has moved mostly stays moved.
    """
    rows = measurements.filter(pl.col("measure").is_in(["jaccard", "jaccard_magnitude_null"]))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for label, tensor, measure, value in rows.select(
        "tuned", "tensor", "measure", "value"
    ).iter_rows():
        if value is not None:
            found.setdefault((label, measure), {})[tensor] = value
    told = []
    for i, j in itertools.combinations(range(len(labels)), 2):
        label = f"{labels[i]} ∥ {labels[j]}"
        seen, null = (found.get((label, f"jaccard{end}"), {}) for end in ("", "_magnitude_null"))
        if seen:
            told.append({"first": i, "second": j} | _means(seen, null, numbers[i], numbers[j]))
    return told


def _means(seen: Values, null: Values, one: Numbers, other: Numbers) -> dict[str, Any]:
    """The means of `SHARED` over the matrices of one pair."""
    densities = [
        {name: 1 - value for name, value in side.values.get("unchanged_bf16", {}).items()}
        for side in (one, other)
    ]
    values: dict[str, Values] = {}
    for end, overlap in (("", seen), ("_magnitude_null", null)):
        values[f"jaccard{end}"] = overlap
        values[f"first_in_second{end}"] = _inside(overlap, *densities)
        values[f"second_in_first{end}"] = _inside(overlap, *densities[::-1])
    for name in ("jaccard", "first_in_second", "second_in_first"):
        expected = values[f"{name}_magnitude_null"]
        values[f"{name}_excess"] = {
            tensor: value - expected[tensor]
            for tensor, value in values[name].items()
            if tensor in expected
        }
    return {name: _mean(values[name], one) for name in SHARED}


def _inside(overlap: Values, first: Values, second: Values) -> dict[str, float]:
    found = {
        tensor: containment(value, first[tensor], second[tensor]).value
        for tensor, value in overlap.items()
    }
    return {tensor: value for tensor, value in found.items() if value is not None}


def _mean(values: Values, numbers: Numbers) -> list[float | int | None]:
    roles = [numbers.matrices[tensor].role for tensor in values]
    found = mean_over(list(values.values()), roles)
    return [found.value, found.low, found.high, found.count]
