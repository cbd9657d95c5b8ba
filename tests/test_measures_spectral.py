"""Spectral measures: planted updates, full-SVD references, invariances, edges, theorems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import reference
from offaxis import measures
from offaxis.linalg import Spectrum, angle_rank, principal_rank, singular_values, spectrum_and_basis

SHAPES = [(40, 64), (64, 40), (32, 32), (2, 9)]


def orthonormal(rows: int, cols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator, dtype=torch.float64)).Q


def noise(shape: tuple[int, int], size: float, *, seed: int = 1) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def all_of(base: torch.Tensor, update: torch.Tensor) -> dict[str, Any]:
    """Every spectral measure of one matrix, as `compare` composes them."""
    k, r = angle_rank(*base.shape), principal_rank(*base.shape)
    before = spectrum_and_basis(base, rank=max(k, r))[0]
    top_k, top_r = spectrum_and_basis(base, rank=k)[1], spectrum_and_basis(base, rank=r)[1]
    after, tuned = spectrum_and_basis(base + update, rank=k)
    change = singular_values(update)
    left, right, *_ = measures.rotation_deg(top_k, tuned)
    inside = measures.energy_in_subspaces(update, top_r.left, top_r.right)
    norms = (float(torch.linalg.norm(x)) for x in (update, base))
    return {
        "nss": measures.nss(before, after),
        "nss_bound": measures.nss_bound(*norms),
        "rotation_left_deg": left,
        "rotation_right_deg": right,
        "wedin_bound_deg": measures.wedin_bound_deg(before, change, k),
        "weyl_ratio": measures.weyl_ratio(before, after, change),
        "rank1_energy": measures.rank1_energy(change),
        "rank1_norm_share": measures.rank1_norm_share(change),
        "effective_rank": measures.effective_rank(change),
        **{
            f"update_energy_{n}": v
            for n, v in zip(("left", "right", "two_sided"), inside, strict=True)
        },
    }


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agreement_with_the_reference(shape: tuple[int, int], size: float) -> None:
    base, update = reference.power_law_matrix(*shape, seed=0).double(), noise(shape, size)
    k, r = angle_rank(*shape), principal_rank(*shape)
    expected = reference.spectral(base.numpy(), update.numpy(), k=k, r=r)
    for name, number in all_of(base, update).items():
        if expected[name] is None:
            assert number.value is None, name
        else:
            assert number.value == pytest.approx(expected[name], rel=1e-6), name
            if number.error is not None:
                slack = 1e-12 * abs(expected[name])
                assert abs(number.value - expected[name]) <= number.error + slack, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_turning_scaling_and_transposing_change_nothing(shape: tuple[int, int]) -> None:
    base, update = reference.power_law_matrix(*shape, seed=0).double(), noise(shape, 1e-3)
    left, right = orthonormal(shape[0], shape[0], 7), orthonormal(shape[1], shape[1], 8)
    expected = {name: number.value for name, number in all_of(base, update).items()}
    rotated = all_of(left @ base @ right, left @ update @ right)
    scaled = all_of(base * -1e3, update * -1e3)
    for found in (rotated, scaled):
        for name, value in expected.items():
            assert found[name].value == (value and pytest.approx(value, rel=1e-6)), name
    turned = all_of(base.T, update.T)
    swapped = {"left": "right", "right": "left"}
    for name, value in expected.items():
        other = "_".join(swapped.get(word, word) for word in name.split("_"))
        assert turned[other].value == (value and pytest.approx(value, rel=1e-6)), name


def test_nss_of_a_scaled_matrix() -> None:
    base = reference.power_law_matrix(30, 50, seed=0).double()
    found = all_of(base, 0.01 * base)
    assert found["nss"].value == pytest.approx(0.01, rel=1e-9)
    assert found["nss_bound"].value == pytest.approx(0.01, rel=1e-9), "the bound is attained"
    assert found["rotation_left_deg"].value < 1e-8


def test_a_rotation_moves_directions_and_not_values() -> None:
    """W₊ = R W₀: the left subspace turns by the planted angle, nss is rounding and says so."""
    left, right = orthonormal(40, 40, 1), orthonormal(60, 40, 2)
    values = torch.cat([torch.full((5,), 2.0), torch.linspace(1, 0.5, 35)]).double()
    base = (left * values) @ right.T
    angle = math.radians(3.0)
    turn = torch.eye(40, dtype=torch.float64)
    for one, other in zip(range(5), range(5, 10), strict=True):
        turn[one, one] = turn[other, other] = math.cos(angle)
        turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
    tuned = left @ turn @ left.T @ base
    before, first = spectrum_and_basis(base, rank=5)
    after, second = spectrum_and_basis(tuned, rank=5)
    lefts, rights, left_angles, _ = measures.rotation_deg(first, second)
    assert lefts.value == pytest.approx(3.0, rel=1e-9)
    assert left_angles.tolist() == pytest.approx([3.0] * 5, rel=1e-9)
    assert rights.value < 1e-6
    shift = measures.nss(before, after)
    assert shift.value < 1e-13
    assert shift.status == "error_exceeds_value"


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_and_energy_of_equal_values(rank: int) -> None:
    update = orthonormal(30, rank, 0) @ orthonormal(50, rank, 1).T
    change = singular_values(update)
    assert measures.effective_rank(change).value == pytest.approx(rank, rel=1e-9)
    assert measures.rank1_energy(change).value == pytest.approx(1 / rank, rel=1e-9)
    assert measures.rank1_norm_share(change).value == pytest.approx(rank**-0.5, rel=1e-9)


def test_energy_inside_planted_subspaces() -> None:
    left, right = orthonormal(30, 6, 0), orthonormal(50, 6, 1)
    inside = left[:, :3] @ right[:, :3].T
    cases = {
        (1, 1, 1): inside,
        (1, 0, 0): left[:, :3] @ right[:, 3:].T,
        (0, 1, 0): left[:, 3:] @ right[:, :3].T,
        (0, 0, 0): left[:, 3:] @ right[:, 3:].T,
    }
    for expected, update in cases.items():
        found = measures.energy_in_subspaces(update, left[:, :3], right[:, :3])
        assert [number.value for number in found] == pytest.approx(expected, abs=1e-12)


def test_isotropic_noise_has_the_share_of_the_dimension() -> None:
    update = noise((200, 300), 1.0)
    found = measures.energy_in_subspaces(update, orthonormal(200, 20, 0), orthonormal(300, 20, 1))
    expected = (20 / 200, 20 / 300, 20 * 20 / (200 * 300))
    assert [number.value for number in found] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0])
def test_theorems_hold(size: float) -> None:
    """Weyl, Hoffman and Wielandt, and Wedin with the mixed gap, for updates of many kinds."""
    for seed in range(5):
        base = reference.power_law_matrix(24, 36, seed=seed).double()
        for update in (
            noise((24, 36), size, seed=seed),
            size * orthonormal(24, 1, seed) @ orthonormal(36, 1, seed + 1).T,
            -size * base,
        ):
            found = all_of(base, update)
            assert found["weyl_ratio"].value <= 1 + 1e-6
            assert found["nss"].value <= found["nss_bound"].value * (1 + 1e-9)
            bound = found["wedin_bound_deg"].value
            if bound is not None:
                k = angle_rank(24, 36)
                before, after = (spectrum_and_basis(m, rank=k)[1] for m in (base, base + update))
                _, _, *angles = measures.rotation_deg(before, after)
                assert max(float(a.max()) for a in angles) <= bound * (1 + 1e-6) + 1e-9


def test_the_papers_form_of_wedin_can_be_exceeded_and_ours_is_not() -> None:
    """Gap of W₀ alone: sin θ ≤ ‖ΔW‖/γ fails for a step that closes the gap."""
    base = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    t = 0.45
    update = t * torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    before, one = spectrum_and_basis(base, rank=1)
    _, other = spectrum_and_basis(base + update, rank=1)
    change = singular_values(update)
    _, _, angles, _ = measures.rotation_deg(one, other)
    papers = math.degrees(math.asin(float(change.values[0]) / 1.0))
    ours = measures.wedin_bound_deg(before, change, 1).value
    assert papers < float(angles[0]) <= ours


def test_zero_updates_and_zero_bases_are_undefined_by_name() -> None:
    zero = singular_values(torch.zeros(5, 7, dtype=torch.float64))
    some = singular_values(noise((5, 7), 1.0))
    undefined = {
        "nss": measures.nss(zero, some),
        "nss_bound": measures.nss_bound(1.0, 0.0),
        "rank1_energy": measures.rank1_energy(zero),
        "rank1_norm_share": measures.rank1_norm_share(zero),
        "effective_rank": measures.effective_rank(zero),
        "weyl_ratio": measures.weyl_ratio(some, some, zero),
        "full rank": measures.wedin_bound_deg(some, some, 5),
        "vacuous": measures.wedin_bound_deg(some, some, 2),
    }
    reasons = {name: number.status for name, number in undefined.items()}
    assert all(number.value is None for number in undefined.values())
    assert reasons["nss"] == reasons["nss_bound"] == "base_is_zero"
    assert {reasons[n] for n in ("rank1_energy", "rank1_norm_share", "effective_rank")} == {
        "no_update"
    }
    assert reasons["weyl_ratio"] == "no_update"
    assert (reasons["full rank"], reasons["vacuous"]) == ("no_gap_at_full_rank", "vacuous")
    eye = torch.eye(5, dtype=torch.float64)[:, :2]
    energies = measures.energy_in_subspaces(torch.zeros(5, 5, dtype=torch.float64), eye, eye)
    assert [number.status for number in energies] == ["no_update"] * 3


def test_a_row_has_one_singular_value() -> None:
    row = noise((1, 9), 1.0)
    change = singular_values(row)
    assert measures.effective_rank(change).value == pytest.approx(1)
    assert measures.rank1_energy(change).value == pytest.approx(1)
    assert float(change.values[0]) == pytest.approx(float(torch.linalg.norm(row)))


def test_the_shift_is_zero_only_where_it_is() -> None:
    exact = Spectrum(torch.ones(3).double(), torch.zeros(3).double(), "planted")
    assert measures.nss(exact, exact) == (0.0, 0.0, "ok")
    off = Spectrum(torch.ones(3).double() + 1e-9, torch.full((3,), 1e-8).double(), "planted")
    assert measures.nss(exact, off).status == "error_exceeds_value"
    assert np.isclose(measures.nss(exact, off).value, 1e-9)
