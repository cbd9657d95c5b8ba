"""Each method's error on checkpoints that it did not see.

For every origin k (checkpoints 1..k given, with their scores and no later ones) and every later
checkpoint j, a method is fitted to the first k and asked for step j. θ̂ prediction, θ_j the
checkpoint that training really reached, θ_k the last one that the method saw:

- `relative_error` = ‖θ̂ − θ_j‖ / ‖θ_j − θ_BASE‖;
- `gain_over_stop` = 1 − ‖θ̂ − θ_j‖ / ‖θ_k − θ_j‖: 1 is exact, 0 no better than stopping at k,
  negative worse;
- `cosine` of the predicted move θ̂ − θ_k with the true one θ_j − θ_k.

Norms and inner products are over all parameters together, and apart over matrices and the rest;
they are summed tensor by tensor, so that one tensor is in memory and never a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import polars as pl
import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.masks import Progress
from offaxis.predict.linear import Linear, Stop
from offaxis.predict.methods import Fitted, Floats, Predictor, Timeline, Trail
from offaxis.predict.relex import Relex
from offaxis.predict.scale import Scale
from offaxis.predict.series import Series
from offaxis.predict.turned import Prefix, turned
from offaxis.predict.working import over, workers_for

__all__ = ["BANDS", "COLUMNS", "PARTS", "Backtest", "backtest", "default_methods"]

COLUMNS = {
    "method": pl.String,
    "part": pl.String,
    "origin_step": pl.Float64,
    "target_step": pl.Float64,
    "horizon": pl.Float64,
    "relative_error": pl.Float64,
    "gain_over_stop": pl.Float64,
    "cosine": pl.Float64,
}
"""Columns of `Backtest.table`: one row a method, part, origin and target. An undefined number
(nothing moved) is null; horizon = target/origin."""

PARTS = ("all", "matrices", "rest")
BANDS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, math.inf)
"""Edges of the horizons that `summary` takes together; the upper one belongs to the band."""

_MEASURES = ("relative_error", "gain_over_stop", "cosine")
_BY_PRODUCTS = (Stop, Scale, Linear, Relex)
"""Methods whose weights depend on the inner products of the rows alone."""

_ROUNDING = 1e-13
"""Of ‖θ_j − θ_BASE‖: a move that is shorter is rounding."""

_Key = tuple[str, int, int, str]
"""Method, checkpoints known, target's place, part."""


@dataclass(frozen=True, eq=False)
class Backtest:
    """Errors on checkpoints that were not seen.

    table: `COLUMNS`. methods: their names, in the order given. refused: method and origin that
    could not be fitted, with the reason.
    """

    table: pl.DataFrame
    methods: tuple[str, ...]
    refused: tuple[str, ...] = ()

    def summary(self, *, part: str = "all") -> pl.DataFrame:
        """By method and band of horizons (`BANDS`): median, least and greatest of each measure.

        Columns: method, above, upto (the band: above < horizon ≤ upto), cases, origins, and
        `x`, `x_least`, `x_greatest` for each measure x. part: of `PARTS`.
        """
        if part not in PARTS:
            raise InputError(f"part {part!r}: choose one of {', '.join(PARTS)}")
        edges = pl.Series("edges", BANDS[1:-1])
        place = pl.col("horizon").map_batches(
            lambda one: edges.search_sorted(one, side="left"), return_dtype=pl.UInt32
        )
        spreads = [
            reading
            for name in _MEASURES
            for reading in (
                pl.col(name).median(),
                pl.col(name).min().alias(f"{name}_least"),
                pl.col(name).max().alias(f"{name}_greatest"),
            )
        ]
        rows = self.table.filter(pl.col("part") == part).with_columns(band=place)
        counts = (pl.len().alias("cases"), pl.col("origin_step").n_unique().alias("origins"))
        grouped = rows.group_by("band", "method").agg(*counts, *spreads)
        order = pl.DataFrame(
            {"method": self.methods, "order": range(len(self.methods))},
            schema={"method": pl.String, "order": pl.Int64},
        )
        bounds = pl.DataFrame(
            {"band": range(len(BANDS) - 1), "above": BANDS[:-1], "upto": BANDS[1:]},
            schema={"band": pl.UInt32, "above": pl.Float64, "upto": pl.Float64},
        )
        joined = grouped.join(order, on="method").join(bounds, on="band").sort("band", "order")
        names = [name for name in grouped.columns if name not in ("band", "method")]
        return joined.select("method", "above", "upto", *names)

    def told(self) -> dict[str, Any]:
        """Rows, the summary of each part, and refusals as plain values.

        The last band has no upper end: null.
        """
        bands = [
            {"part": part, **row, "upto": row["upto"] if math.isfinite(row["upto"]) else None}
            for part in PARTS
            for row in self.summary(part=part).iter_rows(named=True)
        ]
        return {
            "methods": list(self.methods),
            "refused": list(self.refused),
            "rows": self.table.to_dicts(),
            "summary": bands,
        }


