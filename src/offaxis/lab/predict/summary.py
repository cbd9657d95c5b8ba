"""The study in numbers: what each prediction scores, and what part of the run's gain that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.lab.paired import difference, resamples
from offaxis.lab.predict.candidates import CONTESTANTS, REBUILT, STOP, places
from offaxis.lab.predict.pooling import FULL, MEASURES, measured

__all__ = ["SCORES", "SHARES", "scores", "shares"]

SCORES = {
    "method": pl.String(),
    "task": pl.String(),
    "origin": pl.Int64(),
    "target": pl.Int64(),
    "predictor": pl.String(),
    "measure": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "over_stop": pl.Float64(),
    "over_stop_low": pl.Float64(),
    "over_stop_high": pl.Float64(),
    "seeds": pl.Int64(),
}
"""`value`: mean over seeds with Student's t interval (95 %). `over_stop`: paired with the run's own
checkpoint at the origin, by seed and problem."""

SHARES = {
    "method": pl.String(),
    "task": pl.String(),
    "predictor": pl.String(),
    "origin": pl.Int64(),
    "relative_accuracy": pl.Float64(),
    "relative_accuracy_low": pl.Float64(),
    "relative_accuracy_high": pl.Float64(),
    "share_of_gain": pl.Float64(),
    "share_of_gain_low": pl.Float64(),
    "share_of_gain_high": pl.Float64(),
    "seeds": pl.Int64(),
}
"""Of the run's last checkpoint: accuracy over its accuracy (the paper's), and gain over its gain.
95 %: problems resampled, seeds drawn from Student's t; None with one seed, and all of a share where
the interval of the run's gain reaches 0."""

_DRAWS = 2000


def _places(last: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Origins, targets and the arms that are there."""
    for origin, target in places(last):
        arms = [name for name, one in CONTESTANTS.items() if one.everywhere or target == last]
        yield origin, target, (STOP, *arms, FULL)
    yield last, last, (*REBUILT, FULL)


def scores(models: pl.DataFrame) -> pl.DataFrame:
    """Columns `SCORES`, method by method and task by task. models: `pooling.with_settings`."""
    rows: list[dict[str, Any]] = []
    for (method, task), own in models.group_by("method", "task", maintain_order=True):
        last = int(own["steps"].max())  # type: ignore[arg-type]
        for origin, target, arms in _places(last):
            place = {"method": method, "task": task, "origin": origin, "target": target}
            for measure in MEASURES:
                table = measured(own, measure, origin=origin, target=target, arms=arms)
                for arm in arms:
                    if table[arm]:
                        told = {"predictor": arm, "measure": measure}
                        rows.append(place | told | _mean(table[arm]) | _over(table, arm))
    return pl.DataFrame(rows, schema=SCORES)


def _mean(seeds: Any) -> dict[str, Any]:
    values = np.array([one.mean() for one in seeds.values()])
    value, count = float(values.mean()), values.size
    if count < 2:
        return {"value": value, "low": None, "high": None, "seeds": count}
    half = student_t(count - 1) * float(values.std(ddof=1)) / np.sqrt(count)
    return {"value": value, "low": value - half, "high": value + half, "seeds": count}


def _over(table: Any, arm: str) -> dict[str, float | None]:
    stop = table.get(STOP, {})
    shared = sorted(stop.keys() & table[arm].keys())
    if arm == STOP or not shared:
        return {}
    one, other = (np.stack([seeds[s] for s in shared]) for seeds in (table[arm], stop))
    found = difference(one, other, draws=_DRAWS)
    return {"over_stop": found.value, "over_stop_low": found.low, "over_stop_high": found.high}


def shares(models: pl.DataFrame, base: dict[str, np.ndarray[Any, Any]]) -> pl.DataFrame:
    """Columns `SHARES`. base: task -> the base's accuracy on each judging problem."""
    rows: list[dict[str, Any]] = []
    for (method, task), own in models.group_by("method", "task", maintain_order=True):
        last = int(own["steps"].max())  # type: ignore[arg-type]
        for origin, target, arms in _places(last):
            if target != last:
                continue
            table = measured(own, "accuracy", origin=origin, target=target, arms=arms)
            for arm in arms:
                if arm != FULL and table[arm]:
                    place = {"method": method, "task": task, "predictor": arm, "origin": origin}
                    rows.append(place | _share(table[arm], table[FULL], base[str(task)]))
    return pl.DataFrame(rows, schema=SHARES)


def _share(arm: Any, full: Any, base: np.ndarray[Any, Any]) -> dict[str, Any]:
    shared = sorted(arm.keys() & full.keys())
    both = np.stack([[seeds[s] for s in shared] for seeds in (arm, full)])
    drawn, ground = _drawn(both, base)
    value = both.mean(axis=(1, 2))
    found: dict[str, Any] = {"seeds": len(shared)}
    for name, (up, down), values in (
        ("relative_accuracy", value, drawn),
        ("share_of_gain", value - base.mean(), drawn - ground),
    ):
        if float(np.quantile(values[1], 0.025)) <= 0:  # no gain to speak of: no share of it
            continue
        found[name] = float(up / down)
        if len(shared) > 1:
            some = values[1] > 0
            ends = np.quantile(values[0][some] / values[1][some], [0.025, 0.975])
            found |= {f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
    return found


def _drawn(
    arms: np.ndarray[Any, Any], base: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean accuracies of two arms (2, seeds, problems) and of the base, were they drawn again.

    Problems are resampled, the same of all; few seeds cannot be (`offaxis.lab.paired`), so that the
    two arms' means vary together as Student's t of seeds - 1 degrees.
    """
    by_problem = resamples(base.size, _DRAWS, 0)
    seeds = arms.shape[1]
    found = arms.mean(axis=1) @ by_problem.T
    if seeds > 1:
        rng = np.random.default_rng(1)
        apart = np.cov(arms.mean(axis=2)) / seeds
        noise = rng.multivariate_normal(np.zeros(2), apart, _DRAWS, method="eigh").T
        found = found + noise / np.sqrt(rng.chisquare(seeds - 1, _DRAWS) / (seeds - 1))
    return found, by_problem @ base
