"""A base and the checkpoints that were trained from it, in step order: opened, matched, lazy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from offaxis.checkpoint import AdapterCheckpoint, Aligned, Checkpoint, align, bind, open_checkpoint
from offaxis.checkpoint.dtypes import FLOATS
from offaxis.errors import AlignmentError, CheckpointError, InputError
from offaxis.names import pieces
from offaxis.predict.methods import Timeline, Trail
from offaxis.predict.scores import check_score
from offaxis.predict.steps import steps_of
from offaxis.predict.trails import SeriesTrail, cut_trails, whole_trails

__all__ = ["AnyPath", "Point", "Series", "open_series"]

AnyPath = str | PathLike[str]

_OF_A_HEAD = ("value_head", "classifier")


@dataclass(frozen=True, eq=False)
class Point:
    """One checkpoint of a series."""

    name: str
    """The argument that named it, verbatim."""
    step: float | None
    """When it was saved; None where neither name nor trainer_state.json tells."""
    checkpoint: Checkpoint
    """An adapter is bound to the base: its tensors are the merged ones."""
    score: float | None
    """Accuracy in [0, 1], or None where none was given."""
    aligned: Aligned
    """How its tensors match those of the base."""
    adapter: bool = False


@dataclass(frozen=True, eq=False)
class Series:
    """A base and its checkpoints in step order. No tensor is read until a trail is."""

    base: Checkpoint
    points: tuple[Point, ...]
    base_score: float | None = None
    notes: tuple[str, ...] = field(default=())
    """What a user should know of how the series was read."""

    def __len__(self) -> int:
        return len(self.points)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(point.name for point in self.points)

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """Stored heads of the base that are its embedding, and that embedding's name."""
        rows = self.points[0].aligned.mismatches
        embeddings = _embeddings(self.base)
        return {
            row.tensor: embeddings[0]
            for row in rows
            if row.status == "tied" and row.tensor in self.base.specs and embeddings
        }

    def trails(self, *, cut: bool = False) -> Iterator[SeriesTrail]:
        """Every parameter of the base over the checkpoints, in natural order of its names.

        cut: the parts of fused and stacked tensors each by itself, as `compare` measures them;
        else stored tensors whole. A tied head is left out (`aliases`), and so are constants.
        """
        yield from cut_trails(self) if cut else whole_trails(self)

    def matrices(self) -> Iterator[Trail]:
        """The matrices (DESIGN, section 3) alone, fused tensors cut into their parts."""
        return (trail for trail in self.trails(cut=True) if trail.is_matrix)

    def timeline(
        self, at: float | None = None, *, needs: frozenset[str] = frozenset({"steps"})
    ) -> Timeline:
        """Steps, scores and the step to predict.

        needs: what the method cannot do without, of `steps`, `at`, `scores`; InputError, with what
        to pass, where the series has none of it. Steps that no one needs are 1, ..., T where not
        all are known.
        """
        steps = [point.step for point in self.points]
        known = [step for step in steps if step is not None]
        if "steps" in needs and len(known) < len(steps):
            nameless = next(point.name for point in self.points if point.step is None)
            raise InputError(
                f"{nameless}: neither its name nor a trainer_state.json tells its step, which this "
                f"method needs; pass --steps with {len(steps)} numbers, one a checkpoint"
            )
        if "at" in needs and at is None:
            raise InputError("this method needs the step to predict; pass --at STEP")
        if at is not None and not 0 < at < np.inf:
            raise InputError(f"--at {at:g}: give a step greater than 0")
        given = [np.nan if point.score is None else point.score for point in self.points]
        scores = None if np.isnan(given).all() else np.array(given, dtype=np.float64)
        if "scores" in needs and scores is None:
            raise InputError(
                "this method needs the checkpoints' scores; pass --scores FILE (CSV, JSON, or what "
                "offaxis eval or lighteval wrote), or for alpharl --against step"
            )
        counted = known if len(known) == len(steps) else list(range(1, len(steps) + 1))
        return Timeline(np.array(counted, dtype=np.float64), at, scores, self.base_score)

    def subset(self, indices: Sequence[int]) -> Series:
        """The same base with some of the checkpoints, in step order."""
        if not indices:
            raise InputError("a series needs at least one checkpoint; name one")
        return replace(self, points=tuple(self.points[at] for at in sorted(set(indices))))

    def code_of(self, name: str) -> str:
        """The dtype code (`BF16`) in which the last checkpoint stores the base's tensor `name`.

        The base's own for adapters, for constants, and where the tensor is put together from
        several of unlike dtypes.
        """
        own = self.base.specs[name].dtype
        if self.points[-1].adapter:
            return own
        codes = self._last_codes.get(self.aliases.get(name, name), set())
        return min(codes) if len(codes) == 1 else own

    @cached_property
    def _last_codes(self) -> Mapping[str, set[str]]:
        """Stored name → the dtype codes in which the last checkpoint stores its parts."""
        out: dict[str, set[str]] = {}
        for pair in self.points[-1].aligned.pairs:
            out.setdefault(pair.base.name, set()).add(pair.tuned_dtype)
        return out


