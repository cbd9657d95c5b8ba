"""Places, agreement of rankings and power: planted orders, coverage, and the rule's new words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from offaxis.lab.claims import Claim, compared, judge
from offaxis.lab.paired import Difference, Spread, kendall, spread
from offaxis.lab.peft.naming import DORA, FULL, LORA, ordered
from offaxis.lab.peft.ranking import (
    _agreeing,
    _drawn,
    _interaction,
    _places,
    _power,
    _repeat,
    agreement,
    power,
)
from offaxis.lab.peft.summary import Runs
from offaxis.lab.queue import read_grid
from peft_rows import World, make_rows

ADAPTERS = ordered(one.adapter for one in read_grid("peft") if one.method != "base")
PROBLEMS, SAMPLES = 100, 8
Table = dict[str, dict[int, np.ndarray[Any, np.dtype[np.float64]]]]


def table(
    rng: np.random.Generator,
    levels: dict[str, float],
    *,
    run: float = 0.01,
    base: np.ndarray[Any, np.dtype[np.float64]] | None = None,
) -> Table:
    """Shares of right samples of three seeds; problems and seeds are shared."""
    drawn, shared = rng.uniform(-0.2, 0.2, PROBLEMS), rng.normal(0, 0.02, 3)
    base = drawn if base is None else base
    return {
        one: {
            seed: rng.binomial(
                SAMPLES, np.clip(level + base + shared[seed] + rng.normal(0, run), 0, 1)
            )
            / SAMPLES
            for seed in range(3)
        }
        for one, level in levels.items()
    }


# The rule's new words


@pytest.mark.parametrize(
    ("value", "half", "p", "word"),
    [
        (0.10, 0.04, 0.001, "holds"),
        (0.00, 0.02, 1.0, "holds"),
        (-0.02, 0.01, 0.001, "holds"),  # worse beyond doubt, and nothing to speak of
        (0.02, 0.08, 0.6, "cannot tell"),
        (-0.10, 0.04, 0.001, "does not"),
        (-0.10, 0.04, 0.06, "cannot tell"),
    ],
)
def test_level_or_better(value: float, half: float, p: float, word: str) -> None:
    found = Difference(value, value - half, value + half, p, 3, agree=True)
    assert judge(1, 0.03, found, p, or_level=True) == word
    assert judge(-1, 0.03, found.reversed(), p, or_level=True) == word
    assert judge(1, 0.03, None, None, or_level=True) == "cannot tell"


def test_a_claim_can_have_a_margin_of_its_own() -> None:
    rng = np.random.default_rng(0)
    found = table(rng, {"a": 0.5, "b": 0.525, **{f"{i}": 0.5 for i in range(8)}}, run=0.002)
    wide, narrow = (Claim("level", "a", 0, ("b",), margin=one) for one in (0.06, 0.01))
    assert (wide.slack, Claim("level", "a", 0, ("b",)).slack) == (0.06, 0.03)
    told = compared((wide, narrow), lambda _: found, draws=2000)
    assert told[0].word == "holds"
    assert told[1].word != "holds"


# Pieces


def test_kendalls_tau_of_small_cases() -> None:
    one = np.array([1.0, 2, 3, 4])
    assert kendall(one, one) == 1
    assert kendall(one, -one) == -1
    assert kendall(one, np.array([2.0, 1, 3, 4])) == pytest.approx(4 / 6)
    assert kendall(one, np.ones(4)) == 0
    many = kendall(np.stack([one, -one]), np.stack([one, one]))
    assert many.tolist() == [1, -1]


def test_an_arms_variance_is_drawn_towards_the_pool() -> None:
    pooled = Spread(0.04, 6, {"a": (0.16, 2), "b": (0.0, 2)})
    assert pooled.of("a") == (pytest.approx((6 * 0.04 + 2 * 0.16) / 8), 8)
    assert pooled.of("b") == (pytest.approx(0.03), 8)
    assert pooled.of("unknown") == (0.04, 6)
    assert Spread(0.04, math.inf).of("a") == (0.04, math.inf)
    found = spread({m: {s: 0.1 * s + (m == "c") * s**2 for s in range(3)} for m in "abcd"})
    assert found is not None
    assert found.each["c"][0] > 5 * found.each["a"][0]
    assert {degrees for _, degrees in found.each.values()} == {2}


def test_places_share_the_better_of_equals() -> None:
    assert _places(np.array([0.5, 0.9, 0.5, 0.1])).tolist() == [2, 1, 2, 4]


def test_a_places_range_covers_the_true_place() -> None:
    """Over made-up studies the 95 % range holds the place that the true levels have."""
    rng = np.random.default_rng(1)
    names = [f"{i:02}" for i in range(12)]
    levels = {one: 0.4 + 0.015 * place for place, one in enumerate(names)}
    truth = _places(np.array(list(levels.values())))
    weights = rng.multinomial(PROBLEMS, np.full(PROBLEMS, 1 / PROBLEMS), size=400) / PROBLEMS
    hits = []
    for number in range(40):
        drawn = _drawn(table(rng, levels, run=0.05), names, weights, number)
        assert drawn is not None
        low, high = np.quantile(_places(drawn), [0.025, 0.975], axis=0)
        hits.append((low <= truth) & (truth <= high))
    assert np.mean(hits) > 0.9


# Rankings of two algorithms


def steps(sign: float = 1.0) -> dict[str, float]:
    return {one: sign * 0.03 * (place - 8) for place, one in enumerate(ADAPTERS)}


def test_a_ranking_that_holds_and_one_that_is_turned_round() -> None:
    turned = {("dr_grpo", one): -2 * value for one, value in steps().items()}
    rows = make_rows(World(accuracy={k: v - 0.2 for k, v in steps().items()}, under=turned))
    found = agreement(Runs(rows))
    assert found.select("method", "against").rows() == [
        ("grpo", "dapo"), ("dr_grpo", "dapo"), ("dr_grpo", "grpo"),
    ]  # fmt: skip
    same, other, third = found.iter_rows(named=True)
    assert (same["word"], same["adapters"]) == ("holds", 17)
    assert same["tau"] > 0.85
    assert same["low"] <= same["high"]
    assert same["repeat"] > 0.8
    assert other["word"] == third["word"] == "does not"
    assert other["tau"] < -0.85


def test_rankings_of_equal_adapters_cannot_be_told() -> None:
    rng = np.random.default_rng(2)
    told = [
        _agreeing(*(table(rng, dict.fromkeys(ADAPTERS, 0.6), run=0.02) for _ in range(2)))
        for _ in range(8)
    ]
    assert "holds" not in {one["word"] for one in told}
    assert all(one["low"] < 0.5 for one in told)


def test_adapters_that_are_level_do_not_turn_a_ranking_round() -> None:
    """One ranking under both algorithms, its steps far below the noise: tau is near zero."""
    rng = np.random.default_rng(6)
    levels = {one: 0.6 + 0.001 * place for place, one in enumerate(ADAPTERS)}
    told = [_agreeing(*(table(rng, levels, run=0.03) for _ in range(2))) for _ in range(12)]
    assert np.mean([one["high"] < 0.5 for one in told]) > 0.2, "tau alone would say so"
    assert [one["word"] for one in told].count("does not") <= 1


def test_a_repeat_is_told_as_it_would_come_out() -> None:
    """Of level adapters, of a clear ranking and of one between, beside two real sets of seeds."""
    rng = np.random.default_rng(7)
    for step in (0.0, 0.003, 0.02):
        levels = {one: 0.5 + step * place for place, one in enumerate(ADAPTERS)}
        base, told, real = rng.uniform(-0.1, 0.1, PROBLEMS), [], []
        for _ in range(20):
            one, other = (table(rng, levels, run=0.02, base=base) for _ in range(2))
            told.append(_repeat(one, ADAPTERS))
            level = [[np.mean(list(x[arm].values())) for arm in ADAPTERS] for x in (one, other)]
            real.append(kendall(*map(np.array, level)))
        assert np.mean(told) == pytest.approx(np.mean(real), abs=0.13), step


def test_an_interaction_is_found_as_often_as_it_should() -> None:
    rng = np.random.default_rng(8)
    levels = {one: 0.4 + 0.01 * place for place, one in enumerate(ADAPTERS)}
    other = {one: levels[one] + 0.08 * (place % 2) for place, one in enumerate(ADAPTERS)}
    none = [_interaction(table(rng, levels), table(rng, levels)) for _ in range(100)]
    some = [_interaction(table(rng, levels), table(rng, other)) for _ in range(10)]
    assert np.mean([p < 0.05 for p in none if p is not None]) <= 0.12
    assert max(p for p in some if p is not None) < 0.05
    single = [{one: {0: row[0]} for one, row in table(rng, levels).items()} for _ in range(2)]
    assert _interaction(*single) is None


def test_an_interval_of_tau_covers_the_true_one() -> None:
    """Two algorithms that order adapters alike but for some: beside noise as large as the steps."""
    rng = np.random.default_rng(5)
    names = [f"{i:02}" for i in range(12)]
    first = {one: 0.4 + 0.02 * place for place, one in enumerate(names)}
    second = {one: first[names[place ^ 1]] for place, one in enumerate(names)}
    truth = float(kendall(np.array(list(first.values())), np.array(list(second.values()))))
    hits, widths = [], []
    for _ in range(25):
        found = _agreeing(table(rng, first, run=0.03), table(rng, second, run=0.03))
        hits.append(found["low"] <= truth <= found["high"])
        widths.append(found["high"] - found["low"])
    assert np.mean(hits) >= 0.8
    assert np.mean(widths) < 0.8, "so wide that it says nothing"


def test_a_ranking_needs_three_adapters_under_both() -> None:
    rng = np.random.default_rng(3)
    first, second = table(rng, {"a": 0.5, "b": 0.6}), table(rng, {"b": 0.5, "a": 0.6})
    assert _agreeing(first, second) == {"adapters": 2, "word": "cannot tell"}
    assert _agreeing({}, second) == {"adapters": 0, "word": "cannot tell"}


# Power


def test_the_power_told_is_the_power_there_is() -> None:
    """An effect of the size that is "found alone" is found about four times out of five."""
    rng = np.random.default_rng(4)
    levels = dict.fromkeys([*(f"{i}" for i in range(15)), LORA, DORA], 0.55)
    own = [_power(table(rng, levels, run=0.03)) for _ in range(12)]
    size = float(np.mean([one["found_alone"] for one in own if one]))
    assert np.mean([one["run_sd"] for one in own if one]) == pytest.approx(0.0346, abs=0.003)
    claim = Claim("better", DORA, 1, (LORA,))
    hits = []
    for _ in range(80):
        found = table(rng, levels | {DORA: 0.55 + size}, run=0.03)
        (told,) = compared((claim,), lambda _, f=found: f, draws=1000)
        hits.append(told.p_holm is not None and told.p_holm < 0.05)
    assert 0.7 < np.mean(hits) < 0.92


def test_power_is_told_of_both_kinds_of_rate() -> None:
    found = power(Runs(make_rows(World(best={FULL: 1e-3}))))
    assert found["rates"].to_list() == ["own", "shared"]
    assert found["comparisons"].to_list() == [16, 16]
    for row in found.iter_rows(named=True):
        assert row["found_among_all"] > row["found_alone"] > row["half_width"] > 0


def test_nothing_is_told_of_power_without_test_runs() -> None:
    rows = make_rows().filter((pl.col("seed") >= 100) | (pl.col("method") == "base"))
    assert power(Runs(rows)).is_empty()
