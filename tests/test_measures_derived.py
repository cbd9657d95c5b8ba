"""Numbers that follow from those of a comparison, beside what the entries say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis import measures
from offaxis.kernels import pack
from offaxis.measures.derived import containment, intersection, stable_rank, update_rank


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_intersections_from_overlaps(seed: int, p: float, q: float) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.random((7, 9)) < p, generator.random((7, 9)) < q
    overlap = measures.jaccard(pack(a), pack(b)).value
    if overlap is None:
        return
    assert intersection(overlap, a.mean(), b.mean()) == pytest.approx((a & b).mean(), abs=1e-12)
    inside = containment(overlap, a.mean(), b.mean())
    if a.any():
        assert inside.value == pytest.approx((a & b).sum() / a.sum(), abs=1e-12)
    else:
        assert inside.status == "no_change"


def test_containment_is_not_symmetric() -> None:
    assert containment(0.5, 0.2, 0.4).value == pytest.approx(1)
    assert containment(0.5, 0.4, 0.2).value == pytest.approx(0.5)
    assert containment(0.0, 0.4, 0.2).value == 0


def test_ranks_of_planted_updates() -> None:
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(n, 12)))[0] for n in (30, 20))
    for rank in (1, 3, 12):
        planted = (left[:, :rank] * np.arange(1, rank + 1)) @ right[:, :rank].T
        values = np.linalg.svd(planted, compute_uv=False)
        assert update_rank(values, (30, 20)).value == rank / 20
        energy = values[0] ** 2 / (values**2).sum()
        assert stable_rank(energy).value == pytest.approx(
            np.linalg.norm(planted) ** 2 / np.linalg.norm(planted, 2) ** 2
        )
    assert stable_rank(1.0).value == 1


def test_ranks_of_nothing() -> None:
    assert update_rank(np.zeros(4), (4, 6)).status == "no_update"
    assert update_rank(np.zeros(0), (4, 6)).status == "no_update"
    assert update_rank(np.array([np.inf, 1.0]), (2, 2)).status == "no_update"
    assert stable_rank(0.0).status == "no_update"


def test_a_direction_below_the_rounding_of_a_gram_does_not_count() -> None:
    assert update_rank(np.array([1.0, 1e-6, 1e-9]), (3, 3)).value == pytest.approx(2 / 3)
