"""What every comparison checks before it starts and notes when it ends."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import offaxis
from offaxis.comparison.base import Settings
from offaxis.comparison.run_info import RunInfo
from offaxis.errors import InputError
from offaxis.kernels.pool import threads

__all__ = ["check", "record"]


def check(settings: Settings) -> None:
    """Raise InputError for a setting that cannot be."""
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


def record(
    started: float,
    spectra: str,
    settings: Settings,
    alignment: Sequence[dict[str, Any]],
    *,
    info: RunInfo,
) -> dict[str, Any]:
    """The `run` block: versions, seed and settings, what was told of the run, renamings, time."""
    told = info.told()
    return {
        "offaxis": offaxis.__version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "settings": {"spectra": spectra, **asdict(settings)},
        **({"run_info": told} if told else {}),
        "alignment": list(alignment),
    }
