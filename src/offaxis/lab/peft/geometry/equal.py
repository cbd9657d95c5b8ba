"""Adapters against LoRA and full fine-tuning where their updates are equally long.

Most measures grow with the step, and rates differ. So each run is read where it has gone equally
far, interpolated along its checkpoints in ln ‖ΔW‖/‖W₀‖ of the matrices (`full` moves embeddings and
norms too, which no measure here is about), at the middle of the range that the two adapters' runs
of all shared seeds go through. Differences are paired by seed; what runs vary by is pooled over
adapters (`paired`); Holm's correction is over the adapters of one measure and one reference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.claims import SIGNIFICANT
from offaxis.lab.matching import common_point, position
from offaxis.lab.paired import Difference, difference, holm, spread
from offaxis.lab.peft.geometry.series import (
    LOGARITHMIC,
    MARGINS,
    NORM,
    OVERLAPS,
    VALUE,
    Rates,
    checkpoints,
)
from offaxis.lab.peft.naming import FULL, LORA, OFF_PRINCIPAL, OFF_RANDOM, ordered

__all__ = ["MATCHED", "REFERENCES", "matched"]

REFERENCES: Mapping[str, tuple[str, ...]] = {LORA: (), FULL: (), OFF_RANDOM: (OFF_PRINCIPAL,)}
"""What adapters are held against at equal norm, and which: every other one where none is named."""

NORMS = ("relative_update_norm", NORM)

MATCHED: dict[str, Any] = {
    "measure": pl.String(),
    "adapter": pl.String(),
    "against": pl.String(),
    "norm": pl.Float64(),
    "own": pl.Float64(),
    "other": pl.Float64(),
    **VALUE,
    "p_holm": pl.Float64(),
    "word": pl.String(),
}
"""Columns of `matched`. norm: ‖ΔW‖/‖W₀‖ of the matrices at which both are read; own, other: means
over seeds, of overlaps those of the overlap minus its null; value: their difference, of
`LOGARITHMIC` ln of own over other. All null where the runs never go equally far."""

Word = Literal["above", "below", "level", "cannot tell"]


Series = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""ln of the norm, and a measure (of overlaps minus the null), along one run."""


def _series(points: pl.DataFrame, measure: str) -> dict[str, dict[int, Series]]:
    """Adapter -> seed -> the run's checkpoints in order, where norm and measure are known."""
    column = pl.col(measure)
    if measure in OVERLAPS:
        column = column - pl.col(f"{measure}_null")
    known = points.select("adapter", "seed", "step", pl.col(NORM).log().alias("x"), y=column)
    known = known.filter(pl.col("x").is_finite(), pl.col("y").is_not_null())
    if measure in LOGARITHMIC:
        known = known.filter(pl.col("y") > 0).with_columns(pl.col("y").log())
    found: dict[str, dict[int, Series]] = {}
    for (adapter, seed), run in (
        known.sort("step")
        .partition_by("adapter", "seed", as_dict=True, maintain_order=True)
        .items()
    ):
        found.setdefault(str(adapter), {})[int(str(seed))] = (
            run["x"].to_numpy(),
            run["y"].to_numpy(),
        )
    return found


def _middle(first: Sequence[Series], second: Sequence[Series]) -> float | None:
    """The middle of the range of ln norm that all these runs go through; None without one."""
    ends = []
    for runs in (first, second):
        low, high = max(x.min() for x, _ in runs), min(x.max() for x, _ in runs)
        if low > high:
            return None
        ends.append((float(low), float(high)))
    return common_point(*ends)


def _read(run: Series, at: float) -> float:
    x, y = run
    where = position(x.tolist(), at)
    assert where is not None  # `at` lies within the run's range
    index = min(int(where), len(y) - 1)
    part = where - index
    return float(y[index] if part == 0 else (1 - part) * y[index] + part * y[index + 1])


def matched(rows: pl.DataFrame, rates: Rates = "own") -> pl.DataFrame:
    """Adapters against `REFERENCES` at equal norm, with the columns `MATCHED`.

    word: `level` where the interval lies within ± the margin, `above` or `below` where Holm's
    p < 0.05 and every seed agrees, else `cannot tell`.
    """
    points = checkpoints(rows, rates)
    found = []
    for measure in MARGINS:
        if measure in NORMS:
            continue
        runs = _series(points, measure)
        for against, asked in REFERENCES.items():
            if against in runs:
                found += _against(measure, runs, against, asked)
    return pl.DataFrame(found, schema=MATCHED)


def _against(
    measure: str, runs: Mapping[str, Mapping[int, Series]], against: str, asked: Collection[str]
) -> list[dict[str, Any]]:
    """One measure of others (of all where none is asked for) against one, corrected together."""
    pairs = {
        adapter: found
        for adapter in ordered(set(runs) - {against})
        if (found := _pair(runs[adapter], runs[against]))
    }
    apart = {name: {s: one.own[s] - one.other[s] for s in one.own} for name, one in pairs.items()}
    pooled = spread(apart)  # one run's variance: the reference's noise is in the seeds' effects
    wanted = [name for name in ordered(set(runs) - {against}) if not asked or name in asked]
    known = {
        name: difference(_column(pairs[name].own), _column(pairs[name].other), pooled=pooled)
        for name in wanted
        if name in pairs
    }
    adjusted = dict(zip(known, holm([one.p for one in known.values()]), strict=True))
    scale: Any = math.exp if measure in LOGARITHMIC else float
    rows = []
    for name in wanted:
        told: dict[str, Any] = {"measure": measure, "adapter": name, "against": against, "seeds": 0}
        told["word"] = "cannot tell"
        if name in known:
            one, pair = known[name], pairs[name]
            told |= {"norm": math.exp(pair.at), "value": one.value, "low": one.low}
            told |= {"own": scale(float(np.mean(list(pair.own.values())))), "high": one.high}
            told |= {"other": scale(float(np.mean(list(pair.other.values())))), "seeds": one.seeds}
            told |= {"p_holm": adjusted[name], "word": _word(one, adjusted[name], MARGINS[measure])}
        rows.append(told)
    return rows


@dataclass(frozen=True)
class _Pair:
    """Two adapters' values by seed at one ln norm."""

    at: float
    own: Mapping[int, float]
    other: Mapping[int, float]


def _pair(first: Mapping[int, Series], second: Mapping[int, Series]) -> _Pair | None:
    """None where they share no seed, or never go equally far."""
    seeds = sorted(first.keys() & second.keys())
    at = _middle([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None
    if at is None:
        return None
    return _Pair(at, *({s: _read(side[s], at) for s in seeds} for side in (first, second)))


def _column(seeds: Mapping[int, float]) -> npt.NDArray[np.float64]:
    return np.array([[seeds[seed]] for seed in sorted(seeds)])


def _word(one: Difference, p: float | None, margin: float) -> Word:
    if one.low is None or one.high is None or p is None:
        return "cannot tell"
    if -margin <= one.low and one.high <= margin:
        return "level"
    if p >= SIGNIFICANT or not one.agree:
        return "cannot tell"
    return "above" if one.value > 0 else "below"
