"""Gate I on small policies: identities, limits, the constructed exceptions, PPO's clip."""

from __future__ import annotations

import math

import polars as pl
import pytest
import torch

from offaxis.errors import InputError
from offaxis.gates import (
    Policy,
    circle,
    clipping_study,
    curved,
    leash_limit,
    leash_study,
    low_rank,
    ppo,
    tabular,
    tilt,
    tilt_lemmas,
)  # fmt: skip
from offaxis.gates.clipping import kl_within, outside_by_update, paper_bound, unseen_outcome
from offaxis.gates.expansions import remainder_order, singular_policy, surrogate_gap
from offaxis.gates.lemmas import Lemma
from offaxis.gates.policies import kl, project, tilted

FAMILIES = {
    "tabular": tabular(8, seed=1),
    "low_rank": low_rank(8, 3, seed=2),
    "curved": curved(8, 3, seed=3),
}


def reward_of(policy: Policy, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(policy.offset.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", FAMILIES)
def test_closed_forms_against_automatic_differentiation(name: str) -> None:
    policy = FAMILIES[name]
    theta = reward_of(policy)[: policy.features.shape[1]] * 0.3
    weights = torch.softmax(reward_of(policy, 5), 0)
    jacobian = torch.autograd.functional.jacobian(policy.log_probs, theta)
    assert torch.allclose(policy.scores(theta), jacobian, atol=1e-12)
    hessian = torch.autograd.functional.hessian(lambda t: -(weights @ policy.log_probs(t)), theta)
    assert torch.allclose(policy.curvature(theta, weights), hessian, atol=1e-12)
    own = torch.einsum("n,nij->ij", weights, policy.hessians(theta))
    assert torch.allclose(own, -hessian, atol=1e-12)
    now = policy.log_probs(theta).exp()
    assert torch.allclose(policy.fisher(theta), policy.curvature(theta, now), atol=1e-12)


def test_a_small_kl_keeps_its_digits() -> None:
    p = torch.log_softmax(torch.zeros(4, dtype=torch.float64), 0)
    for size in (1e-2, 1e-5):
        gap = torch.tensor([size, -size, 0, 0], dtype=torch.float64)
        q = torch.log_softmax(p + gap, 0)
        assert kl(q, p) == pytest.approx(size**2 / 4, rel=1e-3)
    assert kl(p, p) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_the_projection_matches_its_target(name: str) -> None:
    policy = FAMILIES[name]
    target = tilted(policy.log_probs(policy.origin()), reward_of(policy), 1.0)
    found = project(policy, target, policy.origin())
    assert float((target.exp() @ policy.scores(found)).abs().max()) < 1e-12, "stationary"
    if name == "tabular":
        assert torch.allclose(policy.log_probs(found), target, atol=1e-10)
    inside = policy.log_probs(0.1 * torch.ones_like(found))
    again = project(policy, inside, policy.origin())
    assert kl(inside, policy.log_probs(again)) < 1e-20


@pytest.mark.parametrize("beta", [0.2, 1.0, 50.0])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", ["tabular", "low_rank"])
def test_linear_logits_obey_pythagoras_at_any_step(name: str, beta: float, on_policy: bool) -> None:
    """κ = misfit + leash exactly, so that the proposition needs no o(1) and no small step."""
    policy = FAMILIES[name]
    reference = None if on_policy else torch.log_softmax(reward_of(policy, 9), 0)
    found = tilt(policy, reward_of(policy), beta=beta, reference=reference)
    assert found.kappa == pytest.approx(found.misfit + found.leash, rel=1e-8)
    assert found.ratio is not None
    assert found.ratio <= 1 + 1e-9
    if name == "tabular":
        assert found.ratio == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_limits_on_policy(name: str) -> None:
    """β → ∞: ratio → R²; the projection is the natural gradient, its first step the plain one."""
    policy = FAMILIES[name]
    reward = reward_of(policy)
    found = tilt(policy, reward, beta=1e4)
    assert found.ratio == pytest.approx(leash_limit(policy, reward), abs=1e-3)
    assert found.cos_first == pytest.approx(1, abs=1e-6)
    assert found.cos_natural == pytest.approx(1, abs=1e-6)
    assert found.cos_plain is not None
    assert found.cos_plain < 0.999, "which the plain gradient is not"


def test_off_policy_the_leash_does_not_tighten() -> None:
    policy = FAMILIES["low_rank"]
    other = torch.log_softmax(reward_of(policy, 9), 0)
    far = tilt(policy, reward_of(policy), beta=1e4, reference=other)
    assert far.kappa == pytest.approx(kl(other, policy.log_probs(policy.origin())), rel=1e-3)
    assert far.cos_natural is not None
    assert far.cos_natural < 0.9


def test_the_circle_breaks_the_proposition_at_any_kappa() -> None:
    for radius in (1.0, 0.1, 0.01, 0.001):
        found = circle(radius)
        assert 3 < found.ratio < 4
        assert found.convexity < 0, "the assumption of lemma E.7 fails"
    assert circle(0.001).kappa < 1e-6
    assert circle(0.001, past=0.1).ratio == pytest.approx(4 / 1.1**2, rel=1e-2)


def test_the_study_has_every_case() -> None:
    found = leash_study((1.0, 100.0), outcomes=6, size=2, draws=2, seed=1)
    assert found.height == 3 * 3 * 2 * 2
    assert found.equals(leash_study((1.0, 100.0), outcomes=6, size=2, draws=2, seed=1))
    linear = found.filter(pl.col("family") != "curved")
    assert linear.select((pl.col("ratio") <= 1 + 1e-9).all()).item()
    exact = found.filter(pl.col("family") == "tabular")
    assert exact.select(((pl.col("ratio") - 1).abs() < 1e-8).all()).item()


@pytest.fixture(scope="module")
def lemmas() -> dict[str, Lemma]:
    return {one.name: one for one in tilt_lemmas(draws=6)}


def test_the_verdicts(lemmas: dict[str, Lemma]) -> None:
    assert {one.source: one.verdict for one in lemmas.values() if "quadratic" not in one.name} == {
        "Lemma E.1": "false",
        "Lemma E.2": "holds",
        "Lemma E.3": "loose",
        "Lemma E.6": "holds",
        "Proposition 3.1": "loose",
        "Lemma E.9": "false",
    }
    assert lemmas["E.5 quadratic expansion of the KL"].verdict == "holds"
    assert lemmas["E.6 as quadratic forms"].verdict == "false"


def test_the_order_of_the_remainder_is_three_and_four_under_symmetry() -> None:
    skew = Policy(torch.log(torch.tensor([0.6, 0.3, 0.1]).double()), torch.eye(3).double()[:, :2])
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert remainder_order(skew, one) == pytest.approx(3, abs=0.1)
    line = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    even = Policy(torch.zeros(3, dtype=torch.float64), line)
    assert remainder_order(even, one[:1]) == pytest.approx(4, abs=0.1)


def test_the_surrogates_gradient_is_not_equation_fours() -> None:
    policy = FAMILIES["low_rank"]
    assert surrogate_gap(policy, reward_of(policy)) > 0.01
    flat = Policy(torch.zeros(8, dtype=torch.float64), policy.features)
    assert surrogate_gap(flat, reward_of(policy)) == pytest.approx(0 + math.log(8), rel=1e-9)


def test_the_hessian_is_negative_where_the_fisher_is_singular() -> None:
    fisher, curvature, kappa = singular_policy()
    assert abs(fisher) < 1e-14
    assert curvature < -1e-3
    assert kappa < 1e-3


def test_at_one_update_clipping_does_nothing() -> None:
    policy = FAMILIES["low_rank"]
    reward = (reward_of(policy) > 0).double()
    for optimizer in ("sgd", "adam"):
        clipped, free = (
            ppo(policy, reward, updates=1, rate=1.0, epsilon=e, optimizer=optimizer)[0]
            for e in (0.01, None)
        )
        assert torch.equal(clipped.theta, free.theta)
        assert clipped.outside > 0, "and the ratios leave the clip"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_with_several_updates_ratios_leave_the_clip(optimizer: str) -> None:
    policy = low_rank(32, 8, seed=4)
    reward = (reward_of(policy) > 0).double()
    rate = 0.1 if optimizer == "adam" else 1.0
    path = ppo(policy, reward, updates=8, rate=rate, optimizer=optimizer)
    free = ppo(policy, reward, updates=8, rate=rate, optimizer=optimizer, epsilon=None)
    assert [one.updates for one in path] == list(range(1, 9))
    assert path[3].outside > 0.1
    assert path[7].largest > 0.2
    assert path[7].kl > path[7].within, "more than r in [1 ± ε] everywhere allows"
    assert path[7].kl < free[7].kl, "it slows the drift, and does not bound it"


def test_the_bounds_of_lemma_e9() -> None:
    for epsilon in (0.01, 0.2, 0.5):
        up, down = 1 + epsilon, 1 - epsilon
        half = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64))
        extreme = torch.log(torch.tensor([up / 2, down / 2], dtype=torch.float64))
        assert kl(extreme, half) == pytest.approx(kl_within(epsilon), rel=1e-12), "attained"
        assert kl_within(epsilon) < paper_bound(epsilon)
    assert kl_within(0.01) == pytest.approx(0.01**2 / 2, rel=1e-3)
    missed, divergence, bound = unseen_outcome()
    assert missed > 0.9
    assert divergence > bound
    table = clipping_study((1, 2), rates=(0.1,), outcomes=8, size=3, draws=1)
    assert table.height == 2 * 2
    first = table.filter(pl.col("updates") == 1)
    assert first["kl"].to_list() == first["unclipped_kl"].to_list()


