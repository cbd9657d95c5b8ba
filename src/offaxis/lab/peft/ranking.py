"""Adapters side by side: accuracy, the difference to LoRA, the place in the ranking, and its cost.

Three seeds cannot be resampled (`offaxis.lab.paired`). So the places are drawn anew by resampling
problems and by adding to each mean what runs vary by: Student's t by the adapter's moderated
variance. The same draws tell how far the rankings of two algorithms agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.lab.claims import SIGNIFICANT, Measured, Word
from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.paired import Difference, Spread, difference, holm, kendall, resamples, spread
from offaxis.lab.peft.naming import LORA
from offaxis.lab.peft.planning import ALGORITHMS, METHOD
from offaxis.lab.peft.summary import RATES, Rates, Runs, means

__all__ = ["AGREEMENT", "HELD", "POWER", "RANKING", "agreement", "power", "ranking"]

Floats = npt.NDArray[np.float64]

DRAWS = 4000
HELD = 0.5
"""Kendall's tau from which a ranking counts as the same: three pairs of four in one order."""

_NUMBERS = (
    "accuracy", "low", "high", "difference", "difference_low", "difference_high", "p_holm",
    "rank", "rank_low", "rank_high", "kl_tuned_base", "kl_low", "kl_high",
    "relative_update_norm", "trainable", "train_cpu_seconds",
)  # fmt: skip

RANKING: dict[str, Any] = {
    "method": pl.String(),
    "rates": pl.String(),
    "adapter": pl.String(),
    "learning_rate": pl.Float64(),
    "seeds": pl.Int64(),
    **dict.fromkeys(_NUMBERS, pl.Float64()),
}
"""Columns of `ranking`, the best first. accuracy, kl_tuned_base: means over test seeds with
Student's t interval, 95 %; difference: to LoRA, paired, Holm's p over the adapters of an algorithm
at a kind of rate; rank: 1 is the best, with the 95 % range of its draws."""

AGREEMENT: dict[str, Any] = {
    "method": pl.String(),
    "against": pl.String(),
    "adapters": pl.Int64(),
    **dict.fromkeys(("tau", "low", "high", "repeat", "p"), pl.Float64()),
    "word": pl.String(),
}
"""Columns of `agreement`. tau: Kendall's of mean accuracy, every adapter at its own rate; repeat:
what two sets of seeds under the second algorithm would give on the average; p: that adapters differ
by algorithm no more than runs vary (`_interaction`)."""

POWER: dict[str, Any] = {
    "rates": pl.String(),
    "comparisons": pl.Int64(),
    **dict.fromkeys(("run_sd", "half_width", "found_alone", "found_among_all"), pl.Float64()),
}
"""Columns of `power`. run_sd: of one run; half_width: of the median interval of a difference to
LoRA; found_*: the difference that would be found four times out of five, as the only comparison and
as the smallest p of all."""


def _drawn(table: Measured, adapters: Sequence[str], weights: Floats, seed: int) -> Floats | None:
    """(draws, adapters): mean accuracies as other problems and other seeds might have given them.

    weights: (draws, problems). None where no variance of runs is known.
    """
    pooled = spread(means(table))
    if pooled is None:
        return None
    each = np.stack([np.mean(list(table[one].values()), axis=0) for one in adapters])
    found: Floats = weights @ each.T + _noise(table, adapters, pooled, len(weights), seed)
    return found


def _noise(
    table: Measured, adapters: Sequence[str], pooled: Spread, draws: int, seed: int
) -> Floats:
    """(draws, adapters): by what other seeds would have moved each mean."""
    rng = np.random.default_rng(seed)
    noise = np.empty((draws, len(adapters)))
    for place, one in enumerate(adapters):
        variance, degrees = pooled.of(one)
        noise[:, place] = rng.standard_t(min(degrees, 1e6), draws)
        noise[:, place] *= math.sqrt(variance / len(table[one]))
    return noise


def _places(values: Floats) -> Floats:
    """Ranks along the last axis, 1 the highest; equal values share the better place."""
    found: Floats = 1.0 + (values[..., None, :] > values[..., :, None]).sum(axis=-1)
    return found


