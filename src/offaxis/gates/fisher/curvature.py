"""Rayleigh quotients of Δ beside those of its nulls, and of noise confined to the base's spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offaxis.gates.fisher.intervals import Estimate, Resampler
from offaxis.gates.fisher.nulls import NULLS
from offaxis.gates.fisher.probes import Probed
from offaxis.gates.fisher.scopes import Scope
from offaxis.gates.fisher.spaces import CONTRASTS, SPACES, Spaces

__all__ = ["Confined", "Contrast", "Quotient", "confined", "quotients"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quotient:
    """ΔᵀFΔ / ‖Δ‖² in one scope against one null that is as long in every part."""

    scope: Scope
    norm: float
    """‖Δ‖ in the scope."""
    form: float
    """ΔᵀFΔ in the scope, a sequence: exact."""
    quotient: Estimate
    null: str
    null_quotient: Estimate
    """Expected over all draws, from probes."""
    ratio: Estimate
    """quotient / null_quotient: below 1 where Δ lies in flatter directions than the null's."""
    draws: tuple[float, ...]
    """Exact quotients of single draws; empty in scopes that were not drawn."""


@dataclass(frozen=True)
class Confined:
    """Expected Rayleigh quotient of Gaussian noise in one space of the matrices of one scope."""

    scope: Scope
    space: str
    dimension: int
    quotient: Estimate
    """Each matrix's noise as long as Δ is there: Σ ‖Δ_i‖² tr(P_S F_i)/dim S_i / Σ ‖Δ_i‖²."""


@dataclass(frozen=True)
class Contrast:
    """The quotient of one space over that of another, in the same scope."""

    scope: Scope
    contrast: str
    ratio: Estimate
    above: int
    """Matrices in the scope where the ratio is above 1 ..."""
    matrices: int
    """... of so many in which both are defined."""


def quotients(
    scopes: Sequence[Scope],
    norms: Floats,
    forms: Floats,
    probed: Probed,
    draws: Mapping[str, Mapping[int, Floats]],
    *,
    resampler: Resampler,
) -> tuple[Quotient, ...]:
    """A row for every scope and null.

    norms: ‖Δ‖² of the units. forms: ΔᵀFΔ, (scopes, prompts). draws: null → number of a scope →
    forms of draws, a sequence.
    """
    found = []
    for number, scope in enumerate(scopes):
        square = float(norms[list(scope.units)].sum())
        if square == 0:
            continue
        own = resampler.mean(forms[number], scale=1 / square)
        expected = probed.null_form(scope.units)
        for at, null in enumerate(NULLS):
            many = draws.get(null, {}).get(number, np.zeros(0))
            found.append(
                Quotient(
                    scope,
                    square**0.5,
                    float(forms[number].mean()),
                    own,
                    null,
                    resampler.mean(expected[:, at], scale=1 / square),
                    resampler.ratio(forms[number], expected[:, at]),
                    tuple(float(one) / square for one in many),
                )
            )
    return tuple(found)


def confined(
    scopes: Sequence[Scope],
    norms: Floats,
    probed: Probed,
    spaces: Mapping[int, Spaces],
    *,
    resampler: Resampler,
) -> tuple[tuple[Confined, ...], tuple[Contrast, ...]]:
    """Every space, and every contrast, in every scope that has matrices."""
    rows: list[Confined] = []
    contrasts: list[Contrast] = []
    each = {at: _unit_quotients(probed, at, one) for at, one in spaces.items()}
    names = list(SPACES)
    for scope in scopes:
        inside = [at for at in scope.units if at in spaces]
        weights = norms[inside] if len(inside) > 1 else np.ones(len(inside))
        if not inside or weights.sum() == 0:
            continue
        mean = np.tensordot(weights / weights.sum(), np.stack([each[at] for at in inside]), 1)
        dims = np.sum([spaces[at].dims for at in inside], axis=0)
        rows += [
            Confined(scope, name, int(dims[at]), resampler.mean(mean[:, at]))
            for at, name in enumerate(names)
        ]
        for name, (top, bottom) in CONTRASTS.items():
            first, second = names.index(top), names.index(bottom)
            single = [each[at].mean(0) for at in inside]
            defined = [one for one in single if one[second] > 0 and np.isfinite(one[first])]
            contrasts.append(
                Contrast(
                    scope,
                    name,
                    resampler.ratio(mean[:, first], mean[:, second]),
                    sum(bool(one[first] > one[second]) for one in defined),
                    len(defined),
                )
            )
    return tuple(rows), tuple(contrasts)


def _unit_quotients(probed: Probed, unit: int, spaces: Spaces) -> Floats:
    """(prompts, spaces): trace over dimension; NaN for an empty space."""
    dims = np.where(spaces.dims > 0, spaces.dims, np.nan)
    found: Floats = probed.traces[:, :, unit].mean(1) / dims
    return found
