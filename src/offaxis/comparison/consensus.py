"""Across runs: which entries change again, and what magnitude alone would give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offaxis import measures
from offaxis.comparison.measure import Measured, model_shape
from offaxis.comparison.profiles import PROFILE_CORRELATIONS, finals, step_of
from offaxis.comparison.sampling import Mean, mean_over
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
_PROFILES = PROFILE_CORRELATIONS


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
        self._finals = finals(labels)
        self._series: dict[tuple[int, str], list[Measurement]] = {}
        self._runs = np.zeros(len(labels) + 1, np.int64)
        self._runs_null = np.zeros(len(labels) + 1)
        self._cells = {pair: _Cell() for pair in itertools.combinations(range(len(labels)), 2)}

    def add(
        self,
        part: Part,
        total: npt.NDArray[np.int64],
        found: Sequence[Measured],
    ) -> None:
        """One tensor, measured in every run. `total`: entries of the base in each bin."""
        masks = [one.scan.mask for one in found if one.scan.mask is not None]
        if len(masks) != len(self.labels):
            return
        entries = found[0].scan.entries
        self._runs += measures.changed_in_r_runs(masks, entries)
        bins = [one.bins for one in found if one.bins is not None]
        if len(bins) < len(masks):  # no matrix: one bin
            total = np.array([entries])
            bins = [np.array([popcount(mask)]) for mask in masks]
        self._runs_null += measures.changed_in_r_runs_null(total, bins)
        if not part.is_matrix:
            return
        for (i, j), cell in self._cells.items():
            self._pair(part, total, (i, j), (found[i], found[j]), cell)
        self._consensus(part, [found[index] for index in self._finals])

    def add_series(self, index: int, row: Measurement) -> None:
        """One number that sets a checkpoint's tensor beside the last checkpoint of its run."""
        self.rows.append(row)
        self._series.setdefault((index, row.measure), []).append(row)

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

    def _consensus(self, part: Part, found: Sequence[Measured]) -> None:
        """Mean over runs (at their last checkpoint) of the profiles, and of their null.

        A block's mean is the paper's consensus ratio C averaged over the block. Its null is
        exact, whether or not the runs are independent of one another.
        """
        for kind in ("seen", "null"):
            all_of = [one for one in (getattr(run, kind) for run in found) if one is not None]
            if len(all_of) < 2 or len(all_of) < len(found):
                return
            rows, columns, picture = (np.mean(one, axis=0) for one in zip(*all_of, strict=True))
            ending = "" if kind == "seen" else "_magnitude_null"
            for name, values in (
                ("consensus_rows", measures.binned(rows)),
                ("consensus_columns", measures.binned(columns)),
                ("consensus_picture", picture),
            ):
                curve = Curve("", part.tensor, name + ending, values.shape, values.reshape(-1))
                self.curves.append(curve)

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
            "changed_in_r_runs_magnitude_null": (
                [float(n) / total for n in self._runs_null] if total else []
            ),
            "jaccard": matrix("observed"),
            "jaccard_null": matrix("null"),
            "consensus_of": [pairs[i]["tuned"] for i in self._finals if len(self._finals) > 1],
            "series": series(pairs, self._profile_means()),
        }

    def _profile_means(self) -> dict[int, dict[str, Mean]]:
        """Mean over matrices of each profile correlation, for each checkpoint that has one."""
        found: dict[int, dict[str, Mean]] = {}
        for (index, measure), rows in self._series.items():
            defined = [(row.value, row.role) for row in rows if row.value is not None]
            mean = mean_over([value for value, _ in defined], [role for _, role in defined])
            found.setdefault(index, {})[measure] = mean
        return found

    @staticmethod
    def _entry(cells: Mapping[tuple[int, int], _Cell], kind: str, i: int, j: int) -> float | None:
        if i == j:
            return 1.0 if kind == "observed" else None
        cell = cells.get((min(i, j), max(i, j)))
        return getattr(cell, kind) / cell.matrices if cell else None


def series(
    pairs: Sequence[Mapping[str, Any]], profiles: Mapping[int, Mapping[str, Mean]]
) -> list[dict[str, Any]]:
    """Every checkpoint whose name tells its step, by run and in step order.

    profiles: by index of the pair, the mean of each profile correlation (none for the last
    checkpoint of a run, which the others are correlated with).
    """
    found = []
    for index, pair in enumerate(pairs):
        run, step = step_of(pair["tuned"])
        if step is None:
            continue
        means = profiles.get(index, {})
        row = {"tuned": pair["tuned"], "run": run, "step": step}
        row |= {name: pair.get(name) for name in _SERIES}
        row |= {name: means[name].value if name in means else None for name in _PROFILES}
        row["intervals"] = {n: [m.low, m.high] for n, m in means.items() if m.low is not None}
        found.append(row)
    return sorted(found, key=lambda row: (row["run"], row["step"]))