def _ranges(table: Measured, adapters: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """The 95 % range of each adapter's place."""
    problems = {one.size for row in table.values() for one in row.values()}
    if len(problems) != 1 or len(adapters) < 2:
        return {}
    drawn = _drawn(table, adapters, resamples(problems.pop(), DRAWS, 0), 0)
    if drawn is None:
        return {}
    low, high = np.quantile(_places(drawn), [0.025, 0.975], axis=0)
    return {one: (float(low[place]), float(high[place])) for place, one in enumerate(adapters)}


def _to_lora(table: Measured) -> dict[str, tuple[Difference, float | None]]:
    """Each other adapter minus LoRA over the seeds that both have, and Holm's p."""
    pooled = spread(means(table))
    found = {}
    for one in table:
        seeds = sorted(table[one].keys() & table.get(LORA, {}).keys())
        if one != LORA and seeds:
            both = (np.stack([table[arm][seed] for seed in seeds]) for arm in (one, LORA))
            found[one] = difference(*both, pooled=pooled)
    adjusted = holm([one.p for one in found.values()])
    return {one: (found[one], p) for one, p in zip(found, adjusted, strict=True)}


def ranking(runs: Runs) -> pl.DataFrame:
    """Every adapter under every algorithm at each kind of rate that was run; columns `RANKING`."""
    found: list[dict[str, Any]] = []
    for method in ALGORITHMS:
        for rates in RATES if method == METHOD else RATES[:1]:
            found += _ranked(runs, method, rates)
    return pl.DataFrame(found, schema=RANKING)


def _ranked(runs: Runs, method: str, rates: Rates) -> list[dict[str, Any]]:
    table = runs.measured(rates, "accuracy", method=method)
    others = {
        name: means(runs.measured(rates, name, method=method))
        for name in ("kl_tuned_base", "relative_update_norm", "trainable", "train_cpu_seconds")
    }
    level = {one: float(np.mean(list(row.values()))) for one, row in means(table).items()}
    order = sorted(level, key=lambda one: -level[one])
    places = dict(zip(order, _places(np.array([level[one] for one in order])), strict=True))
    ranges, apart = _ranges(table, order), _to_lora(table)
    found = []
    for one in order:
        value, low, high = over_seeds(list(means(table)[one].values()))
        kl = _over(others["kl_tuned_base"].get(one))
        own, p = apart.get(one, (None, None))
        found.append(
            {"method": method, "rates": rates, "adapter": one, "seeds": len(table[one])}
            | {"learning_rate": runs.rate(one, rates)}
            | {"accuracy": value, "low": low, "high": high, "p_holm": p}
            | {"difference": own.value if own else None}
            | {"difference_low": own.low if own else None}
            | {"difference_high": own.high if own else None}
            | {"rank": float(places[one])}
            | dict(zip(("rank_low", "rank_high"), ranges.get(one, (None, None)), strict=True))
            | dict(zip(("kl_tuned_base", "kl_low", "kl_high"), kl, strict=True))
            | {name: _over(others[name].get(one))[0] for name in list(others)[1:]}
        )
    return found


def _over(values: Mapping[int, float] | None) -> tuple[float | None, float | None, float | None]:
    return over_seeds(list(values.values())) if values else (None, None, None)


def agreement(runs: Runs) -> pl.DataFrame:
    """Is the ranking the same under every two algorithms? Columns `AGREEMENT`.

    Adapters at their own rates, those with test runs under both. The interval is the basic
    bootstrap's, 2 τ − the quantiles of the draws, since noise pulls the τ of draws towards zero as
    it pulled the observed one; where adapters are level it reaches too low. word, of "the ranking
    holds": holds where the interval lies above `HELD`; does not where it lies below and p < 0.05,
    since adapters that are level change places by chance.
    """
    found = []
    tables = {method: runs.measured("own", "accuracy", method=method) for method in ALGORITHMS}
    for place, second in enumerate(ALGORITHMS):
        for first in ALGORITHMS[place + 1 :]:
            row = _agreeing(tables[first], tables[second])
            found.append({"method": first, "against": second} | row)
    return pl.DataFrame(found, schema=AGREEMENT)


def _agreeing(first: Measured, second: Measured) -> dict[str, Any]:
    adapters = [one for one in first if one in second]
    told: dict[str, Any] = {"adapters": len(adapters), "word": "cannot tell"}
    rows = [row for table in (first, second) for row in table.values()]
    sizes = {one.size for row in rows for one in row.values()}
    if len(adapters) < 3 or len(sizes) != 1:
        return told
    own = [{one: table[one] for one in adapters} for table in (first, second)]
    level = [np.array([np.mean(list(table[one].values())) for one in adapters]) for table in own]
    tau = float(kendall(level[0], level[1]))
    weights = resamples(sizes.pop(), DRAWS, 0)
    one, other = (_drawn(table, adapters, weights, seed) for seed, table in enumerate(own))
    if one is None or other is None:
        return told | {"tau": tau}
    quantiles = np.quantile(kendall(one, other), [0.975, 0.025])
    low, high = (float(np.clip(2 * tau - one, -1, 1)) for one in quantiles)
    p = _interaction(*own)
    differs = p is not None and p < SIGNIFICANT and high < HELD
    word: Word = "holds" if low >= HELD else "does not" if differs else "cannot tell"
    told |= {"tau": tau, "low": low, "high": high, "p": p, "word": word}
    return told | {"repeat": _repeat(own[1], adapters)}


def _interaction(first: Measured, second: Measured) -> float | None:
    """p of no interaction of adapter and algorithm: an F test of differences by adapter and seed.

    Their mean square between adapters over that of the residuals of an additive model of adapters
    and seeds, over the seeds that all have; by draws. None below two such seeds.
    """
    rows = [set(row) for table in (first, second) for row in table.values()]
    seeds = sorted(set.intersection(*rows))
    if len(seeds) < 2:
        return None
    one, other = means(first), means(second)
    apart = np.array([[one[arm][seed] - other[arm][seed] for seed in seeds] for arm in one])
    apart -= apart.mean(axis=0)
    each = apart.mean(axis=1, keepdims=True)
    degrees = len(apart) - 1, (len(apart) - 1) * (len(seeds) - 1)
    between = len(seeds) * float((each**2).sum()) / degrees[0]
    within = float(((apart - each) ** 2).sum()) / degrees[1]
    drawn = np.random.default_rng(0).f(*degrees, DRAWS)
    return (1 + int((drawn * within >= between).sum())) / (DRAWS + 1)


def _repeat(table: Measured, adapters: Sequence[str]) -> float | None:
    """Kendall's tau of two further sets of seeds on the same exam, the mean of draws.

    About levels drawn together by the part of their variance that is noise: observed ones lie
    further apart than true ones.
    """
    pooled = spread(means(table))
    if pooled is None:
        return None
    level = np.array([np.mean(list(table[one].values())) for one in adapters])
    noise = float(np.mean([pooled.of(one)[0] / len(table[one]) for one in adapters]))
    whole = float(level.var(ddof=1))
    level *= math.sqrt(max(0.0, 1 - noise / whole)) if whole > 0 else 0.0
    one, other = (level + _noise(table, adapters, pooled, DRAWS, seed) for seed in (1, 2))
    return float(kendall(one, other).mean())


def power(runs: Runs) -> pl.DataFrame:
    """What the test seeds could have told at each kind of rate, with the columns `POWER`.

    From the median interval of a difference to LoRA, half of it h = t₀.₉₇₅ e: found_alone
    = h + z₀.₈ e; found_among_all = h z₁₋₀.₀₂₅/ₘ / z₀.₉₇₅ + z₀.₈ e, m comparisons.
    """
    found = []
    for rates in RATES:
        row = _power(runs.measured(rates, "accuracy"))
        if row is not None:
            found.append({"rates": rates} | row)
    return pl.DataFrame(found, schema=POWER)


def _power(table: Measured) -> dict[str, Any] | None:
    pooled, apart = spread(means(table)), _to_lora(table)
    halves = [one.high - one.value for one, _ in apart.values() if one.high is not None]
    if pooled is None or not halves:
        return None
    half, count = float(np.median(halves)), len(halves)
    normal = NormalDist().inv_cdf
    more = normal(0.8) * half / student_t(_degrees(pooled))
    strict = half * normal(1 - 0.025 / count) / normal(0.975)
    return {
        "comparisons": count,
        "run_sd": math.sqrt(pooled.variance),
        "half_width": half,
        "found_alone": half + more,
        "found_among_all": strict + more,
    }


def _degrees(pooled: Spread) -> int:
    return max(1, int(min(pooled.degrees + 2, 1e6)))
