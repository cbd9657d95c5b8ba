"""Rows of a prediction study with known accuracies, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.predict import PredictStudy
from offaxis.lab.predict.candidates import CONTESTANTS, REBUILT, STOP
from offaxis.lab.predict.measuring import asked
from offaxis.lab.predict.rows import CURVE, LINEARITY, MODELS
from offaxis.lab.queue.rows import CHECKPOINT, RUN

PROBLEMS, SAMPLES, LAST = 60, 8, 80
ORIGINS = (8, 16, 32)
TASKS = ("arithmetic", "countdown")
BASE = 0.5


def answers(share: float, seed: int, samples: int = SAMPLES) -> list[int]:
    """Right answers to each problem, `share` on the average; problems are as hard for all."""
    rng = np.random.default_rng(seed)
    difficulty = np.linspace(-0.15, 0.15, PROBLEMS)
    found: list[int] = rng.binomial(samples, np.clip(share + difficulty, 0, 1)).tolist()
    return found


def study(
    shares: Mapping[str, float],
    *,
    stop: Mapping[int, float],
    full: float,
    methods: Sequence[str] = ("grpo", "dapo", "rloo"),
    seeds: Sequence[int] = (0, 1, 2, 3),
    refused: Sequence[str] = (),
) -> PredictStudy:
    """A study in which each predictor scores `shares`, whatever it starts from."""
    rows: list[dict[str, Any]] = [_base(task) for task in TASKS]
    models: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for method in methods:
        for task in TASKS:
            for seed in seeds:
                run = f"{method}-{task}-{seed}"
                rows.append(_run(run, method, task, seed))
                models += _models(run, seed, shares, stop, full, refused)
                curve += [{"run": run, "step": step, "validation": BASE} for step in (0, *stop)]
    schema = dict(RUN)
    return PredictStudy(
        pl.DataFrame(rows, schema=schema),
        pl.DataFrame(curve, schema=CURVE),
        pl.DataFrame(models, schema=MODELS),
        pl.DataFrame(_lines([row["run"] for row in rows]), schema=LINEARITY),
    )


def _checkpoint(step: int, share: float, seed: int) -> dict[str, Any]:
    told = {"step": step, "avg": share, "right": answers(share, seed)}
    told |= {"relative_update_norm": 0.01, "rank1_norm_share": 0.5}
    return {name: told.get(name) for name in CHECKPOINT}


def _run(run: str, method: str, task: str, seed: int) -> dict[str, Any]:
    told = {"run": run, "method": method, "task": task, "seed": seed, "steps": LAST}
    told |= {"difficulty": 2, "problems": PROBLEMS, "samples": SAMPLES, "learning_rate": 1e-4}
    told["checkpoints"] = [_checkpoint(LAST, 0.8, seed)]
    return {name: told.get(name) for name in RUN}


def _base(task: str) -> dict[str, Any]:
    row = _run(f"base-{task}", "base", task, 0)
    return row | {"checkpoints": [_checkpoint(0, BASE, 99)]}


def _models(
    run: str,
    seed: int,
    shares: Mapping[str, float],
    stop: Mapping[int, float],
    full: float,
    refused: Sequence[str],
) -> list[dict[str, Any]]:
    def scored(share: float, number: int) -> dict[str, Any]:
        right = answers(share, 100 * seed + number)
        return {
            "avg": share, "right": right, "right_harder": answers(share / 2, number, SAMPLES // 2),
            "mixture_loss": 1 - share, **{f"mixture_loss_{one}": 1 - share for one in TASKS},
            "mixture_loss_programs": 1 - share,
            "relative_error": 0.5, "moved": 1.0, "cosine": 0.9,
        }  # fmt: skip

    found = [
        {"run": run, "kind": "real", "origin": step, "target": step} | scored(share, step)
        for step, share in {**stop, LAST: full}.items()
    ]
    for number, key in enumerate(asked(LAST)):
        told: dict[str, Any] = {"run": run} | key._asdict()
        told["kind"] = "rebuilt" if key.predictor in REBUILT else "predicted"
        if key.predictor == STOP:
            found.append(told | {"kind": "stopped", "relative_error": 0.8})
            continue
        if key.predictor in refused:
            found.append(told | {"refused": "no scores"})
            continue
        chosen = key.predictor in CONTESTANTS and CONTESTANTS[key.predictor].goal == "chosen"
        told["factor"] = 2.0 if chosen else None
        found.append(told | scored(shares.get(key.predictor, full), number))
    return found


def _lines(runs: Sequence[str]) -> list[dict[str, Any]]:
    """R² alike to that of walks, of all matrices and of one role."""
    told = {"matrices": 4, "r2": 0.9, "walk_r2": 0.89, "q2": 0.8, "walk_q2": 0.79, "step_q2": 0.95}
    return [
        {"run": run, "kind": kind, "role": role} | told
        for run in runs
        if not run.startswith("base")
        for kind in ("raw", "scaled")
        for role in (None, "q_proj")
    ]
