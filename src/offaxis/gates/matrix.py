"""Gate II for one matrix: how far an update turns and shifts it, against what the theorems allow.

W₀ base, W₊ tuned, ΔW = W₊ − W₀, σ singular values in descending order, γ_k = σ_k(W₀) − σ_{k+1}(W₀),
sin Θ_k the sine of the largest principal angle between the top-k singular subspaces of W₀ and W₊.
Every check is measured / bound. Source: The Path Not Taken, section 3.2 and appendix E.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from offaxis.errors import InputError
from offaxis.linalg import (
    Basis,
    Spectrum,
    angle_rank,
    singular_values,
    spectrum_and_basis,
    subspace_angles,
)
from offaxis.measures import Number, undefined, wedin_bound_deg, weyl_ratio

__all__ = ["Check", "Ground", "Status", "geometry", "ranks_of"]

Status = Literal["ok", "vacuous", "exceeded", "undefined"]

_LARGEST_SVD = 2048
_ACCEPTED_ERROR = 1e-3
_ALL_RANKS = 256


@dataclass(frozen=True)
class Check:
    """One inequality on one matrix.

    measured, bound: both sides, of the same unit. ratio: measured / bound. error: how far rounding
    may have moved the ratio. rank: the k of the subspace, or the index at which a check over many
    is worst. reason: why the status is `vacuous` or `undefined`.

    Status: `exceeded` only where ratio − error > 1; `vacuous` where the bound says nothing (a sine
    bounded by 1 or more, or a premise that fails); `undefined` where there is nothing to divide.
    """

    name: str
    measured: float | None
    bound: float | None
    ratio: float | None
    status: Status
    error: float | None
    source: str
    rank: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class _State:
    """One matrix after its decomposition; the basis has as many columns as the largest k."""

    spectrum: Spectrum
    basis: Basis


@dataclass(frozen=True)
class Ground:
    """A base matrix, decomposed once for all updates that are checked against it.

    exact: by SVD and not by the Gram matrix, for updates so small that the Gram's rounding shows.
    """

    matrix: Tensor
    ranks: tuple[int, ...]
    state: _State
    exact: bool

    @staticmethod
    def of(base: Tensor, *, ranks: Sequence[int], step: float = math.inf) -> Ground:
        """Decompose `base` (m, n). step: ‖ΔW‖₂ of the smallest update that will be checked."""
        most = max(ranks)
        state = _State(*spectrum_and_basis(base, rank=most))
        rough = float(state.spectrum.errors.max()) > _ACCEPTED_ERROR * step > 0
        exact = rough and min(base.shape) <= _LARGEST_SVD
        if exact:
            state = _State(*spectrum_and_basis(base, rank=most, exact=True))
        return Ground(base, tuple(ranks), state, exact)

    def checks(self, update: Tensor) -> tuple[Check, ...]:
        """Every check of `update` (m, n, float64). The last of `ranks` is the k that is named."""
        change = singular_values(update, exact=self.exact)
        if float(change.values[0]) == 0:
            return nothing("no_update")
        after = _State(
            *spectrum_and_basis(self.matrix + update, rank=max(self.ranks), exact=self.exact)
        )
        norm = float(torch.linalg.norm(update))
        found = list(_values(self.state.spectrum, after.spectrum, change, norm))
        by_rank = [list(_at_rank(self.state, after, change, k)) for k in self.ranks]
        found += by_rank[-1]
        if len(self.ranks) > 1:
            found += [_worst(same) for same in zip(*by_rank, strict=True)]
        return tuple(found)


def ranks_of(rows: int, cols: int, *, rank: int | None, every_rank: bool) -> tuple[int, ...]:
    """The k at which subspaces are compared; the last is `rank`, by default DESIGN's `angle_rank`.

    every_rank: before it, every k below min(m, n), or 64 of them in geometric steps where there
    are more than 256.
    """
    most = min(rows, cols)
    chosen = angle_rank(rows, cols) if rank is None else rank
    if not 1 <= chosen <= most:
        raise InputError(f"rank {chosen} of a {rows}x{cols} matrix: choose 1 to {most}")
    if not every_rank or most == 1:
        return (chosen,)
    if most <= _ALL_RANKS:
        others = list(range(1, most))
    else:
        others = sorted({round((most - 1) ** (i / 63)) for i in range(64)})
    return (*others, chosen)


def geometry(
    base: Tensor, tuned: Tensor, *, rank: int | None = None, every_rank: bool = False
) -> tuple[Check, ...]:
    """The checks of Gate II for one pair of matrices (m, n) of any float dtype, in float64.

    rank: the k of the subspaces, by default `angle_rank`. every_rank: also the worst ratio over
    all k (`ranks_of`), in checks whose name ends in `_worst`. Raises InputError for shapes that
    differ, that are no matrix, or entries that are not finite.
    """
    before, after = as_matrix(base, "base"), as_matrix(tuned, "tuned")
    if before.shape != after.shape:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"base and tuned have shapes {shapes}: give one matrix before and after")
    update = after - before
    step = float(torch.linalg.matrix_norm(update, 2)) if bool(update.any()) else math.inf
    rows, cols = before.shape
    ranks = ranks_of(rows, cols, rank=rank, every_rank=every_rank)
    return Ground.of(before, ranks=ranks, step=step).checks(update)


def as_matrix(matrix: Tensor, what: str) -> Tensor:
    """`matrix` in float64. InputError where it is no matrix or not finite."""
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(f"{what} has shape {tuple(matrix.shape)}: a matrix has two extents")
    wide = matrix.detach().to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        raise InputError(f"{what}: {bad} of {wide.numel()} entries are NaN or infinite; leave it")
    return wide


_WEDIN = {
    "paper": "Theorem 3.3, Lemma E.11",
    "mixed": "Wedin (1972), the gap of W₀ less ‖ΔW‖₂",
    "observed": "Wedin (1972), the gap between W₀ and W₊",
}
_NAMES = {
    "weyl": "Corollary 3.4, Lemma E.12",
    "hoffman_wielandt": "Corollary 3.4, Lemma E.12",
    "operator_frobenius": "Lemma E.10",
    **{f"wedin_{side}_{form}": s for form, s in _WEDIN.items() for side in ("left", "right")},
    **{f"projection_{side}_paper": "Corollary E.13" for side in ("left", "right")},
    "ky_fan_norm": "Corollary 3.5",
    "ky_fan_sum": "Corollary 3.5",
    "ky_fan_mirsky": "Mirsky (1960)",
}
"""Every check, without the `_worst` ones, and where it comes from."""


def nothing(reason: str) -> tuple[Check, ...]:
    """Every check, undefined for one reason."""
    return tuple(
        Check(name, None, None, None, "undefined", None, source, None, reason)
        for name, source in _NAMES.items()
    )


def judge(
    name: str, measured: Number, bound: Number, *, rank: int | None = None, most: float = math.inf
) -> Check:
    """measured / bound as a check. most: what the measured side can never exceed."""
    source = _NAMES[name]
    if measured.value is None or bound.value is None:
        reason = measured.status if measured.value is None else bound.status
        status: Status = "vacuous" if reason == "vacuous" else "undefined"
        return Check(name, measured.value, None, None, status, None, source, rank, reason)
    if bound.value <= (bound.error or 0.0):
        value = bound.value
        return Check(name, measured.value, value, None, "undefined", None, source, rank, "no_bound")
    ratio = measured.value / bound.value
    error = ((measured.error or 0.0) + ratio * (bound.error or 0.0)) / bound.value
    if ratio - error > 1:
        status, reason = "exceeded", ""
    elif bound.value >= most:
        status, reason = "vacuous", "bound_above_any_value"
    else:
        status, reason = "ok", ""
    return Check(name, measured.value, bound.value, ratio, status, error, source, rank, reason)


def _values(before: Spectrum, after: Spectrum, change: Spectrum, norm: float) -> Iterator[Check]:
    """Weyl for every singular value (the worst told), Hoffman–Wielandt, ‖ΔW‖₂ ≤ ‖ΔW‖_F."""
    moved = (after.values - before.values).abs()
    errors = before.errors + after.errors
    step = Number(float(change.values[0]), float(change.errors[0]))
    weyl = weyl_ratio(before, after, change)
    assert weyl.value is not None
    shift = Number(weyl.value * float(change.values[0]), float(errors.max()))
    yield judge("weyl", shift, step, rank=int(moved.argmax()) + 1)
    length = float(torch.linalg.norm(moved))
    rounding = 4 * torch.finfo(torch.float64).eps * norm
    yield judge(
        "hoffman_wielandt",
        Number(length, float(torch.linalg.norm(errors))),
        Number(norm, rounding),
    )
    yield judge("operator_frobenius", step, Number(norm, rounding))


def _at_rank(before: _State, after: _State, change: Spectrum, rank: int) -> Iterator[Check]:
    """What depends on k: Wedin in three forms, the projections, Ky Fan."""
    bounds = {form: make(before, after, change, rank) for form, make in _BOUNDS.items()}
    turned = before.spectrum.subspace_error(rank) + after.spectrum.subspace_error(rank)
    error = math.sin(min(turned, math.pi / 2))
    for side in ("left", "right"):
        one, other = (getattr(state.basis, side)[:, :rank] for state in (before, after))
        sine = Number(math.sin(float(subspace_angles(one, other)[-1])), error)
        for form, bound in bounds.items():
            yield judge(f"wedin_{side}_{form}", sine, bound, rank=rank, most=1.0)
        distance = Number(_projection_distance(one, other), error)
        yield judge(f"projection_{side}_paper", distance, bounds["paper"], rank=rank, most=1.0)
    yield from _ky_fan(before.spectrum, after.spectrum, change, rank)


def _ky_fan(before: Spectrum, after: Spectrum, change: Spectrum, rank: int) -> Iterator[Check]:
    """|‖W₊‖₍ₖ₎ − ‖W₀‖₍ₖ₎| ≤ Σ|σᵢ(W₊) − σᵢ(W₀)| ≤ k‖ΔW‖₂, and the sharper ≤ ‖ΔW‖₍ₖ₎."""
    moved = (after.values - before.values)[:rank]
    error = float((before.errors + after.errors)[:rank].sum())
    net = Number(abs(float(moved.sum())), error)
    total = Number(float(moved.abs().sum()), error)
    yield judge("ky_fan_norm", net, total, rank=rank)
    step = Number(rank * float(change.values[0]), rank * float(change.errors[0]))
    yield judge("ky_fan_sum", total, step, rank=rank)
    own = Number(float(change.values[:rank].sum()), float(change.errors[:rank].sum()))
    yield judge("ky_fan_mirsky", total, own, rank=rank)


def _projection_distance(one: Tensor, other: Tensor) -> float:
    """‖P − Q‖₂ of the projections on two spans, without the (m, m) matrices.

    Both lie in the span of the two bases together, of at most 2k dimensions.
    """
    both = torch.linalg.qr(torch.cat([one, other], dim=1)).Q
    first, second = both.T @ one, both.T @ other
    return float(torch.linalg.eigvalsh(first @ first.T - second @ second.T).abs().max())


def _paper_bound(before: _State, after: _State, change: Spectrum, rank: int) -> Number:
    """‖ΔW‖₂ / γ_k, the base's gap alone."""
    gap = _gap(before.spectrum, before.spectrum, rank)
    return gap if gap.value is None else _over(change, gap)


