"""Means over pairs of runs, and their intervals with seeds, not pairs, as the units.

Pairs share runs, and runs of one seed share data, so pairs say less than as many independent
numbers. Each seed is left out in turn, with every run that has it: variance
(n − 1)/n · Σᵢ (θ₋ᵢ − θ̄₋)², n seeds, n − 1 degrees of freedom, Student's t, 95 % (Efron and Stein
1981: for means over pairs this variance is too large on average, so the intervals are wide).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from offaxis.comparison.sampling import student_t

__all__ = ["Estimate", "Values", "estimate", "mean"]

Values = Mapping[tuple[int, int], float]
"""By the seeds of the first and the second run of a pair."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None with fewer than three seeds."""

    value: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def half(self) -> float | None:
        return None if self.high is None else self.high - self.value


def mean(values: Values) -> float:
    """The mean over pairs; NaN of none."""
    return float(np.mean(list(values.values()))) if values else math.nan


def estimate(
    groups: Mapping[str, Values], combine: Callable[[Mapping[str, float]], float]
) -> Estimate:
    """`combine` of each group's mean over pairs, and what leaving out seeds does to it.

    Seeds are those of any pair. Three at least, since two leave no pair of other seeds behind.
    """

    def without(seed: int | None) -> float:
        kept = {
            name: {pair: value for pair, value in values.items() if seed not in pair}
            for name, values in groups.items()
        }
        return combine({name: mean(values) for name, values in kept.items()})

    seeds = sorted({seed for values in groups.values() for pair in values for seed in pair})
    value, count = without(None), len(seeds)
    left = np.array([without(seed) for seed in seeds])
    if count < 3 or not np.isfinite(left).all():
        return Estimate(value, None, None, count)
    variance = (count - 1) / count * float(np.sum((left - left.mean()) ** 2))
    half = student_t(count - 1) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, count)
