"""The study's runs by method, mask and kind of rate, and their means over the test seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.claims import Measured
from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.queue.rows import by_checkpoint
from offaxis.lab.sparse.naming import ALL, ordered
from offaxis.lab.sparse.planning import SELECTION_SEED, chosen_rates, further_rates
from offaxis.lab.tasks import TASKS
from offaxis.lab.training import METHODS

__all__ = [
    "CURVES",
    "MEASURES",
    "RATES",
    "SUMMARY",
    "TWIN",
    "Rates",
    "Runs",
    "kinds",
    "last_values",
    "summarise",
]

Rates = Literal["own", "shared"]
RATES: tuple[Rates, ...] = ("own", "shared")
"""Each mask at the rate that was chosen for it; all at the rate that was chosen for `all`."""


def kinds(method: str) -> tuple[Rates, ...]:
    """The kinds of rate at which a method's masks are tested: the shared one under RL alone."""
    return RATES if METHODS[method].on_policy else RATES[:1]


MEASURES: Mapping[str, str] = {
    "accuracy": "accuracy, avg@k on held-out problems",
    "gain": "accuracy minus the base's",
    "kl_tuned_base": "KL(tuned ‖ base) at the end, nats a completion",
    "kl_base_tuned": "KL(base ‖ tuned) at the end, nats a completion",
    "kl_distance": "distance of the KL(tuned ‖ base) curve to that of `all`: mean |ln ratio| over "
    "saved steps; of `all` itself, between its seeds",
    "kl_base_distance": "the same of the KL(base ‖ tuned) curve",
    "reward": "share of right training samples after the last but one saved step",
    "forgetting": "rise of the loss on the other tasks, nats a token",
    "mixture_rise": "rise of the loss on the pretraining mixture, nats a token",
    "relative_update_norm": "‖ΔW‖/‖W₀‖, all parameters together",
    "unchanged_bf16": "share of entries that are equal in bf16",
}
"""What is told of each mask, at the last step of its runs."""

TWIN = ("twin_cosine", "twin_same_changed", "twin_same", "twin_distance")
"""What is told of a run that is held against another (`recovery`)."""

CURVES = {"kl_distance": "kl_tuned_base", "kl_base_distance": "kl_base_tuned"}
"""A distance of curves, and the measure whose curve it is."""

SUMMARY: dict[str, Any] = {
    "method": pl.String(),
    "mask": pl.String(),
    "rates": pl.String(),
    "learning_rate": pl.Float64(),
    "density": pl.Float64(),
    "measure": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "seeds": pl.Int64(),
}
"""Columns of `summarise`. mask "": all parameters. density: of the matrices' entries."""

_SETTINGS = (
    "task", "difficulty", "steps", "prompts_per_step", "completions_per_prompt", "problems",
    "samples",
)  # fmt: skip
_COLUMNS = (
    "run", "method", "mask", "mask_density", "learning_rate", "seed", "twin_seed", "samples",
    "stage", "step", "last", "right", *(name for name in MEASURES if name not in CURVES),
    *TWIN,
)  # fmt: skip
_EXAM = ("task", "difficulty", "problems", "samples")


