"""How well a score puts runs of RL above runs of fine-tuning, with intervals over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.verdict.rule import MATCHED

__all__ = ["DRAWS", "Contest", "Interval", "proportion"]

Floats = npt.NDArray[np.float64]

DRAWS = 10_000
_ENDS = (0.025, 0.975)
_Z = 1.959963984540054  # the normal's 97.5 % point


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval; None where it is undefined. size: what it is over."""

    value: float | None
    low: float | None
    high: float | None
    size: int


def proportion(good: int, of: int) -> Interval:
    """A share of independent runs with Wilson's interval, which has a width at 0 and 1 too."""
    if not of:
        return Interval(None, None, None, 0)
    share, square = good / of, _Z**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of**2)) / (1 + square / of)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), of)


class Contest:
    """Pairs of an RL run and a fine-tuning run, which a score should put in that order.

    points: one row a run, all labelled. matched: only pairs of one task whose norms differ by less
    than `MATCHED`. alike: columns that a pair must share as well. units: the columns that name what
    is resampled; the run itself, or a whole setting with all its runs, since the runs of one
    setting share their problems. Runs of each kind are resampled apart, settings together.
    """

    def __init__(
        self,
        points: pl.DataFrame,
        *,
        matched: bool = False,
        alike: Sequence[str] = (),
        units: Sequence[str] = ("run",),
        draws: int = DRAWS,
    ) -> None:
        self.rl: npt.NDArray[np.bool_] = points["rl"].to_numpy().astype(bool)
        self.kept = np.ones((int(self.rl.sum()), int((~self.rl).sum())), bool)
        for name in (*(("task",) if matched else ()), *alike):
            values = points[name].to_numpy()
            self.kept &= values[self.rl][:, None] == values[~self.rl][None, :]
        if matched:
            norm = np.log(points["relative_update_norm"].to_numpy())
            apart = np.abs(norm[self.rl][:, None] - norm[~self.rl][None, :])
            self.kept &= apart < math.log(MATCHED)
        self.draws = draws
        self._counts = self._resample(points, units)

    @property
    def pairs(self) -> int:
        return int(self.kept.sum())

    def _resample(self, points: pl.DataFrame, units: Sequence[str]) -> tuple[Floats, Floats]:
        """How often each RL run and each fine-tuning run is drawn: (draws, runs) of either kind."""
        rng = np.random.default_rng(0)
        if tuple(units) == ("run",):
            first, second = (_counts(rng, int(n), self.draws) for n in self.kept.shape)
            return first, second
        unit = points.select(pl.struct(*units).rank("dense").alias("unit"))["unit"].to_numpy() - 1
        drawn = _counts(rng, int(unit.max()) + 1, self.draws)[:, unit]
        return drawn[:, self.rl], drawn[:, ~self.rl]

    def _wins(self, score: Floats) -> Floats:
        first, other = score[self.rl][:, None], score[~self.rl][None, :]
        wins: Floats = ((first > other) + 0.5 * (first == other)) * self.kept
        return wins

    def _drawn(self, wins: Floats) -> Floats:
        """The AUC of each draw; NaN in one without pairs."""
        first, other = self._counts
        total = np.einsum("dj,dj->d", first @ self.kept, other)
        with np.errstate(invalid="ignore"):
            drawn: Floats = np.einsum("dj,dj->d", first @ wins, other) / total
        return drawn

    def auc(self, score: Floats) -> Interval:
        """P(an RL run's score exceeds a fine-tuning run's), ties half, over the pairs kept."""
        if not self.pairs:
            return Interval(None, None, None, 0)
        wins = self._wins(score)
        return _interval(float(wins.sum() / self.pairs), self._drawn(wins), self.pairs)

    def gain(self, score: Floats, other: Floats) -> Interval:
        """The AUC of one score minus that of another, over the same draws of runs."""
        if not self.pairs:
            return Interval(None, None, None, 0)
        one, two = self._wins(score), self._wins(other)
        drawn = self._drawn(one) - self._drawn(two)
        return _interval(float((one.sum() - two.sum()) / self.pairs), drawn, self.pairs)


def _counts(rng: np.random.Generator, of: int, draws: int) -> Floats:
    return rng.multinomial(of, np.full(of, 1 / of), size=draws).astype(np.float64)


def _interval(value: float, drawn: Floats, size: int) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if not known.size:
        return Interval(value, None, None, size)
    low, high = np.quantile(known, _ENDS)
    return Interval(value, float(low), float(high), size)
