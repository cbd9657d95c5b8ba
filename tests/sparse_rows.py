"""Made-up rows of the sparse study, run by run of its plan, in which every effect is planted."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.queue import RunConfig, read_grid
from offaxis.lab.queue.rows import CHECKPOINT, RUN
from offaxis.lab.sparse.naming import (
    LIFT,
    LOW,
    NON_PRINCIPAL,
    ONE,
    PRINCIPAL,
    SAFE,
    SUBNETWORK,
    matched_like,
    random_like,
)
from offaxis.lab.sparse.planning import second_stage
from offaxis.lab.tasks import TASKS

__all__ = [
    "BEST", "FIGURES", "PLANTED", "PROBLEMS", "SAMPLES", "World", "make_rows", "rows_of",
]  # fmt: skip

PROBLEMS, SAMPLES = 100, 8
BEST = 3e-4
"""The rate at which every mask is best, unless a world says otherwise."""


@dataclass(frozen=True)
class World:
    """What is true of every mask, by the text of its rule; the rest is as `all` is."""

    accuracy: Mapping[str, float] = field(default_factory=dict)
    """Added to a probability of 0.8 at the mask's best rate."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The rate at which a mask is best; a decade away it loses 0.3."""
    kl: Mapping[str, float] = field(default_factory=dict)
    """The factor on its KL at every step."""
    twin: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Cosine, and share of equal values among the changed entries."""
    run: float = 0.01
    """Standard deviation of what each run adds to its probability, and to ln KL tenfold."""
    seed: int = 0


PLANTED = World(
    accuracy={PRINCIPAL: -0.25, LIFT: -0.25, ONE: -0.3},
    best={ONE: 3e-3, LIFT: 3e-3, random_like(LIFT): 3e-3, matched_like(LIFT): 3e-3},
    kl={PRINCIPAL: 0.4, NON_PRINCIPAL: 1.6, LOW: 0.6, random_like(SAFE): 1.5,
        matched_like(SAFE): 0.7},
    twin={SUBNETWORK: (0.98, 0.95), matched_like(SUBNETWORK): (0.6, 0.4)},
    run=0.005,
)  # fmt: skip
"""A study in which most claims have an answer."""

FIGURES = {"kl.svg", "accuracy.svg", "rates.svg", "subnetwork.svg", "scatter.svg"}


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _chance(world: World, config: RunConfig) -> Any:
    """The probability of a right answer to each problem; problems and seeds are shared."""
    problems = _generator("problems").beta(4, 1.2, PROBLEMS) - 0.77
    shared = _generator(world.seed, "seed", config.seed).normal(0, 0.02)
    own = _generator(world.seed, config.seed, config.method, config.mask, config.learning_rate)
    away = abs(math.log10(config.learning_rate / world.best.get(config.mask, BEST)))
    level = 0.8 + world.accuracy.get(config.mask, 0.0) - 0.3 * away
    return np.clip(level + problems + shared + own.normal(0, world.run), 0.0, 1.0)


def _checkpoint(world: World, config: RunConfig, step: int) -> dict[str, Any]:
    rng = _generator(world.seed, step, config.identity("base"))
    part = math.log(1 + step) / math.log(1 + config.steps)
    right = rng.binomial(SAMPLES, _chance(world, config) * (0.7 + 0.3 * part))
    far = world.kl.get(config.mask, 1.0) * math.exp(10 * world.run * rng.normal())
    kl = 0.4 * part**2 * far * config.learning_rate / BEST
    found: dict[str, Any] = {
        "step": step,
        "avg": float(right.mean()) / SAMPLES,
        "right": right.tolist(),
        "kl_tuned_base": kl,
        "kl_base_tuned": 1.5 * kl,
        "reward": 0.7,
        "mixture_loss": 0.4 + 0.05 * part,
        "relative_update_norm": 0.02 * part * config.learning_rate / BEST,
        "unchanged_bf16": 0.2,
        **{f"mixture_loss_{task}": 0.4 + 0.1 * part for task in TASKS},
    }
    if config.twin is not None and step == config.steps:
        cosine, changed = world.twin.get(config.mask, (0.4, 0.3))
        found |= {
            "twin_cosine": cosine + rng.normal(0, 0.005),
            "twin_same_changed": changed + rng.normal(0, 0.005),
            "twin_same": 0.5 + changed / 2,
            "twin_distance": 1 - cosine,
        }
    return found


def _row(world: World, config: RunConfig) -> dict[str, Any]:
    told = {key: value for key, value in asdict(config).items() if key in RUN}
    density = 1.0 if config.mask == "all" else 0.5 if config.mask else None
    steps = sorted({*config.save_at, config.steps})
    points = [_checkpoint(world, config, step) for step in steps]
    told |= {
        "run": config.identity("base"),
        "mask": config.mask or None,
        "mask_density": density,
        "checkpoints": [{name: one.get(name) for name in CHECKPOINT} for one in points],
    }
    return {name: told.get(name) for name in RUN}


def _base(config: RunConfig) -> dict[str, Any]:
    losses = {f"mixture_loss_{task}": 0.4 for task in TASKS}
    one = {"step": 0, "avg": 0.55, "right": [4] * PROBLEMS, "mixture_loss": 0.4, **losses}
    told = {key: value for key, value in asdict(config).items() if key in RUN}
    told |= {"run": "base", "mask": None}
    told["checkpoints"] = [{name: one.get(name) for name in CHECKPOINT}]
    return {name: told.get(name) for name in RUN}


def rows_of(world: World, configs: Iterable[RunConfig]) -> pl.DataFrame:
    """The rows of these runs."""
    found = [_base(one) if one.method == "base" else _row(world, one) for one in configs]
    return pl.DataFrame(found, schema=RUN)


def make_rows(world: World | None = None) -> pl.DataFrame:
    """The whole study as it is planned: selection, rates beyond it where needed, test seeds."""
    world = world or World()
    configs = read_grid("sparse")
    rows = rows_of(world, configs)
    while True:
        known = set(configs)
        more = [one for one in second_stage(rows, configs) if one not in known]
        if not more:
            return rows
        configs = [*configs, *more]
        rows = pl.concat([rows, rows_of(world, more)])
