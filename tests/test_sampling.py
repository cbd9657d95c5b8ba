"""Which matrices are sampled, and whether the mean over the sample covers the mean over all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from offaxis.comparison.sampling import Mean, choose_spectra, mean_over
from offaxis.errors import InputError

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def model(layers: int, roles: tuple[str, ...] = ROLES) -> dict[str, tuple[str, int]]:
    return {f"{layer}.{role}": (role, layer) for layer in range(layers) for role in roles}


def test_all_and_none() -> None:
    assert choose_spectra(model(3), "all") == (set(model(3)), "")
    assert choose_spectra(model(3), "none") == (set(), "not_asked_for")


@given(layers=st.integers(1, 12), wanted=st.integers(1, 100), seed=st.integers(0, 9))
def test_a_sample_has_the_size_asked_for_and_its_share_of_each_role(
    layers: int, wanted: int, seed: int
) -> None:
    names = model(layers) | {"router.0": ("router", 0)}
    chosen, why_not = choose_spectra(names, f"sample:{wanted}", seed=seed)
    assert chosen <= set(names)
    assert len(chosen) == min(wanted, len(names))
    assert why_not == "not_sampled"
    counts = Counter(names[name][0] for name in chosen)
    if wanted >= 8:
        assert len(counts) == 8, "each role at least once where N allows"
    shares = [counts[role] for role in ROLES]
    assert max(shares) - min(shares) <= 1, "roles of one size get one share"


def test_a_sample_is_spread_over_depth_and_seeded() -> None:
    names = model(28)
    chosen, _ = choose_spectra(names, "sample:28", seed=3)
    for role in ROLES:
        depths = sorted(layer for name, (r, layer) in names.items() if name in chosen and r == role)
        assert len(depths) == 4
        assert [depth // 7 for depth in depths] == [0, 1, 2, 3], "one in each quarter"
    assert choose_spectra(names, "sample:28", seed=3)[0] == chosen
    assert any(choose_spectra(names, "sample:28", seed=s)[0] != chosen for s in range(5))


def test_the_order_of_the_names_does_not_matter() -> None:
    names = model(9)
    backwards = dict(reversed(names.items()))
    assert choose_spectra(names, "sample:20") == choose_spectra(backwards, "sample:20")


def test_every_matrix_can_be_drawn() -> None:
    names = model(8)
    drawn = set().union(*(choose_spectra(names, "sample:7", seed=s)[0] for s in range(200)))
    assert drawn == set(names)


@pytest.mark.parametrize(
    "request_", ["", "some", "sample", "sample:", "sample:0", "sample:-3", "sample:2.5", "sample:²"]
)
def test_a_bad_request_is_refused_by_name(request_: str) -> None:
    with pytest.raises(InputError, match="all, none or sample:N"):
        choose_spectra(model(2), request_)


def test_a_negative_seed_is_refused_as_input() -> None:
    with pytest.raises(InputError, match="seed"):
        choose_spectra(model(2), "sample:3", seed=-1)


def test_a_model_without_matrices_has_an_empty_sample() -> None:
    assert choose_spectra({}, "sample:5")[0] == set()


# ------------------------------------------------------------------------------------- means


def test_the_mean_and_its_interval_agree_with_the_reference() -> None:
    generator = np.random.default_rng(0)
    roles = [str(r) for r in generator.choice(list("abcd"), 30)] + ["alone"]
    values = [float(v) for v in generator.normal(size=31)]
    found = mean_over(values, roles)
    mean, half = reference.mean_and_half_width(values, roles)
    assert (found.value, found.count) == (pytest.approx(mean), 31)
    assert (found.low + found.high) / 2 == pytest.approx(mean)
    assert half * (1 - 1e-9) <= (found.high - found.low) / 2 <= 1.15 * half, "Gauss to Student"


def test_a_stratified_sample_is_weighted_by_the_size_of_its_roles() -> None:
    """Nine of role a at 1, one of role b at 11: the mean over all is 2, from two of each."""
    found = mean_over([1.0, 1.0, 11.0, 11.0], ["a", "a", "b", "b"], {"a": 9, "b": 1})
    assert found.value == pytest.approx(2)
    assert found.low == found.high == pytest.approx(2), "no spread within roles"


@pytest.mark.parametrize("values", [[], [0.5]], ids=["none", "one"])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    expected = Mean(values[0] if values else None, None, None, len(values))
    assert mean_over(values, ["a"] * len(values)) == expected


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = mean_over([0.25] * 6, ["a", "a", "b", "b", "c", "d"])
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("slope", [0.0, 0.01], ids=["flat", "trend over depth"])
@pytest.mark.parametrize("wanted", [7, 14, 28, 56])
def test_intervals_of_samples_cover_the_mean_over_all(wanted: int, slope: float) -> None:
    """Values that depend on role and depth: 20 models × 20 seeds; coverage and bias."""
    names = model(28)
    sizes = Counter(role for role, _ in names.values())
    covered, errors = 0, []
    for population in range(20):
        generator = np.random.default_rng(population)
        by_role = dict(zip(ROLES, generator.normal(1, 0.3, len(ROLES)), strict=True))
        value = {
            name: by_role[role] + slope * depth + generator.normal(0, 0.1)
            for name, (role, depth) in names.items()
        }
        truth = float(np.mean(list(value.values())))
        for seed in range(20):
            chosen = sorted(choose_spectra(names, f"sample:{wanted}", seed=seed)[0])
            found = mean_over([value[n] for n in chosen], [names[n][0] for n in chosen], sizes)
            covered += found.low <= truth <= found.high
            errors.append(found.value - truth)
    assert covered >= 0.93 * 400
    assert np.mean(errors) == pytest.approx(0, abs=5 * np.std(errors) / np.sqrt(400))


@pytest.mark.parametrize("members", [2, 3, 5, 20])
def test_intervals_over_few_matrices_are_as_wide_as_they_must_be(members: int) -> None:
    """Of 2,000 sets of `members` normal values around 0, 95 % should have 0 in their interval."""
    drawn = np.random.default_rng(0).normal(size=(2000, members))
    found = [mean_over([float(v) for v in row], ["a"] * members) for row in drawn]
    assert sum(one.low <= 0 <= one.high for one in found) >= 0.93 * 2000
