"""Made-up rows of the comparison of adapters, run by run of its plan, every effect planted."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.peft.naming import (
    FULL,
    IA3,
    LORA,
    LORA_FA,
    LORA_PLUS,
    MILORA,
    NORMS,
    OFF_RANDOM,
    PISSA,
    RANK1,
    RSLORA,
    VERA,
    canonical,
)
from offaxis.lab.peft.planning import next_stage
from offaxis.lab.queue import RunConfig, read_grid
from offaxis.lab.queue.rows import CHECKPOINT, RUN
from offaxis.lab.tasks import TASKS

__all__ = [
    "BASE", "BEST", "PLANTED", "PROBLEMS", "SAMPLES", "World", "make_rows", "rows_of",
]  # fmt: skip

PROBLEMS, SAMPLES, BASE = 100, 8, 0.55
BEST = 3e-3
"""The rate at which every adapter is best, unless a world says otherwise."""


@dataclass(frozen=True)
class World:
    """What is true of every adapter, by its text; the rest is as `lora?rank=8` is."""

    accuracy: Mapping[str, float] = field(default_factory=dict)
    """Added to a probability of 0.8 at the adapter's best rate."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The rate at which an adapter is best; a decade away it loses 0.3."""
    under: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(algorithm, adapter) -> added to its probability."""
    kl: Mapping[str, float] = field(default_factory=dict)
    """The factor on its KL at every step."""
    collapses: float = 1e-1
    """From how far above its best rate on (a factor) a run answers nothing: 1 / this."""
    run: float = 0.01
    """Standard deviation of what each run adds to its probability, and to ln KL tenfold."""
    seed: int = 0


PLANTED = World(
    accuracy={
        **dict.fromkeys((LORA, FULL, LORA_FA, RSLORA, LORA_PLUS, OFF_RANDOM), -0.1),
        **dict.fromkeys((PISSA, MILORA, VERA, IA3, NORMS, RANK1), -0.3),
        **{f"{name}?rank=1": -0.3 for name in ("lora", "dora", "miss")},
    },
    best={FULL: 3e-4, PISSA: 1e-3},
    kl={PISSA: 3.0},
    run=0.005,
)
"""A study in which most claims have an answer: what is not named is better than LoRA by 0.1."""


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _chance(world: World, config: RunConfig) -> Any:
    """The probability of a right answer to each problem; problems and seeds are shared."""
    problems = _generator("problems").beta(4, 1.2, PROBLEMS) - 0.77
    shared = _generator(world.seed, "seed", config.seed).normal(0, 0.02)
    own = _generator(world.seed, config.identity("base"))
    adapter = canonical(config.adapter)
    away = math.log10(config.learning_rate / world.best.get(adapter, BEST))
    if away > -math.log10(world.collapses) - 0.1:
        return np.full(PROBLEMS, 0.01)
    level = 0.8 + world.accuracy.get(adapter, 0.0) - 0.3 * abs(away)
    level += world.under.get((config.method, adapter), 0.0)
    return np.clip(level + problems + shared + own.normal(0, world.run), 0.0, 1.0)


def _checkpoint(world: World, config: RunConfig, step: int) -> dict[str, Any]:
    rng = _generator(world.seed, step, config.identity("base"))
    part = math.log(1 + step) / math.log(1 + config.steps)
    right = rng.binomial(SAMPLES, _chance(world, config) * (0.7 + 0.3 * part))
    far = world.kl.get(canonical(config.adapter), 1.0) * math.exp(10 * world.run * rng.normal())
    kl = 0.4 * part**2 * far * config.learning_rate / BEST
    return {
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


def _row(world: World, config: RunConfig) -> dict[str, Any]:
    told = {key: value for key, value in asdict(config).items() if key in RUN}
    points = [_checkpoint(world, config, step) for step in sorted({*config.save_at, config.steps})]
    told |= {
        "run": config.identity("base"),
        "mask": None,
        "adapter": config.adapter or None,
        "trainable": 1_000_000 if config.adapter_spec is None else 70_000,
        "train_cpu_seconds": 20 + _generator("cpu", config.identity("base")).normal(0, 0.5),
        "checkpoints": [{name: one.get(name) for name in CHECKPOINT} for one in points],
    }
    return {name: told.get(name) for name in RUN}


def _base(config: RunConfig) -> dict[str, Any]:
    losses = {f"mixture_loss_{task}": 0.4 for task in TASKS}
    right = _generator("base").binomial(SAMPLES, BASE, PROBLEMS)
    avg = float(right.mean()) / SAMPLES
    one: dict[str, Any] = {"step": 0, "avg": avg, "right": right.tolist(), "mixture_loss": 0.4}
    one |= {**losses, "avg_low": avg - 0.03, "avg_high": avg + 0.03}
    told = {key: value for key, value in asdict(config).items() if key in RUN}
    told |= {"run": "base", "mask": None, "adapter": None}
    told["checkpoints"] = [{name: one.get(name) for name in CHECKPOINT}]
    return {name: told.get(name) for name in RUN}


def rows_of(world: World, configs: Iterable[RunConfig]) -> pl.DataFrame:
    """The rows of these runs."""
    found = [_base(one) if one.method == "base" else _row(world, one) for one in configs]
    return pl.DataFrame(found, schema=RUN)


def make_rows(world: World | None = None) -> pl.DataFrame:
    """The whole study as it is planned: selection, rates beyond it where needed, test runs."""
    world = world or World()
    configs = read_grid("peft")
    rows = rows_of(world, configs)
    while True:
        known = set(configs)
        more = [one for one in next_stage(rows, configs) if one not in known]
        if not more:
            return rows
        configs = [*configs, *more]
        rows = pl.concat([rows, rows_of(world, more)])
