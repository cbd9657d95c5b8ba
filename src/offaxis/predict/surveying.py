"""One reading of a series before anything is fitted: norms, and what makes a fit meaningless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from math import prod, sqrt

import numpy as np
import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.masks import Progress
from offaxis.predict.fitting import stretches
from offaxis.predict.methods import Floats
from offaxis.predict.series import Series
from offaxis.predict.trails import SeriesTrail
from offaxis.predict.working import over, workers_for

__all__ = ["Survey", "check_different", "survey"]

_UNRELATED = 0.5
"""Cosine of a matrix with the base's below which, the update being as large as the base's matrix,
it is of another model (`comparison.summary.IMPLAUSIBLE_CORRELATION`)."""
_MOVED = 64
"""So many changed entries, or all of a smaller matrix, and it has moved for good."""


@dataclass(frozen=True)
class Survey:
    """What one reading of all checkpoints found. Each list is one item a checkpoint."""

    update_norms: tuple[float, ...]
    """‖θ_t − θ_BASE‖, all parameters."""
    matrix_norms: tuple[float, ...]
    """The same over the matrices alone."""
    step_norms: tuple[float, ...]
    """‖θ_t − θ_{t−1}‖, the first from the base."""
    base_norm: float
    parameters: int
    twins: tuple[tuple[int, int], ...] = ()
    """Pairs of checkpoints that hold the same values."""
    notes: tuple[str, ...] = ()

    def told(self) -> dict[str, object]:
        """For a record."""
        return {
            "parameters": self.parameters,
            "base_norm": self.base_norm,
            "update_norms": list(self.update_norms),
            "relative_update_norms": [_share(one, self.base_norm) for one in self.update_norms],
            "step_norms": list(self.step_norms),
        }


def survey(
    series: Series, *, progress: Callable[[Progress], None] = lambda _: None, ahead: int = 0
) -> Survey:
    """Read every parameter of every checkpoint once, a stretch at a time, and check the series.

    ahead: entries that come after these, for the total that `progress` is told.

    Raises CheckpointError for an entry that is NaN or infinite (`trails`), for a checkpoint whose
    values are the base's, and for one of another base: a matrix with ‖θ_t − θ_BASE‖ ≥ ‖θ_BASE‖ that
    is nearly orthogonal to the base's, a constant that differs, or most matrices back at the
    base's values after they had moved.
    """
    _check_constants(series)
    sums = _Sums(len(series))
    trails = list(series.trails())
    total, done = sum(prod(trail.shape) for trail in trails), 0
    pairs = frozenset(combinations(range(len(series)), 2))
    workers = workers_for(series)
    with over(lambda one: _measured(one, pairs), trails, workers=workers) as measured:
        for trail, found in zip(trails, measured, strict=True):
            _check_base(series, trail, found)
            sums.add(trail, found)
            done += prod(trail.shape)
            progress(Progress(done, total + ahead, trail.name))
    _check_moved(series, sums)
    notes = _returned(series, sums)
    notes += [
        f"{series.names[i]} and {series.names[j]} hold the same values"
        for i, j in sorted(sums.equal)
    ]
    return Survey(
        update_norms=tuple(map(float, np.sqrt(sums.updates))),
        matrix_norms=tuple(map(float, np.sqrt(sums.matrices))),
        step_norms=tuple(map(float, np.sqrt(sums.steps))),
        base_norm=sqrt(sums.base),
        parameters=total,
        twins=tuple(sorted(sums.equal)),
        notes=tuple(notes),
    )


def check_different(series: Series, found: Survey, *, least: int, method: str) -> None:
    """InputError where fewer than `least` checkpoints of different values are left."""
    again = {j for _, j in found.twins}
    different = len(series) - len(again)
    if different < least:
        i, j = found.twins[0] if found.twins else (0, 0)
        why = (
            f": {series.names[i]} and {series.names[j]} hold the same values" if found.twins else ""
        )
        raise InputError(
            f"{method} needs {least} different checkpoints, and there are {different}{why}; name "
            "others, or use `stop` or `scale`"
        )


@dataclass
class _Measured:
    """One tensor: sums of squares and counts, one a checkpoint."""

    updates: Floats
    steps: Floats
    cross: Floats
    """θ_t·θ_BASE − ‖θ_BASE‖²: the update's inner product with the base."""
    changed: Floats
    base: float
    equal: set[tuple[int, int]]


