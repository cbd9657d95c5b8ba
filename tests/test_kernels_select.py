"""Exact selection, magnitude bins and packed masks against sorting and dense counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from offaxis.kernels import (
    MAGNITUDE_BINS,
    bf16_codes,
    bin_counts,
    magnitude_codes,
    pack,
    popcount,
    select,
    unpack,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]
SIDES = ("largest", "smallest")


def by_sorting(values: np.ndarray, count: int, side: str) -> np.ndarray:
    return (reference.largest if side == "largest" else reference.smallest)(values, count)


def chosen(tensor: torch.Tensor, count: int, side: Any) -> np.ndarray:
    found = select(magnitude_codes(tensor), count, side=side)
    assert found.count == count == popcount(found.mask)
    return unpack(found.mask, tuple(tensor.shape))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 511, 1024, 1234, 2046, 2047])
def test_selection_is_a_stable_sort(dtype: torch.dtype, side: str, count: int) -> None:
    drawn = torch.randn(23, 89, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = by_sorting(reference.values64(drawn), count, side)
    assert np.array_equal(chosen(drawn, count, side), expected)


@pytest.mark.parametrize("side", SIDES)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0, 1e-40]), max_size=40),
    data=st.data(),
)
def test_ties_go_to_the_lower_index(side: str, values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    tensor = torch.tensor(values, dtype=torch.float32)
    assert np.array_equal(
        chosen(tensor, count, side), by_sorting(reference.values64(tensor), count, side)
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_ties_go_to_the_lower_index_across_threads(side: str, share: float) -> None:
    """Large enough for several spans; eight distinct magnitudes, so that the threshold is a tie."""
    drawn = torch.randint(-8, 9, (700, 701), generator=torch.Generator().manual_seed(0))
    tensor = drawn.to(torch.bfloat16)
    count = round(share * tensor.numel())
    assert np.array_equal(
        chosen(tensor, count, side), by_sorting(reference.values64(tensor), count, side)
    )


@pytest.mark.parametrize("side", SIDES)
def test_of_equal_entries_the_first_are_taken(side: str) -> None:
    mask = chosen(torch.full((400, 500), -3.0), 123_456, side)
    assert mask.reshape(-1)[:123_456].all()
    assert mask.sum() == 123_456


def test_a_nan_ranks_above_infinity() -> None:
    tensor = torch.tensor([1.0, float("nan"), float("-inf"), -float("nan"), 2.0])
    assert chosen(tensor, 2, "largest").tolist() == [False, True, False, True, False]
    assert chosen(tensor, 3, "largest").tolist() == [False, True, True, True, False]
    assert chosen(tensor, 2, "smallest").tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("count", [-1, 6])
def test_a_count_beyond_the_entries_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot select {count} of 5"):
        select(magnitude_codes(torch.ones(5)), count, side="largest")


def test_an_empty_tensor_gives_an_empty_mask() -> None:
    found = select(magnitude_codes(torch.ones(0)), 0, side="largest")
    assert (found.count, found.mask.size, found.near) == (0, 0, 0)


def test_the_largest_and_the_smallest_rest_partition_the_tensor() -> None:
    tensor = torch.randn(40, 40, generator=torch.Generator().manual_seed(2))
    top, rest = chosen(tensor, 500, "largest"), chosen(tensor, 1100, "smallest")
    assert np.array_equal(top, ~rest)


def test_scaling_selects_the_same_entries() -> None:
    tensor = torch.randn(40, 40, generator=torch.Generator().manual_seed(2))
    assert np.array_equal(
        chosen(tensor, 700, "largest"), chosen(tensor * -(2.0**20), 700, "largest")
    )


@pytest.mark.parametrize("threshold", [1.0, 1.3, 1.9, 1.9999999])
def test_entries_within_1e_12_of_the_threshold_are_counted(threshold: float) -> None:
    """The threshold, one neighbour at 0.99e-12 relative either side, and others far away."""
    close = threshold * np.array([1 - 0.99e-12, 1.0, 1 + 0.99e-12])
    far = threshold * np.array([0.5, 1 - 5e-12, 1 + 5e-12, 2.0])
    codes = magnitude_codes(torch.from_numpy(np.concatenate([close, far])))
    found = select(codes, 4, side="largest")  # 2, 1+5e-12, 1+0.99e-12, and the threshold
    assert found.near == 3


def test_in_narrow_dtypes_only_equals_are_near() -> None:
    codes = magnitude_codes(torch.tensor([1.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.bfloat16))
    assert select(codes, 2, side="largest").near == 3


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (500, 601), (0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_bin_counts_agree_with_numpy(shape: tuple[int, int], share: float | None) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=shape) * 2.0 ** generator.integers(-130, 20, shape)
    tensor = torch.from_numpy(values).to(torch.float32)
    mask = None if share is None else generator.random(shape) < share
    codes = magnitude_codes(tensor.to(torch.bfloat16))
    counts = bin_counts(codes, None if mask is None else pack(mask))
    expected = reference.bin_totals(reference.magnitude_bins(reference.values64(tensor)), mask)
    assert counts.shape == (MAGNITUDE_BINS,)
    assert counts.tolist() == expected.tolist()


def test_a_bin_is_an_exponent_and_three_bits_whatever_the_sign() -> None:
    one = bin_counts(bf16_codes(torch.tensor([1.0, -1.0, 1.12, 1.126, 2.0])))
    assert one[[127 * 8, 127 * 8 + 1, 128 * 8]].tolist() == [3, 1, 1]
    assert one.sum() == 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_histogram_rounds_to_bfloat16_first(dtype: torch.dtype) -> None:
    tensor = torch.randn(50, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = reference.bin_totals(reference.magnitude_bins(reference.values64(tensor)))
    assert bin_counts(bf16_codes(tensor)).tolist() == expected.tolist()


def test_the_histogram_of_float64_is_rounded_once() -> None:
    """Just above the tie between the last code of one bin and the first of the next."""
    low, high = 1.0 + 15 / 128, 1.0 + 16 / 128
    value = (low + high) / 2 - 2.0**-40  # below the tie: float32 lands on it, and goes up
    counts = bin_counts(bf16_codes(torch.tensor([value], dtype=torch.float64)))
    assert counts[127 * 8] == 1


@given(st.lists(st.booleans(), max_size=70))
def test_packing_a_mask_is_lossless(bits: list[bool]) -> None:
    mask = np.array(bits, bool)
    packed = pack(mask)
    assert packed.size == -(-mask.size // 8)
    assert unpack(packed, mask.shape).tolist() == bits
    assert popcount(packed) == sum(bits)
    assert np.array_equal(pack(torch.tensor(bits, dtype=torch.bool)), packed)


def test_the_first_entry_is_the_lowest_bit() -> None:
    assert pack(np.array([[True, False], [False, True]])).tolist() == [0b1001]
