"""Overlaps and their nulls: planted answers, references, invariances, edges, Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reference
from offaxis import measures
from offaxis.kernels import bin_counts, magnitude_codes, pack, unpack
from offaxis.linalg import spectrum_and_basis
from offaxis.measures import Number

SHAPE = (40, 64)
GENERATOR = np.random.default_rng(0)


def base_matrix(shape: tuple[int, int] = SHAPE, *, seed: int = 0) -> torch.Tensor:
    return reference.power_law_matrix(*shape, seed=seed)


def principal(base: torch.Tensor, rank: int, alpha: float = 0.5) -> np.ndarray:
    wide = base.double()
    _, basis = spectrum_and_basis(wide, rank=rank)
    found = measures.principal_mask(wide, basis.left, alpha=alpha)
    return unpack(found.mask, tuple(base.shape))


def low(base: torch.Tensor, alpha: float = 0.5) -> np.ndarray:
    return unpack(measures.low_magnitude_mask(base, alpha=alpha).mask, tuple(base.shape))


def null(base: torch.Tensor, mask: np.ndarray, fixed: np.ndarray) -> Number:
    codes = magnitude_codes(base.to(torch.bfloat16))
    return measures.magnitude_null(
        bin_counts(codes), bin_counts(codes, pack(mask)), bin_counts(codes, pack(fixed))
    )


def size_dependent(base: torch.Tensor, *, seed: int = 1) -> np.ndarray:
    """A mask in which small weights are far more frequent than large ones."""
    size = np.abs(reference.values64(base))
    chance = np.exp(-size / np.median(size))
    return np.random.default_rng(seed).random(base.shape) < chance


# ------------------------------------------------------------------------------- fixed masks


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 17), (2, 9)], ids=str)
def test_fixed_masks_agree_with_full_sorting(shape: tuple[int, int], alpha: float) -> None:
    base = base_matrix(shape)
    w = reference.values64(base)
    rank = max(1, min(shape) // 8)
    assert np.array_equal(principal(base, rank, alpha), reference.principal(w, rank, alpha))
    assert np.array_equal(low(base, alpha), reference.low_magnitude(w, alpha))


@pytest.mark.parametrize(("entries", "alpha", "count"), [(5, 0.5, 2), (7, 0.5, 4), (9, 0.5, 4)])
def test_half_an_entry_rounds_to_even(entries: int, alpha: float, count: int) -> None:
    assert low(torch.ones(1, entries), alpha).sum() == count
    assert low(torch.ones(1, entries), alpha)[0, :count].all(), "ties go to the lower index"


def test_principal_entries_of_a_planted_block() -> None:
    """Rank one on a block, far above the noise elsewhere: the block is the principal mask."""
    base = 1e-4 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0)).double()
    base[:10, :20] += 1.0
    expected = np.zeros((40, 40), bool)
    expected[:10, :20] = True
    assert np.array_equal(principal(base, 1, alpha=200 / 1600), expected)


def test_masks_follow_scale_sign_transpose_and_permutation() -> None:
    base = base_matrix()
    rows, cols = (np.random.default_rng(1).permutation(n) for n in SHAPE)
    for build in (lambda b: principal(b, 4), low):
        mask = build(base)
        assert np.array_equal(build(base * -8), mask)
        moved = build(base[rows][:, cols])
        # ties sit in other places after a permutation, so all but equal values must agree
        assert (moved != mask[rows][:, cols]).mean() < 0.02
    turned = principal(base.T.contiguous(), 4)
    assert np.array_equal(turned, principal(base, 4).T)


def test_the_principal_mask_does_not_depend_on_signs_or_rotations_of_the_basis() -> None:
    base = base_matrix().double()
    _, basis = spectrum_and_basis(base, rank=4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    expected = measures.principal_mask(base, basis.left).mask
    assert np.array_equal(measures.principal_mask(base, basis.left @ turn).mask, expected)
    assert np.array_equal(measures.principal_mask(base, -basis.left).mask, expected)


def test_the_top_of_the_update_skips_what_did_not_move() -> None:
    update = torch.zeros(10, 10, dtype=torch.float64)
    update[2, 3], update[7, 7] = -3.0, 1e-9
    found = measures.top_update_mask(update)
    assert found.count == 2
    assert np.argwhere(unpack(found.mask, (10, 10))).tolist() == [[2, 3], [7, 7]]
    assert measures.top_update_mask(torch.zeros(10, 10)).count == 0
    assert measures.top_update_mask(torch.ones(10, 10)).count == 5


# ---------------------------------------------------------------------------------- overlap


def test_overlap_planted_and_at_its_edges() -> None:
    fixed = np.arange(64).reshape(8, 8) % 2 == 0
    assert measures.overlap(pack(fixed), pack(fixed)) == (1.0, None, "ok")
    assert measures.overlap(pack(~fixed), pack(fixed)).value == 0
    assert measures.overlap(pack(np.ones((8, 8), bool)), pack(fixed)).value == 0.5
    assert measures.overlap(pack(np.zeros((8, 8), bool)), pack(fixed)).status == "no_change"


# --------------------------------------------------------------------------- magnitude null


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_the_magnitude_null_agrees_with_the_reference(alpha: float) -> None:
    base = base_matrix()
    w, mask = reference.values64(base), size_dependent(base)
    for fixed in (principal(base, 4, alpha), low(base, alpha)):
        expected = reference.magnitude_null(w, mask, fixed)
        assert null(base, mask, fixed).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("which", ["principal", "low"])
def test_the_magnitude_null_agrees_with_redrawing(which: str) -> None:
    """Mean and standard deviation over redraws within bins of equal size."""
    base = base_matrix()
    w, mask = reference.values64(base), size_dependent(base)
    fixed = principal(base, 4) if which == "principal" else low(base)
    generator = np.random.default_rng(2)
    draws = 1000
    seen = [
        reference.overlap(reference.redraw_within_bins(w, mask, generator), fixed)
        for _ in range(draws)
    ]
    found = null(base, mask, fixed)
    spread = float(np.std(seen, ddof=1))
    assert found.value == pytest.approx(np.mean(seen), abs=4 * spread / np.sqrt(draws))
    assert found.error == pytest.approx(spread, rel=0.1)


def test_the_magnitude_null_does_not_see_where_in_a_bin_the_mask_lies() -> None:
    base = base_matrix()
    w, mask, fixed = reference.values64(base), size_dependent(base), principal(base, 4)
    generator = np.random.default_rng(3)
    for _ in range(5):
        moved = reference.redraw_within_bins(w, mask, generator)
        assert not np.array_equal(moved, mask)
        assert null(base, moved, fixed) == null(base, mask, fixed)


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_the_magnitude_null_is_alpha_where_size_tells_nothing(alpha: float) -> None:
    """All weights of one size, or every entry changed: then it is the chance level exactly."""
    flat = torch.where(base_matrix() > 0, 0.02, -0.02).to(torch.bfloat16)
    fixed = np.zeros(SHAPE, bool)
    fixed.reshape(-1)[: round(alpha * fixed.size)] = True
    exact = fixed.mean()
    assert null(flat, size_dependent(base_matrix()), fixed).value == pytest.approx(exact, rel=1e-12)
    everything = np.ones(SHAPE, bool)
    found = null(base_matrix(), everything, low(base_matrix(), alpha))
    assert found.value == pytest.approx(low(base_matrix(), alpha).mean(), rel=1e-12)
    assert found.error == 0, "a full mask has nowhere to go"


def test_the_magnitude_null_at_its_edges() -> None:
    base = base_matrix()
    nothing, one = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[3, 4] = True
    assert null(base, nothing, low(base)).status == "no_change"
    assert null(base, one, nothing)[:2] == (0.0, 0.0)
    assert null(base, one, np.ones(SHAPE, bool))[:2] == (1.0, 0.0)
    alone = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.bfloat16)  # a bin for each entry
    mask, fixed = np.array([[True, False], [True, True]]), np.array([[True, True], [False, False]])
    assert null(alone, mask, fixed)[:2] == pytest.approx((1 / 3, 0.0))


def test_the_spread_of_the_null_is_hypergeometric() -> None:
    """One of two equal entries changes and one is in P: hit or miss, so mean and spread are 1/2."""
    pair = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)
    one, other = np.array([[True, False]]), np.array([[False, True]])
    assert null(pair, one, other)[:2] == (0.5, 0.5)


def test_the_magnitude_null_tells_a_planted_preference_from_size() -> None:
    base = base_matrix((128, 128))
    mask, fixed = size_dependent(base), principal(base, 8)
    honest = null(base, mask, fixed)
    assert abs(reference.overlap(mask, fixed) - honest.value) < 4 * honest.error
    planted = mask & (fixed | (np.random.default_rng(0).random(mask.shape) < 0.5))
    found = null(base, planted, fixed)
    assert reference.overlap(planted, fixed) - found.value > 10 * found.error


# ---------------------------------------------------------------------------- rounding null


def noise(shape: tuple[int, int], *, size: float = 3e-5, seed: int = 0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_the_rounding_null_is_seeded() -> None:
    base = base_matrix().double()
    fixed = [pack(low(base)), pack(principal(base, 4))]
    runs = [
        measures.rounding_null(base, noise(SHAPE), fixed, seed=seed, draws=3) for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert all(number.error > 0 for number in runs[0])
    single = measures.rounding_null(base, noise(SHAPE), fixed, seed=5)
    assert [number.error for number in single] == [None, None]


def test_pure_noise_reproduces_itself() -> None:
    """Noise is exchangeable, so its own overlap is one more draw of its rounding null."""
    base = base_matrix((128, 128)).double()
    fixed = [low(base), principal(base, 8)]
    inside = 0
    for seed in range(10):
        update = noise((128, 128), seed=seed)
        mask = reference.changed_bf16(base, base + update)
        found = measures.rounding_null(base, update, [pack(f) for f in fixed], seed=seed, draws=16)
        for one, number in zip(fixed, found, strict=True):
            z = (reference.overlap(mask, one) - number.value) / number.error
            assert abs(z) < 6
            inside += abs(z) < 2.5
    assert inside >= 17, "of 20"


def test_the_rounding_null_agrees_with_a_reference_of_its_own() -> None:
    base = base_matrix((64, 64)).double()
    fixed = principal(base, 4)
    update = noise((64, 64)) * (1 + 20 * torch.from_numpy(fixed))  # a strong preference, undone
    generator = np.random.default_rng(9)
    seen = []
    for _ in range(200):
        drawn = generator.permutation(update.numpy().reshape(-1)).reshape(64, 64)
        seen.append(
            reference.overlap(reference.changed_bf16(base, base + torch.from_numpy(drawn)), fixed)
        )
    found = measures.rounding_null(base, update, [pack(fixed)], seed=1, draws=200)[0]
    spread = float(np.std(seen, ddof=1))
    assert found.value == pytest.approx(np.mean(seen), abs=5 * spread * np.sqrt(2 / 200))
    assert found.error == pytest.approx(spread, rel=0.25)


def test_the_rounding_null_at_its_edges() -> None:
    base = base_matrix().double()
    fixed = [pack(low(base))]
    lost = measures.rounding_null(base, noise(SHAPE, size=1e-14), fixed, seed=0)
    assert lost == [(None, None, "no_change_in_null")]
    huge = measures.rounding_null(base, noise(SHAPE, size=10.0), fixed, seed=0)[0]
    assert huge.value == pytest.approx(0.5, abs=1e-9), "everything changes: the density of P"
    kept = noise(SHAPE)
    before = kept.clone()
    measures.rounding_null(base, kept, fixed, seed=0)
    assert torch.equal(kept, before), "the update is not shuffled in place"
