"""Random masks: exact counts, every choice equally likely, nothing shared between tensors."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.kernels import MAGNITUDE_BINS, bf16_codes, bin_counts, pack, popcount
from offaxis.kernels.sampling import draw, draw_in_bins
from offaxis.masks import build


def chi_square(seen: np.ndarray, expected: float) -> float:
    return float((((seen - expected) ** 2) / expected).sum())


@settings(deadline=None)  # the first call compiles
@given(entries=st.integers(0, 300), share=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
def test_the_count_is_exact(entries: int, share: float, seed: int) -> None:
    count = round(share * entries)
    bits = draw(entries, count, seed=seed)
    assert bits.size == -(-entries // 8)
    assert popcount(bits) == count
    assert not np.unpackbits(bits, bitorder="little")[entries:].any()
    assert np.array_equal(bits, draw(entries, count, seed=seed))


def test_every_subset_is_equally_likely() -> None:
    """All 15 pairs of six entries: chi-square with 14 degrees of freedom, 99.99 % below 42.6."""
    places = {sum(1 << i for i in pair): n for n, pair in enumerate(combinations(range(6), 2))}
    seen = np.bincount([places[int(draw(6, 2, seed=s)[0])] for s in range(6000)], minlength=15)
    assert chi_square(seen, 6000 / 15) < 42.6


def test_every_position_is_equally_likely() -> None:
    """Counts over 2000 draws of 100 of 1000: chi-square of 999 ± 45 after the scale of each."""
    flags = [np.unpackbits(draw(1000, 100, seed=s), bitorder="little") for s in range(2000)]
    seen = np.sum(flags, axis=0, dtype=np.int64)
    statistic = chi_square(seen, 200) / (1 - 0.1)
    assert abs(statistic - 1000) < 4.5 * 45


def test_within_a_bin_every_subset_is_equally_likely() -> None:
    """Entries 0, 2, 4, 6 in one bin (two of them wanted), 1, 3, 5 in another (one of them)."""
    codes = np.array([16, 99, 17, 98, 0x8010, 97, 18], np.uint16)
    total = bin_counts(codes)
    wanted = np.zeros(MAGNITUDE_BINS, np.int64)
    wanted[[1, 6]] = 2, 1
    assert total[[1, 6]].tolist() == [4, 3]
    drawn = [int(draw_in_bins(codes, total, wanted, seed=s)[0]) for s in range(9000)]
    masks, seen = np.unique(drawn, return_counts=True)
    even, odd = 0b1010101, 0b0101010
    assert all((m & even).bit_count() == 2 and (m & odd).bit_count() == 1 for m in masks.tolist())
    assert len(masks) == 6 * 3
    assert chi_square(seen, 9000 / 18) < 46.8  # 17 degrees of freedom, 99.99 %


@pytest.mark.parametrize("count", [-1, 5])
def test_more_than_there_is_cannot_be_drawn(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw {count} of 4"):
        draw(4, count, seed=0)
    codes = np.zeros(4, np.uint16)
    wanted = np.zeros(MAGNITUDE_BINS, np.int64)
    wanted[0] = count
    with pytest.raises(ValueError, match="more entries are wanted"):
        draw_in_bins(codes, bin_counts(codes), wanted, seed=0)


@pytest.mark.parametrize("like", ["safe", "principal(alpha=0.2)", "low_magnitude", "all", "none"])
def test_the_magnitude_matched_one_has_its_models_count_in_every_bin(like: str) -> None:
    state = tiny(scale=2)
    base = MemoryCheckpoint(state)
    model, drawn = build(base, like), build(base, f"magnitude_random(like={like}, seed=1)")
    plain = build(base, f"random(like={like}, seed=1)")
    for name in model:
        codes = bf16_codes(state[name])
        its = bin_counts(codes, model.bits[name])
        assert np.array_equal(bin_counts(codes, drawn.bits[name]), its)
        assert plain.count(name) == drawn.count(name) == model.count(name)
    if 0 < model.density < 1:
        assert drawn != model
        assert plain != drawn


def test_tensors_of_one_shape_are_drawn_apart() -> None:
    """Two masks of density p share p² of the entries, and one seed is not another."""
    shape = (200, 500)
    base = MemoryCheckpoint({f"layers.{i}.up_proj.weight": torch.ones(shape) for i in range(2)})
    one, other = build(base, "random(density=0.2)"), build(base, "random(density=0.2, seed=1)")
    first, second = one.bits.values()
    spread = 100_000**0.5 * 0.2 * 0.8  # hypergeometric
    for pair in ((first, second), (first, next(iter(other.bits.values())))):
        assert abs(popcount(pair[0] & pair[1]) - 0.04 * 100_000) < 5 * spread


def test_a_matched_mask_is_drawn_apart_from_its_model_and_from_other_random_masks() -> None:
    """With one seed for all, as a study has it: a control that is its model controls nothing."""
    base = MemoryCheckpoint({"layers.0.up_proj.weight": torch.randn(200, 500)})
    model = build(base, "random(density=0.2)")
    matched = build(base, "magnitude_random(like=random(density=0.2))")
    again = build(base, "magnitude_random(like=magnitude_random(like=random(density=0.2)))")
    spread = 100_000**0.5 * 0.2 * 0.8
    for one, other in ((model, matched), (model, again), (matched, again)):
        assert abs((one & other).selected - 0.04 * 100_000) < 5 * spread
    assert build(base, "magnitude_random", like=model) == matched


def test_the_seed_is_a_whole_number_of_64_bits() -> None:
    base = MemoryCheckpoint(tiny(layers=1))
    last = build(base, "random", density=0.1, seed=2**64 - 1)
    assert last.rule == "random(density=0.1, seed=18446744073709551615)"
    for seed in (-1, 2**64, 1.0, True):
        with pytest.raises(InputError, match=r"seed=.* whole number from 0"):
            build(base, "random", density=0.1, seed=seed)
    assert build(base, "random", density=0.1, seed=np.int64(3)) == build(
        base, "random(density=0.1, seed=3)"
    )


def test_packed_bits_are_the_flags() -> None:
    mask = build(MemoryCheckpoint(tiny(layers=1)), "random", density=0.3)
    for name in mask:
        assert np.array_equal(pack(mask[name]), mask.bits[name])
        assert mask[name].dtype == torch.bool