@dataclass(frozen=True)
class Runs:
    """A queue's rows, sorted into what each run is for. Rows may still be missing."""

    rows: pl.DataFrame

    @cached_property
    def base(self) -> Mapping[str, Any]:
        """The base's scores. InputError where its row is missing."""
        found = self.rows.filter(pl.col("method") == BASE_METHOD)
        if found.is_empty():
            raise InputError(
                "no row yet of the base: the grid needs a run of method base, and `offaxis lab "
                "status` tells how far the queue is"
            )
        told: Mapping[str, Any] = by_checkpoint(found).row(0, named=True)
        return told

    @cached_property
    def points(self) -> pl.DataFrame:
        """Every checkpoint of every trained run, with `stage` and the derived measures.

        stage: `selection` (of rates), `test`, or `twin` (held against another run).
        InputError where runs differ in a setting, or two are the same but for their number.
        """
        trained = self.rows.filter(pl.col("method") != BASE_METHOD)
        if trained.is_empty():
            raise InputError(
                "no row yet of a trained run: `offaxis lab status` tells how far the queue is"
            )
        _same_settings(trained, self.base)
        table = by_checkpoint(trained).with_columns(pl.col("mask").fill_null(""))
        twin = (pl.col("twin_seed") >= 0) | pl.col("mask").str.contains("subnetwork")
        stage = (
            pl.when(twin.fill_null(value=False))
            .then(pl.lit("twin"))
            .when(pl.col("seed") == SELECTION_SEED)
            .then(pl.lit("selection"))
            .otherwise(pl.lit("test"))
        )
        others = [f"mixture_loss_{task}" for task in TASKS if task != self.base["task"]]
        found = table.with_columns(
            stage.alias("stage"),
            pl.col("avg").alias("accuracy"),
            (pl.col("avg") - self.base["avg"]).alias("gain"),
            (pl.col("mixture_loss") - self.base["mixture_loss"]).alias("mixture_rise"),
            pl.mean_horizontal(pl.col(name) - self.base[name] for name in others).alias(
                "forgetting"
            ),
            (pl.col("step") == pl.col("step").max().over("run")).alias("last"),
        )
        _no_doubles(found)
        return found.select(_COLUMNS).sort("method", "mask", "learning_rate", "seed", "step")

    @cached_property
    def rates(self) -> Mapping[tuple[str, str], float]:
        """(method, mask) -> its rate, by the rule of `planning`, from the selection runs so far."""
        return chosen_rates(self.rows)

    @cached_property
    def open_rates(self) -> Mapping[tuple[str, str], float]:
        """(method, mask) -> the rate that the rule would try next: its rate may still change."""
        return further_rates(self.rows)

    @cached_property
    def methods(self) -> list[str]:
        found = set(self.points["method"])
        return [name for name in METHODS if name in found]

    @cached_property
    def densities(self) -> Mapping[str, float | None]:
        """Mask -> its density, of those that were trained."""
        found = self.points.group_by("mask").agg(pl.col("mask_density").max())
        return dict(found.iter_rows())

    def masks(self, method: str) -> list[str]:
        """Masks under a method, without subnetworks, in order."""
        own = self.points.filter(pl.col("method") == method, pl.col("stage") != "twin")
        return ordered(own["mask"])

    def rate(self, method: str, mask: str, rates: Rates) -> float | None:
        """The learning rate, None where it is not known yet."""
        return self.rates.get((method, mask if rates == "own" else ALL))

    def tested(self, method: str, mask: str, rates: Rates) -> pl.DataFrame:
        """All checkpoints of a mask's test runs."""
        rate = self.rate(method, mask, rates)
        return self._cells.get((method, mask, rate), self.points.clear())

    @cached_property
    def _cells(self) -> Mapping[tuple[Any, ...], pl.DataFrame]:
        """(method, mask, rate) -> checkpoints of test runs."""
        keys = ("method", "mask", "learning_rate")
        return self.points.filter(stage="test").partition_by(*keys, as_dict=True)

    @cached_property
    def _known(self) -> dict[tuple[str, Rates, str], Measured]:
        """What `measured` has found."""
        return {}

    def measured(self, method: str, rates: Rates, measure: str) -> Measured:
        """A measure at the last step of every mask's test runs: masks and seeds that have it."""
        key = (method, rates, measure)
        if key not in self._known:
            self._known[key] = self._measured(*key)
        return self._known[key]

    def _measured(self, method: str, rates: Rates, measure: str) -> Measured:
        found: dict[str, dict[int, npt.NDArray[np.float64]]] = {}
        for mask in self.masks(method):
            own = self.tested(method, mask, rates)
            if measure in CURVES:
                dense = self.tested(method, ALL, rates)
                seeds = {} if mask == ALL else _distances(own, dense, CURVES[measure])
            else:
                seeds = dict(last_values(own, measure))
            if seeds:
                found[mask] = seeds
        return found


