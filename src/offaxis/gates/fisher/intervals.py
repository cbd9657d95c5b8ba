"""95 % intervals over prompts of ratios of means, by the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Resampler"]

Floats = NDArray[np.float64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval over prompts; None where there is none (one prompt, or 0 / 0)."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Resampler:
    """The same resampled prompts for every number, so that numbers compare in pairs."""

    def __init__(self, prompts: int, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        draws = rng.integers(prompts, size=(_RESAMPLES, prompts))
        self._counts = np.stack([np.bincount(one, minlength=prompts) for one in draws]) / prompts
        self._prompts = prompts

    def mean(self, values: Floats, *, scale: float = 1.0) -> Estimate:
        """scale · mean of `values` (prompts,)."""
        return self._estimate(scale * float(values.mean()), scale * (self._counts @ values))

    def ratio(self, top: Floats, bottom: Floats) -> Estimate:
        """Mean of `top` over mean of `bottom`, prompts resampled together."""
        below = float(bottom.mean())
        if below == 0 or not isfinite(below):
            return Estimate(None)
        with np.errstate(divide="ignore", invalid="ignore"):
            many = (self._counts @ top) / (self._counts @ bottom)
        return self._estimate(float(top.mean()) / below, many)

    def geometric(self, pairs: Sequence[tuple[Floats, Floats]]) -> Estimate:
        """Geometric mean over `pairs` of mean top / mean bottom, prompts resampled together."""
        tops, bottoms = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
        value = np.log(tops.mean(1) / bottoms.mean(1)).mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            many = np.log((self._counts @ tops.T) / (self._counts @ bottoms.T)).mean(1)
        return self._estimate(float(np.exp(value)), np.exp(many))

    def _estimate(self, value: float, many: Floats) -> Estimate:
        if not isfinite(value):
            return Estimate(None)
        if self._prompts == 1 or not np.isfinite(many).all():
            return Estimate(value)
        low, high = np.quantile(many, [0.025, 0.975])
        return Estimate(value, float(low), float(high))