def open_series(
    base: AnyPath,
    checkpoints: Sequence[AnyPath],
    *,
    steps: Sequence[float] | None = None,
    scores: Sequence[float | None] | None = None,
    base_score: float | None = None,
    least: int = 1,
    allow_pickle: bool = False,
) -> Series:
    """Open a base and its checkpoints, given in step order, and match them from headers alone.

    base, checkpoints: what `open_checkpoint` takes; an adapter among the checkpoints is bound to
    the base. steps: one a checkpoint, increasing; None: read from their names or from
    trainer_state.json where they tell. scores: one a checkpoint, None or NaN where there is none,
    in [0, 1]. base_score: the base's own. least: how many checkpoints there must be.

    Raises InputError for too few checkpoints, the base among them, steps out of order or of another
    count, scores outside [0, 1]; AlignmentError where one is of another architecture;
    CheckpointError where one cannot be read.
    """
    names = [fspath(one) for one in checkpoints]
    if len(names) < max(1, least):
        raise InputError(
            f"{len(names)} checkpoint{'s' * (len(names) != 1)} after BASE, and at least "
            f"{max(1, least)} are needed; name more, or choose a method that needs fewer"
        )
    _check_counts(names, scores)
    _check_not_base(fspath(base), names)
    ground = open_checkpoint(fspath(base), allow_pickle=allow_pickle)
    if isinstance(ground, AdapterCheckpoint):
        raise InputError(f"{fspath(base)} is an adapter; BASE must be the model it belongs to")
    when = steps_of(names, steps)
    marks = [None] * len(names) if scores is None else list(scores)
    points = []
    for name, step, mark in zip(names, when, marks, strict=True):
        opened = open_checkpoint(name, allow_pickle=allow_pickle)
        adapter = isinstance(opened, AdapterCheckpoint)
        side = bind(opened, ground) if adapter else opened
        aligned = align(ground, side)
        _check_whole(ground, name, aligned)
        points.append(Point(name, step, side, check_score(name, mark), aligned, adapter))
    score = check_score(fspath(base), base_score)
    return Series(ground, tuple(points), score, tuple(_notes(points)))


def _check_counts(names: Sequence[str], scores: Sequence[float | None] | None) -> None:
    if scores is not None and len(scores) != len(names):
        raise InputError(
            f"{len(scores)} scores for {len(names)} checkpoints; give one for each, None where "
            "there is none"
        )


def _check_not_base(base: str, names: Sequence[str]) -> None:
    """BASE is no row of the series, under whatever name; nor is a checkpoint two rows."""
    seen: dict[str, str] = {}
    for name in names:
        place = _place(name)
        if place == _place(base):
            raise InputError(
                f"{name}: is BASE itself, from which the update is counted and which is no row of "
                "the series; leave it out"
            )
        if place in seen:
            raise InputError(f"{name}: is named twice ({seen[place]}); name each checkpoint once")
        seen[place] = name


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _check_whole(base: Checkpoint, name: str, aligned: Aligned) -> None:
    """Every parameter of the base must be in the checkpoint, in its shape, and none besides."""
    lacking = [row for row in aligned.mismatches if row.status in ("missing", "reshaped")]
    if lacking:
        row = lacking[0]
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise AlignmentError(
            f"{name}: {row.tensor!r}{more}: {row.detail}; all checkpoints must have the tensors of "
            f"BASE ({base.source}) in their shapes: give the base that they were trained from"
        )
    for row in aligned.mismatches:
        if row.status == "extra" and row.role.rpartition(".")[2] not in _OF_A_HEAD:
            hint = (
                "its head is no longer tied to the embedding; give as BASE the model with the head "
                "written as a tensor of its own"
                if row.role == "lm_head"
                else "give the base that it was trained from"
            )
            raise AlignmentError(
                f"{name}: holds {row.tensor!r} {row.shape}, which BASE ({base.source}) does not "
                f"have; {hint}"
            )
    odd = [row for row in aligned.mismatches if row.status == "not_float" and _weight(base, row)]
    if odd:
        raise CheckpointError(
            f"{name}: {odd[0].tensor!r} is {odd[0].detail}; give floating-point weights"
        )


def _weight(base: Checkpoint, row: object) -> bool:
    """A tensor that is a weight in the base and integers in the checkpoint."""
    spec = base.specs.get(getattr(row, "tensor", ""))
    return spec is not None and spec.dtype in FLOATS


def _embeddings(base: Checkpoint) -> list[str]:
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    found = pieces(shapes, config=base.config)
    return [one.name for one in found if one.place.role == "embed" and len(one.shape) == 2]


def _notes(points: Sequence[Point]) -> Iterator[str]:
    for point in points:
        if point.aligned.renaming != "identity":
            yield f"{point.name}: names matched by {point.aligned.renaming}"
        for row in point.aligned.mismatches:
            if row.status == "extra":
                yield f"{point.name}: {row.tensor} is not in BASE and is not predicted"
    if len({point.adapter for point in points}) > 1:
        yield "some checkpoints are adapters and some are whole models"
