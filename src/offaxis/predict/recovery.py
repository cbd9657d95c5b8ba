"""How much of what training brought a rebuilt model keeps: two ratios with paired intervals.

*Relative accuracy*, acc(rebuilt) / acc(full), is the number of AlphaRL (section 2.2). It counts
what the base could do already: a rebuilt model that learnt nothing has acc(base) / acc(full), not
0. *Share of the gain*, (acc(rebuilt) − acc(base)) / (acc(full) − acc(base)), is 0 for the base and
1 for the full model. Intervals are percentile bootstraps over problems, the same problems drawn for
all models: they say how a ratio would vary with other problems and samples, and nothing about
another training seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError

__all__ = ["Ratio", "relative_accuracy", "share_of_gain"]

Floats = NDArray[np.float64]
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Ratio:
    """A ratio of accuracies with its 95 % interval; None with the reason in `status`."""

    value: float | None
    low: float | None
    high: float | None
    status: str = "ok"
    problems: int = 0


def relative_accuracy(
    rebuilt: NDArray[Any],
    full: NDArray[Any],
    *,
    samples: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Ratio:
    """acc(rebuilt) / acc(full); not bounded by 1. AlphaRL, section 2.2.

    rebuilt, full: (problems, samples) of 0 and 1, or with `samples` the number of right answers of
    each problem, (problems,); the same problems in the same order. None where the full model's
    interval holds 0. InputError for other shapes or values.
    """
    tables = _rates({"rebuilt": rebuilt, "full": full}, samples)
    return _ratio(tables["rebuilt"], tables["full"], "the full model's accuracy", seed, resamples)


def share_of_gain(
    rebuilt: NDArray[Any],
    full: NDArray[Any],
    base: NDArray[Any],
    *,
    samples: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Ratio:
    """(acc(rebuilt) − acc(base)) / (acc(full) − acc(base)): 0 for the base, 1 for the full model.

    Arguments as in `relative_accuracy`. None where the gain's interval holds 0: then there is
    nothing to have a share of. Where the full model is *worse* than the base it is the share of
    the loss, and `status` says so. Below 0 and above 1 are possible.
    """
    tables = _rates({"rebuilt": rebuilt, "full": full, "base": base}, samples)
    kept, gain = tables["rebuilt"] - tables["base"], tables["full"] - tables["base"]
    found = _ratio(kept, gain, "the gain", seed, resamples)
    if found.value is not None and gain.mean() < 0:
        status = "the full model is worse than the base: a share of the loss"
        return Ratio(found.value, found.low, found.high, status, found.problems)
    return found


def _rates(given: dict[str, NDArray[Any]], samples: int | None) -> dict[str, Floats]:
    """Each model's share of right answers by problem, (problems,)."""
    found = {name: _rate(name, table, samples) for name, table in given.items()}
    counts = {name: len(rates) for name, rates in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"problems: {told}; pairs need the same problems in the same order")
    return found


def _rate(name: str, given: NDArray[Any], samples: int | None) -> Floats:
    table = np.asarray(given, dtype=np.float64)
    if table.size == 0 or table.ndim != (2 if samples is None else 1):
        asked = "(problems, samples)" if samples is None else "(problems,) of right answers"
        raise InputError(f"{name} has shape {table.shape}; {asked} is needed")
    if samples is None:
        if not np.isin(table, (0.0, 1.0)).all():
            raise InputError(f"{name} holds something other than 0 and 1 (or False and True)")
        rates: Floats = table.mean(axis=1)
        return rates
    whole = np.isfinite(table).all() and (table == np.floor(table)).all()
    if samples < 1 or not whole or table.min() < 0 or table.max() > samples:
        raise InputError(
            f"{name}: right answers of {samples} samples are whole numbers from 0 to {samples}"
        )
    return table / samples


def _ratio(above: Floats, below: Floats, what: str, seed: int, resamples: int) -> Ratio:
    """mean(above) / mean(below) over problems, resampled together.

    Resamples in which the denominator has the other sign, at most one in forty here, stand for an
    infinite ratio of the numerator's sign: the limit as the denominator shrinks.
    """
    count = above.size
    value = float(below.mean())
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    tops, bottoms = weights @ above / count, weights @ below / count
    low, high = np.quantile(bottoms, _TAILS)
    if value == 0 or low <= 0 <= high:
        words = f"{what} is {value:.4f} (95 %: {low:.4f} to {high:.4f}), not apart from 0"
        return Ratio(None, None, None, words, count)
    same = bottoms * value > 0
    limits = np.where(tops * value >= 0, np.inf, -np.inf)
    ratios = np.where(same, tops / np.where(same, bottoms, 1.0), limits)
    ends = np.quantile(ratios, _TAILS, method="closest_observation")
    told = [float(end) if np.isfinite(end) else None for end in ends]
    return Ratio(float(above.mean()) / value, told[0], told[1], "ok", count)
