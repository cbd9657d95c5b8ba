"""Which modules carry the gain: rank-1 updates of a third of them at a time (AlphaRL, Fig. 6c).

The paper sorts modules by R² and slides a window down the order: the lower the R² of what is in the
window, the lower the accuracy. But what is injected is as long as each module's update, and R² may
go with that length in either direction, so that an order by ‖ΔW‖ and random ones stand beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import polars as pl
import torch

from offaxis.errors import InputError
from offaxis.output import check_output, explained, staged_directory
from offaxis.predict.injecting import inject
from offaxis.predict.series import AnyPath, Series
from offaxis.predict.trajectories import Trajectory
from offaxis.predict.writing import check_place

__all__ = ["Window", "module_windows", "orders", "window_study"]

Score = Callable[[Path], float]


@dataclass(frozen=True)
class Window:
    """A stretch of an order of modules: places start to stop, and the tensors that are there."""

    order: str
    number: int
    start: int
    stop: int
    tensors: tuple[str, ...]

    @property
    def name(self) -> str:
        """A directory's name."""
        return f"{self.order}-{self.number}"


def module_windows(
    order: Sequence[str], *, name: str = "r2", share: float = 1 / 3, step: float = 1 / 7
) -> tuple[Window, ...]:
    """Windows of round(share · n) modules every round(step · n), from the order's head to its tail.

    The last window ends with the order, whatever the step. InputError for an empty order, or shares
    outside (0, 1].
    """
    if not order or not 0 < share <= 1 or not 0 < step <= 1:
        raise InputError(
            f"{len(order)} modules, window {share:g}, step {step:g}: give modules, and shares "
            "above 0 and at most 1"
        )
    size, stride = (max(1, round(part * len(order))) for part in (share, step))
    starts = list(range(0, len(order) - size + 1, stride))
    if starts[-1] != len(order) - size:
        starts.append(len(order) - size)
    return tuple(
        Window(name, number, start, start + size, tuple(order[start : start + size]))
        for number, start in enumerate(starts)
    )


def orders(
    r2: Mapping[str, float], norms: Mapping[str, float], *, seed: int = 0, random: int = 1
) -> dict[str, tuple[str, ...]]:
    """Orders of the modules in `r2`: `r2` and `norm`, both descending, and `random-0`, ..."""
    names = sorted(r2)
    found = {
        "r2": tuple(sorted(names, key=lambda name: -r2[name])),
        "norm": tuple(sorted(names, key=lambda name: -norms[name])),
    }
    for number in range(random):
        drawn = np.random.default_rng([seed, number]).permutation(len(names))
        found[f"random-{number}"] = tuple(names[place] for place in drawn)
    return found


def window_study(
    series: Series,
    paths: Sequence[Trajectory],
    r2: Mapping[str, float],
    *,
    score: Score | None = None,
    out: AnyPath | None = None,
    share: float = 1 / 3,
    step: float = 1 / 7,
    random: int = 1,
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
) -> pl.DataFrame:
    """Inject the last checkpoint's rank-1 updates of each window's modules into the base.

    θ = θ_BASE + ‖ΔW‖_F u₁v₁ᵀ in the modules of the window, θ_BASE elsewhere; windows of the orders
    by R² (as `Dynamics.r2` has it), by ‖ΔW‖_F and `random` random ones. paths: the matrices'
    trajectories, whose last rank-1 factors are used: nothing is decomposed again.

    out: every model is kept in `out/<order>-<number>`, with `windows.json`. score: called with each
    model's directory; without `out` models are written into a scratch directory one after another
    and removed. One of the two must be given.

    Returns one row a window: `order, window, start, stop, modules, r2_least, r2_mean, norm_share`
    (of the matrices' ‖ΔW‖_F) and `score` (null without one).
    """
    if score is None and out is None:
        raise InputError("nothing to do with the models: give score, out, or both")
    known = {one.tensor: one for one in paths}
    norms = _norms(known, r2)
    windows = [
        window
        for name, order in orders(r2, norms, seed=seed, random=random).items()
        for window in module_windows(order, name=name, share=share, step=step)
    ]
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _table(_scored(series, known, windows, Path(scratch), score, dtype), r2, norms)
    check_output(Path(out), overwrite=overwrite)
    check_place(series, Path(out))
    with staged_directory(Path(out), overwrite=overwrite) as staged:
        found = _scored(series, known, windows, staged, score, dtype, keep=True)
        table = _table(found, r2, norms)
        told = {
            "schema": 1,
            "base": series.base.source,
            "tuned": series.names[-1],
            "seed": seed,
            "windows": [asdict(window) for window in windows],
            "rows": table.to_dicts(),
        }
        with explained(Path(out)):
            text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
            (staged / "windows.json").write_text(text + "\n", encoding="utf-8")
    return table


def _norms(paths: Mapping[str, Trajectory], r2: Mapping[str, float]) -> dict[str, float]:
    """‖ΔW_T‖_F of each module that has an R²."""
    if missing := sorted(set(r2) - set(paths)):
        raise InputError(f"{missing[0]}: has an R² and no trajectory; give those of one series")
    return {name: float(paths[name].norms[-1]) for name in r2}


def _scored(
    series: Series,
    paths: Mapping[str, Trajectory],
    windows: Sequence[Window],
    place: Path,
    score: Score | None,
    dtype: str | None,
    *,
    keep: bool = False,
) -> list[tuple[Window, float | None]]:
    """Write each window's model and score it."""
    found = []
    for window in windows:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            where = place / window.name if keep else Path(scratch) / window.name
            _write(series, paths, window, where, dtype)
            found.append((window, None if score is None else float(score(where))))
    return found


def _write(
    series: Series, paths: Mapping[str, Trajectory], window: Window, out: Path, dtype: str | None
) -> None:
    inside = frozenset(window.tensors)
    changed = {t.view.name for t in series.trails(cut=True) if t.name in inside}

    def update(name: str) -> torch.Tensor | None:
        return torch.from_numpy(paths[name].last_update()) if name in inside else None

    inject(series, out, lambda trail: update(trail.name), dtype=dtype, changed=changed)


def _table(
    found: Sequence[tuple[Window, float | None]],
    r2: Mapping[str, float],
    norms: Mapping[str, float],
) -> pl.DataFrame:
    whole = sqrt(sum(norm**2 for norm in norms.values()))
    rows = [
        {
            "order": window.order,
            "window": window.number,
            "start": window.start,
            "stop": window.stop,
            "modules": len(window.tensors),
            "r2_least": min(r2[name] for name in window.tensors),
            "r2_mean": sum(r2[name] for name in window.tensors) / len(window.tensors),
            "norm_share": sqrt(sum(norms[name] ** 2 for name in window.tensors)) / whole,
            "score": value,
        }
        for window, value in found
    ]
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float64})
