"""The leading singular triplet: planted ones found, none missed, errors bounded, ties told."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offaxis.errors import CheckpointError, InputError
from offaxis.kernels.differences import Difference
from offaxis.predict import solver
from offaxis.predict.solver import top_triplet, triplets

Floats = NDArray[np.float64]
KINDS = ("power", "rank one", "two", "close", "overtaken", "noise", "rank three", "steep")


def spectrum(kind: str, size: int) -> Floats:
    """Singular values, descending."""
    tail = np.linspace(1, 0.1, size)
    heads = {
        "rank one": [2.0],
        "two": [2.0, 1.9, *tail[2:]],
        "close": [2.0, 2.0 - 1e-6, *tail[2:]],
        "overtaken": [2.0, 1.6, 1.5, 1.4, *tail[4:]],
        "rank three": [2.0, 1.0, 0.5],
        "steep": 10.0 ** -np.arange(0, 15),
        "noise": np.linspace(1, 0.9, size),
        "power": (np.arange(size) + 1) ** -0.7,
    }
    head = np.array(heads[kind][:size])
    return np.concatenate([head, np.zeros(size - head.size)])


def orthonormal(rows: int, cols: int, seed: int) -> Floats:
    found: Floats = np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, cols)))[0]
    return found


def planted(rows: int, cols: int, values: Floats, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """A matrix with these singular values, and its left and right singular vectors."""
    left, right = orthonormal(rows, values.size, seed), orthonormal(cols, values.size, seed + 1)
    return (left * values) @ right.T, left, right


def angle(one: Floats, other: Floats) -> float:
    """Between two unit vectors, sign aside; by the sine, which is good near 0."""
    return float(np.linalg.norm(one - (one @ other) * other))


@pytest.fixture
def lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truncated path, and the compiled products, for small matrices too."""
    monkeypatch.setattr(solver, "_DENSE", 8)
    monkeypatch.setattr(solver, "_WHOLE", 0)


@pytest.mark.parametrize("shape", [(150, 90), (60, 200)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", [None, 0, 1], ids=["cold", "warm", "hostile"])
def test_planted_triplets_are_found_from_any_start(
    lanczos: None, kind: str, shape: tuple[int, int], begin: int | None
) -> None:
    """hostile: the start is exactly the second direction, from which no step leads to the first."""
    values = spectrum(kind, min(shape))
    matrix, left, right = planted(*shape, values)
    start = None if begin is None else right[:, begin].copy()
    found = top_triplet(matrix, start)
    assert found.sigma == pytest.approx(values[0], rel=1e-12)
    assert abs(found.sigma - values[0]) <= found.sigma_error
    assert found.norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)
    assert found.second >= values[1] * (1 - 1e-9)
    assert found.residual <= 1e-6
    assert not found.tied
    assert found.angle_error <= 1e-6
    for one, truth in ((found.u, left), (found.v, right)):
        assert angle(one, truth[:, 0]) <= found.angle_error + 1e-13
    assert float(found.u @ matrix @ found.v) == pytest.approx(found.sigma, rel=1e-12)


@pytest.mark.parametrize("shape", [(300, 250), (160, 410), (70, 150)], ids=str)
def test_it_agrees_with_a_full_svd(shape: tuple[int, int]) -> None:
    """A stored pair of bfloat16, as a series holds it, against LAPACK on the float64 difference."""
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    rows, cols = (torch.randn(extent, generator=generator) for extent in shape)
    step = 2e-4 * torch.randn(shape, generator=generator) + 3e-4 * torch.outer(rows, cols)
    tuned = (base.float() + step).bfloat16()
    left, values, right = np.linalg.svd((tuned.double() - base.double()).numpy())
    found = top_triplet(Difference.of(tuned, base))
    assert found.method == "lanczos"
    assert found.passes < 30
    assert found.sigma == pytest.approx(values[0], rel=1e-12)
    assert angle(found.u, left[:, 0]) <= 1e-6
    assert angle(found.v, right[0]) <= 1e-6
    assert values[1] <= found.second <= values[0]
    assert found.norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)


def test_no_difference_is_formed_and_nothing_exact_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the exact path")

    monkeypatch.setattr(Difference, "dense", refuse)
    monkeypatch.setattr(solver, "spectrum_and_basis", refuse)
    matrix, _, right = planted(270, 260, spectrum("power", 260))
    found = top_triplet(torch.from_numpy(matrix))
    assert angle(found.v, right[:, 0]) <= 1e-6


@pytest.mark.parametrize("equal", [2, 3])
def test_equal_singular_values_are_told(lanczos: None, equal: int) -> None:
    """Any pair of the leading subspace solves the equations; the one returned is told as such."""
    values = np.concatenate([np.full(equal, 2.0), np.linspace(1, 0.1, 80)])
    matrix, left, right = planted(120, 100, values)
    for start in (None, right[:, 0].copy()):
        found = top_triplet(matrix, start)
        assert found.tied
        assert found.angle_error == math.pi / 2
        assert found.method == "gram"
        assert found.sigma == pytest.approx(2.0, rel=1e-12)
        assert found.residual < 1e-12
        for one, truth in ((found.u, left), (found.v, right)):
            inside = truth[:, :equal].T @ one
            assert float(np.linalg.norm(inside)) == pytest.approx(1.0, rel=1e-12)


