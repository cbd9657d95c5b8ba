"""Are the probabilities right, and which of them are sure enough for a label?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offaxis.lab.verdict.scoring import Interval, proportion

__all__ = ["BINS", "TOLERATED", "Calibration", "calibration", "coverage", "labelled", "threshold"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 5
"""Of equal width, of probabilities."""

TOLERATED = 0.1
"""The share of wrong labels that the abstention band is set for, on runs that the rule is fitted
to (each left out). What it comes to on the test runs is measured, and stated with the label."""


@dataclass(frozen=True)
class Calibration:
    """brier: mean (p − y)². log_loss: mean −ln p(y), nats. ece: mean |observed − predicted| over
    `BINS` bins of p, weighted by runs. All 0 at best; 0.25, ln 2 and 0 for p = ½ throughout."""

    brier: float
    log_loss: float
    ece: float
    bins: tuple[tuple[float, float, int], ...]
    """Mean p, share of RL, runs: of each bin that holds a run."""


def calibration(p: Floats, rl: Bools) -> Calibration:
    """Of probabilities of RL against what the runs are."""
    sure = np.clip(np.where(rl, p, 1 - p), 1e-12, 1)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = tuple(
        (float(p[place == one].mean()), float(rl[place == one].mean()), int((place == one).sum()))
        for one in range(BINS)
        if (place == one).any()
    )
    ece = sum(size * abs(mean - share) for mean, share, size in bins) / p.size
    return Calibration(float(((p - rl) ** 2).mean()), float(-np.log(sure).mean()), ece, bins)


def _confidence(p: Floats) -> Floats:
    found: Floats = np.maximum(p, 1 - p)
    return found


def coverage(p: Floats, rl: Bools) -> list[tuple[float, float, float]]:
    """(confidence, share of runs at least that sure, share of these wrong), the surest first."""
    sure, wrong = _confidence(p), (p > 0.5) != rl
    order = np.argsort(-sure, kind="stable")
    count = np.arange(1, p.size + 1)
    risk = np.cumsum(wrong[order]) / count
    return [
        (float(c), float(n / p.size), float(r))
        for c, n, r in zip(sure[order], count, risk, strict=True)
    ]


def threshold(p: Floats, rl: Bools) -> float | None:
    """The least confidence from which on no more than `TOLERATED` are wrong, None for none.

    p: of runs that the rule was not fitted to. The largest number of runs that keeps to it.
    """
    kept = [sure for sure, _, risk in coverage(p, rl) if risk <= TOLERATED]
    return min(kept) if kept else None


def labelled(p: Floats, rl: Bools, least: float) -> tuple[Interval, Interval]:
    """Of runs: the share that gets a label, and the share of wrong ones among those."""
    sure = _confidence(p) >= least
    wrong = ((p > 0.5) != rl) & sure
    return proportion(int(sure.sum()), p.size), proportion(int(wrong.sum()), int(sure.sum()))
