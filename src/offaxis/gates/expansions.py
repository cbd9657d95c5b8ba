"""The lemmas behind Gate I's proposition, each tried on random small policies.

π_θ a `Policy`, F(θ) its Fisher information, q̃_β the tilted oracle, H_p(θ) = −E_p[∇² log π_θ].
Source: The Path Not Taken, appendix E.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from offaxis.gates import byhand
from offaxis.gates.clipping import kl_within, paper_bound, unseen_outcome
from offaxis.gates.lemmas import Lemma
from offaxis.gates.oracle import circle
from offaxis.gates.policies import Policy, curved, kl, low_rank, tilted

__all__ = ["remainder_order", "singular_policy", "surrogate_gap", "tilt_lemmas"]

_OUTCOMES, _SIZE = 24, 4
_SCALES = tuple(2.0**-k for k in range(3, 10))


def tilt_lemmas(*, draws: int = 20, seed: int = 0) -> list[Lemma]:
    """Lemmas E.1, E.2, E.3, E.5, E.6 and E.9, and proposition 3.1, on `draws` random policies."""
    return [
        _surrogate(draws, seed),
        _gibbs(draws, seed),
        _first_step(),
        _quadratic(draws, seed),
        _proximity(draws, seed),
        _quadratic_form(),
        _proposition(),
        _clipping(),
    ]


def _drawn(draws: int, seed: int) -> Iterator[tuple[Policy, Tensor, torch.Generator]]:
    """Curved and linear policies in turn, each with a Gaussian reward."""
    for draw in range(draws):
        code = seed * 1_000_003 + draw
        make = curved if draw % 2 == 0 else low_rank
        generator = torch.Generator().manual_seed(code + 900_000)
        reward = torch.randn(_OUTCOMES, dtype=torch.float64, generator=generator)
        yield make(_OUTCOMES, _SIZE, seed=code), reward, generator


def surrogate_gap(policy: Policy, reward: Tensor, *, follow: bool = False) -> float:
    """‖∇f − ∇g‖ / ‖∇g‖ at θ = 0, which lemma E.1 says is 0; by automatic differentiation.

    f(θ) = −E_{π_θ}[A log π_θ] is equation 4, g(θ) = −E_{π_0}[A log π_θ] its frozen surrogate,
    A = R − E[R] under π_0, or, with `follow`, under π_θ in f.
    """
    old = policy.log_probs(policy.origin())
    frozen = reward - old.exp() @ reward
    slopes = []
    for moving in (True, False):
        theta = policy.origin().requires_grad_()
        now = policy.log_probs(theta)
        gain = reward - now.exp() @ reward if moving and follow else frozen
        value = -((now if moving else old).exp() @ (gain * now))
        slopes.append(torch.autograd.grad(value, theta)[0])
    return float(torch.linalg.norm(slopes[0] - slopes[1]) / torch.linalg.norm(slopes[1]))


def _surrogate(draws: int, seed: int) -> Lemma:
    gaps = [
        [surrogate_gap(policy, reward, follow=follow) for follow in (False, True)]
        for policy, reward, _ in _drawn(draws, seed)
    ]
    wrong = sum(min(pair) > 1e-9 for pair in gaps)
    least, most = min(map(min, gaps)), max(map(max, gaps))
    return Lemma(
        "E.1 the frozen surrogate has the gradient of equation 4",
        "Lemma E.1",
        "∇L_PG(θ_t) equals the gradient of the surrogate with frozen policy and advantage",
        "false" if wrong else "holds",
        draws,
        wrong,
        (f"‖∇f − ∇g‖ / ‖∇g‖ from {least:.3g} to {most:.3g}",),
        "Differentiating the sampling distribution of equation 4 adds −E[A log π ∇log π], which "
        "centring A does not remove. The surrogate's gradient is that of −E_π[R], as it should be; "
        "equation 4's is not. And two functions with L-Lipschitz gradients that agree at a point "
        "differ by up to L‖Δ‖², not (L/2)‖Δ‖².",
        byhand.biased_coin(),
    )


def _gibbs(draws: int, seed: int) -> Lemma:
    """E_π R − β KL(π‖q) = β log Z − β KL(π‖q̃) for any π, so q̃ is the one maximum."""
    worst, wrong, cases = 0.0, 0, 0
    for policy, reward, generator in _drawn(draws, seed):
        reference = policy.log_probs(policy.origin())
        for beta in (0.1, 1.0, 10.0):
            oracle = tilted(reference, reward, beta)
            top = beta * float(torch.logsumexp(reference + reward / beta, 0))
            for _ in range(5):
                logits = 2 * torch.randn(_OUTCOMES, dtype=torch.float64, generator=generator)
                other = torch.log_softmax(logits, 0)
                value = float(other.exp() @ reward) - beta * kl(other, reference)
                worst = max(worst, abs(value - (top - beta * kl(other, oracle))))
                wrong += value > top
                cases += 1
    return Lemma(
        "E.2 Gibbs variational principle",
        "Lemma E.2",
        "q̃ ∝ q exp(R/β) is the unique maximum of E_π[R] − β KL(π‖q)",
        "false" if wrong or worst > 1e-10 else "holds",
        cases,
        wrong,
        (f"value = β log Z − β KL(π‖q̃) to {worst:.1e}",),
        "Every other policy is worse by exactly β KL(π‖q̃).",
    )


def _first_step() -> Lemma:
    return Lemma(
        "E.3 a policy-gradient update is an M-projection",
        "Lemma E.3",
        "argmin KL(q̃‖π_θ) = argmax E_q̃[log π_θ]",
        "loose",
        0,
        0,
        ("see the cosines of `tilt`: cos_first, cos_plain, cos_natural",),
        "The identity holds (the entropy of q̃ is constant) and does not show what its title says. "
        "On policy, as β grows, one gradient step on KL(q̃‖π_θ) is the policy gradient, but the "
        "M-projection itself is the natural gradient F⁺g / β.",
    )


def remainder_order(policy: Policy, direction: Tensor) -> float:
    """p in |KL(π_Δ‖π_0) − ½ΔᵀFΔ| ∝ ‖Δ‖^p along a direction, fitted over 2^-3 to 2^-9."""
    start = policy.origin()
    old, fisher = policy.log_probs(start), policy.fisher(start)
    rests = []
    for scale in _SCALES:
        step = scale * direction
        rests.append(
            abs(kl(policy.log_probs(start + step), old) - 0.5 * float(step @ fisher @ step))
        )
    slope, _ = np.polyfit(np.log(_SCALES), np.log(np.maximum(rests, 1e-300)), 1)
    return float(slope)


def _quadratic(draws: int, seed: int) -> Lemma:
    orders = []
    for policy, _, generator in _drawn(draws, seed):
        direction = torch.randn(_SIZE, dtype=torch.float64, generator=generator)
        orders.append(remainder_order(policy, direction / torch.linalg.norm(direction)))
    wrong = sum(order < 2.5 for order in orders)
    return Lemma(
        "E.5 quadratic expansion of the KL",
        "Lemma E.5",
        "KL(π_{θ+Δ}‖π_θ) = ½ΔᵀFΔ + O(‖Δ‖³)",
        "false" if wrong else "holds",
        draws,
        wrong,
        (f"fitted order from {min(orders):.2f} to {max(orders):.2f}",),
        f"The median order of the remainder is {float(np.median(orders)):.3f}; it is 4 where the "
        f"third cumulant vanishes along Δ.",
    )


def _proximity(draws: int, seed: int) -> Lemma:
    """‖H_q̃ − F‖ ≤ 2L TV ≤ L√(2 KL), L the largest ‖∇² log π‖ at θ."""
    wrong, cases, tight, second = 0, 0, 0.0, 0.0
    for policy, reward, _ in _drawn(draws, seed):
        if policy.bend is None:
            continue
        theta = policy.origin()
        now = policy.log_probs(theta)
        largest = float(torch.linalg.matrix_norm(policy.hessians(theta), 2).max())
        for beta in (0.3, 1.0, 10.0, 100.0):
            oracle = tilted(now, reward, beta)
            gap = policy.curvature(theta, oracle.exp()) - policy.fisher(theta)
            size = float(torch.linalg.matrix_norm(gap, 2))
            bound = largest * float((oracle.exp() - now.exp()).abs().sum())
            outer = largest * math.sqrt(2 * kl(oracle, now))
            wrong += size > bound * (1 + 1e-9) or bound > outer * (1 + 1e-9)
            tight, second = max(tight, size / bound), max(second, bound / outer)
            cases += 1
    return Lemma(
        "E.6 constants",
        "Lemma E.6",
        "‖H_q̃ − F‖ ≤ 2L TV(q̃, π) ≤ L√(2 KL(q̃‖π))",
        "false" if wrong else "holds",
        cases,
        wrong,
        (f"largest ratios: first {tight:.3f}, second {second:.3f}",),
        "Both constants are right. In a family with linear logits the left side is 0.",
    )


def singular_policy() -> tuple[float, float, float]:
    """Smallest eigenvalues of F and of H_q̃, and κ, where E.6's quadratic-form claim fails.

    Logits φ₁θ₁ + ½cθ₂² at θ = 0: F is 0 along θ₂, H_q̃ is −(E_q̃ c − E_π c), of either sign.
    """
    generator = torch.Generator().manual_seed(0)
    phi, bend = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    features = torch.stack([phi, torch.zeros_like(phi)], dim=1)
    curve = torch.zeros(8, 2, 2, dtype=torch.float64)
    curve[:, 1, 1] = bend
    policy = Policy(torch.zeros(8, dtype=torch.float64), features, curve)
    start = policy.origin()
    now = policy.log_probs(start)
    oracle = tilted(now, bend, 100.0)
    least = [
        float(torch.linalg.eigvalsh(matrix)[0])
        for matrix in (policy.fisher(start), policy.curvature(start, oracle.exp()))
    ]
    return least[0], least[1], kl(oracle, now)


def _quadratic_form() -> Lemma:
    fisher, curvature, kappa = singular_policy()
    fails = abs(fisher) < 1e-12 and curvature < -1e-6
    return Lemma(
        "E.6 as quadratic forms",
        "Lemma E.6",
        "H_q̃ = (1 + O(√κ)) F as quadratic forms",
        "false" if fails else "holds",
        1,
        int(fails),
        (f"κ = {kappa:.3g}: least eigenvalue of F {fisher:.1g}, of H_q̃ {curvature:.3g}",),
        "It needs F bounded below. Where F is singular, as a language model's is, H_q̃ may be "
        "negative along a null direction of F however small κ is.",
        byhand.flat_coin(),
    )


def _proposition() -> Lemma:
    found = [circle(radius) for radius in (0.1, 0.01, 0.001)]
    wrong = sum(one.ratio > 1.5 for one in found)
    return Lemma(
        "3.1 one-step policy-KL leash",
        "Proposition 3.1",
        "KL(π_θ⁺‖π) ≤ (1 + o(1)) KL(q̃‖π), the o(1) vanishing as KL(q̃‖π) → 0",
        "loose" if wrong else "holds",
        len(found),
        wrong,
        tuple(f"κ = {one.kappa:.3g}: ratio {one.ratio:.3f}" for one in found),
        "Exact for every step where logits are linear. For one fixed smooth policy the limit "
        "holds; it is not uniform: where H_q̃ is not positive (lemma E.7's assumption) the ratio "
        "nears 4 at any κ, and 4 is the most that small κ allows. It binds any fit to any target "
        "near π, so it does not tell RL from SFT; what differs is κ.",
        byhand.logits_on_a_circle(),
    )


def _clipping() -> Lemma:
    missed, divergence, bound = unseen_outcome()
    return Lemma(
        "E.9 clipping bounds the KL",
        "Lemma E.9",
        "r in [1 − ε, 1 + ε] on the batch gives KL(π⁺‖π) ≤ E[T] max{−log(1 − ε), log(1 + ε)}",
        "false" if divergence > bound else "holds",
        1,
        int(divergence > bound),
        (f"a batch of 16 misses an outcome with probability {missed:.3f}: KL {divergence:.3f}",),
        f"Of the batch average of log r, which is how the lemma writes it, it is plain. Of the "
        f"policy's KL it is false: the bound at ε = 0.2 is {bound:.3f}. With r within the clip for "
        f"every outcome, and not for the batch alone, it holds and is loose: the most is "
        f"½[(1+ε)log(1+ε) + (1−ε)log(1−ε)] = {kl_within(0.2):.4f} "
        f"({paper_bound(0.2) / kl_within(0.2):.0f} times less), O(ε²) without any assumption on "
        f"the advantage. Clipping does not enforce either "
        f"(`clipping_study`).",
        byhand.unseen(),
    )
