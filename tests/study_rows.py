"""Made-up rows of a queue in which every effect is planted, for the tests of the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.queue.rows import CHECKPOINT, RUN
from offaxis.lab.study.answers import RL, TUNING
from offaxis.lab.tasks import TASKS

__all__ = ["RATES", "SEEDS", "STEPS", "TASKS_USED", "make_rows"]

STEPS = (5, 10, 20, 40)
RATES = (1e-5, 1e-4)
SEEDS = (0, 1, 2)
TASKS_USED = ("arithmetic", "countdown")
START = 0.5

METHODS = (*RL, *TUNING)

Fill = Callable[[str, float, int, float], dict[str, float]]
"""(method, norm, step, noise) -> fields of a checkpoint."""


def _nothing(method: str, norm: float, step: int, noise: float) -> dict[str, float]:
    return {}


def make_rows(
    *,
    speed: dict[str, float],
    fill: Fill = _nothing,
    gain: dict[str, float] | None = None,
    methods: Sequence[str] = METHODS,
    noise: float = 0.02,
) -> pl.DataFrame:
    """A table like the queue's: norms grow with rate · steps · `speed[method]`.

    nss is the norm, whatever the method; accuracy grows with steps towards START + gain. Noise is
    a factor exp(noise · z) on the norm, seeded by the run. `fill` adds or replaces fields.
    """
    rows: list[dict[str, Any]] = [_base(task) for task in TASKS_USED]
    for method, task, rate, seed in product(methods, TASKS_USED, RATES, SEEDS):
        key = [METHODS.index(method), TASKS_USED.index(task), RATES.index(rate), seed]
        rng = np.random.default_rng(key)
        checkpoints = []
        for step in STEPS:
            z = float(rng.standard_normal())
            norm = 20 * rate * step * speed.get(method, 1.0) * math.exp(noise * z)
            top = (gain or {}).get(method, 0.4)
            one: dict[str, float] = {
                "step": step,
                "relative_update_norm": norm,
                "nss": norm,
                "avg": START + top * step / STEPS[-1],
                **{f"mixture_loss_{name}": 1.0 for name in TASKS},
            }
            checkpoints.append(one | fill(method, norm, step, z))
        told = {"method": method, "task": task, "learning_rate": rate, "seed": seed}
        rows.append(told | {"run": "-".join(map(str, key)), "checkpoints": checkpoints})
    whole = [
        {name: row.get(name) for name in RUN}
        | {
            "checkpoints": [
                {name: one.get(name) for name in CHECKPOINT} for one in row["checkpoints"]
            ]
        }
        for row in rows
    ]
    return pl.DataFrame(whole, schema=RUN)


def _base(task: str) -> dict[str, Any]:
    losses = {f"mixture_loss_{name}": 1.0 for name in TASKS}
    return {
        "run": f"base-{task}",
        "method": "base",
        "task": task,
        "learning_rate": 1.0,
        "seed": 0,
        "checkpoints": [{"step": 0, "avg": START, **losses}],
    }
