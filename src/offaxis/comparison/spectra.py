"""Rows that need singular values: spectral shift, rotation, bounds, the rank of the update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from offaxis import measures
from offaxis.linalg import singular_values, spectrum_and_basis
from offaxis.measures import MEASURES, Number, undefined

if TYPE_CHECKING:
    from offaxis.comparison.base import BaseSide, Spectral
    from offaxis.comparison.entries import CurveData

__all__ = ["spectral_numbers"]

_NAMES = tuple(
    m.name for m in MEASURES if m.needs == "spectra" and not m.name.startswith("principal_")
)
_STILL = ("nss", "rotation_left_deg", "rotation_right_deg")
_LARGEST_SVD = 2048
_ACCEPTED_ERROR = 1e-4


def spectral_numbers(
    base: BaseSide, update: torch.Tensor | None, curves: dict[str, CurveData]
) -> Iterator[tuple[str, Number]]:
    """All spectral rows of one tensor. `update` is ΔW in float64 as stored; curves are added to.

    Every row is present: undefined, with the reason, where there is nothing to measure.
    """
    spectral = base.spectral
    if spectral is None or update is None:
        reason = base.why_not if spectral is None else "nonfinite"
        yield "principal_near_threshold", undefined(reason)
        yield from ((name, undefined(reason)) for name in _NAMES)
        return
    yield "principal_near_threshold", Number(float(spectral.near_threshold))
    moved = update.T if base.part.transposed else update
    curves["singular_values_base"] = _curve(spectral.spectrum.values)
    if not bool(moved.any()):
        curves["singular_values_tuned"] = curves["singular_values_base"]
        still = ("nss", "nss_bound", "rotation_left_deg", "rotation_right_deg")
        yield from (
            (name, Number(0.0, 0.0) if name in still else undefined("no_update")) for name in _NAMES
        )
        return
    yield from _moved(spectral, moved, curves)


def _moved(
    spectral: Spectral, update: torch.Tensor, curves: dict[str, CurveData]
) -> Iterator[tuple[str, Number]]:
    k, r = spectral.angle_rank, spectral.principal_rank
    change = singular_values(update)
    before = spectral.spectrum
    after, basis = spectrum_and_basis(spectral.matrix + update, rank=k)
    shift = measures.nss(before, after)
    if _too_rough(shift) and min(update.shape) <= _LARGEST_SVD:
        before = singular_values(spectral.matrix, exact=True)
        after = singular_values(spectral.matrix + update, exact=True)
        shift = measures.nss(before, after)
    left, right, left_angles, right_angles = measures.rotation_deg(spectral.top(k), basis)
    yield "nss", shift
    yield "rotation_left_deg", left
    yield "rotation_right_deg", right
    yield "wedin_bound_deg", measures.wedin_bound_deg(before, change, k)
    yield "weyl_ratio", measures.weyl_ratio(before, after, change)
    yield "rank1_energy", measures.rank1_energy(change)
    yield "rank1_norm_share", measures.rank1_norm_share(change)
    yield "effective_rank", measures.effective_rank(change)
    top = spectral.top(r)
    turned = spectral.spectrum.subspace_error(r)
    inside = measures.energy_in_subspaces(update, top.left, top.right, angle_error=turned)
    for name, number in zip(("left", "right", "two_sided"), inside, strict=True):
        yield f"update_energy_{name}", number
    curves["singular_values_tuned"] = _curve(after.values)
    curves["singular_values_update"] = _curve(change.values)
    curves["angles_left_deg"] = _curve(left_angles)
    curves["angles_right_deg"] = _curve(right_angles)


def _too_rough(shift: Number) -> bool:
    """Whether the Gram's rounding could show in the spectral shift."""
    if shift.value is None or shift.error is None:
        return False
    return shift.error > _ACCEPTED_ERROR * shift.value


def _curve(values: torch.Tensor) -> CurveData:
    return tuple(values.shape), values.numpy()
