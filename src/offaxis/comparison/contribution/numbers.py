"""Every number of one tuned checkpoint matrix by matrix, with what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from offaxis.linalg import principal_rank
from offaxis.measures import MEASURES, Number
from offaxis.measures.derived import stable_rank, update_rank

__all__ = ["AVERAGED", "Matrix", "Numbers", "matrices_of"]

_OVERLAPS = ("principal_overlap", "low_magnitude_overlap")
_EXCESSES = {
    **{f"{name}_excess": (name, f"{name}_magnitude_null") for name in _OVERLAPS},
    **{f"{name}_rounding_excess": (name, f"{name}_rounding_null") for name in _OVERLAPS},
    **{
        f"{name}_top5_excess": (f"{name}_top5", f"{name}_top5_magnitude_null") for name in _OVERLAPS
    },
    "principal_not_low_overlap_excess": (
        "principal_not_low_overlap",
        "principal_not_low_overlap_magnitude_null",
    ),
}
"""Observed minus null, matrix by matrix."""

_ENERGIES = ("update_energy_left", "update_energy_right", "update_energy_two_sided")

AVERAGED = (
    *(m.name for m in MEASURES if m.over == "matrices"),
    *_EXCESSES,
    *(f"{name}_excess" for name in _ENERGIES),
    "stable_rank",
    "update_rank",
    "unchanged_bf16",
)
"""What is averaged over matrices, in the order of the file."""


@dataclass(frozen=True)
class Matrix:
    """One matrix of the model. Its name stays here: it is in no contribution."""

    tensor: str
    layer: int | None
    role: str
    rows: int
    cols: int


@dataclass(frozen=True)
class Numbers:
    """measure → tensor → value, for one tuned checkpoint; undefined numbers are left out.

    sampled: spectra are of a sample of the matrices, stratified by role.
    """

    matrices: Mapping[str, Matrix]
    values: dict[str, dict[str, float]] = field(repr=False)
    sampled: bool = False

    def over(self, measure: str, tensors: Iterable[str]) -> dict[str, float]:
        """The defined values of a measure in these tensors."""
        known = self.values.get(measure, {})
        return {tensor: known[tensor] for tensor in tensors if tensor in known}


def matrices_of(
    measurements: pl.DataFrame, curves: pl.DataFrame, label: str, settings: Mapping[str, Any]
) -> Numbers:
    """The numbers of one tuned checkpoint's matrices, those that are derived among them.

    measurements, curves: the tables of a comparison; label: their `tuned`. settings: those of its
    run. Derived are every overlap's excess over its nulls, the subspace energies' excess over an
    isotropic update (r/m, r/n, r²/(mn)), the stable rank, and, of matrices whose curves were kept,
    the numerical rank of ΔW.
    """
    own = measurements.filter(pl.col("tuned") == label)
    matrices, values = _read(own)
    for name, (seen, null) in _EXCESSES.items():
        values[name] = _differences(values.get(seen, {}), values.get(null, {}))
    given = settings.get("principal_rank")
    expected = {name: _isotropic(one, given) for name, one in matrices.items()}
    for index, energy in enumerate(_ENERGIES):
        without = {name: shares[index] for name, shares in expected.items()}
        values[f"{energy}_excess"] = _differences(values.get(energy, {}), without)
    energies = values.get("rank1_energy", {})
    values["stable_rank"] = _defined({name: stable_rank(one) for name, one in energies.items()})
    values["update_rank"] = _ranks(curves.filter(pl.col("tuned") == label), matrices)
    return Numbers(matrices, values, str(settings.get("spectra")).startswith("sample"))


def _read(own: pl.DataFrame) -> tuple[dict[str, Matrix], dict[str, dict[str, float]]]:
    """The matrices, which alone have a row `nss_bound`, and their defined numbers."""
    told = own.filter(pl.col("measure") == "nss_bound")
    columns = ("tensor", "layer", "role", "rows", "cols")
    matrices = {row[0]: Matrix(*row) for row in told.select(columns).iter_rows()}
    values: dict[str, dict[str, float]] = {}
    known = own.filter(pl.col("tensor").is_in(list(matrices)), pl.col("value").is_not_null())
    for tensor, measure, value in known.select("tensor", "measure", "value").iter_rows():
        values.setdefault(measure, {})[tensor] = value
    return matrices, values


def _differences(seen: Mapping[str, float], null: Mapping[str, float]) -> dict[str, float]:
    return {name: value - null[name] for name, value in seen.items() if name in null}


def _isotropic(one: Matrix, given: int | None) -> tuple[float, float, float]:
    """Shares of the energy of an update without direction in the top-r subspaces."""
    rank = min(given or principal_rank(one.rows, one.cols), one.rows, one.cols)
    return rank / one.rows, rank / one.cols, rank * rank / (one.rows * one.cols)


def _defined(numbers: Mapping[str, Number]) -> dict[str, float]:
    return {name: one.value for name, one in numbers.items() if one.value is not None}


def _ranks(curves: pl.DataFrame, matrices: Mapping[str, Matrix]) -> dict[str, float]:
    kept = curves.filter(pl.col("curve") == "singular_values_update")
    return _defined(
        {
            tensor: update_rank(
                np.asarray(values, np.float64), (matrices[tensor].rows, matrices[tensor].cols)
            )
            for tensor, values in kept.select("tensor", "values").iter_rows()
            if tensor in matrices
        }
    )
