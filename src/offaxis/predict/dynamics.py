"""`dynamics`: does accuracy follow from where the first singular directions go, beyond drift?"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.kernels.pool import in_order, threads
from offaxis.masks import Progress
from offaxis.output import explained, staged_directory
from offaxis.predict.dynamics_tables import (
    PATHS,
    measurement_frame,
    measurement_rows,
    path_rows,
    summary,
)
from offaxis.predict.embeddings import Shift, embedding_shift
from offaxis.predict.methods import Timeline
from offaxis.predict.pls import check_scores, line
from offaxis.predict.series import Series, open_series
from offaxis.predict.surveying import survey
from offaxis.predict.trails import SeriesTrail
from offaxis.predict.trajectories import KINDS, Trajectory, matrix_trails, trajectory
from offaxis.predict.walks import Linearity, linearity, pc1_share, walks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Dynamics", "Module", "dynamics", "dynamics_series"]

AnyPath = str | PathLike[str]
Floats = NDArray[np.float64]
_Told = Callable[[Progress], None]

_PATH_WALKS = 20
"""Walks whose first component is averaged; one of them is drawn."""


@dataclass(frozen=True, eq=False)
class Module:
    """One matrix: its trajectory, how far accuracy follows from it, and one walk beside it."""

    path: Trajectory
    linear: Mapping[str, Linearity | None]
    """By kind (`raw`, `scaled`); None where it does not move."""
    pc1: Mapping[str, float]
    """Share of variance in the first principal component, over all checkpoints."""
    walk_pc1: Mapping[str, float]
    walk: Mapping[str, Floats]
    """One norm-matched walk (T, m)."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What was found. measurements, paths: long form (`dynamics_tables`)."""

    modules: tuple[Module, ...]
    series: Series
    timeline: Timeline
    measurements: pl.DataFrame
    paths: pl.DataFrame
    embeddings: tuple[Shift, ...]
    _summary: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What `dynamics.json` holds."""
        return self._summary

    def r2(self, kind: str = "raw") -> dict[str, float]:
        """In-sample R² of each matrix that moves, by name: what a window study orders by."""
        found = {one.path.tensor: one.linear[kind] for one in self.modules}
        return {name: one.r2 for name, one in found.items() if one is not None}

    def figures(self) -> dict[str, Figure]:
        """Pictures by file name. ModuleNotFoundError where matplotlib is not installed."""
        from offaxis.predict.dynamics_pictures import pictures

        return pictures(self)

    def save(self, out: AnyPath, *, windows: str | None = None, overwrite: bool = False) -> None:
        """Write `dynamics.json`, `dynamics.parquet`, `paths.parquet`, `embeddings.parquet` and,
        where matplotlib is installed, the pictures.

        windows: `raw` or `scaled`: also the models of `window_study` by that R², in `windows/`.
        OutputError where that cannot be written.
        """
        with staged_directory(Path(out), overwrite=overwrite) as staged:
            with explained(Path(out)):
                self.write(staged)
            if windows is not None:
                self.windows(windows, out=staged / "windows")

    def windows(self, kind: str = "raw", **options: Any) -> pl.DataFrame:
        """`window_study` of this series, modules in the order of their R² of `kind`."""
        from offaxis.predict.windows import window_study

        if kind not in KINDS:
            raise InputError(f"windows by {kind!r}: choose {' or '.join(KINDS)}")
        paths = [one.path for one in self.modules]
        return window_study(self.series, paths, self.r2(kind), **options)

    def write(self, directory: Path) -> None:
        """The same into a directory that is there."""
        self.measurements.write_parquet(directory / "dynamics.parquet")
        self.paths.write_parquet(directory / "paths.parquet")
        tables = [one.tokens.with_columns(tensor=pl.lit(one.tensor)) for one in self.embeddings]
        if tables:
            pl.concat(tables).write_parquet(directory / "embeddings.parquet")
        try:
            from offaxis.predict.dynamics_pictures import save_picture
        except ModuleNotFoundError:  # no matplotlib: the tables say the same
            pass
        else:
            for name, figure in self.figures().items():
                save_picture(figure, directory / name)
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False)
        (directory / "dynamics.json").write_text(text + "\n", encoding="utf-8")


def dynamics(
    base: AnyPath,
    checkpoints: Sequence[AnyPath],
    *,
    scores: Sequence[float | None],
    steps: Sequence[float] | None = None,
    base_score: float | None = None,
    draws: int = 200,
    seed: int = 0,
    allow_pickle: bool = False,
    progress: _Told | None = None,
) -> Dynamics:
    """Follow u₁ of every matrix over checkpoints and fit accuracy to it by one-component PLS.

    base, checkpoints, steps, scores: as `open_series` takes them; checkpoints without a score are
    followed and not fitted, and at least four need one. Each matrix gets, for the raw and for the
    scaled trajectory, R² in-sample, Q² and error of checkpoints left out one at a time, and nulls:
    `draws` norm-matched walks, what the step number leaves of both sides, permuted scores. The
    rival is a line of accuracy on the step. See `walks.Linearity` for each number.

    Raises InputError for series and scores that cannot be used, CheckpointError for NaN.
    Source: AlphaRL (arXiv 2510.00553), section 3 and appendix E; the nulls are not in the paper.
    """
    series = open_series(
        base, checkpoints, steps=steps, scores=scores, base_score=base_score,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    return dynamics_series(series, draws=draws, seed=seed, progress=progress)


def dynamics_series(
    series: Series, *, draws: int = 200, seed: int = 0, progress: _Told | None = None
) -> Dynamics:
    """`dynamics` for a series that is open."""
    if draws < 1:
        raise InputError(f"draws {draws}: at least one walk is needed; 200 is the default")
    timeline = series.timeline(needs=frozenset({"steps", "scores"}))
    assert timeline.scores is not None  # it was asked for
    scored = np.flatnonzero(np.isfinite(timeline.scores))
    check_scores(timeline.scores[scored])
    trails = list(matrix_trails(series))
    if not trails:
        raise InputError(f"{series.base.source}: holds no matrix to follow")
    told, total = progress or (lambda _: None), sum(prod(one.shape) for one in trails)
    found = survey(series, progress=told, ahead=total)
    modules = tuple(_followed(trails, timeline, scored, draws, seed, told, found.parameters))
    shifts = tuple(embedding_shift(series))
    rival = line(timeline.steps[scored], timeline.scores[scored])
    table = measurement_frame(
        [
            row
            for one in modules
            for row in measurement_rows(one.path, one.linear, one.pc1, one.walk_pc1)
        ]
    )
    paths = pl.DataFrame(
        [row for one in modules for row in path_rows(one.path, one.walk, timeline)],
        schema=PATHS, orient="row",
    )  # fmt: skip
    told_of = summary(
        series, timeline, table, rival, [one.summary() for one in shifts],
        draws=draws, seed=seed, notes=(*series.notes, *found.notes),
        tied=sum(sum(one.path.tied) for one in modules),
    )  # fmt: skip
    return Dynamics(modules, series, timeline, table, paths, shifts, told_of)


def _followed(
    trails: Sequence[SeriesTrail],
    timeline: Timeline,
    scored: NDArray[np.intp],
    draws: int,
    seed: int,
    told: _Told,
    done: int,
) -> list[Module]:
    """Every matrix, several at work at once, each with a share of the cores."""
    workers = max(1, min(threads(), 4, len(trails)))
    total = done + sum(prod(one.shape) for one in trails)
    before, out = torch.get_num_threads(), []

    def one(trail: SeriesTrail) -> Module:
        torch.set_num_threads(max(1, threads() // workers))
        return _module(trail, timeline, scored, draws, seed)

    try:
        for trail, module in zip(trails, in_order(one, trails, workers), strict=True):
            out.append(module)
            done += prod(trail.shape)
            told(Progress(done, total, trail.name))
    finally:
        torch.set_num_threads(before)
    return out


def _module(
    trail: SeriesTrail, timeline: Timeline, scored: NDArray[np.intp], draws: int, seed: int
) -> Module:
    """One matrix: trajectory, fits, nulls. Its walks are its own whatever the order of tensors."""
    assert timeline.scores is not None
    path, own = trajectory(trail), zlib.crc32(trail.name.encode())
    linear: dict[str, Linearity | None] = {}
    pc1, walk_pc1, walk = dict[str, float](), dict[str, float](), dict[str, Floats]()
    for number, kind in enumerate(KINDS):
        x, key = path.rows(kind), [seed, own, number]
        linear[kind] = linearity(
            x[scored], timeline.scores[scored], timeline.steps[scored], draws=draws, seed=key
        )
        drawn = np.concatenate(list(walks(x, _PATH_WALKS, seed=[*key, 1])))
        pc1[kind], walk_pc1[kind] = float(pc1_share(x)), float(pc1_share(drawn).mean())
        walk[kind] = drawn[0]
    return Module(path, linear, pc1, walk_pc1, walk)
