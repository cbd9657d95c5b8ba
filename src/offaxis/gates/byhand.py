"""For each statement that fails somewhere, the smallest case, to be checked with pencil and paper.

Every function computes its case and returns it as a sentence; a case that does not fail as it says
is an AssertionError. Source: The Path Not Taken, appendices D and E, theorem 3.3.
"""

from __future__ import annotations

import math

import torch

from offaxis.gates.clipping import unseen_outcome
from offaxis.gates.matrix import geometry
from offaxis.gates.oracle import circle
from offaxis.gates.policies import Policy, kl

__all__ = [
    "across_a_boundary",
    "biased_coin",
    "flat_coin",
    "logits_on_a_circle",
    "not_every_larger_weight",
    "overflow",
    "step_below_half",
    "swapped_directions",
    "tie_and_power_of_two",
    "unseen",
]


def _stored(value: float) -> float:
    """Rounded once to bfloat16. (Of float32 values here, so that the first rounding is none.)"""
    assert float(torch.tensor(value, dtype=torch.float32)) == value
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def across_a_boundary() -> str:
    """Lemma D.1, its last sentence."""
    low, high = 255 / 256, 1.0
    assert (_stored(low), _stored(high)) == (low, high)
    assert _stored((low + high) / 2) in (low, high), "neighbours: nothing lies between them"
    assert (high - low) / high == 2.0**-8
    return (
        f"{low} = 255/256 and 1 are neighbours on the two sides of 2^0; they differ by 1/256 of "
        "the larger: 2^-8, not more"
    )


def step_below_half() -> str:
    """Lemma D.2, the least realised step."""
    step, half = 0.0029296875, 2.0**-8
    after = _stored(1 - step)
    assert step < half
    assert after == 255 / 256
    return (
        f"W = 1: ½ULP is 2^-8 = {half}, but below 1 the spacing is half as wide: 1 - {step} = "
        f"{1 - step} lies nearer to {after} than to 1, and is stored as {after}"
    )


def not_every_larger_weight() -> str:
    """Lemma D.2, its last sentence."""
    least = 2.0**-8
    for weight in (1.0078125, 1.5078125):  # odd last bits: a tie moves them up
        assert _stored(weight + least) != weight
        assert _stored(weight + least * (1 - 2.0**-10)) == weight
    return f"1.0078125 and 1.5078125 both move up at a step of {least}, and at no smaller one"


def overflow() -> str:
    """Corollary D.4's probe on what Proposition D.3 leaves out."""
    assert abs(math.inf - 1) <= 1e-3 * max(math.inf, 1)
    assert not abs(math.inf - math.inf) <= 1e-3 * math.inf
    return (
        "infinity and 1: |inf - 1| = inf ≤ 0.001·inf, so unchanged; infinity and itself: "
        "inf - inf is NaN, so changed"
    )


def tie_and_power_of_two() -> str:
    """Corollary 3.6 with ≥."""
    half = 2.0**-8
    assert _stored(1 + half) == 1
    step = 0.75 * half
    assert _stored(1 - step) == 255 / 256
    return (
        f"W = 1: a step of +½ULP = {half} ends halfway between 1 and 1.0078125, and a tie goes to "
        f"the even one, 1: unchanged. A step of -⅜ULP = -{step} is stored as {255 / 256}: changed"
    )


def swapped_directions() -> str:
    """Theorem 3.3 and corollary E.13."""
    base = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    step = torch.diag(torch.tensor([-0.6, 0.6], dtype=torch.float64))
    checks = {one.name: one for one in geometry(base, base + step, rank=1)}
    found = checks["wedin_left_paper"]
    assert found.status == "exceeded"
    assert found.measured is not None
    assert found.bound is not None
    return (
        "W₀ = diag(2, 1), ΔW = diag(-0.6, 0.6), k = 1: W₊ = diag(1.4, 1.6), its leading direction "
        f"is (0, 1) and no longer (1, 0): sine {found.measured:.3g}. The gap is 1, ‖ΔW‖₂ 0.6: "
        f"bound {found.bound:.3g}"
    )


def biased_coin() -> str:
    """Lemma E.1 on a coin of logit θ, π(heads) = p, reward 1 for heads. p' = p(1 - p)."""
    p = 0.25
    frozen = 1 + (1 - p) * math.log(p) + p * math.log(1 - p)
    follow = frozen - p * math.log(p) - (1 - p) * math.log(1 - p)
    theta = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    now = torch.sigmoid(theta)
    value = -(now * (1 - p) * now.log() - (1 - now) * p * (1 - now).log())
    slope = float(torch.autograd.grad(value, theta)[0])
    assert math.isclose(slope, -p * (1 - p) * frozen, rel_tol=1e-9)
    assert max(frozen, follow) < 0.9
    return (
        "A coin with p(heads) = 1/4, reward 1 for heads, A = (3/4, -1/4): the surrogate's slope in "
        "the logit is -p(1 - p) = -3/16; equation 4's is that times 1 + (1 - p) ln p + "
        f"p ln(1 - p) = {frozen:.3f} (A held fixed; with A following θ times {follow:.3f})"
    )


def flat_coin() -> str:
    """Lemma E.6's quadratic forms on a coin of logit ½θ² at θ = 0, tilted by δ."""
    delta = 0.01
    curve = torch.zeros(2, 1, 1, dtype=torch.float64)
    curve[0, 0, 0] = 1.0
    zero = torch.zeros(2, dtype=torch.float64)
    policy = Policy(zero, zero[:, None], curve)
    weights = torch.tensor([0.5 + delta, 0.5 - delta], dtype=torch.float64)
    start = policy.origin()
    fisher = float(policy.fisher(start))
    hessian = float(policy.curvature(start, weights))
    kappa = kl(weights.log(), policy.log_probs(start))
    assert fisher == 0
    assert math.isclose(hessian, -delta, rel_tol=1e-9)
    return (
        "A coin of logit ½θ² at θ = 0 (p = 1/2): no score, F = 0. Tilted to p = 0.51: H = "
        f"-(0.51 - 0.5) = {hessian:.3g} at κ = {kappa:.2g}, and no multiple of F is negative"
    )


def logits_on_a_circle() -> str:
    """Proposition 3.1 where κ alone is small."""
    found = circle(0.01, past=0.01)
    assert 3.8 < found.ratio < 4
    return (
        "Three outcomes, logits on a circle of radius r about 0, so that KL is about (distance)²/6 "
        "for small r. The tilt takes π from angle 0 to just past the centre, r away; the nearest "
        "point of the circle is now at angle π, 2r from π: four times the KL (r = 0.01: "
        f"{found.ratio:.2f} at κ = {found.kappa:.2g})"
    )


def unseen() -> str:
    """Lemma E.9 read as a bound on the policy's KL."""
    missed, divergence, bound = unseen_outcome()
    assert divergence > bound
    return (
        "An outcome of probability 0.001, the rest at r = 0.8: it gets 1 - 0.8·0.999 = 0.2008. A "
        f"batch of 16 misses it with probability 0.999^16 = {missed:.3f}, and sees r = 0.8 alone; "
        f"KL = 0.7992 ln 0.8 + 0.2008 ln 200.8 = {divergence:.3f}, above -ln 0.8 = {bound:.3f}"
    )
