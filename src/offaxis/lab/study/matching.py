"""Reading a run's trajectory where it is to be compared: at a step, a norm or an accuracy.

Two methods at one learning rate take steps of different size, and most measures grow with the
size of the step. So a pair of runs (same task, seed and learning rate) is also read where both
have gone equally far (`norm`), and where both have gained equally much (`accuracy`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["LEAST_GAIN", "Matching", "Trajectory", "read_pair"]

Matching = Literal["step", "norm", "accuracy"]

LEAST_GAIN = 0.04
"""Runs are matched by accuracy only where both gain at least so much over the base: about three
standard errors of one score."""


@dataclass(frozen=True)
class Trajectory:
    """A run's checkpoints in step order."""

    steps: tuple[int, ...]
    norms: tuple[float, ...]
    """`relative_update_norm`, positive."""
    accuracies: tuple[float, ...]
    values: Mapping[str, tuple[float | None, ...]]
    """Measure -> its value at each checkpoint."""

    def at(self, measure: str, place: float) -> float | None:
        """A measure at a fractional checkpoint index; in between, interpolated linearly.

        None where either neighbour is not known.
        """
        known = self.values[measure]
        index = min(int(place), len(known) - 1)
        here, share = known[index], place - index
        if share <= 0 or here is None:
            return here
        after = known[index + 1]
        return None if after is None else (1 - share) * here + share * after


def _crossing(values: Sequence[float], target: float) -> float | None:
    """Where a sequence first reaches `target` on its way: a fractional index, or None."""
    for index, value in enumerate(values):
        if math.isclose(value, target, rel_tol=1e-12):
            return float(index)
        if index + 1 < len(values):
            after = values[index + 1]
            if min(value, after) < target <= max(value, after):
                return index + (target - value) / (after - value)
    return None


def _target(a: Trajectory, b: Trajectory, matching: Matching, start: float) -> float | None:
    """The common point: the last step, the middle of the common norms, or the middle gain."""
    if matching == "step":
        return float(max(set(a.steps) & set(b.steps), default=0)) or None
    if matching == "norm":
        low, high = max(min(a.norms), min(b.norms)), min(max(a.norms), max(b.norms))
        return (math.log(low) + math.log(high)) / 2 if low <= high else None
    top = min(max(a.accuracies), max(b.accuracies))
    if top - start < LEAST_GAIN:
        return None
    low = max(start, min(max(a.accuracies[0], b.accuracies[0]), top))
    return (low + top) / 2


def _coordinates(one: Trajectory, matching: Matching) -> list[float]:
    if matching == "step":
        return [float(step) for step in one.steps]
    if matching == "norm":
        return [math.log(norm) for norm in one.norms]
    return list(one.accuracies)


def read_pair(
    a: Trajectory, b: Trajectory, measures: Sequence[str], *, matching: Matching, start: float
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Both runs' measures at their common point, or None where they have none.

    `step`: the last step that both have. `norm`: the geometric middle of the norms that both pass
    through. `accuracy`: the middle between the later first score and the lower top score, if both
    gain at least `LEAST_GAIN` over `start`, the base's accuracy. A run is read where it first gets
    there, between its neighbouring checkpoints. Measures that one of them lacks are left out.
    """
    target = _target(a, b, matching, start)
    if target is None:
        return None
    places = [_crossing(_coordinates(one, matching), target) for one in (a, b)]
    if places[0] is None or places[1] is None:
        return None
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for measure in measures:
        first, second = a.at(measure, places[0]), b.at(measure, places[1])
        if first is not None and second is not None and np.isfinite((first, second)).all():
            found[0][measure], found[1][measure] = first, second
    return found
