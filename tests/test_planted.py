"""The test that matters most: planted updates are told apart by the nulls, and not by chance.

Base: 1024², standard deviation 0.02, power-law spectrum, bfloat16 (DESIGN.md, section 3). Updates:
pure Gaussian noise; one confined to principal entries; one confined to non-principal entries, each
with as many changed entries in every magnitude bin as the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
import offaxis
import reference
from offaxis import measures
from offaxis.kernels import bin_counts, magnitude_codes, pack, scan, unpack
from offaxis.linalg import principal_rank, spectrum_and_basis
from offaxis.measures import ALPHA, Number

SIZE = 1024
NOISE = 3e-5


@dataclass(frozen=True)
class Ground:
    base: torch.Tensor
    principal: np.ndarray
    low: np.ndarray

    def update_mask(self, tuned: torch.Tensor) -> np.ndarray:
        return unpack(scan(self.base, tuned).mask, tuple(self.base.shape))

    def against_null(self, tuned: torch.Tensor, fixed: np.ndarray) -> tuple[float, Number]:
        """Observed overlap and its magnitude null."""
        mask, codes = pack(self.update_mask(tuned)), magnitude_codes(self.base)
        counts = (bin_counts(codes), bin_counts(codes, mask), bin_counts(codes, pack(fixed)))
        return measures.overlap(mask, pack(fixed)).value, measures.magnitude_null(*counts)

    def z(self, tuned: torch.Tensor, fixed: np.ndarray) -> float:
        """Observed minus null, in standard deviations of the null."""
        seen, null = self.against_null(tuned, fixed)
        return (seen - null.value) / null.error


def ground_of(base: torch.Tensor) -> Ground:
    wide = base.double()
    rank = principal_rank(*base.shape)
    basis = spectrum_and_basis(wide, rank=rank)[1]
    fixed = (measures.principal_mask(wide, basis.left), measures.low_magnitude_mask(base))
    return Ground(base, *(unpack(one.mask, tuple(base.shape)) for one in fixed))


@pytest.fixture(scope="module")
def ground() -> Ground:
    return ground_of(reference.power_law_matrix(SIZE, SIZE, seed=0))


def noise(base: torch.Tensor, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return base.double() + NOISE * torch.randn(base.shape, generator=generator).double()


def confined(ground: Ground, inside: np.ndarray, *, share: float = 1.0) -> torch.Tensor:
    """Of each magnitude bin, as many entries as noise changes (and either side can hold) move by
    one bfloat16 step; the `share` of them lies `inside`, the rest outside."""
    bins = reference.magnitude_bins(reference.values64(ground.base))
    touched = ground.update_mask(noise(ground.base, seed=1))
    generator = np.random.default_rng(0)
    codes = ground.base.clone().view(torch.int16).numpy()
    flat, bins, touched, within = (x.reshape(-1) for x in (codes, bins, touched, inside))
    for b in np.unique(bins):
        here = bins == b
        sides = [np.flatnonzero(here & within), np.flatnonzero(here & ~within)]
        count = min(int(touched[here].sum()), *(side.size for side in sides))
        first = round(share * count)
        for side, wanted in zip(sides, (first, count - first), strict=True):
            flat[generator.permutation(side)[:wanted]] ^= 1
    return torch.from_numpy(codes).view(torch.bfloat16)


def test_designs_figures_for_pure_noise(ground: Ground) -> None:
    """68 % unchanged, overlaps 0.33 and 0.89 against "chance" 0.5, Jaccard 0.45 against 0.19."""
    one, other = (ground.update_mask(noise(ground.base, seed=s)) for s in (1, 2))
    assert 1 - one.mean() == pytest.approx(0.68, abs=0.01)
    assert reference.overlap(one, ground.principal) == pytest.approx(0.33, abs=0.01)
    assert reference.overlap(one, ground.low) == pytest.approx(0.89, abs=0.01)
    assert measures.jaccard(pack(one), pack(other)).value == pytest.approx(0.45, abs=0.01)
    assert measures.jaccard_chance(one.mean(), other.mean()).value == pytest.approx(0.19, abs=0.01)


def test_the_magnitude_null_explains_noise_and_chance_does_not(ground: Ground) -> None:
    for seed in range(4):
        tuned = noise(ground.base, seed=seed)
        assert abs(ground.z(tuned, ground.principal)) < 4
        seen, null = ground.against_null(tuned, ground.principal)
        assert abs(seen - ALPHA) > 100 * null.error, "against chance, noise looks off-principal"
        # bins are an eighth of a binade wide, and M_low is a threshold on size itself: the bin it
        # cuts leaves a bias beyond the spread of the null, small beside any real preference
        seen, null = ground.against_null(tuned, ground.low)
        assert seen == pytest.approx(null.value, abs=0.005)


def test_the_null_for_jaccard_explains_two_noises(ground: Ground) -> None:
    one, other = (ground.update_mask(noise(ground.base, seed=s)) for s in (1, 2))
    codes = magnitude_codes(ground.base)
    null = measures.jaccard_magnitude_null(
        bin_counts(codes), bin_counts(codes, pack(one)), bin_counts(codes, pack(other))
    )
    assert measures.jaccard(pack(one), pack(other)).value == pytest.approx(null.value, abs=0.003)


def test_the_rounding_null_explains_noise(ground: Ground) -> None:
    tuned = noise(ground.base, seed=1)
    fixed = [ground.principal, ground.low]
    nulls = measures.rounding_null(
        ground.base.double(), tuned - ground.base, [pack(f) for f in fixed], seed=0, draws=3
    )
    mask = ground.update_mask(tuned)
    for one, null in zip(fixed, nulls, strict=True):
        assert reference.overlap(mask, one) == pytest.approx(null.value, abs=0.003)


def test_confined_updates_are_told_apart_at_matched_magnitude(ground: Ground) -> None:
    principal = confined(ground, ground.principal)
    other = confined(ground, ~ground.principal)
    seen, null = ground.against_null(principal, ground.principal)
    seen_other, null_other = ground.against_null(other, ground.principal)
    assert (seen, seen_other) == (1.0, 0.0)
    assert null == null_other, "magnitudes are matched, so the null cannot see the difference"
    assert ground.z(principal, ground.principal) > 100
    assert ground.z(other, ground.principal) < -100


def test_matched_controls_are_not_flagged(ground: Ground) -> None:
    """A random set of entries, matched alike and planted nowhere, is within the null's spread."""
    for seed in range(3):
        anywhere = np.random.default_rng(seed).random(ground.base.shape) < 0.5
        assert abs(ground.z(confined(ground, anywhere), ground.principal)) < 4


