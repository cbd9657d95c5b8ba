"""How much changed: readings of one scan, their edges, and the picture of the mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from offaxis import measures
from offaxis.comparison.summary import PairTotals, summarise_pair
from offaxis.kernels import pack, scan
from offaxis.measures import MEASURES

GENERATOR = torch.Generator().manual_seed(0)
BASE = (torch.randn(24, 40, generator=GENERATOR) * 0.02).to(torch.bfloat16)
TUNED = BASE.float() + 3e-5 * torch.randn(24, 40, generator=GENERATOR)


def test_planted_shares_and_norms() -> None:
    base = torch.full((4, 5), 2.0)
    tuned = base.clone()
    tuned[0, :3], tuned[3, 0] = 2.5, 1.0
    found = scan(base, tuned)
    assert measures.unchanged_bf16(found) == (0.8, None, "ok")
    assert measures.unchanged_stored(found).value == 0.8
    assert measures.relative_update_norm(found).value == math.sqrt((3 * 0.25 + 1) / 80)
    assert measures.row_changed(found).tolist() == [0.6, 0, 0, 0.2]
    assert measures.column_changed(found).tolist() == [0.5, 0.25, 0.25, 0, 0]


def test_agreement_with_the_reference() -> None:
    found = scan(BASE, TUNED)
    update, ground, cross = reference.finite_sums(BASE, TUNED)
    tuned = reference.finite_sums(TUNED, BASE)[1]
    changed = reference.changed_bf16(BASE, TUNED)
    stored = reference.changed_stored(BASE, TUNED)
    assert measures.unchanged_bf16(found).value == pytest.approx(1 - changed.mean(), rel=1e-12)
    assert measures.unchanged_stored(found).value == pytest.approx(1 - stored.mean(), rel=1e-12)
    norm = measures.relative_update_norm(found).value
    assert norm == pytest.approx(math.sqrt(update / ground), rel=1e-6)
    assert measures.correlation(found).value == pytest.approx(
        cross / math.sqrt(ground * tuned), rel=1e-6
    )
    assert measures.row_changed(found) == pytest.approx(changed.mean(1))
    assert measures.column_changed(found) == pytest.approx(changed.mean(0))


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param(lambda x: x * 4, id="scaled"),
        pytest.param(lambda x: -x, id="negated"),
        pytest.param(lambda x: x.T, id="transposed"),
        pytest.param(lambda x: x.flip(0, 1), id="reversed"),
        pytest.param(lambda x: x.reshape(-1), id="flat"),
    ],
)
def test_shares_and_norms_do_not_depend_on_scale_or_order(turn: object) -> None:
    before, after = scan(BASE, TUNED), scan(turn(BASE), turn(TUNED))  # type: ignore[operator]
    for measure in (measures.unchanged_bf16, measures.unchanged_stored):
        assert measure(before) == measure(after)
    for norm in (measures.relative_update_norm, measures.correlation):
        assert norm(before).value == pytest.approx(norm(after).value, rel=1e-6)


@pytest.mark.parametrize(
    ("measure", "base", "tuned", "expected"),
    [
        ("unchanged_bf16", torch.ones(3), torch.ones(3), (1.0, None, "ok")),
        ("unchanged_bf16", torch.ones(3), -torch.ones(3), (0.0, None, "ok")),
        ("unchanged_bf16", torch.ones(0), torch.ones(0), (None, None, "no_entries")),
        ("relative_update_norm", torch.zeros(3), torch.ones(3), (None, None, "base_is_zero")),
        ("relative_update_norm", torch.ones(3), torch.ones(3), (0.0, None, "ok")),
        ("correlation", torch.ones(3), -torch.ones(3), (-1.0, None, "ok")),
        ("correlation", torch.ones(3), torch.zeros(3), (None, None, "zero_norm")),
    ],
)
def test_edges(measure: str, base: torch.Tensor, tuned: torch.Tensor, expected: object) -> None:
    assert getattr(measures, measure)(scan(base, tuned)) == expected


def test_stored_differences_may_be_finer_than_bfloat16() -> None:
    found = scan(torch.ones(8), torch.ones(8) * (1 + 2**-20))
    assert measures.unchanged_bf16(found).value == 1
    assert measures.unchanged_stored(found).value == 0


@pytest.mark.parametrize("power", [-95, 80])
def test_an_identical_pair_correlates_at_any_scale(power: int) -> None:
    x = BASE.float() * 2.0**power
    found = scan(x, x)
    assert measures.relative_update_norm(found).value == 0
    assert measures.correlation(found).value == pytest.approx(1)
    totals = PairTotals()
    totals.add(found, stored_name="w", is_matrix=True)
    assert measures.correlation(totals.everything).value == pytest.approx(1)


@given(entries=st.integers(1, 3000), changed=st.integers(0, 3000))
def test_the_summary_divides_exactly(entries: int, changed: int) -> None:
    """Nothing changed is 1.0 to the last bit: the verdict `identical` hangs on it."""
    totals = PairTotals(entries=entries, changed=min(changed, entries))
    pair = summarise_pair("t", [], totals, sizes=None)
    assert pair["unchanged_bf16"] == pytest.approx((entries - totals.changed) / entries, rel=1e-15)
    assert pair["unchanged_stored"] == 1
    assert pair["verdict"]["label"] == "identical"


@pytest.mark.parametrize("shape", [(3, 5), (96, 96), (97, 200), (1, 300), (500, 2)], ids=str)
def test_the_picture_holds_every_changed_entry(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.3
    picture = measures.mask_picture(pack(mask), shape)
    assert picture.shape == (min(96, shape[0]), min(96, shape[1]))
    assert picture.min() >= 0
    assert picture.max() <= 1
    heights, widths = (np.diff(np.linspace(0, n, min(96, n) + 1).astype(int)) for n in shape)
    assert (picture * np.outer(heights, widths)).sum() == pytest.approx(mask.sum())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_picture_of_an_empty_and_a_full_mask(share: float) -> None:
    picture = measures.mask_picture(pack(np.full((200, 130), bool(share))), (200, 130))
    assert (picture == share).all()


def test_the_list_names_each_measure_once() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(names) == len(set(names))
    assert {m.over for m in MEASURES} == {"entries", "matrices", "profiles"}
    assert all(measure.meaning and measure.unit for measure in MEASURES)
