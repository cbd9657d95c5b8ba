"""Is accuracy a matter of how far a run went? Which masks leave the curve that all share.

A mask that learns less also moves less, so accuracy, KL and ‖ΔW‖ confound one another. Each run's
end is held against a local line through the checkpoints of *other* masks that went about as far.
Ends lie above such lines, whatever the mask: a run that is only passing was faster, and has learnt
less for its distance. So what counts is how far above, beside the ends of other masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.claims import MARGINS, judge
from offaxis.lab.paired import Difference, Spread, difference, holm, spread
from offaxis.lab.sparse.naming import ordered
from offaxis.lab.sparse.summary import Rates, Runs, kinds

__all__ = ["LEAVES", "NEAREST", "SCALES", "leaves"]

NEAREST = 20
"""Checkpoints through which the local line goes."""

SCALES = ("kl_tuned_base", "relative_update_norm")
"""What says how far a run went."""

LEAVES: dict[str, Any] = {
    "method": pl.String(),
    "rates": pl.String(),
    "scale": pl.String(),
    "mask": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "p_holm": pl.Float64(),
    "seeds": pl.Int64(),
    "word": pl.String(),
}
"""Columns of `leaves`. value: accuracy above the common curve, minus the mean of that of the other
masks, the mean over seeds, with its 95 % interval; word, of "the mask leaves the curve". No row
where others did not go as far, or not as little."""


def leaves(runs: Runs) -> pl.DataFrame:
    """Each mask's accuracy above the common curve, with the columns `LEAVES`.

    The curve: at a run's ln KL (or ln ‖ΔW‖/‖W₀‖), the line of least squares through the `NEAREST`
    checkpoints of other masks under the same method, at either kind of rate, at any saved step.
    Holm's correction is over the masks of a method at a kind of rate.
    """
    found = []
    for method in runs.methods:
        for scale in SCALES:
            every = _every(runs, method, scale)
            for rates in kinds(method):
                found += [
                    {"method": method, "rates": rates, "scale": scale} | row
                    for row in _above(runs, every, method, rates, scale)
                ]
    return pl.DataFrame(found, schema=LEAVES)


def _every(runs: Runs, method: str, scale: str) -> pl.DataFrame:
    """All checkpoints of the test runs at both kinds of rate, each once."""
    own = [
        runs.tested(method, mask, rates) for mask in runs.masks(method) for rates in kinds(method)
    ]
    if not own:
        return runs.points.clear()
    table = pl.concat(own).unique(["run", "step"], maintain_order=True)
    return table.filter(pl.col(scale) > 0)


def _above(
    runs: Runs, every: pl.DataFrame, method: str, rates: Rates, scale: str
) -> list[dict[str, Any]]:
    residuals: dict[str, dict[int, float]] = {}
    doubts: dict[str, list[float]] = {}
    for mask in runs.masks(method):
        others = every.filter(pl.col("mask") != mask)
        x, y = others[scale].log().to_numpy(), others["accuracy"].to_numpy()
        ends = runs.tested(method, mask, rates).filter("last").filter(pl.col(scale) > 0)
        for seed, at, accuracy in ends.select("seed", scale, "accuracy").iter_rows():
            line = _line(x, y, float(np.log(at)))
            if line is not None:
                residuals.setdefault(mask, {})[seed] = accuracy - line[0]
                doubts.setdefault(mask, []).append(line[1])
    found = {
        mask: one
        for mask in residuals
        if (one := _beside(mask, residuals, float(np.mean(doubts[mask]))))
    }
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    return [
        {
            "mask": mask,
            "value": found[mask].value,
            "low": found[mask].low,
            "high": found[mask].high,
            "p_holm": adjusted[mask],
            "seeds": found[mask].seeds,
            "word": judge(
                1 if found[mask].value > 0 else -1, MARGINS["accuracy"], found[mask], adjusted[mask]
            ),
        }
        for mask in ordered(found)
    ]


def _beside(
    mask: str, residuals: Mapping[str, Mapping[int, float]], doubt: float
) -> Difference | None:
    """A mask's residuals minus the mean of the others' of the same seed.

    doubt: the variance of the mask's line, which its seeds share. None without other masks.
    """
    own, others = residuals[mask], [row for name, row in residuals.items() if name != mask]
    means = {
        seed: float(np.mean([row[seed] for row in others if seed in row]))
        for seed in own
        if any(seed in row for row in others)
    }
    if not means:
        return None
    first = np.array([[own[seed]] for seed in means])
    second = np.array([[one] for one in means.values()])
    pooled = spread(residuals)
    if pooled is not None:  # one mask against the mean of many, not against one other
        pooled = Spread(pooled.variance * (1 + 1 / len(others)) / 2, pooled.degrees)
    return difference(first, second, pooled=pooled, common=doubt)


def _line(x: npt.NDArray[Any], y: npt.NDArray[Any], at: float) -> tuple[float, float] | None:
    """The local line's value and its variance; None without points on both sides, or with few."""
    if len(x) < NEAREST or not (x.min() <= at <= x.max()):
        return None
    near = np.argsort(np.abs(x - at), kind="stable")[:NEAREST]
    if np.ptp(x[near]) == 0:
        return float(y[near].mean()), float(y[near].var(ddof=1)) / NEAREST
    line, doubt = np.polyfit(x[near] - at, y[near], 1, cov=True)
    return float(line[1]), float(doubt[1, 1])
