"""Parts of a plan measured one after the other by a few workers, and added up in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from offaxis.checkpoint import TensorPair, read_pair
from offaxis.checkpoint.adapter import BoundCheckpoint
from offaxis.comparison.base import BaseSide, Settings
from offaxis.comparison.consensus import Across
from offaxis.comparison.heads import heads
from offaxis.comparison.measure import Measured, measure_pair, rows_of
from offaxis.comparison.method import Circumstances
from offaxis.comparison.profiles import series_numbers, step_of
from offaxis.comparison.result import Comparison
from offaxis.comparison.run_info import RunInfo
from offaxis.comparison.summary import PairTotals, summarise_pair
from offaxis.kernels.pool import in_order, threads
from offaxis.measures import ALPHA
from offaxis.table import Curve, Measurement, curves_frame, measurements_frame

if TYPE_CHECKING:
    from offaxis.checkpoint import Mismatch, Part, PartPair
    from offaxis.comparison.plan import Plan

__all__ = ["Progress", "Stream"]

_WORKING_BYTES = 2_000_000_000
_WIDER_THAN_BF16 = frozenset({"F32", "F64"})


@dataclass(frozen=True)
class Progress:
    """Told to a progress callback after each tensor: `done` of `total` entries, and its name."""

    done: int
    total: int
    tensor: str


@dataclass(frozen=True)
class _Found:
    """One part, measured in each run that has it.

    bins: the base's count in each magnitude bin. series: (index of a checkpoint, row) where it is
    set beside the last checkpoint of its run.
    """

    measured: list[Measured | None]
    bins: npt.NDArray[np.int64]
    series: list[tuple[int, Measurement]]


def _workers(plan: Plan) -> tuple[int, int]:
    """How many parts are measured at once, and how many BLAS threads each gets.

    Several small decompositions side by side use the cores better than one at a time with all
    threads, and do not collapse when another process takes a core. Each part at work holds up to
    five float64 copies; the number at once is cut until they fit in `_WORKING_BYTES`.
    """
    largest = max((prod(p.shape) for p, _ in plan.parts if p.is_matrix), default=1)
    fit = max(1, _WORKING_BYTES // (5 * 8 * largest))
    workers = max(1, min(threads(), 4, fit))
    return workers, max(1, threads() // workers)


class Stream:
    """Measures the plan's parts one after the other."""

    def __init__(self, plan: Plan, settings: Settings, *, info: RunInfo | None = None) -> None:
        self.plan, self.settings, self.info = plan, settings, info or RunInfo()
        self.rows: list[list[Measurement]] = [[] for _ in plan.tuned]
        self.curves: list[Curve] = []
        self.totals = [PairTotals() for _ in plan.tuned]
        self.across = Across(plan.labels)

    def run(self, progress: Callable[[Progress], None]) -> None:
        """Measure every part. Workers take parts; results are added in the plan's order."""
        for rows, label, one in zip(self.rows, self.plan.labels, self.plan.aligned, strict=True):
            rows.extend(_mismatch_row(label, row) for row in one.mismatches)
        sizes = [prod(part.shape) for part, _ in self.plan.parts]
        workers, blas = _workers(self.plan)
        done, total = 0, sum(sizes)

        def measure(item: tuple[Part, tuple[PartPair | None, ...]]) -> _Found:
            torch.set_num_threads(blas)  # of the calling thread, and of threads born later
            return self._measure(*item)

        before = torch.get_num_threads()
        try:
            for (part, pairs), size, found in zip(
                self.plan.parts, sizes, in_order(measure, self.plan.parts, workers), strict=True
            ):
                self._add(part, pairs, found)
                done += size
                progress(Progress(done, total, part.tensor))
        finally:
            torch.set_num_threads(before)

    def _measure(self, part: Part, pairs: Sequence[PartPair | None]) -> _Found:
        ground: BaseSide | None = None
        found: list[Measured | None] = []
        for index, pair in enumerate(pairs):
            if pair is None:
                found.append(None)
                continue
            tensors = _plain(read_pair(self.plan.base, self.plan.tuned[index], pair))
            if ground is None:
                why_not = "" if part.tensor in self.plan.spectral else self.plan.why_not
                ground = BaseSide(part, tensors.base, self.settings, why_not)
            wide = pair.tuned_dtype in _WIDER_THAN_BF16
            label = self.plan.labels[index]
            draw = part.tensor in self.plan.drawn
            found.append(measure_pair(ground, tensors, tuned=label, wide=wide, draw=draw))
        if ground is None:
            return _Found(found, np.zeros(0, np.int64), [])
        series = [
            (index, row)
            for index, name, number in series_numbers(ground, found, self.plan.labels)
            for row in rows_of(part, self.plan.labels[index], {name: number})
        ]
        return _Found(found, ground.bins, series)

    def _add(self, part: Part, pairs: Sequence[PartPair | None], found: _Found) -> None:
        for index, (pair, one) in enumerate(zip(pairs, found.measured, strict=True)):
            if pair is None or one is None:
                continue
            self.rows[index].extend(one.rows)
            self.curves.extend(one.curves)
            self.totals[index].add(
                one.scan,
                stored_name=pair.base.name,
                is_matrix=part.is_matrix,
                dimensions=len(part.shape),
            )
        everywhere = [one for one in found.measured if one is not None]
        if len(pairs) > 1 and len(everywhere) == len(pairs):
            self.across.add(part, found.bins, everywhere)
        for index, row in found.series:
            self.across.add_series(index, row)

    def result(self, run: dict[str, Any]) -> Comparison:
        sizes = self._role_sizes() if self.plan.why_not == "not_sampled" else None
        pairs = [
            summarise_pair(name, rows, totals, sizes=sizes, about=self._circumstances(place))
            for place, (name, rows, totals) in enumerate(
                zip(self.plan.names, self.rows, self.totals, strict=True)
            )
        ]
        summary = {
            "schema": 1,
            "base": self.plan.base.source,
            "pairs": pairs,
            "across": self.across.summary(pairs),
            "run": run | {"heads": heads(self.plan.base.config)},
        }
        rows = [row for one in self.rows for row in one] + self.across.rows
        return Comparison(
            measurements_frame(rows), curves_frame(self.curves + self.across.curves), summary
        )

    def _circumstances(self, place: int) -> Circumstances:
        """What a judgement of one checkpoint's method has to know beside its numbers."""
        own = [(part, pairs[place]) for part, pairs in self.plan.parts]
        both = self.plan.spectral & self.plan.drawn
        step = step_of(self.plan.labels[place])[1]
        told = self.info
        if step and told.steps is not None and step < told.steps:  # a checkpoint along the way
            told = replace(told, steps=step)
        settings = self.settings
        return Circumstances(
            info=told,
            dtypes=frozenset(pair.tuned_dtype for _, pair in own if pair is not None),
            adapter=isinstance(self.plan.tuned[place], BoundCheckpoint),
            usual=settings.alpha == ALPHA and not (settings.angle_rank or settings.principal_rank),
            unprofiled=sum(
                part.is_matrix and pair is not None and part.tensor not in both
                for part, pair in own
            ),
        )

    def _role_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for part, _ in self.plan.parts:
            if part.is_matrix:
                sizes[part.role] = sizes.get(part.role, 0) + 1
        return sizes


def _plain(pair: TensorPair) -> TensorPair:
    """float8 widened to float32, which holds it exactly: torch has no arithmetic on float8."""
    base, tuned = (t.to(torch.float32) if t.itemsize == 1 else t for t in (pair.base, pair.tuned))
    return TensorPair(pair.part, base, tuned)


def _mismatch_row(label: str, row: Mismatch) -> Measurement:
    """A tensor without a counterpart: an explicit row whose status says why."""
    rows = prod(row.shape[:-1])
    cols = row.shape[-1] if row.shape else 1
    return Measurement(
        label, row.tensor, row.layer, row.role, row.expert, rows, cols, "unchanged_bf16", None, "1",
        None, row.status,
    )  # fmt: skip