@dataclass
class _Sums:
    """Running sums over the tensors."""

    size: int
    updates: Floats = field(init=False)
    matrices: Floats = field(init=False)
    steps: Floats = field(init=False)
    base: float = 0.0
    equal: set[tuple[int, int]] = field(init=False)
    """Pairs of checkpoints in which no difference was seen yet."""
    moved: dict[str, Floats] = field(default_factory=dict)
    """Matrix → changed entries at each checkpoint."""

    def __post_init__(self) -> None:
        self.updates, self.matrices, self.steps = (np.zeros(self.size) for _ in range(3))
        self.equal = set(combinations(range(self.size), 2))

    def add(self, trail: SeriesTrail, found: _Measured) -> None:
        self.updates += found.updates
        self.steps += found.steps
        self.base += found.base
        self.equal &= found.equal
        if trail.is_matrix:
            self.matrices += found.updates
            self.moved[trail.name] = found.changed / min(_MOVED, prod(trail.shape))


def _measured(trail: SeriesTrail, pairs: frozenset[tuple[int, int]]) -> _Measured:
    """One reading of a tensor. pairs: the checkpoints to be held against each other."""
    size, together = prod(trail.shape), len(trail)
    updates, steps, cross, changed = (np.zeros(together) for _ in range(4))
    base, left = 0.0, set(pairs)
    for part in stretches(size, together):
        ground = trail.ground().reshape(-1)[part].double().numpy()
        if not np.isfinite(ground).all():
            trail.rows(0, part)  # says how many, and whose
        rows = [trail.rows(t, part) for t in range(together)]
        base += _inner(ground, ground)
        for t, row in enumerate(rows):
            updates[t] += _inner(row, row)
            cross[t] += _inner(row, ground)
            changed[t] += np.count_nonzero(row)
            step = row - rows[t - 1] if t else row
            steps[t] += _inner(step, step)
        left = {(i, j) for i, j in left if np.array_equal(rows[i], rows[j])}
    return _Measured(updates, steps, cross, changed, base, left)


def _inner(one: Floats, other: Floats) -> float:
    """By torch, whose threads `over` holds at one."""
    return float(torch.dot(torch.from_numpy(one), torch.from_numpy(other)))


def _check_base(series: Series, trail: SeriesTrail, found: _Measured) -> None:
    """Refuse a matrix that is nearer to nothing than to the base's."""
    if not trail.is_matrix or found.base == 0:
        return
    for t, name in enumerate(series.names):
        if found.updates[t] < found.base:
            continue
        square = found.base + 2 * found.cross[t] + found.updates[t]
        size = sqrt(max(0.0, square) * found.base)
        cosine = (found.base + found.cross[t]) / size if size > 0 else 0.0
        if cosine < _UNRELATED:
            ratio = sqrt(found.updates[t] / found.base)
            raise CheckpointError(
                f"{name}: {trail.name!r} is {ratio:.2f} times its own norm away from BASE "
                f"({series.base.source}), with cosine {cosine:.2f}: this is a checkpoint of "
                "another base; give checkpoints of one run, and the model that it started from"
            )


def _check_constants(series: Series) -> None:
    """Refuse a checkpoint whose constants (causal masks, frequencies, integer tables) differ."""
    for point in series.points:
        if point.adapter:
            continue
        names = {ours: theirs for theirs, ours in point.aligned.renamed.items()}
        for row in point.aligned.mismatches:
            theirs = names.get(row.tensor, row.tensor)
            both = row.tensor in series.base.specs and theirs in point.checkpoint.specs
            if row.status not in ("buffer", "not_float") or not both:
                continue
            ours, other = series.base[row.tensor], point.checkpoint[theirs]
            if ours.shape != other.shape or not _alike(ours, other):
                raise CheckpointError(
                    f"{point.name}: the constant {row.tensor!r} differs from that of BASE "
                    f"({series.base.source}): this is a checkpoint of another base; give the model "
                    "that the run started from"
                )


def _alike(ours: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal after rounding to the narrower of two floating-point types."""
    if ours.is_floating_point() and other.is_floating_point():
        narrow = min((ours.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
        return torch.equal(ours.to(narrow).double(), other.to(narrow).double())
    return ours.dtype == other.dtype and torch.equal(ours, other)


def _check_moved(series: Series, sums: _Sums) -> None:
    for t, name in enumerate(series.names):
        if sums.updates[t] == 0:
            raise CheckpointError(
                f"{name}: all its values are those of BASE ({series.base.source}), which is no row "
                "of the series; leave it out, or give the weights that were trained (an adapter's "
                "directory, not the base beside it)"
            )


def _returned(series: Series, sums: _Sums) -> list[str]:
    """Notes on matrices that moved and went back to the base; an error where most did."""
    notes = []
    for t in range(1, len(series)):
        before = {n for n, share in sums.moved.items() if (share[:t] >= 1).any()}
        back = sorted(n for n in before if sums.moved[n][t] == 0)
        if not back:
            continue
        what = (
            f"{series.names[t]}: {len(back)} of {len(before)} matrices that had moved by "
            f"{series.names[t - 1]} hold BASE's values again ({back[0]})"
        )
        if 2 * len(back) > len(before):
            raise CheckpointError(
                f"{what}: this is a checkpoint of another run or base; leave it out"
            )
        notes.append(what)
    return notes


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
