"""Row and column profiles: their magnitude null, stripes, and how early a pattern is fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from offaxis import measures
from offaxis.kernels import MAGNITUDE_BINS, bf16_codes, bin_counts, pack, rate_sums, scan
from offaxis.measures.change import block_sizes

BASE = reference.power_law_matrix(64, 96, seed=0)
VALUES = reference.values64(BASE)
CODES = bf16_codes(BASE)
TOTAL = bin_counts(CODES)


def noise(seed: int, *, size: float = 3e-5) -> np.ndarray:
    """The mask of a Gaussian step: only rounding and entry size decide what changes."""
    drawn = np.random.default_rng(seed).normal(0, size, VALUES.shape)
    return reference.changed_bf16(BASE, torch.from_numpy(VALUES + drawn))


def striped(seed: int, *, rows: slice = slice(0, 64, 4), more: float = 4.0) -> np.ndarray:
    """The same, every fourth row stepping further."""
    drawn = np.random.default_rng(seed).normal(0, 3e-5, VALUES.shape)
    drawn[rows] *= more
    return reference.changed_bf16(BASE, torch.from_numpy(VALUES + drawn))


def bins(mask: np.ndarray) -> np.ndarray:
    return bin_counts(CODES, pack(mask))


def null(mask: np.ndarray, **how: int) -> measures.Profiles:
    return measures.null_profiles(CODES, VALUES.shape, TOTAL, bins(mask), **how)


def row_stripes(mask: np.ndarray) -> measures.Number:
    return measures.stripes(mask.mean(1), null(mask).rows, TOTAL, bins(mask))


def correlation_null(one: np.ndarray, other: np.ndarray) -> measures.Number:
    expected = (null(one).rows, null(other).rows)
    counts = (bins(one), bins(other))
    return measures.profile_correlation_null(expected, TOTAL, counts, bins(one & other))


# --------------------------------------------------------------------------------- the kernel


@settings(deadline=None)  # the first call compiles
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    side=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_rate_sums_add_up_over_rows_columns_and_blocks(
    rows: int, cols: int, side: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << 16, rows * cols).astype(np.uint16)
    rates = generator.random(MAGNITUDE_BINS)
    sizes = [block_sizes(extent, side) for extent in (rows, cols)]
    each = rates[(codes & 0x7FFF) >> 4].reshape(rows, cols)
    starts = [np.cumsum(one) - one for one in sizes]
    blocks = np.add.reduceat(np.add.reduceat(each, starts[0], axis=0), starts[1], axis=1)
    for found, expected in zip(
        rate_sums(codes, rates, *sizes), (each.sum(1), each.sum(0), blocks), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


# ------------------------------------------------------------------------------ null profiles


def test_null_profiles_planted() -> None:
    """Two sizes: a third of the small entries changed, no large one; large in the first row."""
    base = torch.full((4, 6), 0.01, dtype=torch.bfloat16)
    base[0] = 1.0
    mask = np.zeros((4, 6), bool)
    mask[1] = True
    codes = bf16_codes(base)
    found = measures.null_profiles(codes, (4, 6), bin_counts(codes), bin_counts(codes, pack(mask)))
    assert found.rows == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert found.columns == pytest.approx([0.25] * 6)
    assert found.picture == pytest.approx(np.repeat([[0], [1], [1], [1]], 6, axis=1) / 3)


@pytest.mark.parametrize("mask", [noise(1), striped(2), noise(3, size=3e-4)])
def test_null_profiles_agree_with_the_reference(mask: np.ndarray) -> None:
    rate = reference.null_rate(VALUES, mask)
    found = null(mask, side=8)
    np.testing.assert_allclose(found.rows, rate.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.columns, rate.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.picture, rate.reshape(8, 8, 8, 12).mean((1, 3)), rtol=1e-12)
    assert found.rows.mean() == pytest.approx(mask.mean(), rel=1e-12)


def test_null_profiles_are_the_mean_of_redraws() -> None:
    mask, generator = striped(1), np.random.default_rng(4)
    drawn = [reference.redraw_within_bins(VALUES, mask, generator).mean(1) for _ in range(400)]
    error = np.std(drawn, axis=0, ddof=1) / 20
    assert np.abs(np.mean(drawn, axis=0) - null(mask).rows).max() < (5 * error + 1e-12).max()


def test_a_mask_made_of_whole_bins_is_its_own_null() -> None:
    mask = reference.magnitude_bins(VALUES) % 3 == 0
    found = null(mask)
    np.testing.assert_allclose(found.rows, mask.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.columns, mask.mean(0), rtol=1e-12)
    assert row_stripes(mask).value == pytest.approx(1, rel=1e-9)


def test_profiles_turn_with_the_matrix() -> None:
    mask = striped(1)
    turned = bf16_codes(BASE.T.contiguous())
    counts = (bin_counts(turned), bin_counts(turned, pack(mask.T)))
    one = null(mask).turned()
    other = measures.null_profiles(turned, (96, 64), *counts)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_profiles_of_a_scan_are_plain_means() -> None:
    tuned = BASE.clone()
    tuned[3] += 0.01
    tuned[:, 5] += 0.01
    mask = reference.changed_bf16(BASE, tuned)
    found = measures.observed_profiles(scan(BASE, tuned), (64, 96), side=16)
    np.testing.assert_allclose(found.rows, mask.mean(1))
    np.testing.assert_allclose(found.columns, mask.mean(0))
    np.testing.assert_allclose(found.picture, mask.reshape(16, 4, 16, 6).mean((1, 3)))


# ------------------------------------------------------------------------------------ stripes


def test_rounding_noise_has_no_stripes_and_planted_ones_are_found() -> None:
    assert np.mean([row_stripes(noise(seed)).value for seed in range(20)]) == pytest.approx(1, 0.1)
    mask = striped(1)
    found = row_stripes(mask).value
    across = measures.stripes(mask.mean(0), null(mask).columns, TOTAL, bins(mask)).value
    assert found is not None
    assert across is not None
    assert found > 5
    assert across < 2


@pytest.mark.parametrize("mask", [noise(1), striped(2), noise(3, size=3e-4)])
def test_stripes_are_measured_in_redraws(mask: np.ndarray) -> None:
    """The observed variance over its mean in 400 redraws of the reference."""
    generator = np.random.default_rng(5)
    drawn = [
        reference.redraw_within_bins(VALUES, mask, generator).mean(1).var() for _ in range(400)
    ]
    assert row_stripes(mask).value == pytest.approx(mask.mean(1).var() / np.mean(drawn), rel=0.04)


def test_stripes_do_not_depend_on_the_order_of_rows() -> None:
    mask, order = striped(1), np.random.default_rng(0).permutation(64)
    codes = bf16_codes(BASE[order])
    counts = (bin_counts(codes), bin_counts(codes, pack(mask[order])))
    expected = measures.null_profiles(codes, (64, 96), *counts).rows
    found = measures.stripes(mask[order].mean(1), expected, *counts).value
    assert found == pytest.approx(row_stripes(mask).value, rel=1e-12)


@pytest.mark.parametrize("share", [False, True])
def test_stripes_need_something_that_varies(share: bool) -> None:
    assert row_stripes(np.full(VALUES.shape, share)).status == "no_variation"
    one = np.array([0.5])
    assert measures.stripes(one, one, TOTAL, TOTAL).status == "one_place"


# -------------------------------------------------------------------------- over the steps


def test_profile_correlation_planted_and_at_its_edges() -> None:
    one = np.array([0.1, 0.2, 0.4])
    assert measures.profile_correlation(one, 2 * one + 0.1).value == pytest.approx(1)
    assert measures.profile_correlation(one, 1 - one).value == pytest.approx(-1)
    drawn = np.random.default_rng(0).random((2, 300))
    expected = np.corrcoef(drawn)[0, 1]
    assert measures.profile_correlation(*drawn).value == pytest.approx(expected, rel=1e-12)
    constant = np.full(7, 0.1)
    assert measures.profile_correlation(constant, np.arange(7.0)).status == "constant_profile"
    assert measures.profile_correlation(np.zeros(7), np.arange(7.0)).status == "constant_profile"
    assert measures.profile_correlation(one[:1], one[:1]).status == "one_place"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (noise(1), noise(1) | noise(2)),
        (noise(1), noise(2)),
        (striped(1), striped(1) | striped(2)),
        (striped(1), noise(5, size=3e-4)),
    ],
)
def test_the_null_of_a_correlation_agrees_with_redrawing(
    one: np.ndarray, other: np.ndarray
) -> None:
    generator = np.random.default_rng(6)
    seen = []
    for _ in range(400):
        a, b = reference.redraw_together(VALUES, [one, other], generator)
        seen.append(np.corrcoef(a.mean(1), b.mean(1))[0, 1])
    error = float(np.std(seen, ddof=1)) / 20
    assert correlation_null(one, other).value == pytest.approx(np.mean(seen), abs=4 * error + 0.02)


def test_noise_that_stays_moved_meets_the_null_and_stripes_exceed_it() -> None:
    """A profile is correlated with a later one merely because what has moved stays moved."""
    gaps = []
    for seed in range(10):
        one, last = noise(seed), noise(seed) | noise(seed + 100)
        seen = measures.profile_correlation(one.mean(1), last.mean(1)).value
        expected = correlation_null(one, last).value
        assert seen is not None
        assert expected is not None
        assert expected > 0.5
        gaps.append(seen - expected)
    assert abs(np.mean(gaps)) < 0.05
    one, last = striped(1), striped(1) | striped(2)
    seen = measures.profile_correlation(one.mean(1), last.mean(1)).value
    assert seen is not None
    assert seen > (correlation_null(one, last).value or 0) + 0.05


def test_the_null_of_a_correlation_with_itself_is_one_and_has_edges() -> None:
    mask = noise(1)
    assert correlation_null(mask, mask).value == pytest.approx(1, rel=1e-9)
    assert correlation_null(mask, noise(2)) == correlation_null(noise(2), mask)
    for share in (False, True):
        full = np.full(VALUES.shape, share)
        assert correlation_null(mask, full).status == "constant_profile"
        assert correlation_null(full, mask).status == "constant_profile"


# -------------------------------------------------------------------------------- stretches


def test_binned_profiles_keep_their_mean_and_short_ones_whole() -> None:
    values = np.random.default_rng(0).random(1024)
    assert measures.binned(values[:256]) is not None
    np.testing.assert_array_equal(measures.binned(values[:256]), values[:256])
    np.testing.assert_allclose(measures.binned(values), values.reshape(256, 4).mean(1))
    np.testing.assert_allclose(measures.binned(np.arange(7.0), 2), [1.0, 4.5])
    assert measures.binned(values[:1000]).shape == (256,)
