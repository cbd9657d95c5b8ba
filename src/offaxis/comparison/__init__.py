"""`compare`: plan from headers, validate, stream one pair of tensors at a time, tabulate."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import offaxis
from offaxis.comparison.base import Settings
from offaxis.comparison.plan import AnyPath, Plan
from offaxis.comparison.result import Comparison
from offaxis.comparison.stream import Progress, Stream
from offaxis.errors import InputError
from offaxis.kernels.pool import threads

__all__ = ["Comparison", "Progress", "compare"]


def compare(
    base: AnyPath,
    tuned: AnyPath | Sequence[AnyPath],
    *,
    spectra: str = "all",
    seed: int = 0,
    alpha: float = 0.5,
    angle_rank: int | None = None,
    principal_rank: int | None = None,
    rounding_null: bool = True,
    allow_pickle: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Measure how each tuned checkpoint moved the weights of `base`, beside the nulls.

    base, tuned: a directory, a `.safetensors` file, a PEFT adapter directory (tuned only) or a Hub
    id. spectra: `all`, `none` or `sample:N` (N matrices, stratified by role and depth). alpha:
    density of the fixed masks. angle_rank, principal_rank: k and r of DESIGN's definitions, whose
    defaults depend on the shape. announce: called with lines of plan (renamings, cost). progress:
    called after each tensor.

    Tensors are matched from headers before any is read, and each worker holds one pair at a time.
    One unusable checkpoint fails the whole comparison. Raises InputError and its subclasses.
    """
    started = time.time()
    settings = Settings(alpha, angle_rank, principal_rank, seed, rounding_null)
    _check(settings)
    plan = Plan.make(base, tuned, spectra=spectra, seed=seed, allow_pickle=allow_pickle)
    tell = announce or (lambda line: None)
    for line in plan.lines():
        tell(line)
    stream = Stream(plan, settings)
    stream.run(progress or (lambda step: None))
    return stream.result(_record(started, spectra, settings, plan))


def _check(settings: Settings) -> None:
    if not 0 < settings.alpha < 1:
        raise InputError(
            f"alpha {settings.alpha} is outside (0, 1); it is the density of the fixed masks"
        )
    for name in ("angle_rank", "principal_rank"):
        rank = getattr(settings, name)
        if rank is not None and rank < 1:
            raise InputError(f"{name} {rank} is below 1; leave it out for the default")
    if settings.seed < 0:
        raise InputError(f"seed {settings.seed} is negative; use 0 or more")


def _record(started: float, spectra: str, settings: Settings, plan: Plan) -> dict[str, Any]:
    """The `run` block: versions, seed and settings, renamings, time."""
    return {
        "offaxis": offaxis.__version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "settings": {"spectra": spectra, **asdict(settings)},
        "alignment": plan.record(),
    }
