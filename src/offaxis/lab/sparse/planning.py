"""The second stage of the sparse study: each mask's rate from the first, then seeds not seen yet.

One rule for every mask and method. The rate is the one with the highest accuracy at the end of the
run on the selection seed, the lower of two equal ones. Where it is the lowest or the highest of
those tried, half a decade beyond it is tried first, until the best has a neighbour on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.queue.grid import RunConfig, distinct
from offaxis.lab.training import METHODS

__all__ = [
    "LOW_RATE",
    "SELECTION_SEED",
    "TEST_SEEDS",
    "chosen_rates",
    "further_rates",
    "second_stage",
    "selection",
]

SELECTION_SEED = 100
TEST_SEEDS = (0, 1, 2)
LOW_RATE = 1e-5
"""A rate at which a run leaves many bf16 entries as they are, for the subnetworks."""

SUBNETWORKS = ("subnetwork", "random(like=subnetwork)", "magnitude_random(like=subnetwork)")

_LADDER = tuple(
    float(f"{digit}e{power}") for power in range(-7, 0) for digit in (1, 3)
)  # half a decade apart
_CURVE = (5, 10, 20, 40)
_SPARSE = ("lift", "density")
"""Masks of a few per cent, which are not among the paper's and hardly move at the rate of "all"."""

Key = tuple[str, str]
"""A method and a mask; the empty mask is the run over all parameters."""


def selection(rows: pl.DataFrame) -> dict[Key, dict[float, float]]:
    """(method, mask) -> rate -> accuracy at the last step, on the selection seed."""
    found: dict[Key, dict[float, float]] = {}
    chosen = rows.filter(pl.col("seed") == SELECTION_SEED, pl.col("method") != "base")
    for row in chosen.iter_rows(named=True):
        accuracy = row["checkpoints"][-1]["avg"]
        key = (row["method"], row["mask"] or "")
        found.setdefault(key, {})[row["learning_rate"]] = accuracy
    return found


def _best(tried: Mapping[float, float]) -> float:
    return min(tried, key=lambda rate: (-tried[rate], rate))


def chosen_rates(rows: pl.DataFrame) -> dict[Key, float]:
    """The rate of every mask, by the rule."""
    return {key: _best(tried) for key, tried in selection(rows).items()}


def further_rates(rows: pl.DataFrame) -> dict[Key, float]:
    """For each mask whose best rate is at an end of those tried, the rate beyond."""
    found = {}
    for key, tried in selection(rows).items():
        best, rates = _best(tried), sorted(tried)
        place = _LADDER.index(best)
        if best == rates[0]:
            found[key] = _LADDER[place - 1]
        elif best == rates[-1]:
            found[key] = _LADDER[place + 1]
    return found


def second_stage(rows: pl.DataFrame, first: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs that are to be added to the queue, whose rows and planned runs are given.

    First further rates; then, once every mask has its rate, the test seeds at that rate; under RL
    the paper's masks also at the rate of "all"; subnetworks with their controls, and pairs of full
    runs, at the rate of "all" and under RL also at `LOW_RATE`.
    InputError where selection runs are missing.
    """
    planned = [run for run in first if run.seed == SELECTION_SEED]
    known = selection(rows)
    absent = [
        run for run in planned if run.learning_rate not in known.get((run.method, run.mask), {})
    ]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(planned)} runs on seed {SELECTION_SEED} have no row yet, the "
            f"first {absent[0].method} [{absent[0].mask}] at {absent[0].learning_rate:g}: wait for "
            "them, or see offaxis lab status"
        )
    template = {(run.method, run.mask): run for run in planned}
    beyond = further_rates(rows)
    if beyond:
        return [replace(template[key], learning_rate=rate) for key, rate in beyond.items()]
    rates = chosen_rates(rows)
    return distinct(one for seed in TEST_SEEDS for one in _replication(seed, template, rates))


def _replication(
    seed: int, template: Mapping[Key, RunConfig], rates: Mapping[Key, float]
) -> Iterator[RunConfig]:
    """All runs of one test seed."""
    for key, run in template.items():
        shared = _shares(key[0], rates) and not any(name in key[1] for name in _SPARSE)
        wanted = {rates[key]} | ({rates[key[0], "all"]} if shared else set())
        for rate in sorted(wanted):
            yield replace(run, seed=seed, learning_rate=rate, save_at=_CURVE)
    for method in dict.fromkeys(method for method, _ in template):
        if (method, "all") not in template:
            continue
        full = replace(template[method, "all"], seed=seed)
        low = [LOW_RATE] if _shares(method, rates) else []
        for rate in (rates[method, "all"], *low):
            at = replace(full, learning_rate=rate)
            yield replace(at, save_at=_CURVE)
            yield replace(at, twin_seed=seed + 1)
            for mask in SUBNETWORKS:
                yield replace(at, mask=mask)


def _shares(method: str, rates: Mapping[Key, float]) -> bool:
    """Is the method run at a shared rate too? The paper's masks are: under RL, at one rate."""
    return METHODS[method].on_policy and (method, "all") in rates
