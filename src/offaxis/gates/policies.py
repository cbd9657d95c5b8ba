"""Small categorical policies with everything in closed form, for the statements of Gate I.

π_θ(y) ∝ exp z_y(θ) over n outcomes, z_y(θ) = c_y + φ_y·θ + ½ θᵀC_yθ with θ in R^d. Without C the
family is linear in its logits (an exponential family); with C it is curved. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offaxis.errors import InputError

__all__ = ["Policy", "curved", "kl", "low_rank", "project", "tabular", "tilted"]

_STEPS = 200
_SHORTEST = 1e-9
_CLOSE = 1e-10
_WHOLE = 3


@dataclass(frozen=True)
class Policy:
    """A family of policies. offset: c (n,); features: φ (n, d); bend: C (n, d, d), symmetric."""

    offset: Tensor
    features: Tensor
    bend: Tensor | None = None

    def __post_init__(self) -> None:
        outcomes, size = self.features.shape
        shapes = [tuple(self.offset.shape), tuple(self.features.shape)]
        good = self.offset.shape == (outcomes,)
        if self.bend is not None:
            shapes.append(tuple(self.bend.shape))
            good = good and self.bend.shape == (outcomes, size, size)
        if not good:
            raise InputError(f"a policy with shapes {shapes}: give (n,), (n, d) and (n, d, d)")

    def origin(self) -> Tensor:
        """θ = 0."""
        return torch.zeros(self.features.shape[1], dtype=torch.float64)

    def log_probs(self, theta: Tensor) -> Tensor:
        """log π_θ (n,)."""
        logits = self.offset + self.features @ theta
        if self.bend is not None:
            logits = logits + 0.5 * torch.einsum("nij,i,j->n", self.bend, theta, theta)
        return torch.log_softmax(logits, 0)

    def slopes(self, theta: Tensor) -> Tensor:
        """∂z/∂θ (n, d)."""
        if self.bend is None:
            return self.features
        return self.features + self.bend @ theta

    def scores(self, theta: Tensor) -> Tensor:
        """∇ log π_θ(y) (n, d): the slopes less their mean under π_θ."""
        slopes = self.slopes(theta)
        return slopes - self.log_probs(theta).exp() @ slopes

    def fisher(self, theta: Tensor) -> Tensor:
        """F(θ) = E_π[∇log π ∇log πᵀ] (d, d)."""
        scores = self.scores(theta)
        return (scores * self.log_probs(theta).exp()[:, None]).T @ scores

    def curvature(self, theta: Tensor, weights: Tensor) -> Tensor:
        """H_p(θ) = −E_p[∇² log π_θ] (d, d) for `weights` p (n,): F(θ) where p = π_θ."""
        if self.bend is None:
            return self.fisher(theta)
        excess = weights - self.log_probs(theta).exp()
        return self.fisher(theta) - torch.einsum("n,nij->ij", excess, self.bend)

    def hessians(self, theta: Tensor) -> Tensor:
        """∇² log π_θ(y) (n, d, d)."""
        flat = -self.fisher(theta).expand(len(self.offset), -1, -1)
        if self.bend is None:
            return flat
        mean = torch.einsum("n,nij->ij", self.log_probs(theta).exp(), self.bend)
        return flat + self.bend - mean


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def tabular(outcomes: int, *, seed: int = 0) -> Policy:
    """One logit an outcome, the last fixed: any full-support policy, identifiable. c ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return Policy(
        _normal(outcomes, generator=generator), torch.eye(outcomes, dtype=torch.float64)[:, :-1]
    )


def low_rank(outcomes: int, size: int, *, seed: int = 0) -> Policy:
    """Gaussian features of `size` dimensions and variance 1 / size. c ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return Policy(
        _normal(outcomes, generator=generator),
        _normal(outcomes, size, generator=generator) / size**0.5,
    )


def curved(outcomes: int, size: int, *, bend: float = 1.0, seed: int = 0) -> Policy:
    """`low_rank` with Gaussian quadratic terms: entries of C of standard deviation bend / size."""
    generator = torch.Generator().manual_seed(seed)
    offset = _normal(outcomes, generator=generator)
    features = _normal(outcomes, size, generator=generator) / size**0.5
    drawn = _normal(outcomes, size, size, generator=generator) * bend / size
    return Policy(offset, features, (drawn + drawn.transpose(1, 2)) / 2**0.5)


def kl(first: Tensor, second: Tensor) -> float:
    """D_KL(p‖q) from log p and log q (n,), full support.

    Σ p (d + e^(−d) − 1) with d = log p − log q: every term is at least 0, so that a small
    divergence keeps its digits.
    """
    gap = first - second
    return float((first.exp() * (gap + torch.expm1(-gap))).sum())


def tilted(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log q̃_β (n,), q̃_β ∝ q exp(R / β), from log q. The paper's lemma E.2."""
    if not beta > 0:
        raise InputError(f"beta is {beta}: choose one above 0")
    return torch.log_softmax(reference + reward / beta, 0)


def project(policy: Policy, target: Tensor, start: Tensor) -> Tensor:
    """The M-projection: θ⁺ in argmin D_KL(p‖π_θ) for `target` log p (n,), from `start`.

    Newton with the eigenvalues of H_p made positive, the step halved until it descends; the last
    steps are whole. The minimum where the family is linear, else a stationary point downhill.
    """
    theta: Tensor = start.clone()
    weights = target.exp()
    value = kl(target, policy.log_probs(theta))
    whole = 0
    for _ in range(_STEPS):
        downhill = weights @ policy.scores(theta)
        values, vectors = torch.linalg.eigh(policy.curvature(theta, weights))
        floor = 1e-12 * float(values.abs().max().clamp_min(1e-300))
        inside = vectors.T @ downhill
        step = vectors @ torch.where(values.abs() > floor, inside / values.abs(), 0.0 * inside)
        slope = float(step @ downhill)
        if slope <= _CLOSE:  # twice what is left to gain: squared by each whole step
            theta, whole = theta + step, whole + 1
            if whole == _WHOLE:
                return theta
            continue
        scale = 1.0
        while scale > _SHORTEST:
            new = kl(target, policy.log_probs(theta + scale * step))
            if new <= value - 1e-4 * scale * slope:
                break
            scale /= 2
        else:
            return theta
        theta, value = theta + scale * step, new
    return theta