def test_bad_input_is_refused() -> None:
    policy = FAMILIES["tabular"]
    with pytest.raises(InputError, match="above 0"):
        tilted(policy.offset, policy.offset, 0.0)
    with pytest.raises(InputError, match="one reward an outcome"):
        tilt(policy, torch.ones(3), beta=1.0)
    with pytest.raises(InputError, match="shapes"):
        Policy(torch.ones(3), torch.ones(4, 2))
    with pytest.raises(InputError, match="between 0 and 1"):
        kl_within(1.0)
    with pytest.raises(InputError, match="sgd or adam"):
        ppo(policy, policy.offset, updates=1, rate=0.1, optimizer="lion")
    with pytest.raises(InputError, match="above 0"):
        circle(0.0)
    flat = torch.ones(8, dtype=torch.float64)
    assert leash_limit(policy, flat) is None
    assert tilt(policy, flat, beta=1.0).cos_plain is None


def test_the_log_of_a_run_by_update() -> None:
    """Two batches of three updates; other rows and the order of rows do not count."""
    shares = [0.0, 0.1, 0.3, 0.0, 0.2, 0.5]
    log = [{"step": k, "ratio/outside": one} for k, one in enumerate(shares, 1)]
    found = outside_by_update([{"step": 6, "train_loss": 1.0}, *reversed(log)], 3)
    assert found == pytest.approx([0, 0.15, 0.4])
    assert outside_by_update(log, 1) == [pytest.approx(sum(shares) / 6)]
    for wrong, updates in ((log[:-1], 3), (log[1:], 5), ([], 1), (log, 0)):
        with pytest.raises(InputError):
            outside_by_update(wrong, updates)
