"""How an update moves the spectrum and the singular subspaces of a matrix.

W₀ base, W₊ tuned, ΔW = W₊ − W₀; σ(·) singular values in descending order. Sources: The Path Not
Taken (section 4.1) for `nss` and `rotation_deg`, AlphaRL (section 3) for the rank-1 shares.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from offaxis.linalg import Basis, Spectrum, subspace_angles
from offaxis.measures.number import Number, undefined

__all__ = [
    "effective_rank",
    "energy_in_subspaces",
    "nss",
    "nss_bound",
    "rank1_energy",
    "rank1_norm_share",
    "rotation_deg",
    "wedin_bound_deg",
    "weyl_ratio",
]


def nss(before: Spectrum, after: Spectrum) -> Number:
    """Normalised spectral shift ‖σ(W₊) − σ(W₀)‖₂ / ‖σ(W₀)‖₂, in [0, ∞).

    The full spectrum; The Path Not Taken, section 4.1. Undefined for W₀ = 0. The status is
    `error_exceeds_value` where rounding could have made all of it.
    """
    scale = float(torch.linalg.norm(before.values))
    if scale == 0:
        return undefined("base_is_zero")
    value = float(torch.linalg.norm(after.values - before.values)) / scale
    error = float(torch.sqrt((before.errors**2 + after.errors**2).sum())) / scale
    return Number(value, error, "error_exceeds_value" if 0 < value <= error else "ok")


def rotation_deg(before: Basis, after: Basis) -> tuple[Number, Number, Tensor, Tensor]:
    """Mean principal angle between the top-k subspaces before and after, degrees, in [0, 90].

    Returns left mean, right mean, and the k left and right angles in ascending order (degrees).
    """
    error = math.degrees(min(math.pi / 2, before.angle_error + after.angle_error))
    numbers, curves = [], []
    for a, b in ((before.left, after.left), (before.right, after.right)):
        angles = torch.rad2deg(subspace_angles(a, b))
        value = float(angles.mean())
        status = "error_exceeds_value" if 0 < value <= error else "ok"
        numbers.append(Number(value, error, status))
        curves.append(angles)
    return numbers[0], numbers[1], curves[0], curves[1]


def rank1_energy(update: Spectrum) -> Number:
    """σ₁(ΔW)² / Σ σᵢ(ΔW)², in [1/min(m,n), 1]. Undefined for ΔW = 0."""
    squares = update.values**2
    total = float(squares.sum())
    if total == 0:
        return undefined("no_update")
    top = float(update.values[0])
    error = 2 * top * float(update.errors[0]) / total
    return Number(float(squares[0]) / total, error)


def rank1_norm_share(update: Spectrum) -> Number:
    """σ₁(ΔW) / ‖ΔW‖_F, the square root of `rank1_energy`; AlphaRL calls this the fraction."""
    energy = rank1_energy(update)
    if energy.value is None or energy.error is None:
        return energy
    share = math.sqrt(energy.value)
    return Number(share, energy.error / (2 * share))


def effective_rank(update: Spectrum) -> Number:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ(ΔW)² / Σ σ², in [1, min(m, n)]. Undefined for ΔW = 0."""
    squares = update.values**2
    total = float(squares.sum())
    if total == 0:
        return undefined("no_update")
    p = squares / total
    value = math.exp(-float(torch.xlogy(p, p).sum()))
    slope = torch.where(p > 0, (torch.log(p.clamp_min(1e-300)) + 1).abs(), torch.zeros_like(p))
    spread = 2 * update.values * update.errors / total
    return Number(value, value * float((slope * spread).sum()))


def nss_bound(update_norm: float, base_norm: float) -> Number:
    """‖ΔW‖_F / ‖W₀‖_F, which bounds `nss` (Hoffman and Wielandt; the paper's corollary 3.4)."""
    return Number(update_norm / base_norm) if base_norm else undefined("base_is_zero")


def weyl_ratio(before: Spectrum, after: Spectrum, update: Spectrum) -> Number:
    """max |σᵢ(W₊) − σᵢ(W₀)| / ‖ΔW‖₂, in [0, 1] by Weyl. Undefined for ΔW = 0."""
    largest = float(update.values[0])
    if largest == 0:
        return undefined("no_update")
    moved = float((after.values - before.values).abs().max())
    error = float((before.errors + after.errors).max()) / largest
    return Number(moved / largest, error)


def wedin_bound_deg(before: Spectrum, update: Spectrum, rank: int) -> Number:
    """arcsin(‖ΔW‖₂ / (γ_k − ‖ΔW‖₂)) with γ_k = σ_k(W₀) − σ_{k+1}(W₀), in degrees.

    It bounds every principal angle of the top-k subspaces (Wedin, with the mixed gap; the form in
    the paper's theorem 3.3 uses γ_k alone and can be exceeded). `vacuous` where it bounds nothing.
    """
    if rank >= before.values.numel():
        return undefined("no_gap_at_full_rank")
    gap = float(before.values[rank - 1] - before.values[rank])
    step = float(update.values[0])
    if step >= gap - step:
        return undefined("vacuous")
    bound = math.asin(step / (gap - step))
    step += float(update.errors[0])
    gap -= float(before.errors[rank - 1] + before.errors[rank])
    worst = math.asin(step / (gap - step)) if step < gap - step else math.pi / 2
    return Number(math.degrees(bound), math.degrees(worst - bound))


def energy_in_subspaces(
    update: Float[Tensor, "m n"],
    left: Float[Tensor, "m r"],
    right: Float[Tensor, "n r"],
    *,
    angle_error: float = 0.0,
) -> tuple[Number, Number, Number]:
    """Shares of ‖ΔW‖² inside the base's top-r left, right and two-sided subspaces, in [0, 1].

    ‖UᵀΔW‖²/‖ΔW‖², ‖ΔW V‖²/‖ΔW‖², ‖UᵀΔW V‖²/‖ΔW‖². Under an isotropic update they are r/m, r/n and
    r²/(mn). This is the subspace operator; the principal mask is the coordinate one. angle_error:
    how far (radians) the subspaces may be turned, which can move a share by its sine.
    """
    total = float(torch.linalg.norm(update)) ** 2
    if total == 0:
        return (undefined("no_update"),) * 3
    inside_left = left.T @ update
    shares = (inside_left, update @ right, inside_left @ right)
    turned = math.sin(angle_error)
    one, two, both = (
        Number(float(torch.linalg.norm(inside)) ** 2 / total, sides * turned)
        for inside, sides in zip(shares, (1, 1, 2), strict=True)
    )
    return one, two, both