def default_methods() -> tuple[Predictor, ...]:
    """What every series is tried with: one reading of the checkpoints serves all four."""
    return (Stop(), Scale(), Linear(), Relex())


def backtest(
    series: Series,
    *,
    methods: Sequence[Predictor] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Backtest:
    """Fit every method to the first k checkpoints of `series`, and ask it for each later one.

    methods: by default `default_methods()`; their names must differ. One fit an origin serves all
    its later steps. An origin that a method refuses (too few scores, say) is told in `refused`.
    progress: told after each tensor. InputError where the series has no steps; CheckpointError for
    a checkpoint that cannot be read or is not finite.

    `stop`, `scale`, `linear` and `relex` are fitted to the tensor's T × T coordinates
    (`turned.turned`), in which all norms and inner products are the same; any other method is
    fitted to the tensor itself at each origin, and its T predictions are whole tensors.
    """
    chosen = tuple(default_methods() if methods is None else methods)
    names = tuple(method.name for method in chosen)
    if len(set(names)) < len(names):
        raise InputError(f"methods are {', '.join(names)}: name each one once")
    timeline = series.timeline()
    found = _Sums(timeline)
    jobs = [
        (trail, [method for method in chosen if method.cuts == cut])
        for cut in (False, True)
        if len(series) > 1 and any(method.cuts == cut for method in chosen)
        for trail in series.trails(cut=cut)
    ]
    total, done = sum(prod(trail.shape) for trail, _ in jobs), 0
    with over(lambda job: _measured(*job, timeline), jobs, workers=workers_for(series)) as results:
        for (trail, _), measured in zip(jobs, results, strict=True):
            found.add(measured, "matrices" if trail.is_matrix else "rest")
            done += prod(trail.shape)
            if progress is not None:
                progress(Progress(done, total, trail.name))
    return Backtest(found.table(names), names, found.reasons(names))


# --------------------------------------------------------------------------------------------- sums


@dataclass(frozen=True)
class _Measured:
    """One tensor's terms by (method, origin, target), and what was refused by (method, origin)."""

    terms: Mapping[tuple[str, int, int], Floats]
    refused: Mapping[tuple[str, int], str]


def _measured(trail: Trail, methods: Sequence[Predictor], timeline: Timeline) -> _Measured:
    terms: dict[tuple[str, int, int], Floats] = {}
    refused: dict[tuple[str, int], str] = {}
    flat = turned(trail) if any(type(method) in _BY_PRODUCTS for method in methods) else None
    for method in methods:
        rows = flat if flat is not None and type(method) in _BY_PRODUCTS else trail
        for known in range(max(1, method.least), len(trail)):
            try:
                for target, found in _cases(rows, method, timeline, known):
                    terms[method.name, known, target] = found
            except CheckpointError:
                raise
            except InputError as error:
                refused[method.name, known] = str(error)
    return _Measured(terms, refused)


def _cases(
    trail: Trail, method: Predictor, timeline: Timeline, known: int
) -> Iterator[tuple[int, Floats]]:
    """Each target of one origin with its terms."""
    fitted = method.fit(Prefix(trail, known), _until(timeline, known))
    last = trail[known - 1]
    for target in range(known, len(trail)):
        update = _predicted(fitted, trail, float(timeline.steps[target]))
        yield target, _terms(update, last, trail[target])


class _Sums:
    """Terms by method, origin, target and part, added tensor by tensor."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self._refused: dict[tuple[str, int], str] = {}
        self._sums: dict[_Key, Floats] = {}

    def add(self, found: _Measured, part: str) -> None:
        for origin, reason in found.refused.items():
            self._refused.setdefault(origin, reason)
        for case, terms in found.terms.items():
            for name in ("all", part):
                key = (*case, name)
                self._sums[key] = self._sums.get(key, 0.0) + terms

    def reasons(self, methods: Sequence[str]) -> tuple[str, ...]:
        """What was refused: one reason for all origins where they have it in common."""
        out = []
        for name in methods:
            grouped: dict[str, list[str]] = {}
            for (method, known), reason in sorted(self._refused.items()):
                if method == name:
                    step = f"{self.timeline.steps[known - 1]:g}"
                    grouped.setdefault(reason, []).append(step)
            out += [f"{name} from step {', '.join(at)}: {why}" for why, at in grouped.items()]
        return tuple(out)

    def table(self, methods: Sequence[str]) -> pl.DataFrame:
        order = {name: place for place, name in enumerate(methods)}
        known = [key for key in self._sums if key[:2] not in self._refused]
        keys = sorted(known, key=lambda key: (order[key[0]], PARTS.index(key[3]), *key[1:3]))
        rows = [self._row(key) for key in keys]
        return pl.DataFrame(rows, schema=COLUMNS, orient="row")

    def _row(self, key: _Key) -> tuple[Any, ...]:
        method, known, target, part = key
        error, whole, left, along, move = map(float, self._sums[key])
        origin, step = (float(self.timeline.steps[place]) for place in (known - 1, target))
        relative = math.sqrt(error / whole) if whole > 0 else None
        moved = left > _ROUNDING**2 * whole
        gain = 1 - math.sqrt(error / left) if moved else None
        cosine = along / math.sqrt(left * move) if moved and move > _ROUNDING**2 * whole else None
        return method, part, origin, step, step / origin, relative, gain, cosine


def _until(timeline: Timeline, known: int) -> Timeline:
    """What was known when checkpoint `known` was the last; the next one's step is asked for."""
    scores = None if timeline.scores is None else timeline.scores[:known]
    if scores is not None and np.isnan(scores).all():
        scores = None
    return Timeline(
        steps=timeline.steps[:known],
        at=float(timeline.steps[known]),
        scores=scores,
        base_score=timeline.base_score,
    )


def _predicted(fitted: Fitted, trail: Trail, step: float) -> Floats:
    """θ̂ − θ_BASE; zero where the tensor stays at the base."""
    update = fitted.update(step)
    return np.zeros(trail.shape) if update is None else np.asarray(update, dtype=np.float64)


def _terms(update: Floats, last: Floats, target: Floats) -> Floats:
    """‖θ̂ − θ_j‖², ‖θ_j − θ_BASE‖², ‖θ_k − θ_j‖², (θ̂ − θ_k)·(θ_j − θ_k), ‖θ̂ − θ_k‖²."""
    # by torch, whose threads `over` holds at one
    there, seen, goal = (torch.from_numpy(one).reshape(-1) for one in (update, last, target))
    error, left, move = there - goal, goal - seen, there - seen
    pairs = ((error, error), (goal, goal), (left, left), (move, left), (move, move))
    return np.array([float(torch.dot(one, other)) for one, other in pairs])
