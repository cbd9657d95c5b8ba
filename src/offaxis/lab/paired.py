"""The difference of two arms over shared seeds and problems, its interval, and Holm's correction.

An arm is what a study compares: a mask, an adapter. Runs of one seed see the same data in the same
order and sit the same exam, so differences are paired by seed and by problem. Problems are
resampled. Seeds are not: three values cannot be (a bootstrap of three differences leaves out zero
whenever they share a sign, one time in four under no effect). What runs vary by from seed to seed
is estimated from all arms, drawn towards the pair's own as far as arms differ in it (a moderated
variance: Smyth 2004, "Linear models and empirical Bayes methods", section 3), and drawn from
Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "DRAWS",
    "Difference",
    "Spread",
    "difference",
    "holm",
    "kendall",
    "plain_interval",
    "resamples",
    "spread",
]

Floats = npt.NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
FEWEST = 4
"""Arms from which it can be judged whether they differ in how much their runs vary."""


@dataclass(frozen=True)
class Spread:
    """The variance of one run about what its arm and its seed do on the average."""

    variance: float
    degrees: float
    """What it weighs beside the variance of a single pair: the degrees of freedom that it was
    estimated with, or fewer where arms differ in how much their runs vary."""
    each: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Of single arms, with their degrees of freedom."""

    def of(self, arm: str) -> tuple[float, float]:
        """The moderated variance of one run of an arm, and its degrees of freedom."""
        own, degrees = self.each.get(arm, (0.0, 0))
        whole = self.degrees + degrees
        if math.isinf(whole):
            return self.variance, whole
        return (self.degrees * self.variance + degrees * own) / whole, whole


@dataclass(frozen=True)
class Difference:
    """First minus second, the mean over shared seeds and problems."""

    value: float
    low: float | None
    high: float | None
    """95 %: other problems, other seeds. None with fewer than two seeds."""
    p: float | None
    """Two-sided, against no difference."""
    seeds: int
    agree: bool
    """Every seed's difference has the sign of `value`."""

    def reversed(self) -> Difference:
        """Second minus first."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return replace(self, value=-self.value, low=low, high=high)


def spread(values: Mapping[str, Mapping[int, float]]) -> Spread | None:
    """From arm -> seed -> a number: the residual of an additive model of arms and seeds.

    Randomised blocks: seeds are the blocks, cells may be missing. None where no degree is left.
    """
    cells = [(arm, seed) for arm, row in values.items() for seed in row]
    arms, seeds = sorted({one for one, _ in cells}), sorted({one for _, one in cells})
    design = np.array(
        [
            [*(arm == one for one in arms), *(seed == one for one in seeds[1:])]
            for arm, seed in cells
        ],
        dtype=np.float64,
    )
    if not cells:
        return None
    told = np.array([values[arm][seed] for arm, seed in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, told)
    degrees = len(cells) - int(rank)
    if degrees < 1:
        return None
    squares = (told - design @ solution) ** 2
    each = {
        arm: (float(own.sum()) / (own.size - 1), own.size - 1)
        for place, arm in enumerate(arms)
        if (own := squares[design[:, place] == 1]).size > 1
    }
    prior = min(degrees, _prior(list(each.values())))
    return Spread(float(squares.sum()) / degrees, prior, each)


def _prior(each: Sequence[tuple[float, int]]) -> float:
    """Smyth's d₀ from variances and their degrees: infinite where they differ as chance has it.

    The variance of ln s² is ψ′(d/2) by chance and ψ′(d₀/2) beyond it.
    """
    known = [(variance, degrees) for variance, degrees in each if variance > 0]
    if len(known) < FEWEST:
        return math.inf
    halves = torch.tensor([degrees / 2 for _, degrees in known], dtype=torch.float64)
    logs = torch.tensor([variance for variance, _ in known], dtype=torch.float64).log()
    found = logs - torch.digamma(halves) + halves.log()
    beyond = float(found.var() - torch.polygamma(1, halves).mean())
    if beyond <= 0:
        return math.inf
    low, high = 1e-3, 1e6  # ψ′ falls from 1e6 to 1e-6
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        at = float(torch.polygamma(1, torch.tensor(middle, dtype=torch.float64)))
        low, high = (middle, high) if at > beyond else (low, middle)
    return 2 * low


def difference(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    *,
    pooled: Spread | None = None,
    common: float = 0.0,
    least: int = 2,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """The difference of two arms: each (seeds, problems), the same of both in the same order.

    The interval adds two uncertainties. Problems: a bootstrap over the mean difference of each,
    shrunk to the part that repeats over seeds (the rest is noise of sampling, which runs hold
    already). Seeds: t · √(s² / seeds + common), s² = (d₀ · 2 · pooled variance + d · the pair's
    own) / (d₀ + d), d = seeds − 1, t of d₀ + d degrees. common: a variance that all seeds share. A
    number without problems has one column. Fewer seeds than `least` give no interval; one seed
    alone stands on the pool, and on all of its problems' differences.
    """
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    by_seed = apart.mean(axis=1)
    seeds, value = len(by_seed), float(by_seed.mean())
    agree = bool((np.sign(by_seed) == np.sign(value)).all()) and value != 0
    if seeds < least or (seeds < 2 and pooled is None):
        return Difference(value, None, None, None, seeds, agree)
    variance, degrees = _between(by_seed, pooled)
    noise = np.random.default_rng(seed).standard_t(degrees, draws)
    noise *= math.sqrt(variance / seeds + common)
    noise += resamples(apart.shape[1], draws, seed) @ _repeating(apart)
    half = float(np.quantile(np.abs(noise), LEVEL))
    p = (1 + int((np.abs(noise) >= abs(value)).sum())) / (draws + 1)
    return Difference(value, value - half, value + half, p, seeds, agree)


def _between(by_seed: Floats, pooled: Spread | None) -> tuple[float, float]:
    """Variance of one seed's difference, and its degrees of freedom."""
    degrees = len(by_seed) - 1
    own = float(by_seed.var(ddof=1)) if degrees else 0.0
    if pooled is None:
        return own, degrees
    prior = pooled.degrees
    return (prior * 2 * pooled.variance + degrees * own) / (prior + degrees), prior + degrees