def _mixed_bound(before: _State, after: _State, change: Spectrum, rank: int) -> Number:
    """‖ΔW‖₂ / (γ_k − ‖ΔW‖₂): the sine of `wedin_bound_deg`."""
    gap = _gap(before.spectrum, before.spectrum, rank)
    if gap.value is None:
        return gap
    angle = wedin_bound_deg(before.spectrum, change, rank)
    if angle.value is None:
        return angle
    sine = math.sin(math.radians(angle.value))
    most = math.sin(math.radians(min(90.0, angle.value + (angle.error or 0.0))))
    return Number(sine, most - sine)


def _observed_bound(before: _State, after: _State, change: Spectrum, rank: int) -> Number:
    """‖ΔW‖₂ / δ with δ the larger of σ_k(W₀) − σ_{k+1}(W₊) and σ_k(W₊) − σ_{k+1}(W₀)."""
    gaps = [
        _gap(one.spectrum, other.spectrum, rank)
        for one, other in ((before, after), (after, before))
    ]
    known = [gap for gap in gaps if gap.value is not None]
    if not known:
        reason = gaps[0].status
        return undefined(reason if reason == "no_gap_at_full_rank" else "vacuous")
    return _over(change, max(known, key=lambda gap: gap.value or 0.0))


_BOUNDS: dict[str, Callable[[_State, _State, Spectrum, int], Number]] = {
    "paper": _paper_bound,
    "mixed": _mixed_bound,
    "observed": _observed_bound,
}


def _gap(upper: Spectrum, lower: Spectrum, rank: int) -> Number:
    """σ_k of one less σ_{k+1} of the other; undefined where rounding could have made it."""
    if rank >= upper.values.numel():
        return undefined("no_gap_at_full_rank")
    gap = float(upper.values[rank - 1] - lower.values[rank])
    error = float(upper.errors[rank - 1] + lower.errors[rank])
    return Number(gap, error) if gap > error else undefined("no_gap")


def _over(change: Spectrum, gap: Number) -> Number:
    """‖ΔW‖₂ / gap with its error."""
    assert gap.value is not None
    assert gap.error is not None
    step, error = float(change.values[0]), float(change.errors[0])
    value = step / gap.value
    return Number(value, (step + error) / (gap.value - gap.error) - value)


def _worst(same: Sequence[Check]) -> Check:
    """Of one check at many k, the one with the largest ratio; an `exceeded` one before others."""
    rated = [one for one in same if one.ratio is not None]
    if not rated:
        return replace(same[-1], name=f"{same[-1].name}_worst", rank=None)
    worst = max(rated, key=lambda one: (one.status == "exceeded", one.ratio))
    return replace(worst, name=f"{worst.name}_worst")
