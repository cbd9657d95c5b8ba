"""Spectra and subspaces: planted ones recovered, errors honest, angles good near zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import reference
from conftest import SHAPE_CHECKED
from offaxis import linalg, measures
from offaxis.linalg import (
    angle_rank,
    gram,
    principal_rank,
    singular_values,
    spectrum_and_basis,
    subspace_angles,
)

SHAPES = [(1, 7), (7, 1), (2, 2), (5, 5), (40, 90), (90, 40), (300, 600), (1, 1)]


def orthonormal(rows: int, cols: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator, dtype=torch.float64)).Q


def planted(rows: int, cols: int, values: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values and random singular vectors."""
    left = orthonormal(rows, len(values), seed=seed)
    return (left * values) @ orthonormal(cols, len(values), seed=seed + 1).T


def spectrum(kind: str, size: int) -> torch.Tensor:
    """Descending singular values: well conditioned, steep, of low rank, with equal ones, ..."""
    index = torch.arange(size, dtype=torch.float64)
    return {
        "power law": (index + 1) ** -0.7,
        "steep": 10.0 ** (-14 * index / max(1, size - 1)),
        "low rank": torch.where(index < 3, 5.0 - index, 0.0),
        "equal": torch.ones(size, dtype=torch.float64),
        "huge": 1e12 * (index + 1) ** -0.7,
        "tiny": 1e-12 * (index + 1) ** -0.7,
        "zero": torch.zeros(size, dtype=torch.float64),
    }[kind]


KINDS = ["power law", "steep", "low rank", "equal", "huge", "tiny", "zero"]


@pytest.mark.parametrize("exact", [False, True], ids=["gram", "svd"])
@pytest.mark.parametrize("shape", [(30, 30), (30, 80), (80, 30), (1, 40)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_planted_values_are_recovered_within_the_stated_errors(
    kind: str, shape: tuple[int, int], exact: bool
) -> None:
    values = spectrum(kind, min(shape))
    found = singular_values(planted(*shape, values), exact=exact)
    # building the matrix rounds too: one ulp of σ₁ a value, beside which the bound must hold
    built = 4 * torch.finfo(torch.float64).eps * float(values[0])
    assert bool(((found.values - values).abs() <= found.errors + built).all())
    assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 60), (40, 200)], ids=str)