def _repeating(apart: Floats) -> Floats:
    """Each problem's difference minus the mean, shrunk to what repeats over seeds."""
    seeds, problems = apart.shape
    if problems < 2:
        return np.zeros(problems)
    each: Floats = apart.mean(axis=0) - apart.mean()
    if seeds < 2:
        return each
    rest = apart - apart.mean(axis=1, keepdims=True) - each
    noise = float((rest**2).sum()) / ((seeds - 1) * (problems - 1))
    whole = seeds * float((each**2).sum()) / (problems - 1)
    return each * math.sqrt(max(0.0, 1 - noise / whole)) if whole > 0 else each


@lru_cache(maxsize=8)
def resamples(count: int, draws: int, seed: int) -> Floats:
    """(draws, count): how much each of `count` items weighs in each resample; rows add to 1."""
    rng = np.random.default_rng([seed, count])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    found: Floats = drawn.astype(np.float64) / count
    return found


def plain_interval(
    first: npt.NDArray[Any], second: npt.NDArray[Any], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile bootstrap over problems and over seeds, both drawn with replacement.

    Told beside the other; nothing is judged by it (see the module's text).
    """
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    by_seed = resamples(apart.shape[1], draws, seed) @ apart.T
    means = (by_seed * resamples(apart.shape[0], draws, seed + 1)).sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (1979); None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for turn, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - turn)))
        found[place] = largest
    return found


def kendall(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Kendall's tau-a along the last axis of two arrays of one shape, (..., arms) -> (...)."""
    one, other = (np.sign(x[..., :, None] - x[..., None, :]) for x in (first, second))
    count = first.shape[-1]
    found: Floats = (one * other).sum(axis=(-2, -1)) / max(1, count * (count - 1))
    return found
