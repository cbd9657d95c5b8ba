"""`compare`: plan from headers, validate, stream one pair of tensors at a time, tabulate."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

import offaxis
from offaxis.checkpoint import AdapterCheckpoint, align, bind, open_checkpoint, read_pair
from offaxis.consensus import Across
from offaxis.errors import InputError
from offaxis.estimate import Estimate, estimate
from offaxis.kernels.pool import in_order, threads
from offaxis.measuring import BaseSide, Measured, Settings, measure_pair
from offaxis.output import staged_directory
from offaxis.sampling import choose_spectra
from offaxis.summary import PairTotals, summarise_pair
from offaxis.table import Curve, Measurement, curves_frame, measurements_frame

if TYPE_CHECKING:
    import polars as pl

    from offaxis.checkpoint import Aligned, Checkpoint, Mismatch, Part, PartPair

__all__ = ["Comparison", "compare"]

AnyPath = str | PathLike[str]
_WORKING_BYTES = 2_000_000_000
_DRAWN = 2000
"""Curves and pictures are kept for so many matrices in all; beyond, for a stratified choice."""
_WIDER_THAN_BF16 = frozenset({"F32", "F64"})


@dataclass(frozen=True)
class Progress:
    """Told to a progress callback after each tensor: `done` of `total` entries, and its name."""

    done: int
    total: int
    tensor: str


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: two tables and a summary, in memory.

    measurements: one row a number (`offaxis.table.MEASUREMENTS`). curves: one row a list.
    """

    measurements: pl.DataFrame
    curves: pl.DataFrame
    _summary: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds (DESIGN, section 2)."""
        return self._summary

    def report(
        self, *, scores: pl.DataFrame | None = None, contrasts: pl.DataFrame | None = None
    ) -> str:
        """The report as one HTML page. scores, contrasts: further tables that it shows."""
        from offaxis.report import render

        return render(
            self.measurements, self.curves, self._summary, scores=scores, contrasts=contrasts
        )

    def save(
        self,
        directory: AnyPath,
        *,
        overwrite: bool = False,
        scores: pl.DataFrame | None = None,
        contrasts: pl.DataFrame | None = None,
    ) -> Path:
        """Write measurements.parquet, curves.parquet, summary.json and report.html, atomically.

        Returns the directory. Raises OutputError where it is not empty (unless `overwrite`) or
        cannot be written; then nothing is left behind.
        """
        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            page = self.report(scores=scores, contrasts=contrasts)
            self.measurements.write_parquet(staged / "measurements.parquet", compression="zstd")
            self.curves.write_parquet(staged / "curves.parquet", compression="zstd")
            (staged / "report.html").write_text(page, encoding="utf-8")
            text = json.dumps(self._summary, indent=2, ensure_ascii=False, allow_nan=False)
            (staged / "summary.json").write_text(text + "\n", encoding="utf-8")
        return out


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

    Tensors are matched from headers before any is read, and one pair is resident at a time. One
    unusable checkpoint fails the whole comparison. Raises InputError and its subclasses.
    """
    started = time.time()
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha} is outside (0, 1); it is the density of the fixed masks")
    for name, rank in (("angle_rank", angle_rank), ("principal_rank", principal_rank)):
        if rank is not None and rank < 1:
            raise InputError(f"{name} {rank} is below 1; leave it out for the default")
    settings = Settings(alpha, angle_rank, principal_rank, seed, rounding_null)
    plan = _Plan.make(base, tuned, spectra=spectra, seed=seed, allow_pickle=allow_pickle)
    tell = announce or (lambda line: None)
    for line in plan.lines():
        tell(line)
    stream = _Stream(plan, settings)
    stream.run(progress or (lambda step: None))
    run = {
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
    return stream.result(run)


@dataclass(frozen=True)
class _Plan:
    """Everything that headers tell: what is matched with what, and what gets a spectrum."""

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    aligned: tuple[Aligned, ...]
    parts: tuple[tuple[Part, tuple[PartPair | None, ...]], ...]
    spectral: frozenset[str]
    why_not: str
    drawn: frozenset[str]
    estimate: Estimate

    @staticmethod
    def make(
        base: AnyPath,
        tuned: AnyPath | Sequence[AnyPath],
        *,
        spectra: str,
        seed: int,
        allow_pickle: bool,
    ) -> _Plan:
        names = (
            [fspath(tuned)] if isinstance(tuned, (str, PathLike)) else [fspath(t) for t in tuned]
        )
        if not names:
            raise InputError("nothing to compare: name at least one tuned checkpoint")
        ground = open_checkpoint(fspath(base), allow_pickle=allow_pickle)
        if isinstance(ground, AdapterCheckpoint):
            raise InputError(f"{fspath(base)} is an adapter; BASE must be the model it belongs to")
        sides = tuple(_open_tuned(name, ground, allow_pickle) for name in names)
        aligned = tuple(align(ground, side) for side in sides)
        parts = _collect(aligned)
        matrices = {p.tensor: (p.role, p.layer or 0) for p, _ in parts if p.is_matrix}
        chosen, why_not = choose_spectra(matrices, spectra, seed=seed)
        drawn, _ = choose_spectra(matrices, f"sample:{max(1, _DRAWN // len(sides))}", seed=seed)
        shapes = [p.shape for p, _ in parts if p.tensor in chosen]
        entries = sum(int(np.prod(p.shape, dtype=np.int64)) for p, _ in parts)
        cost = estimate(
            read_bytes=sum(_bytes(side) for side in sides) + _bytes(ground),
            entries=entries,
            matrices=len(matrices),
            spectra=[(shape[0], shape[1]) for shape in shapes],
            tuned=len(sides),
        )
        labels = tuple(_labels(names))
        return _Plan(ground, sides, tuple(names), labels, aligned, parts, frozenset(chosen),
                     why_not, frozenset(drawn), cost)  # fmt: skip

    def lines(self) -> list[str]:
        """The plan in words, for a user to read before the work starts."""
        found = []
        for name, one in zip(self.names, self.aligned, strict=True):
            if one.renaming != "identity":
                found.append(f"{name}: names matched by {one.renaming}")
            for row in one.mismatches:
                found.append(f"{name}: {row.tensor}: {row.status}: {row.detail}")
        return [*found, str(self.estimate)]

    def record(self) -> list[dict[str, Any]]:
        """The chosen renamings and what did not match, for the `run` block."""
        return [
            {
                "tuned": name,
                "renaming": one.renaming,
                "renamed": dict(one.renamed),
                "mismatches": [
                    {"tensor": row.tensor, "status": row.status, "detail": row.detail}
                    for row in one.mismatches
                ],
            }
            for name, one in zip(self.names, self.aligned, strict=True)
        ]


def _open_tuned(name: str, base: Checkpoint, allow_pickle: bool) -> Checkpoint:
    side = open_checkpoint(name, allow_pickle=allow_pickle)
    return bind(side, base) if isinstance(side, AdapterCheckpoint) else side


def _labels(names: Sequence[str]) -> list[str]:
    """The names, a repeated one numbered so that rows stay apart."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels


def _collect(
    aligned: Sequence[Aligned],
) -> tuple[tuple[Part, tuple[PartPair | None, ...]], ...]:
    """Each part of the base that any tuned checkpoint matches, in order, with all its pairs."""
    order: dict[str, Part] = {}
    by_tensor: list[dict[str, PartPair]] = []
    for one in aligned:
        by_tensor.append({pair.part.tensor: pair for pair in one.pairs})
        for pair in one.pairs:
            order.setdefault(pair.part.tensor, pair.part)
    return tuple(
        (part, tuple(pairs.get(tensor) for pairs in by_tensor)) for tensor, part in order.items()
    )


def _bytes(side: Checkpoint) -> int:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    return sum(spec.numel * width.get(spec.dtype, 1) for spec in side.specs.values())


@dataclass(frozen=True)
class _Found:
    """One part, measured in each run that has it, and the base's count in each magnitude bin."""

    measured: list[Measured | None]
    bins: npt.NDArray[np.int64]


def _workers(plan: _Plan) -> tuple[int, int]:
    """How many parts are measured at once, and how many BLAS threads each gets.

    Several small decompositions side by side use the cores better than one at a time with all
    threads, and do not collapse when another process takes a core. Each part at work holds up to
    five float64 copies; the number at once is cut until they fit in `_WORKING_BYTES`.
    """
    largest = max((math.prod(p.shape) for p, _ in plan.parts if p.is_matrix), default=1)
    fit = max(1, _WORKING_BYTES // (5 * 8 * largest))
    workers = max(1, min(threads(), 4, fit))
    return workers, max(1, threads() // workers)


class _Stream:
    """Measures the plan's parts one after the other."""

    def __init__(self, plan: _Plan, settings: Settings) -> None:
        self.plan, self.settings = plan, settings
        self.rows: list[list[Measurement]] = [[] for _ in plan.tuned]
        self.curves: list[Curve] = []
        self.totals = [PairTotals() for _ in plan.tuned]
        self.across = Across(plan.labels)

    def run(self, progress: Callable[[Progress], None]) -> None:
        """Measure every part. Workers take parts; results are added in the plan's order."""
        for rows, label, one in zip(self.rows, self.plan.labels, self.plan.aligned, strict=True):
            rows.extend(_mismatch_row(label, row) for row in one.mismatches)
        sizes = [int(np.prod(part.shape, dtype=np.int64)) for part, _ in self.plan.parts]
        workers, blas = _workers(self.plan)
        done, total = 0, sum(sizes)

        def measure(item: tuple[Part, tuple[PartPair | None, ...]]) -> _Found:
            torch.set_num_threads(blas)  # of the calling thread alone
            return self._measure(*item)

        for (part, pairs), size, found in zip(
            self.plan.parts, sizes, in_order(measure, self.plan.parts, workers), strict=True
        ):
            self._add(part, pairs, found)
            done += size
            progress(Progress(done, total, part.tensor))

    def _measure(self, part: Part, pairs: Sequence[PartPair | None]) -> _Found:
        ground: BaseSide | None = None
        found: list[Measured | None] = []
        for index, pair in enumerate(pairs):
            if pair is None:
                found.append(None)
                continue
            tensors = read_pair(self.plan.base, self.plan.tuned[index], pair)
            if ground is None:
                why_not = "" if part.tensor in self.plan.spectral else self.plan.why_not
                ground = BaseSide(part, tensors.base, self.settings, why_not)
            wide = pair.tuned_dtype in _WIDER_THAN_BF16
            label = self.plan.labels[index]
            draw = part.tensor in self.plan.drawn
            found.append(measure_pair(ground, tensors, tuned=label, wide=wide, draw=draw))
        return _Found(found, ground.bins if ground else np.zeros(0, np.int64))

    def _add(self, part: Part, pairs: Sequence[PartPair | None], found: _Found) -> None:
        for index, (pair, one) in enumerate(zip(pairs, found.measured, strict=True)):
            if pair is None or one is None:
                continue
            self.rows[index].extend(one.rows)
            self.curves.extend(one.curves)
            self.totals[index].add(one.scan, stored_name=pair.base.name, is_matrix=part.is_matrix)
        everywhere = [one for one in found.measured if one is not None]
        if len(pairs) > 1 and len(everywhere) == len(pairs):
            draw = part.tensor in self.plan.drawn
            self.across.add(part, found.bins, everywhere, draw=draw)

    def result(self, run: dict[str, Any]) -> Comparison:
        sizes = self._role_sizes() if self.plan.why_not == "not_sampled" else None
        pairs = [
            summarise_pair(name, rows, totals, sizes=sizes)
            for name, rows, totals in zip(self.plan.names, self.rows, self.totals, strict=True)
        ]
        summary = {
            "schema": 1,
            "base": self.plan.base.source,
            "pairs": pairs,
            "across": self.across.summary(pairs),
            "run": run,
        }
        rows = [row for one in self.rows for row in one] + self.across.rows
        return Comparison(
            measurements_frame(rows), curves_frame(self.curves + self.across.curves), summary
        )

    def _role_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for part, _ in self.plan.parts:
            if part.is_matrix:
                sizes[part.role] = sizes.get(part.role, 0) + 1
        return sizes


def _mismatch_row(label: str, row: Mismatch) -> Measurement:
    """A tensor without a counterpart: an explicit row whose status says why."""
    rows = int(np.prod(row.shape[:-1], dtype=np.int64)) if len(row.shape) > 1 else 1
    cols = row.shape[-1] if row.shape else 1
    return Measurement(
        label, row.tensor, row.layer, row.role, row.expert, rows, cols, "unchanged_bf16", None, "1",
        None, row.status,
    )  # fmt: skip
