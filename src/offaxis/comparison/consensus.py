"""Across runs: which entries change again, and what magnitude alone would give."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offaxis import measures
from offaxis.comparison.measure import Measured, model_shape
from offaxis.kernels import popcount
from offaxis.table import Curve, Measurement

if TYPE_CHECKING:
    from offaxis.checkpoint import Part

__all__ = ["Across", "series"]

_SERIES = (
    "unchanged_bf16",
    "relative_update_norm",
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "principal_overlap",
    "principal_overlap_magnitude_null",
    "low_magnitude_overlap",
    "low_magnitude_overlap_magnitude_null",
    "rank1_energy",
    "effective_rank",
)
_STEP = re.compile(r"(?:^|(?<=[-_/.]))(?:checkpoint|global_step|step|iter|epoch)[-_]?(\d+)")


@dataclass
class _Cell:
    """Sums over matrices for one pair of runs."""

    observed: float = 0.0
    chance: float = 0.0
    null: float = 0.0
    matrices: int = 0


class Across:
    """Collects the update masks of all runs one tensor at a time, and keeps only sums."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.rows: list[Measurement] = []
        self.curves: list[Curve] = []
        self._runs = np.zeros(len(labels) + 1, np.int64)
        self._cells = {pair: _Cell() for pair in itertools.combinations(range(len(labels)), 2)}

    def add(
        self,
        part: Part,
        total: npt.NDArray[np.int64],
        found: Sequence[Measured],
        *,
        draw: bool = True,
    ) -> None:
        """One tensor, measured in every run. `total`: entries of the base in each bin.

        draw: keep the picture of the consensus.
        """
        masks = [one.scan.mask for one in found if one.scan.mask is not None]
        if len(masks) != len(self.labels):
            return
        entries = found[0].scan.entries
        self._runs += measures.changed_in_r_runs(masks, entries)
        if not part.is_matrix:
            return
        for (i, j), cell in self._cells.items():
            self._pair(part, total, (i, j), (found[i], found[j]), cell)
        if draw:
            self._picture(part, masks)

    def _pair(
        self,
        part: Part,
        total: npt.NDArray[np.int64],
        where: tuple[int, int],
        pair: tuple[Measured, Measured],
        cell: _Cell,
    ) -> None:
        one, other = pair
        assert one.scan.mask is not None
        assert other.scan.mask is not None
        assert one.bins is not None
        assert other.bins is not None
        entries = one.scan.entries
        seen = measures.jaccard(one.scan.mask, other.scan.mask)
        chance = measures.jaccard_chance(
            popcount(one.scan.mask) / entries, popcount(other.scan.mask) / entries
        )
        null = measures.jaccard_magnitude_null(total, one.bins, other.bins)
        label = " ∥ ".join(self.labels[k] for k in where)
        height, width = model_shape(part)
        for name, number in (
            ("jaccard", seen),
            ("jaccard_chance", chance),
            ("jaccard_magnitude_null", null),
        ):
            self.rows.append(
                Measurement(label, part.tensor, part.layer, part.role, part.expert, height, width,
                            name, number.value, "1", number.error, number.status)
            )  # fmt: skip
        if seen.value is None or chance.value is None or null.value is None:
            return
        cell.observed += seen.value
        cell.chance += chance.value
        cell.null += null.value
        cell.matrices += 1

    def _picture(self, part: Part, masks: Sequence[npt.NDArray[np.uint8]]) -> None:
        height, width = part.shape
        pictures = [measures.mask_picture(mask, (height, width)) for mask in masks]
        mean = np.mean(pictures, axis=0)
        mean = mean.T if part.transposed else mean
        self.curves.append(
            Curve("", part.tensor, "consensus_picture", mean.shape, mean.reshape(-1))
        )

    def summary(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The `across` block of `summary.json`; None for a single tuned checkpoint."""
        if len(self.labels) < 2:
            return None
        cells = {where: cell for where, cell in self._cells.items() if cell.matrices}
        total = int(self._runs.sum())

        def mean(kind: str) -> float | None:
            values = [getattr(cell, kind) / cell.matrices for cell in cells.values()]
            return float(np.mean(values)) if values else None

        def matrix(kind: str) -> list[list[float | None]]:
            size = range(len(self.labels))
            return [[self._entry(cells, kind, i, j) for j in size] for i in size]

        return {
            "jaccard_mean": mean("observed"),
            "jaccard_chance": mean("chance"),
            "jaccard_magnitude_null": mean("null"),
            "changed_in_r_runs": [int(n) / total for n in self._runs] if total else [],
            "jaccard": matrix("observed"),
            "jaccard_null": matrix("null"),
            "series": series(pairs),
        }

    @staticmethod
    def _entry(cells: Mapping[tuple[int, int], _Cell], kind: str, i: int, j: int) -> float | None:
        if i == j:
            return 1.0 if kind == "observed" else None
        cell = cells.get((min(i, j), max(i, j)))
        return getattr(cell, kind) / cell.matrices if cell else None


def step_of(tuned: str) -> tuple[str, int | None]:
    """(run, step) read from names such as `rl/checkpoint-20` or `global_step_20/actor`.

    The last number that names a step counts, and the run is what stands around it.
    """
    found = list(_STEP.finditer(tuned))
    if not found:
        return tuned, None
    last = found[-1]
    around = (tuned[: last.start()].rstrip("-_/."), tuned[last.end() :].strip("/"))
    return "/".join(part for part in around if part), int(last[1])


def series(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every checkpoint whose name tells its step, by run and in step order."""
    found = []
    for pair in pairs:
        run, step = step_of(pair["tuned"])
        if step is not None:
            numbers = {name: pair.get(name) for name in _SERIES}
            found.append({"tuned": pair["tuned"], "run": run, "step": step, **numbers})
    return sorted(found, key=lambda row: (row["run"], row["step"]))
