"""Predictions that were written and scored on a validation set, beside the last checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Candidate", "Scored"]


class Scored(Protocol):
    """A mean with its 95 % interval, as `offaxis.evaluate` returns it."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Candidate:
    """A written prediction's score on a validation set, and its gain over the last checkpoint.

    score: in [0, 1]. gain, low, high: its score less the last checkpoint's, with the 95 % interval.
    n: problems. paired: whether the interval is over the same problems' differences.
    """

    score: float
    gain: float
    low: float
    high: float
    n: int
    paired: bool

    @staticmethod
    def from_pairs(score: Scored, difference: Scored) -> Candidate:
        """From a score and `evaluate.paired_difference(prediction, last checkpoint)`."""
        gain, low, high = difference.value, difference.low, difference.high
        return Candidate(score.value, gain, low, high, difference.n, True)

    @staticmethod
    def from_scores(score: Scored, last: Scored) -> Candidate:
        """From two scores with intervals that were not paired.

        The ends of both intervals are joined in quadrature (Newcombe 1998, method 10), which is
        wider than pairs where the problems are the same.
        """
        gain = score.value - last.value
        low = gain - math.hypot(score.value - score.low, last.high - last.value)
        high = gain + math.hypot(score.high - score.value, last.value - last.low)
        return Candidate(score.value, gain, low, high, min(score.n, last.n), False)