def _same_settings(trained: pl.DataFrame, base: Mapping[str, Any]) -> None:
    for name in _SETTINGS:
        told = set(trained[name]) | ({base[name]} if name in _EXAM else set())
        if len(told) > 1:
            raise InputError(
                f"the runs differ in {name} ({', '.join(map(str, sorted(told)))}), and a table of "
                "masks needs one setting: make a queue of one"
            )


def _no_doubles(points: pl.DataFrame) -> None:
    keys = ("method", "mask", "learning_rate", "seed", "twin_seed", "stage")
    same = points.filter("last").group_by(*keys).len().filter(pl.col("len") > 1)
    for method, mask, rate, seed, *_ in same.iter_rows():
        raise InputError(
            f"two runs share method {method}, mask {mask or 'none'}, learning rate {rate:g} and "
            f"seed {seed}, and differ in something that the tables do not show: make a queue of "
            "one setting"
        )


def last_values(own: pl.DataFrame, measure: str) -> dict[int, npt.NDArray[np.float64]]:
    """Seed -> a measure at the last step; of accuracy the share of right samples by problem."""
    names = ("seed", "samples", "last", measure, "right")
    found = {}
    for seed, samples, last, value, right in own.select(names).iter_rows():
        if last and measure == "accuracy" and right is not None:
            found[seed] = np.array(right) / samples
        elif last and value is not None:
            found[seed] = np.array([value], dtype=np.float64)
    return found


def _distances(
    own: pl.DataFrame, dense: pl.DataFrame, measure: str
) -> dict[int, npt.NDArray[np.float64]]:
    """Seed -> mean |ln(mask's / dense's)| over the steps that both runs of the seed saved."""
    first, second = _curves(own, measure), _curves(dense, measure)
    found = {}
    for seed in sorted(first.keys() & second.keys()):
        far = _apart(first[seed], second[seed])
        if far is not None:
            found[seed] = np.array([far])
    return found


def _curves(own: pl.DataFrame, measure: str) -> dict[int, dict[int, float]]:
    """Seed -> step -> a positive measure."""
    found: dict[int, dict[int, float]] = {}
    known = own.filter(pl.col(measure) > 0)
    for seed, step, value in known.select("seed", "step", measure).iter_rows():
        found.setdefault(seed, {})[step] = value
    return found


def _apart(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    steps = first.keys() & second.keys()
    if not steps:
        return None
    return float(np.mean([abs(math.log(first[step] / second[step])) for step in sorted(steps)]))


def summarise(runs: Runs) -> pl.DataFrame:
    """Means over test seeds of every measure of every mask, with the columns `SUMMARY`.

    Intervals are Student's t over seeds, 95 %; with three seeds t is 4.3. Comparisons are paired
    and sharper (`questions`). `kl_distance` of `all` is that between its own seeds: how far two
    dense curves lie apart by chance.
    """
    found = []
    for method in runs.methods:
        for rates in kinds(method):
            for measure in MEASURES:
                table = dict(runs.measured(method, rates, measure))
                if measure in CURVES:
                    table[ALL] = _between_seeds(runs.tested(method, ALL, rates), CURVES[measure])
                for mask in ordered(table):
                    values = [float(one.mean()) for one in table[mask].values()]
                    if not values:
                        continue
                    value, low, high = over_seeds(values)
                    if measure in CURVES and mask == ALL:  # pairs of seeds are not independent
                        low = high = None
                    found.append(
                        {"method": method, "mask": mask, "rates": rates, "measure": measure}
                        | {"learning_rate": runs.rate(method, mask, rates)}
                        | {"density": runs.densities.get(mask), "value": value}
                        | {"low": low, "high": high, "seeds": len(values)}
                    )
    return pl.DataFrame(found, schema=SUMMARY)


def _between_seeds(dense: pl.DataFrame, measure: str) -> dict[int, npt.NDArray[np.float64]]:
    """The distances of the dense curves of each two seeds; keys are the pairs' numbers."""
    curves = list(_curves(dense, measure).values())
    apart = [_apart(first, second) for first, second in combinations(curves, 2)]
    return {
        place: np.array([far]) for place, far in enumerate(one for one in apart if one is not None)
    }