def test_a_direction_that_overtook_the_old_one_is_never_missed(lanczos: None) -> None:
    """Many seeds: from the old direction alone, the residual is 0 and the answer wrong."""
    values = np.concatenate([[1.05, 1.0], np.linspace(0.5, 0.1, 60)])
    matrix, _, right = planted(90, 70, values)
    for seed in range(40):
        found = top_triplet(matrix, right[:, 1].copy(), seed=seed)
        assert found.sigma == pytest.approx(1.05, rel=1e-12)


def test_steps_go_on_until_a_random_start_has_seen_enough() -> None:
    """ε of Kuczyński and Woźniakowski falls as 1/k², and is 1 as long as nothing is known."""
    shares = [solver._missed(steps, 8960) for steps in range(1, 64)]
    assert shares[:8] == [1.0] * 8
    assert all(later <= before for before, later in pairwise(shares))
    log = math.log(1.648 * math.sqrt(8960) * 1e6)
    assert shares[-1] == pytest.approx((log / 125) ** 2)


def test_a_random_start_misses_as_rarely_as_the_theorem_says() -> None:
    """5 steps, 100 eigenvalues, chance 0.05: the largest is above θ/(1 − ε) in 5 % of draws."""
    values = np.concatenate([[1.0], np.full(20, 0.6), np.linspace(0.5, 0.0, 79)])
    rng = np.random.default_rng(0)
    steps, chance, missed = 5, 0.05, 0
    share = min(1.0, (math.log(1.648 * 10 / chance) / (2 * steps - 1)) ** 2)
    for _ in range(400):
        start = rng.standard_normal(100)
        krylov = np.linalg.qr(np.stack([values**k * start for k in range(steps)], axis=1))[0]
        largest = float(np.linalg.eigvalsh(krylov.T @ (values[:, None] * krylov))[-1])
        missed += largest < 1 - share
    assert missed / 400 <= chance


def test_the_krylov_basis_stays_orthonormal_and_projects() -> None:
    """Also where the leading value converged long ago, at which Lanczos' recurrence falls apart."""
    values = np.concatenate([[1.0], np.linspace(0.1, 0.05, 119)])
    matrix, _, _ = planted(150, 120, values)
    product = torch.from_numpy(matrix.T @ matrix)
    space = solver._Space(120, float((values**2).sum()))
    drawn = np.random.default_rng(0).standard_normal((2, 120))
    block = space.fresh(torch.from_numpy(drawn + drawn[:1]))  # far from orthogonal
    for _ in range(30):
        block = space.fresh(space.add(block, block @ product))
    basis = space.rows[: space.size]
    assert space.size == 60
    assert float((basis @ basis.T - torch.eye(60)).abs().max()) < 1e-13
    small = space.small[: space.size, : space.size]
    assert float((small - basis @ product @ basis.T).abs().max()) < 1e-13


def test_a_warm_start_saves_passes(lanczos: None) -> None:
    values = np.concatenate([[1.0], np.linspace(0.93, 0.3, 199)])
    matrix, _, right = planted(200, 200, values)
    near = right[:, 0] + 1e-4 * orthonormal(200, 1, 5)[:, 0]
    cold, warm = top_triplet(matrix, tolerance=1e-9), top_triplet(matrix, near, tolerance=1e-9)
    assert cold.method == warm.method == "lanczos"
    assert warm.passes < cold.passes


