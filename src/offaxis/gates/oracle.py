"""Gate I on small policies: the tilted oracle, its projection, and what proposition 3.1 says.

π = π_θ the policy, q the reference, q̃_β ∝ q exp(R/β) the oracle, θ⁺ the M-projection of q̃_β,
κ = D_KL(q̃_β‖π). The proposition: D_KL(π_θ⁺‖π) ≤ (1 + o(1)) κ. Three exact facts place it.

Linear logits: the M-projection matches moments, so κ = D_KL(q̃_β‖π_θ⁺) + D_KL(π_θ⁺‖π): the
inequality holds for every step, large or small, on policy or not, without the o(1).
On policy (q = π), β → ∞: the ratio tends to R² = gᵀF⁺g / Var_π(R), the share of the reward's
variance that the scores explain, g the policy gradient.
Any family, κ → 0: D_KL(π_θ⁺‖π) ≤ 4κ(1 + o(1)), since both π and π_θ⁺ lie within κ of q̃_β.
Source: The Path Not Taken, proposition 3.1 and appendix E.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import polars as pl
import torch
from torch import Tensor

from offaxis.errors import InputError
from offaxis.gates.policies import Policy, curved, kl, low_rank, project, tabular, tilted

__all__ = ["BETAS", "Circle", "Tilt", "circle", "leash_limit", "leash_study", "tilt"]

BETAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
_GRID = 1 << 14
_SEED_OF = {"tabular": 1, "low_rank": 2, "curved": 3}


@dataclass(frozen=True)
class Tilt:
    """One projection of one oracle.

    kappa: D_KL(q̃‖π). leash: D_KL(π_θ⁺‖π). ratio: leash / kappa, 1 by the proposition. misfit:
    D_KL(q̃‖π_θ⁺). convexity: the least eigenvalue of H_q̃(θ), which the proof needs above 0.
    cos_first: between −∇D_KL(q̃‖π_θ) at θ and the policy gradient g. cos_plain, cos_natural:
    between θ⁺ − θ and g, or F⁺g. None where one of the two is zero.
    """

    beta: float
    kappa: float
    leash: float
    ratio: float | None
    misfit: float
    convexity: float
    cos_first: float | None
    cos_plain: float | None
    cos_natural: float | None


def tilt(
    policy: Policy,
    reward: Tensor,
    *,
    beta: float,
    theta: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tilt:
    """Tilt, project, compare. reward: (n,). theta: the policy, by default 0.

    reference: log q (n,), by default log π_θ (on policy).
    """
    if reward.shape != policy.offset.shape:
        shapes = f"{tuple(reward.shape)} and {tuple(policy.offset.shape)}"
        raise InputError(f"reward and policy have shapes {shapes}: give one reward an outcome")
    start = policy.origin() if theta is None else theta
    now = policy.log_probs(start)
    oracle = tilted(now if reference is None else reference, reward, beta)
    found = project(policy, oracle, start)
    after, step = policy.log_probs(found), found - start
    gradient, natural = _gradients(policy, start, reward)
    kappa, leash = kl(oracle, now), kl(after, now)
    curvature = policy.curvature(start, oracle.exp())
    return Tilt(
        beta=beta,
        kappa=kappa,
        leash=leash,
        ratio=leash / kappa if kappa > 0 else None,
        misfit=kl(oracle, after),
        convexity=float(torch.linalg.eigvalsh(curvature)[0]),
        cos_first=_cosine(oracle.exp() @ policy.scores(start), gradient),
        cos_plain=_cosine(step, gradient),
        cos_natural=_cosine(step, natural),
    )


def _gradients(policy: Policy, theta: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """g = E_π[R ∇log π] and F⁺g."""
    weights = policy.log_probs(theta).exp()
    centred = reward - weights @ reward
    gradient = (weights * centred) @ policy.scores(theta)
    return gradient, torch.linalg.pinv(policy.fisher(theta), hermitian=True) @ gradient


def _cosine(one: Tensor, other: Tensor) -> float | None:
    scale = float(torch.linalg.norm(one) * torch.linalg.norm(other))
    return float(one @ other) / scale if scale > 0 else None


def leash_limit(policy: Policy, reward: Tensor, *, theta: Tensor | None = None) -> float | None:
    """R² = gᵀF⁺g / Var_π(R), in [0, 1]: the on-policy ratio as β → ∞. None for a flat reward."""
    start = policy.origin() if theta is None else theta
    weights = policy.log_probs(start).exp()
    variance = float(weights @ (reward - weights @ reward) ** 2)
    gradient, natural = _gradients(policy, start, reward)
    return float(gradient @ natural) / variance if variance > 0 else None


def leash_study(
    betas: Sequence[float] = BETAS,
    *,
    outcomes: int = 24,
    size: int = 4,
    bend: float = 1.0,
    draws: int = 50,
    seed: int = 0,
) -> pl.DataFrame:
    """`tilt` on random policies with random pass/fail rewards: one row a draw and β.

    Columns: family (`tabular`, `low_rank`, `curved`), reference (`on_policy`; `off_policy`, an
    independent Gaussian policy; `nearby`, π times a Gaussian tilt of 0.1), draw, limit, and the
    fields of `Tilt`.
    """
    rows = []
    for family, number in _SEED_OF.items():
        for draw in range(draws):
            code = seed * 1_000_003 + number * 10_007 + draw
            policy = _family(family, outcomes, size, bend=bend, seed=code)
            generator = torch.Generator().manual_seed(code + 500_000)
            noise = torch.randn(2, outcomes, dtype=torch.float64, generator=generator)
            reward = torch.randint(0, 2, (outcomes,), generator=generator).double()
            reward[0], reward[1] = 0.0, 1.0
            now = policy.log_probs(policy.origin())
            references = {
                "on_policy": now,
                "nearby": torch.log_softmax(now + 0.1 * noise[0], 0),
                "off_policy": torch.log_softmax(noise[1], 0),
            }
            limit = leash_limit(policy, reward)
            for name, reference in references.items():
                for beta in betas:
                    found = tilt(policy, reward, beta=beta, reference=reference)
                    rows.append(
                        {"family": family, "reference": name, "draw": draw, "limit": limit}
                        | asdict(found)
                    )
    return pl.DataFrame(rows)


def _family(name: str, outcomes: int, size: int, *, bend: float, seed: int) -> Policy:
    if name == "tabular":
        return tabular(outcomes, seed=seed)
    if name == "low_rank":
        return low_rank(outcomes, size, seed=seed)
    return curved(outcomes, size, bend=bend, seed=seed)


@dataclass(frozen=True)
class Circle:
    """The constructed exception: `ratio` = leash / kappa nears 4 however small kappa is.

    convexity: H_q̃(θ) at the policy, below 0: the assumption of lemma E.7 that fails.
    """

    radius: float
    kappa: float
    leash: float
    ratio: float
    convexity: float


def circle(radius: float, *, past: float = 1e-3) -> Circle:
    """A family of one parameter t whose three logits run on a circle; on policy at t = 0.

    z(t) = r(u cos t + v sin t), u and v orthonormal and both of mean 0. The reward −u tilts π
    across the circle; at 1/β = r(1 + past), just beyond the centre, the far side is nearer, and
    the M-projection is π_{t=π}, at twice the distance of q̃_β: four times its divergence.
    """
    if not (radius > 0 and past > 0):
        raise InputError(f"radius {radius} and past {past}: choose both above 0")
    u = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    v = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64) / math.sqrt(6)
    t = torch.linspace(-math.pi, math.pi, _GRID + 1, dtype=torch.float64)[1:, None]
    family = torch.log_softmax(radius * (u * torch.cos(t) + v * torch.sin(t)), 1)
    now = torch.log_softmax(radius * u, 0)
    oracle = tilted(now, -u, 1 / (radius * (1 + past)))
    gap = oracle - family
    misfit = (oracle.exp() * (gap + torch.expm1(-gap))).sum(1)
    after = family[int(misfit.argmin())]
    kappa, leash = kl(oracle, now), kl(after, now)
    weights = now.exp()
    slopes, bend = radius * v, -radius * u
    fisher = float(weights @ (slopes - weights @ slopes) ** 2)
    convexity = fisher - float((oracle.exp() - weights) @ bend)
    return Circle(radius, kappa, leash, leash / kappa, convexity)
