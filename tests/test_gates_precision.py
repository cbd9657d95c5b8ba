"""Gate III: the lemmas by enumeration, the stores, the melting, against plain numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import models
import reference
from offaxis.errors import InputError
from offaxis.gates import bf16_lemmas, drift, largest_probe, melting, store_steps
from offaxis.gates.lemmas import Lemma, realisation_errors
from offaxis.gates.store import DRIFTS, STORES
from offaxis.gates.sweep import Meter

CODES = np.arange(0x7F80, dtype=np.uint32)
VALUES = (CODES << 16).view(np.float32).astype(np.float64)  # +0 to the largest finite


@pytest.fixture(scope="module")
def lemmas() -> dict[str, Lemma]:
    return {one.name: one for one in bf16_lemmas()}


def test_the_verdicts(lemmas: dict[str, Lemma]) -> None:
    assert {name: (one.verdict, one.counterexamples) for name, one in lemmas.items()} == {
        "absolute tolerance, large weights": ("loose", 0),
        "absolute tolerance, small weights": ("loose", 0),
        "D.1 within a binade": ("loose", 0),
        "D.1 across a boundary": ("false", 253),
        "D.2 range of ULP(x)/|x|": ("loose", 0),
        "D.2 smallest realised update": ("loose", 254),
        "D.2 larger weights need larger steps": ("false", 32_258),
        "D.3 the probe is bitwise equality": ("loose", 0),
        "D.4 infinities and NaN": ("loose", 130_817),
        "3.6 realisation threshold": ("loose", 32_640),
    }
    assert lemmas["D.1 within a binade"].cases == 254 * 128 * 127 // 2


def test_the_relative_gaps_of_all_neighbours() -> None:
    """253 equalities at 2⁻⁸, one a boundary of two normal binades, and nothing below."""
    gaps = np.diff(VALUES) / VALUES[1:]
    assert VALUES.size == 65_280 // 2
    assert gaps.min() == 2.0**-8 == largest_probe()
    tied = VALUES[1:][gaps == 2.0**-8]
    assert tied.size == 253
    assert np.array_equal(tied, np.ldexp(1.0, np.arange(-125, 128)))
    inside = gaps[(CODES[1:] % 128 != 0) & (CODES[1:] > 128)]
    assert inside.min() == 1 / 255


@pytest.mark.parametrize(("eta", "errors"), [(1e-3, 0), (2**-9, 0), (0.00390624, 0), (2**-8, 253)])
def test_where_the_probe_is_equality(eta: float, errors: int) -> None:
    low, high = VALUES[:-1], VALUES[1:]
    assert int((high - low <= eta * high).sum()) == errors


def test_the_realisation_threshold_against_an_independent_rounding() -> None:
    """Exact condition: |Δ| > ½s, or = ½s with an odd last bit; s the spacing in that direction."""
    up = np.concatenate([np.diff(VALUES), [2.0**120]])
    down = np.concatenate([[2.0**-133], np.diff(VALUES)])
    odd = CODES % 2 == 1
    ulp = np.where(VALUES < 2.0**-126, 2.0**-133, np.ldexp(1.0, np.frexp(VALUES)[1] - 8))
    for eighths in range(1, 9):
        step = eighths / 8 * ulp
        wrong = realisation_errors(eighths / 8)
        for row, (sign, spacing) in enumerate(((1, up), (-1, down))):
            changed = reference.round_bf16(VALUES + sign * step) != VALUES
            exact = (step > spacing / 2) | ((step == spacing / 2) & odd)
            assert np.array_equal(changed, exact), (eighths, sign)
            assert np.array_equal(wrong[row], changed != (eighths >= 4)), (eighths, sign)
    assert realisation_errors(0.25).sum() == 0, "a tie at a power of two goes to it"
    assert realisation_errors(0.375).sum() == 253
    assert realisation_errors(0.5).mean() == pytest.approx(0.4961, abs=1e-4)
    assert realisation_errors(0.625).sum() == 0


WEIGHTS = 0.02 * torch.randn(4000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", DRIFTS)
def test_masters_lose_nothing_before_export(kind: str) -> None:
    found = store_steps(WEIGHTS, drift(kind, WEIGHTS, steps=50, size=1e-5), store="masters")
    start = WEIGHTS.bfloat16()
    truth = start.double()
    for step in drift(kind, WEIGHTS, steps=50, size=1e-5):
        truth = truth + step.double()
    assert found.steps == 50
    assert (found.weights != truth.bfloat16()).double().mean() < 1e-3, "float32 sums alone"
    assert found.changed == pytest.approx(found.due, abs=1e-3)
    assert found.error == pytest.approx(
        float(torch.linalg.norm(found.weights.double() - truth) / torch.linalg.norm(truth - start))
    )


def test_a_store_that_rounds_each_step_loses_small_ones_for_good() -> None:
    """1000 steps of a quarter spacing: lost by nearest, kept by every other store."""
    start = torch.full((20_000,), 1.5)
    step = torch.full((20_000,), 2.0**-9)
    found = {one: store_steps(start, [step] * 200, store=one, seed=1) for one in STORES}
    assert (found["nearest"].changed, found["nearest"].kept, found["nearest"].lost) == (0, 0, 1)
    for name in ("masters", "kahan"):
        assert found[name].kept == pytest.approx(1, abs=1e-9), name
        assert found[name].error == pytest.approx(0, abs=1e-9), name
    assert found["stochastic"].kept == pytest.approx(1, abs=5e-3), "unbiased"
    assert found["stochastic"].error > 0.01, "and noisy"


def test_stochastic_rounding_is_unbiased_on_both_signs() -> None:
    for sign in (1.0, -1.0):
        start, step = torch.full((40_000,), sign), torch.full((40_000,), sign * 2.0**-10)
        found = store_steps(start, [step], store="stochastic", seed=3)
        assert found.changed == pytest.approx(1 / 8, abs=0.01), "2^-10 of a spacing of 2^-7"
        assert found.kept == pytest.approx(1, abs=0.08)


def test_store_edges() -> None:
    nothing = store_steps(WEIGHTS, [])
    assert (nothing.steps, nothing.changed, nothing.kept, nothing.error) == (0, 0, None, None)
    half = store_steps(WEIGHTS, [torch.full_like(WEIGHTS, 1.0)], dtype=torch.float16)
    assert half.weights.dtype == torch.float16
    for wrong in (torch.ones(3), torch.full_like(WEIGHTS, math.inf)):
        with pytest.raises(InputError, match="step 1"):
            store_steps(WEIGHTS, [wrong])
    for bad in ({"store": "odd"}, {"dtype": torch.float32}):
        with pytest.raises(InputError, match="choose"):
            store_steps(WEIGHTS, [], **bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choose constant"):
        next(drift("up", WEIGHTS, steps=1, size=1.0))


def unchanged(base: torch.Tensor, tuned: torch.Tensor, factor: float) -> np.ndarray:
    before, after = base.double().numpy(), tuned.double().numpy()
    moved = reference.round_bf16(before + factor * (after - before))
    return moved == reference.round_bf16(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_melting_counts_and_the_closed_form(dtype: torch.dtype) -> None:
    """An update independent of the weights meets the closed form within its sampling error."""
    generator = torch.Generator().manual_seed(4)
    base = (0.02 * torch.randn(300, 400, generator=generator)).to(dtype)
    tuned = base.double() + 3e-5 * torch.randn(300, 400, generator=generator).double()
    meter = Meter((0.1, 1.0, 10.0))
    meter.add(base, tuned)
    found = meter.result()
    assert found.rounded == 0
    for row in found.summary():
        exact = unchanged(base, tuned, row["factor"])
        assert row["unchanged"] == pytest.approx(exact.mean(), abs=1e-12)
        spread = math.sqrt(exact.mean() * (1 - exact.mean()) / exact.size)
        # the closed form leaves out the half-size cell below a power of two: 1/256 of the sides
        assert abs(row["expected"] - row["unchanged"]) < 5 * spread + 2e-3
    one = found.table.filter((pl.col("factor") == 1.0) & (pl.col("exponent") == -6))
    binade = (base.double().abs() >= 2**-6) & (base.double().abs() < 2**-5)
    if dtype == torch.bfloat16:
        assert one["entries"].item() == int(binade.sum())
        kept = unchanged(base, tuned, 1.0)[binade.numpy()].mean()
        assert one["unchanged"].item() == pytest.approx(kept)


def test_the_grid_is_told_by_values_and_not_by_the_type_that_stores_them() -> None:
    """A float32 file of bfloat16 values, on either side, is what the bfloat16 file is."""
    generator = torch.Generator().manual_seed(6)
    base = (0.02 * torch.randn(100, 200, generator=generator)).bfloat16()
    tuned = (base.double() + 3e-5 * torch.randn(100, 200, generator=generator)).bfloat16()
    found = []
    for one, other in ((base, tuned), (base.float(), tuned.float())):
        meter = Meter((0.3, 1.0))
        meter.add(one, other)
        found.append(meter.result())
    assert found[0].summary() == found[1].summary()
    assert found[0].rounded == found[1].rounded == 1


def test_an_update_tied_to_the_weights_does_not_meet_the_closed_form() -> None:
    """In proportion to the weight: below 2⁻⁹ of it nothing changes, above 2⁻⁸ everything."""
    base = (0.02 * torch.randn(200, 200, generator=torch.Generator().manual_seed(1))).bfloat16()
    meter = Meter((1.0, 2.0**1.5))
    meter.add(base, base.double() * (1 + 2.0**-9))
    small, large = meter.result().summary()
    assert (small["unchanged"], large["unchanged"]) == (1, 0)
    assert 0.2 < large["expected"] < small["expected"] < 0.7


def test_melting_over_checkpoints_ends_in_unchanged_bf16(tmp_path: Path) -> None:
    state = models.tiny(layers=1)
    base = models.write(tmp_path / "base", state)
    tuned = models.write(tmp_path / "tuned", models.nudged(state, seed=1, dtype=torch.float32))
    names: list[str] = []
    found = melting(base, tuned, (3.0, 1.0, 1.0), progress=lambda step: names.append(step.tensor))
    assert found.factors == (1.0, 3.0)
    assert len(names) == len(state)
    after = models.read(tuned)
    same = [unchanged(w, after[n], 1.0).reshape(-1) for n, w in state.items()]
    at_one, at_three = found.summary()
    assert at_one["unchanged"] == pytest.approx(np.concatenate(same).mean(), abs=1e-12)
    assert at_three["unchanged"] < at_one["unchanged"]
    stored = models.write(tmp_path / "stored", models.nudged(state, seed=1, dtype=torch.bfloat16))
    assert melting(base, stored, (1.0,)).rounded == 1


def test_melting_edges() -> None:
    for wrong in ((), (0.0,), (-1.0,), (math.inf,)):
        with pytest.raises(InputError, match="positive"):
            melting("nowhere", "nowhere", wrong)
    meter = Meter((1.0,))
    meter.add(torch.tensor([1.0, math.nan, 0.0, -0.0]), torch.tensor([1.0, 1.0, -0.0, 0.0]))
    assert meter.result().skipped == 1
    assert meter.result().summary()[0]["unchanged"] == 1, "the two zeros are one value"
    with pytest.raises(InputError, match="no finite entry"):
        Meter((1.0,)).result()