def test_turning_scaling_and_shuffling_change_nothing_else(lanczos: None) -> None:
    matrix, _, _ = planted(70, 120, spectrum("power", 70))
    plain = top_triplet(matrix)
    turned = top_triplet(np.ascontiguousarray(matrix.T)).turned()
    rows, cols = np.random.default_rng(1).permutation(70), np.random.default_rng(2).permutation(120)
    shuffled = top_triplet(matrix[rows][:, cols])
    for power in (2.0**900, 2.0**-900, -3.0):
        scaled = top_triplet(matrix * power)
        assert scaled.sigma == pytest.approx(abs(power) * plain.sigma, rel=1e-12)
        assert scaled.method == "lanczos"
        assert angle(scaled.v, plain.v) < 1e-6
    for other, u, v in ((turned, plain.u, plain.v), (shuffled, plain.u[rows], plain.v[cols])):
        assert other.sigma == pytest.approx(plain.sigma, rel=1e-12)
        assert angle(other.u, u) < 1e-6
        assert angle(other.v, v) < 1e-6
    again = top_triplet(matrix)
    assert (again.u == plain.u).all()


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 300), (300, 1), (2, 2), (2, 400), (129, 129)], ids=str
)
def test_thin_matrices(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    found = top_triplet(matrix)
    assert found.sigma == pytest.approx(values[0], rel=1e-12)
    assert angle(found.u, left[:, 0]) < 1e-6
    assert angle(found.v, right[0]) < 1e-6
    assert found.angle_error < 1e-6


@pytest.mark.parametrize("size", [5, 140])
def test_nothing_has_no_direction(size: int) -> None:
    found = top_triplet(np.zeros((size, size + 1)))
    assert (found.sigma, found.norm, found.method, found.tied) == (0.0, 0.0, "zero", True)
    assert not found.u.any()
    assert not found.v.any()
    assert found.angle_error == math.pi / 2


@pytest.mark.parametrize("size", [5, 140])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_refused(size: int, bad: float) -> None:
    matrix = np.ones((size, size))
    matrix[size // 2, 1] = bad
    with pytest.raises(InputError, match=rf"{size}x{size} update has entries that are NaN"):
        top_triplet(matrix)


def test_what_is_no_matrix_or_no_start_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        top_triplet(np.ones(3))
    with pytest.raises(InputError, match=r"shape \(0, 3\)"):
        top_triplet(np.ones((0, 3)))
    with pytest.raises(InputError, match="int64"):
        top_triplet(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"start has shape \(4,\): give the v of a matrix, \(5,\)"):
        top_triplet(np.eye(5), np.ones(4))
    with pytest.raises(ValueError, match="one shape"):
        Difference.of(torch.ones(2, 3), torch.ones(3, 2))
    assert top_triplet(np.diag([2.0, 1.0]), np.zeros(2)).sigma == 2


DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.float16, torch.bfloat16),
    (None, torch.float64),
]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_fused_products_are_those_of_the_float64_difference(
    dtypes: tuple[torch.dtype | None, torch.dtype],
) -> None:
    """Rows that are no multiple of four, and more than one stretch of them."""
    generator = torch.Generator().manual_seed(0)
    for rows, cols in ((301, 507), (3, 5), (1, 7), (7, 1)):
        tuned = torch.randn(rows, cols, generator=generator).to(dtypes[1])
        base = None if dtypes[0] is None else (0.9 * tuned.double()).to(dtypes[0])
        plain = (tuned.double() - (0 if base is None else base.double())).numpy()
        made = Difference.of(tuned, base)
        assert (made.dense() == plain).all()
        size = made.size()
        assert size.norm == pytest.approx(float(np.linalg.norm(plain)), rel=1e-13)
        assert size.largest == np.abs(plain).max()
        x = np.random.default_rng(0).standard_normal((2, cols))
        image, back = made.both(x, scale=0.5)
        assert image == pytest.approx(0.5 * x @ plain.T, rel=1e-12, abs=1e-12)
        assert back == pytest.approx(0.25 * x @ plain.T @ plain, rel=1e-12, abs=1e-11)


def test_a_stretch_of_columns_and_huge_entries() -> None:
    wide = torch.randn(40, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = Difference.of((wide * 1e200)[:, 10:60])
    assert part.size().norm == pytest.approx(1e200 * float(wide[:, 10:60].norm()), rel=1e-13)
    assert math.isinf(Difference.of(wide.clone().fill_(math.nan)).size().largest)


class Listed:
    """A trail of updates in memory."""

    name, is_matrix = "w", True

    def __init__(self, updates: list[Floats]) -> None:
        self.updates, self.shape = updates, updates[0].shape

    def __len__(self) -> int:
        return len(self.updates)

    def __getitem__(self, t: int) -> Floats:
        if not np.isfinite(self.updates[t]).all():
            raise CheckpointError(f"checkpoint {t} holds NaN")
        return self.updates[t]

    def rows(self, t: int, part: slice) -> Floats:
        return self.updates[t].reshape(-1)[part]


class Stored(Listed):
    """The same, which hands out what is stored."""

    def ground(self) -> torch.Tensor:
        return torch.ones(self.shape, dtype=torch.float64)

    def stored(self, t: int) -> torch.Tensor:
        return 1 + torch.from_numpy(self.updates[t])


def test_a_series_is_followed_past_a_step_that_moved_nothing() -> None:
    updates = [planted(150, 140, spectrum("power", 140), seed)[0] for seed in range(2)]
    updates = [np.zeros((150, 140)), updates[0], 2 * updates[0], np.zeros((150, 140)), updates[1]]
    for trail in (Listed(updates), Stored(updates)):
        found = list(triplets(trail))
        assert [one.sigma for one in found] == pytest.approx([0, 1, 2, 0, 1], abs=1e-9)
        assert abs(float(found[1].v @ found[2].v)) == pytest.approx(1.0, abs=1e-9)


def test_a_bad_checkpoint_of_a_series_is_named() -> None:
    updates = [np.eye(4), np.full((4, 4), math.nan)]
    with pytest.raises(CheckpointError, match="checkpoint 1 holds NaN"):
        list(triplets(Listed(updates)))
    with pytest.raises(CheckpointError, match="checkpoint 1 holds NaN"):
        list(triplets(Stored(updates)))