def test_gram_values_agree_with_the_svd_within_their_own_errors(
    kind: str, shape: tuple[int, int]
) -> None:
    for seed in range(5):
        matrix = planted(*shape, spectrum(kind, min(shape)), seed=10 * seed)
        by_gram, _ = spectrum_and_basis(matrix, rank=1)
        truth = torch.linalg.svdvals(matrix)
        noise = 4 * torch.finfo(torch.float64).eps * float(truth[0])
        for found in (by_gram, singular_values(matrix)):
            assert bool(((found.values - truth).abs() <= found.errors + noise).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_matrices_of_every_shape(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth = torch.linalg.svdvals(matrix)
    found = singular_values(matrix)
    assert found.values.tolist() == pytest.approx(truth.tolist(), rel=1e-9, abs=1e-9)
    rank = min(shape)
    _, basis = spectrum_and_basis(matrix, rank=rank)
    assert basis.left.shape == (shape[0], rank)
    assert basis.right.shape == (shape[1], rank)
    for side in (basis.left, basis.right):
        assert torch.allclose(side.T @ side, torch.eye(rank, dtype=torch.float64), atol=1e-12)


def test_errors_are_not_absurdly_wide() -> None:
    found = singular_values(planted(200, 300, spectrum("power law", 200)))
    assert float((found.errors / found.values).max()) < 1e-10


def test_a_lost_value_says_so() -> None:
    """σ = 10⁻¹⁴·σ₁ is beyond a Gram, and its error must cover what came out instead."""
    found = singular_values(planted(30, 80, spectrum("steep", 30)))
    assert float(found.errors[-1]) >= float(found.values[-1])
    exact = singular_values(planted(30, 80, spectrum("steep", 30)), exact=True)
    assert (found.method, exact.method) == ("gram", "svd")
    assert float(exact.errors[-1]) < 1e-13


@pytest.mark.parametrize("exact", [False, True], ids=["gram", "svd"])
@pytest.mark.parametrize("shape", [(50, 50), (40, 90), (90, 40)], ids=str)
def test_planted_subspaces_are_recovered(shape: tuple[int, int], exact: bool) -> None:
    values = torch.cat([torch.linspace(9, 5, 4), torch.linspace(1, 0.1, min(shape) - 4)]).double()
    matrix = planted(*shape, values, seed=4)
    _, basis = spectrum_and_basis(matrix, rank=4, exact=exact)
    for found, seed, size in ((basis.left, 4, shape[0]), (basis.right, 5, shape[1])):
        truth = orthonormal(size, min(shape), seed=seed)[:, :4]
        assert float(subspace_angles(found, truth).max()) <= basis.angle_error + 1e-14
    assert basis.angle_error < 1e-12


def test_a_subspace_without_a_gap_says_so() -> None:
    _, basis = spectrum_and_basis(torch.eye(20, dtype=torch.float64), rank=5)
    assert basis.angle_error == math.pi / 2


def test_angle_errors_are_honest_beside_a_small_gap() -> None:
    values = torch.cat([torch.ones(6), torch.full((24,), 0.5)]).double()
    values[5] -= 1e-9
    _, basis = spectrum_and_basis(planted(30, 60, values, seed=6), rank=5)
    truth = orthonormal(30, 30, seed=6)[:, :5]
    worst = float(subspace_angles(basis.left, truth).max())
    assert 1e-9 < basis.angle_error < 1e-3
    assert worst <= basis.angle_error


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_a_rank_beyond_the_matrix_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.3 for a 3x5 matrix"):
        spectrum_and_basis(torch.ones(3, 5, dtype=torch.float64), rank=rank)


@pytest.mark.parametrize("shape", [*SHAPES, (255, 256), (513, 700)], ids=str)
def test_the_gram_is_the_product_of_the_shorter_side(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = matrix if shape[0] <= shape[1] else matrix.T
    found = gram(matrix)
    assert torch.allclose(found, wide @ wide.T, rtol=0, atol=1e-11)
    assert torch.allclose(found, found.T, rtol=0, atol=1e-12)


def test_transposing_and_rotating_leaves_the_values() -> None:
    matrix = planted(40, 60, spectrum("power law", 40))
    turned = orthonormal(40, 40, seed=8) @ matrix @ orthonormal(60, 60, seed=9)
    expected = pytest.approx(singular_values(matrix).values.tolist(), rel=1e-12)
    for other in (matrix.T, turned, -matrix, matrix.flip(0)):
        assert singular_values(other).values.tolist() == expected
    assert (2.5 * singular_values(matrix).values).tolist() == pytest.approx(
        singular_values(2.5 * matrix).values.tolist(), rel=1e-12
    )


# ----------------------------------------------------------------------------------- angles


def rotated(angles: list[float], *, size: int = 30, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two bases whose principal angles are exactly `angles`."""
    k = len(angles)
    frame = orthonormal(size, 2 * k, seed=seed)
    turn = torch.tensor(angles, dtype=torch.float64)
    return frame[:, :k], frame[:, :k] * torch.cos(turn) + frame[:, k:] * torch.sin(turn)


@pytest.mark.parametrize(
    "angles",
    [
        [1e-12],
        [1e-12, 1e-9, 1e-6, 1e-3],
        [0.1, math.pi / 4, 1.2],
        [1e-10, math.pi / 2 - 1e-10],
        [math.pi / 2],
        [0.3, 0.3, 0.3],
    ],
    ids=str,
)
def test_planted_angles_are_recovered(angles: list[float]) -> None:
    first, second = rotated(angles)
    found = subspace_angles(first, second)
    assert found.tolist() == pytest.approx(angles, rel=1e-3, abs=1e-15)
    coarse = [(f, a) for f, a in zip(found.tolist(), angles, strict=True) if a > 1e-8]
    assert all(f == pytest.approx(a, rel=1e-7) for f, a in coarse)


def test_the_arccosine_would_lose_small_angles() -> None:
    first, second = rotated([1e-12, 1e-10, 1e-9])
    cosines = torch.linalg.svdvals(first.T @ second).clamp(-1, 1)
    by_arccos = torch.acos(cosines).flip(0)
    assert float((by_arccos - subspace_angles(first, second)).abs().max()) > 9e-10


def test_identical_and_orthogonal_subspaces() -> None:
    frame = orthonormal(20, 6)
    assert float(subspace_angles(frame[:, :3], frame[:, :3]).max()) < 1e-14
    right = subspace_angles(frame[:, :3], frame[:, 3:])
    assert right.tolist() == pytest.approx([math.pi / 2] * 3, rel=1e-14)


def test_angles_do_not_depend_on_the_bases() -> None:
    """Signs, order and any rotation inside either span; the two sides exchanged."""
    first, second = rotated([0.001, 0.2, 1.1], seed=3)
    expected = pytest.approx(subspace_angles(first, second).tolist(), rel=1e-9)
    mixed = second @ orthonormal(3, 3, seed=5)
    for one, other in ((first, -second), (first.flip(1), mixed), (mixed, first)):
        assert subspace_angles(one, other).tolist() == expected
    everywhere = orthonormal(30, 30, seed=6)
    assert subspace_angles(everywhere @ first, everywhere @ second).tolist() == expected


def test_angles_agree_with_the_reference_where_k_is_more_than_half() -> None:
    first, second = orthonormal(10, 8, seed=1), orthonormal(10, 8, seed=2)
    found = np.degrees(subspace_angles(first, second).numpy())
    expected = reference.principal_angles_deg(first.numpy(), second.numpy())
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "k", "r"),
    [((1, 1), 1, 1), ((7, 900), 1, 1), ((16, 16), 2, 1), ((128, 384), 16, 8), ((384, 128), 16, 8),
     ((1536, 8960), 192, 64), ((5000, 6000), 512, 64)],
)  # fmt: skip
def test_default_ranks(shape: tuple[int, int], k: int, r: int) -> None:
    assert (angle_rank(*shape), principal_rank(*shape)) == (k, r)


# ------------------------------------------------------------------------------ shape checks


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: subspace_angles(torch.zeros(3, 2), torch.zeros(4, 2)), id="rows"),
        pytest.param(lambda: singular_values(torch.zeros(3)), id="one axis"),
        pytest.param(lambda: gram(torch.zeros(2, 2, dtype=torch.int64)), id="integers"),
        pytest.param(lambda: measures.low_magnitude_mask(torch.zeros(3)), id="a measure"),
    ],
)
def test_a_wrong_shape_raises(wrong: object) -> None:
    with pytest.raises(TypeCheckError):
        wrong()  # type: ignore[operator]


def test_every_module_with_shapes_is_checked() -> None:
    assert {"offaxis.linalg", "offaxis.measures.overlaps", "offaxis.measures.spectral"} <= {
        *SHAPE_CHECKED
    }
    assert linalg.subspace_angles.__wrapped__, "the import hook came too late"
