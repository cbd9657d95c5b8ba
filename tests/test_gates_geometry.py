"""Gate II: planted spectra, a float64 SVD reference, Wedin's theorem, nulls, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offaxis.errors import InputError
from offaxis.gates import Check, geometry, geometry_with_nulls
from offaxis.gates.matrix import Ground, judge, ranks_of
from offaxis.gates.nulls import KINDS, null_update
from offaxis.measures import Number

FORMS = ("paper", "mixed", "observed")


def drawn(rows: int, cols: int, *, seed: int, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(rows, cols, dtype=torch.float64, generator=generator)


def named(checks: tuple[Check, ...]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def reference(base: np.ndarray, tuned: np.ndarray, k: int) -> dict[str, tuple[float, float]]:
    """Both sides of each inequality, from full SVDs and the (m, m) projections."""
    u0, s0, v0 = np.linalg.svd(base)
    u1, s1, v1 = np.linalg.svd(tuned)
    step = np.linalg.svd(tuned - base, compute_uv=False)
    gap, moved = s0[k - 1] - s0[k], np.abs(s1 - s0)
    observed = max(s0[k - 1] - s1[k], s1[k - 1] - s0[k])
    bounds = {
        "paper": step[0] / gap,
        "mixed": step[0] / (gap - step[0]),
        "observed": step[0] / observed,
    }
    found = {
        "weyl": (moved.max(), step[0]),
        "hoffman_wielandt": (np.linalg.norm(moved), np.linalg.norm(tuned - base)),
        "operator_frobenius": (step[0], np.linalg.norm(tuned - base)),
        "ky_fan_norm": (abs(s1[:k].sum() - s0[:k].sum()), moved[:k].sum()),
        "ky_fan_sum": (moved[:k].sum(), k * step[0]),
        "ky_fan_mirsky": (moved[:k].sum(), step[:k].sum()),
    }
    for side, one, other in (("left", u0, u1), ("right", v0.T, v1.T)):
        spread = one[:, :k] @ one[:, :k].T - other[:, :k] @ other[:, :k].T
        sine = np.linalg.norm(spread, 2)
        found[f"projection_{side}_paper"] = sine, bounds["paper"]
        for form in FORMS:
            found[f"wedin_{side}_{form}"] = sine, bounds[form]
    return found


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9), (2, 7)], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1e-3])
def test_agreement_with_full_decompositions(shape: tuple[int, int], size: float) -> None:
    base = drawn(*shape, seed=1)
    tuned = base + drawn(*shape, seed=2, size=size)
    k = 1 if min(shape) == 2 else 3
    found = named(geometry(base, tuned, rank=k))
    expected = reference(base.numpy(), tuned.numpy(), k)
    assert found.keys() == expected.keys()
    for name, (measured, bound) in expected.items():
        check = found[name]
        assert check.status == "ok", name
        assert check.measured == pytest.approx(measured, rel=1e-5, abs=1e-12), name
        assert check.bound == pytest.approx(bound, rel=1e-6), name
        assert check.ratio is not None
        assert check.error is not None
        assert abs(check.ratio - measured / bound) <= check.error + 1e-9, name
        assert check.ratio <= 1 + check.error


def test_turning_and_scaling_change_nothing_and_transposing_swaps_the_sides() -> None:
    base = drawn(10, 14, seed=3)
    tuned = base + drawn(10, 14, seed=4, size=1e-2)
    left, right = (torch.linalg.qr(drawn(n, n, seed=n)).Q for n in (10, 14))
    expected = named(geometry(base, tuned, rank=2))
    turned = named(geometry(-8 * left @ base @ right, -8 * left @ tuned @ right, rank=2))
    flipped = named(geometry(base.T, tuned.T, rank=2))
    swap = {"left": "right", "right": "left"}
    for name, check in expected.items():
        assert turned[name].ratio == pytest.approx(check.ratio, rel=1e-6), name
        other = "_".join(swap.get(word, word) for word in name.split("_"))
        assert flipped[other].ratio == pytest.approx(check.ratio, rel=1e-6), name


def test_the_papers_wedin_is_exceeded_almost_twofold_and_the_others_are_not() -> None:
    """A step just beyond half the gap that swaps two directions: sine 1, bound ½ + 2⁻²⁰."""
    base = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    over = 0.5 + 2.0**-20
    step = torch.diag(torch.tensor([-over, over], dtype=torch.float64))
    found = named(geometry(base, base + step, rank=1))
    for side in ("left", "right"):
        for name in (f"wedin_{side}_paper", f"projection_{side}_paper"):
            assert found[name].status == "exceeded", name
            assert found[name].ratio == pytest.approx(1 / over, rel=1e-9)
        assert found[f"wedin_{side}_mixed"].status == "vacuous"
        assert found[f"wedin_{side}_observed"].status == "vacuous"
    assert {found[n].status for n in ("weyl", "hoffman_wielandt", "ky_fan_mirsky")} == {"ok"}


@pytest.mark.parametrize("x", [0.1, 0.3, 0.45, 0.499])
def test_below_half_the_gap_the_largest_found_is_the_double_angle(x: float) -> None:
    """sin θ = sin(½ arcsin 2x), of ratio up to √2, for ΔW = x[[−sin 2θ, cos 2θ], [cos, sin]]."""
    double = math.asin(2 * x)
    down, across = -x * math.sin(double), x * math.cos(double)
    step = torch.tensor([[down, across], [across, -down]], dtype=torch.float64)
    base = torch.diag(torch.tensor([1.25, 0.25], dtype=torch.float64))
    found = named(geometry(base, base + step, rank=1))
    expected = math.sin(double / 2) / x
    assert 1 < expected < math.sqrt(2)
    assert found["wedin_left_paper"].status == "exceeded"
    assert found["wedin_left_paper"].ratio == pytest.approx(expected, rel=1e-7)
    assert found["wedin_left_mixed"].status == "ok"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), rows=st.integers(2, 6), cols=st.integers(2, 6),
    share=st.floats(0.01, 1.2), kind=st.sampled_from(["full", "rank_one", "swap"]),
)  # fmt: skip
def test_nothing_but_the_papers_form_is_ever_exceeded(
    seed: int, rows: int, cols: int, share: float, kind: str
) -> None:
    base = drawn(rows, cols, seed=seed)
    left, values, right = torch.linalg.svd(base, full_matrices=False)
    gap = float(values[0] - values[1])
    if kind == "full":
        step = drawn(rows, cols, seed=seed + 1)
    elif kind == "rank_one":
        step = drawn(rows, 1, seed=seed + 1) @ drawn(1, cols, seed=seed + 2)
    else:
        step = left[:, 1:2] @ right[1:2] - left[:, :1] @ right[:1]
    step = step * (share * gap / float(torch.linalg.matrix_norm(step, 2)))
    for check in geometry(base, base + step, rank=1, every_rank=True):
        paper = check.name.startswith("projection") or "_paper" in check.name
        assert check.status != "exceeded" or paper, check
        if paper and check.ratio is not None and check.error is not None:
            assert check.ratio - check.error < 2, check


def test_every_rank_finds_the_worst() -> None:
    base = torch.diag(torch.tensor([9.0, 4.0, 3.9, 1.0], dtype=torch.float64))
    tuned = base + drawn(4, 4, seed=5, size=1e-3)
    found = named(geometry(base, tuned, rank=1, every_rank=True))
    for name in ("wedin_left_paper", "ky_fan_sum", "ky_fan_mirsky"):
        each = [named(geometry(base, tuned, rank=k))[name].ratio for k in (1, 2, 3)]
        worst = found[f"{name}_worst"]
        assert worst.ratio == pytest.approx(max(r for r in each if r is not None), rel=1e-9)
        assert worst.rank == 1 + int(np.argmax(each))
    assert "weyl_worst" not in found
    assert ranks_of(3000, 4000, rank=None, every_rank=True)[-1] == 375
    assert len(ranks_of(3000, 4000, rank=None, every_rank=True)) <= 65


def test_edges() -> None:
    base = drawn(5, 8, seed=6)
    still = geometry(base, base.clone())
    assert {(c.status, c.reason) for c in still} == {("undefined", "no_update")}
    row = named(geometry(base[:1], base[:1] + 0.01))
    assert row["wedin_left_paper"].reason == "no_gap_at_full_rank"
    assert row["weyl"].status == "ok"
    equal = torch.eye(4, dtype=torch.float64)
    found = named(geometry(equal, equal + drawn(4, 4, seed=7, size=1e-3), rank=2))
    assert {found[f"wedin_left_{form}"].reason for form in FORMS[:2]} == {"no_gap"}
    outer = drawn(5, 1, seed=8) @ drawn(1, 8, seed=9)
    assert named(geometry(base, base + outer))["operator_frobenius"].ratio == pytest.approx(1)
    zero = named(geometry(torch.zeros(5, 8), base))
    assert zero["hoffman_wielandt"].ratio == pytest.approx(1)
    assert {zero[n].status for n in ("weyl", "hoffman_wielandt")} == {"ok"}, "equality is no breach"
    half = named(geometry(base.bfloat16(), (base + 0.1).to(torch.float32)))
    assert half["weyl"].status == "ok"


def test_bad_input_is_refused() -> None:
    base = drawn(4, 5, seed=0)
    hurt = base.clone()
    hurt[1, 2] = math.nan
    for wrong in (hurt, base.T, base[0]):
        with pytest.raises(InputError):
            geometry(base, wrong)
    with pytest.raises(InputError, match="1 of 20 entries"):
        geometry(hurt, base)
    with pytest.raises(InputError, match="rank 5 of a 4x5"):
        geometry(base, base + 1, rank=5)
    with pytest.raises(InputError, match="-1 draws"):
        geometry_with_nulls(base, base + 1, draws=-1)
    with pytest.raises(InputError, match="random, permuted, turned"):
        null_update(base, "shuffled", generator=torch.Generator())


def test_a_ratio_above_one_by_less_than_its_error_is_not_exceeded() -> None:
    for error, status in ((0.2, "ok"), (0.05, "exceeded")):
        assert judge("weyl", Number(1.1, error), Number(1.0, 0.0)).status == status
    assert judge("weyl", Number(1.0), Number(1e-20, 1e-18)).reason == "no_bound"


def test_a_tiny_step_is_measured_by_svd() -> None:
    base = drawn(8, 8, seed=1)
    assert not Ground.of(base, ranks=(1,), step=1e-2).exact
    assert Ground.of(base, ranks=(1,), step=1e-12).exact


def test_the_nulls_keep_what_they_say() -> None:
    update = drawn(6, 9, seed=1) * (drawn(6, 9, seed=2) > 0.5)
    values = torch.linalg.svdvals(update)
    for kind in KINDS:
        null = null_update(update, kind, generator=torch.Generator().manual_seed(0))
        assert float(torch.linalg.norm(null)) == pytest.approx(float(torch.linalg.norm(update)))
        assert not torch.equal(null, update)
        same_entries = torch.equal(null.reshape(-1).sort().values, update.reshape(-1).sort().values)
        assert same_entries == (kind == "permuted")
        close = torch.allclose(torch.linalg.svdvals(null), values, atol=1e-12)
        assert close == (kind == "turned")


def test_a_planted_update_stands_out_of_its_nulls_and_a_random_one_does_not() -> None:
    base = drawn(24, 24, seed=1) @ torch.diag(torch.linspace(3, 0.1, 24, dtype=torch.float64))
    left, _, right = torch.linalg.svd(base)
    aimed = 0.05 * (left[:, 2:3] @ right[:1] + left[:, :1] @ right[2:3])
    judged = {one.check.name: one for one in geometry_with_nulls(base, base + aimed, draws=9)}
    sines = judged["wedin_left_paper"]
    turned = next(null for null in sines.nulls if null.kind == "turned")
    assert turned.measured is not None
    assert turned.measured.draws == 9
    assert sines.check.measured is not None
    norm = judged["operator_frobenius"]
    assert norm.below("turned") is False
    ranks = []
    for seed in range(20):
        update = 1e-3 * drawn(24, 24, seed=100 + seed)
        one = geometry_with_nulls(base, base + update, draws=4, seed=seed)
        check = next(o for o in one if o.check.name == "hoffman_wielandt")
        ranks.append(check.below("random"))
    assert 0 <= sum(map(bool, ranks)) <= 11, "4 of 20 by chance; 12 or more once in 10,000"
    again = geometry_with_nulls(base, base + aimed, draws=2, seed=5, name="a")
    assert again == geometry_with_nulls(base, base + aimed, draws=2, seed=5, name="a")
    assert again != geometry_with_nulls(base, base + aimed, draws=2, seed=5, name="b")