def test_a_slight_preference_is_seen(ground: Ground) -> None:
    """52 : 48 instead of even, where half of each bin is inside."""
    bins = reference.magnitude_bins(reference.values64(ground.base)).reshape(-1)
    inside = np.zeros(bins.size, bool)
    generator = np.random.default_rng(0)
    for b in np.unique(bins):
        here = generator.permutation(np.flatnonzero(bins == b))
        inside[here[: here.size // 2]] = True
    inside = inside.reshape(ground.base.shape)
    assert abs(ground.z(confined(ground, inside, share=0.5), inside)) < 4
    assert ground.z(confined(ground, inside, share=0.52), inside) > 8
    assert ground.z(confined(ground, inside, share=0.48), inside) < -8


# ------------------------------------------------------------------- end to end, through files


def planted_model(directory: Path) -> tuple[Path, dict[str, Path]]:
    base = models.tiny(layers=2)
    roles = models.roles_of(base)
    for i, name in enumerate(roles):
        base[name] = reference.power_law_matrix(96, 128, seed=i)
    grounds = {name: ground_of(base[name]) for name in roles}
    tuned: dict[str, Any] = {"noise": models.nudged(base, seed=7, size=NOISE, dtype=torch.float32)}
    for kind in ("principal", "non_principal"):
        tuned[kind] = dict(base)
        for name, ground in grounds.items():
            inside = ground.principal if kind == "principal" else ~ground.principal
            tuned[kind][name] = confined(ground, inside)
    written = {kind: models.write(directory / kind, state) for kind, state in tuned.items()}
    return models.write(directory / "base", base), written


def test_the_verdict_tells_planted_updates_from_noise(tmp_path: Path) -> None:
    base, tuned = planted_model(tmp_path)
    summary = offaxis.compare(base, list(tuned.values())).summary()
    pairs = dict(zip(tuned, summary["pairs"], strict=True))
    sentences = {
        kind: next(s for s in p["verdict"]["evidence"] if s.startswith("principal overlap"))
        for kind, p in pairs.items()
    }
    low, high = pairs["noise"]["intervals"]["principal_overlap_excess"]
    assert low <= 0 <= high
    assert "no more than entry size explains" in sentences["noise"]
    assert pairs["noise"]["principal_overlap"] < 0.45, "chance alone would have called it planted"
    assert pairs["noise"]["principal_overlap"] == pytest.approx(
        pairs["noise"]["principal_overlap_rounding_null"], abs=0.01
    )
    assert pairs["principal"]["principal_overlap"] == 1
    assert pairs["principal"]["intervals"]["principal_overlap_excess"][0] > 0.3
    assert "above what entry size explains" in sentences["principal"]
    assert pairs["non_principal"]["principal_overlap"] == 0
    assert pairs["non_principal"]["intervals"]["principal_overlap_excess"][1] < -0.3
    assert "below what entry size explains" in sentences["non_principal"]
    assert pairs["principal"]["principal_overlap_rounding_null"] is None, "stored in bfloat16"
