"""Lemma E.9: whether clipping the ratio in PPO's loss keeps the ratio, and so the KL, in bounds.

L(θ) = −mean min(r A, clip(r, 1−ε, 1+ε) A) over a batch sampled from π_old, r = π_θ/π_old. Beyond
the clip a sample's gradient is zero; nothing pulls it back, and other samples go on moving it.
At the first update r = 1 everywhere, and clipping does nothing at all.
Source: The Path Not Taken, appendix E.2.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from offaxis.errors import InputError
from offaxis.gates.policies import Policy, kl, low_rank, tabular

__all__ = [
    "Clipped",
    "clipping_study",
    "kl_within",
    "outside_by_update",
    "paper_bound",
    "ppo",
    "unseen_outcome",
]

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Clipped:
    """One batch, `updates` steps on it.

    outside: share of the batch whose r is outside [1−ε, 1+ε]; largest: the largest |r − 1| there.
    mass: the same share over all outcomes, weighted by π_old. kl: exact D_KL(π_θ⁺‖π_old).
    bound: the paper's max{−log(1−ε), log(1+ε)}. within: the most that r ∈ [1−ε, 1+ε] everywhere
    allows (`kl_within`). theta: the parameters after the last step.
    """

    updates: int
    outside: float
    largest: float
    mass: float
    kl: float
    bound: float
    within: float
    theta: Tensor


def paper_bound(epsilon: float) -> float:
    """max{−log(1−ε), log(1+ε)} = −log(1−ε), for one token."""
    return -math.log1p(-_checked(epsilon))


def kl_within(epsilon: float) -> float:
    """The largest D_KL(π⁺‖π) of one token with r ∈ [1−ε, 1+ε] everywhere and E_π r = 1.

    ½[(1+ε)log(1+ε) + (1−ε)log(1−ε)] = ε²/2 + O(ε⁴): r log r is convex, so the extreme r are at
    the ends, half of the mass on each.
    """
    up, down = math.log1p(_checked(epsilon)), math.log1p(-epsilon)
    return ((1 + epsilon) * up + (1 - epsilon) * down) / 2


def _checked(epsilon: float) -> float:
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon is {epsilon}: choose one between 0 and 1")
    return epsilon


def ppo(
    policy: Policy,
    reward: Tensor,
    *,
    updates: int,
    rate: float,
    epsilon: float | None = 0.2,
    optimizer: str = "adam",
    batch: int = 256,
    seed: int = 0,
) -> list[Clipped]:
    """Sample a batch from π_θ at θ = 0, take `updates` steps of clipped PPO on all of it.

    One result after each step. Advantages are the rewards less their batch mean, over their
    standard deviation. epsilon None: no clipping (shares and bounds are then told for 0.2).
    optimizer: `sgd` or `adam`.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"no optimizer named {optimizer!r}: choose {' or '.join(OPTIMIZERS)}")
    reach = _checked(0.2 if epsilon is None else epsilon)
    old = policy.log_probs(policy.origin())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(old.exp(), batch, replacement=True, generator=generator)
    gained = reward[drawn]
    advantage = (gained - gained.mean()) / gained.std().clamp_min(1e-8)
    theta = policy.origin().requires_grad_()
    stepper: torch.optim.Optimizer = (
        torch.optim.Adam([theta], lr=rate)
        if optimizer == "adam"
        else torch.optim.SGD([theta], lr=rate)
    )
    found = []
    for count in range(1, updates + 1):
        ratio = (policy.log_probs(theta) - old).exp()[drawn]
        gain = ratio * advantage
        if epsilon is not None:
            gain = torch.minimum(gain, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
        stepper.zero_grad()
        (-gain.mean()).backward()  # type: ignore[no-untyped-call]
        stepper.step()
        new = policy.log_probs(theta.detach())
        found.append(_clipped(count, old, new, drawn, reach, theta.detach().clone()))
    return found


def _clipped(
    count: int, old: Tensor, new: Tensor, drawn: Tensor, reach: float, theta: Tensor
) -> Clipped:
    off = ((new - old).exp() - 1).abs()
    beyond = (off > reach * (1 + 1e-12)).double()
    return Clipped(
        updates=count,
        outside=float(beyond[drawn].mean()),
        largest=float(off[drawn].max()),
        mass=float(old.exp() @ beyond),
        kl=kl(new, old),
        bound=paper_bound(reach),
        within=kl_within(reach),
        theta=theta,
    )


def clipping_study(
    updates: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    rates: Sequence[float] = (0.03, 0.1, 0.3),
    optimizer: str = "adam",
    epsilon: float = 0.2,
    outcomes: int = 64,
    size: int = 16,
    draws: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """`ppo` on random policies with random pass/fail rewards: one row a draw, rate and count.

    Columns: family (`tabular`, `low_rank`), draw, rate, the fields of `Clipped` but theta, and
    unclipped_kl, of the same steps without clipping.
    """
    rows = []
    for draw in range(draws):
        code = seed * 1_000_003 + draw
        generator = torch.Generator().manual_seed(code)
        reward = torch.randint(0, 2, (outcomes,), generator=generator).double()
        families = {
            "tabular": tabular(outcomes, seed=code),
            "low_rank": low_rank(outcomes, size, seed=code),
        }
        for family, policy in families.items():
            for rate in rates:
                clipped, free = (
                    ppo(
                        policy, reward, updates=max(updates), rate=rate, epsilon=reach,
                        optimizer=optimizer, seed=code,
                    )
                    for reach in (epsilon, None)
                )  # fmt: skip
                for one, other in zip(clipped, free, strict=True):
                    if one.updates in updates:
                        row = asdict(one)
                        del row["theta"]
                        named = {"family": family, "draw": draw, "rate": rate}
                        rows.append(named | row | {"unclipped_kl": other.kl})
    return pl.DataFrame(rows)


def unseen_outcome(
    epsilon: float = 0.2, *, share: float = 1e-3, batch: int = 16
) -> tuple[float, float, float]:
    """A policy whose every *sampled* ratio is within the clip while its KL breaks the bound.

    π puts `share` on one outcome that a batch misses with probability (1 − share)^batch; π⁺ takes
    r = 1 − ε on all others and gives what that frees to this one. Returns that probability,
    D_KL(π⁺‖π), and the paper's bound.
    """
    kept = (1 - _checked(epsilon)) * (1 - share)
    gained = 1 - kept
    divergence = kept * math.log1p(-epsilon) + gained * math.log(gained / share)
    return (1 - share) ** batch, divergence, paper_bound(epsilon)


def outside_by_update(log: Sequence[Mapping[str, Any]], updates: int) -> list[float]:
    """Share of tokens outside the clip at the 1st, 2nd, ... update of a batch of samples.

    log: rows of a run of `offaxis train` (`log.json`) with `ratio/outside`, one a step
    (`logging_steps: 1`); `updates` of them use each batch. The mean over the batches. Every ratio
    is 1 at the first, whatever the rate. InputError where rows are missing.
    """
    rows = {row["step"]: row["ratio/outside"] for row in log if "ratio/outside" in row}
    if updates < 1 or not rows:
        raise InputError(f"{len(rows)} rows with ratio/outside, {updates} updates: give a log of "
                         "GRPO or its kin, and at least 1")  # fmt: skip
    if sorted(rows) != list(range(1, len(rows) + 1)) or len(rows) % updates:
        raise InputError(
            f"{len(rows)} logged steps, {updates} updates a batch: log every step "
            "(logging_steps: 1) of whole batches"
        )
    shares = [rows[step] for step in sorted(rows)]
    return [math.fsum(each) / len(each) for each in (shares[k::updates] for k in range(updates))]
