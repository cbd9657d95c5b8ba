"""Jaccard overlap between runs, its chance level and magnitude null, and consensus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from offaxis import measures
from offaxis.kernels import bin_counts, magnitude_codes, pack

BASE = reference.power_law_matrix(48, 64, seed=0)
VALUES = reference.values64(BASE)


def run_mask(seed: int, *, size: float = 3e-5) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, size, VALUES.shape)
    return reference.changed_bf16(BASE, torch.from_numpy(VALUES + drawn))


def null(one: np.ndarray, other: np.ndarray) -> measures.Number:
    codes = magnitude_codes(BASE)
    counts = (bin_counts(codes), bin_counts(codes, pack(one)), bin_counts(codes, pack(other)))
    return measures.jaccard_magnitude_null(*counts)


def test_jaccard_planted_and_at_its_edges() -> None:
    a, b = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    a[0], b[0, :3], b[1, :3] = True, True, True
    assert measures.jaccard(pack(a), pack(b)).value == 3 / 9
    assert measures.jaccard(pack(a), pack(a)).value == 1
    assert measures.jaccard(pack(a), pack(np.zeros_like(a))).value == 0
    assert measures.jaccard(pack(a & ~a), pack(a & ~a)).status == "no_change"


@pytest.mark.parametrize(
    ("p", "q", "chance"),
    [(0.5, 0.5, 1 / 3), (1, 1, 1), (1, 0.3, 0.3), (0, 0.3, 0), (0.32, 0.32, 0.1905), (0, 0, None)],
)
def test_chance(p: float, q: float, chance: float | None) -> None:
    found = measures.jaccard_chance(p, q).value
    assert found == (chance if chance is None else pytest.approx(chance, rel=1e-3))


def test_agreement_with_the_reference() -> None:
    one, other = run_mask(1), run_mask(2, size=1e-4)
    assert measures.jaccard(pack(one), pack(other)).value == reference.jaccard(one, other)
    expected = reference.jaccard_magnitude_null(VALUES, one, other)
    assert null(one, other).value == pytest.approx(expected, rel=1e-12)
    assert null(other, one).value == pytest.approx(expected, rel=1e-12)


def test_the_null_agrees_with_redrawing_both_masks() -> None:
    one, other = run_mask(1), run_mask(2)
    generator = np.random.default_rng(3)
    seen = [
        reference.jaccard(
            reference.redraw_within_bins(VALUES, one, generator),
            reference.redraw_within_bins(VALUES, other, generator),
        )
        for _ in range(400)
    ]
    error = float(np.std(seen, ddof=1)) / np.sqrt(len(seen))
    # the ratio of expectations against the expectation of a ratio: apart by far less than a draw
    assert null(one, other).value == pytest.approx(np.mean(seen), abs=4 * error + 1e-4)


def test_independent_noises_meet_the_null_and_not_chance() -> None:
    """Two noises agree far more often than chance says, because small weights change more."""
    one, other = run_mask(1), run_mask(2)
    seen = reference.jaccard(one, other)
    assert seen == pytest.approx(null(one, other).value, abs=0.03)
    chance = measures.jaccard_chance(one.mean(), other.mean()).value
    assert seen > 2 * chance


def test_the_null_at_its_edges() -> None:
    nothing, everything = np.zeros(VALUES.shape, bool), np.ones(VALUES.shape, bool)
    assert null(nothing, nothing).status == "no_change"
    assert null(everything, everything).value == pytest.approx(1)
    assert null(everything, nothing).value == 0
    half = run_mask(1)
    assert null(everything, half).value == pytest.approx(half.mean())


@given(
    runs=st.integers(1, 5),
    entries=st.integers(0, 200),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_consensus_counts_every_entry_once(
    runs: int, entries: int, density: float, seed: int
) -> None:
    """They sum to the entries, and Σ r·count_r is the number of changes over all runs."""
    masks = np.random.default_rng(seed).random((runs, entries)) < density
    counts = measures.changed_in_r_runs([pack(mask) for mask in masks], entries)
    assert counts.tolist() == np.bincount(masks.sum(0), minlength=runs + 1).tolist()
    assert counts.sum() == entries
    assert (np.arange(runs + 1) * counts).sum() == masks.sum()


def test_consensus_beside_what_magnitude_alone_gives() -> None:
    """The null keeps how often each run changes each bin; draws within bins meet it."""
    draw = np.random.default_rng(3)
    entries, runs = 40_000, 4
    where = draw.integers(0, 3, entries)
    rates = draw.random((runs, 3))
    masks = draw.random((runs, entries)) < rates[:, where]
    total = np.bincount(where, minlength=4)  # the last bin is empty
    found = measures.changed_in_r_runs_null(
        total, [np.bincount(where[m], minlength=4) for m in masks]
    )
    seen = np.bincount(masks.sum(0), minlength=runs + 1)
    assert found.sum() == pytest.approx(entries)
    assert (np.arange(runs + 1) * found).sum() == pytest.approx(masks.sum())
    np.testing.assert_allclose(found, seen, atol=5 * np.sqrt(entries) / 2)
    same = measures.changed_in_r_runs_null(total, [np.bincount(where[masks[0]], minlength=4)] * 4)
    assert same[4] < 0.9 * masks[0].sum()  # four equal masks are no chance


def test_consensus_over_several_threads() -> None:
    masks = np.random.default_rng(0).random((3, 300_001)) < 0.4
    counts = measures.changed_in_r_runs([pack(mask) for mask in masks], masks.shape[1])
    assert counts.tolist() == np.bincount(masks.sum(0), minlength=4).tolist()
