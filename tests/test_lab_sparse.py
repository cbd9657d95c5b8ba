"""The sparse study's rule: paired differences, Holm, words; what it finds and what it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from offaxis.lab.claims import Claim, compared, judge, verdict
from offaxis.lab.paired import Difference, Spread, difference, holm, plain_interval, spread
from offaxis.lab.sparse.naming import (
    ALL,
    LIFT,
    NON_PRINCIPAL,
    ONE,
    PRINCIPAL,
    SAFE,
    controls,
    family,
    kind,
    label,
    matched_like,
    ordered,
    random_like,
)
from offaxis.lab.sparse.questions import QUESTIONS

PROBLEMS, SAMPLES, DRAWS = 100, 8, 2000
TABLE3 = QUESTIONS[0]
MASKS = sorted(
    {claim.first for claim in TABLE3.claims} | {o for claim in TABLE3.claims for o in claim.against}
)
Table = dict[str, dict[int, np.ndarray[Any, np.dtype[np.float64]]]]


def world(
    rng: np.random.Generator,
    *,
    run: float = 0.01,
    problem: float = 0.0,
    effect: Mapping[str, float] | None = None,
    wild: Mapping[str, float] | None = None,
    seeds: int = 3,
) -> Table:
    """Shares of right samples: problems and seeds are shared, a mask has its effect, a run noise.

    run, problem: standard deviations of what a run, and a mask at one problem, add; wild: of the
    runs of single masks.
    """
    base, shared = rng.beta(4, 1.2, PROBLEMS), rng.normal(0, 0.02, seeds)
    found: Table = {}
    for mask in MASKS:
        own = (effect or {}).get(mask, 0.0) + rng.normal(0, problem, PROBLEMS)
        loose = (wild or {}).get(mask, run)
        found[mask] = {
            seed: rng.binomial(
                SAMPLES, np.clip(base + own + shared[seed] + rng.normal(0, loose), 0, 1)
            )
            / SAMPLES
            for seed in range(seeds)
        }
    return found


def asked(table: Table, claims: tuple[Claim, ...] = TABLE3.claims) -> list[Any]:
    return compared(claims, lambda _: table, draws=DRAWS)


# Differences


def test_a_difference_of_single_numbers_is_students() -> None:
    """Without problems and without a pool: the paired t interval, and its p."""
    first, second = np.array([[0.50], [0.56], [0.62]]), np.array([[0.40], [0.42], [0.44]])
    found = difference(first, second)
    assert found.value == pytest.approx(0.14)
    half = 4.303 * 0.04 / math.sqrt(3)
    assert found.low == pytest.approx(0.14 - half, rel=0.1)
    assert found.high == pytest.approx(0.14 + half, rel=0.1)
    assert found.p == pytest.approx(0.026, abs=0.004)  # t of 6.06, two degrees of freedom
    assert (found.seeds, found.agree) == (3, True)


def test_a_pool_counts_beside_three_values_by_its_degrees() -> None:
    first, second = np.array([[0.50], [0.56], [0.62]]), np.array([[0.40], [0.42], [0.44]])
    found = difference(first, second, pooled=Spread(0.02**2, 30), common=1e-4)
    assert found.high is not None
    variance = (30 * 2 * 0.02**2 + 2 * 0.04**2) / 32
    half = 2.037 * math.sqrt(variance / 3 + 1e-4)
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    alone = difference(first, second, pooled=Spread(0.02**2, 0.0))
    assert alone == difference(first, second, pooled=None)


def test_problems_count_by_what_repeats_over_seeds() -> None:
    """Half the problems gain and half lose the same: other problems could tip it either way."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (3, PROBLEMS))
    each = np.where(np.arange(PROBLEMS) % 2, 0.4, -0.4)
    quiet = Spread(1e-8, 30)
    found = difference(noise + each, np.zeros_like(noise), pooled=quiet, draws=DRAWS)
    assert found.high is not None
    assert found.low is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.4 / math.sqrt(PROBLEMS), rel=0.1)
    shuffled = noise + np.stack([rng.permutation(each) for _ in range(3)])
    again = difference(shuffled, np.zeros_like(noise), pooled=quiet, draws=DRAWS)
    assert again.high is not None
    assert again.low is not None
    assert again.high - again.low < (found.high - found.low) / 2


def test_one_seed_has_a_difference_and_no_interval() -> None:
    found = difference(np.full((1, 5), 0.5), np.full((1, 5), 0.25), pooled=Spread(1e-4, 20))
    assert found == Difference(0.25, None, None, None, 1, agree=True)


def test_one_seed_can_stand_on_the_pool_alone() -> None:
    pooled = Spread(0.02**2, 30)
    found = difference(np.full((1, 1), 0.5), np.full((1, 1), 0.25), pooled=pooled, least=1)
    assert found.high is not None
    assert found.high - 0.25 == pytest.approx(2.042 * 0.02 * math.sqrt(2), rel=0.05)
    assert difference(np.full((1, 1), 0.5), np.full((1, 1), 0.25), least=1).low is None


def test_equal_runs_differ_in_nothing() -> None:
    same = np.full((3, 4), 0.5)
    found = difference(same, same)
    assert (found.value, found.p, found.agree) == (0.0, 1.0, False)
    assert found.reversed() == found


def test_turning_a_difference_round_turns_its_sign() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 20)), rng.random((3, 20))
    one, other = difference(a, b), difference(b, a).reversed()
    assert other.value == pytest.approx(one.value)
    assert other.low == pytest.approx(one.low, abs=0.02)
    assert other.p == pytest.approx(one.p, abs=0.02)


def test_the_spread_is_what_seeds_and_masks_leave() -> None:
    additive = {m: {s: 0.1 * i + 0.3 * s for s in range(3)} for i, m in enumerate("abc")}
    found = spread(additive)
    assert found is not None
    assert found.variance == pytest.approx(0, abs=1e-20)
    assert found.degrees == 4
    del additive["a"][1]  # a cell that is missing takes its degree with it
    found = spread(additive)
    assert found is not None
    assert found.degrees == 3
    assert spread({"a": {0: 1.0, 1: 2.0}}) is None
    assert spread({}) is None


def test_the_spread_estimates_the_variance_of_a_run() -> None:
    rng = np.random.default_rng(2)
    found = [
        spread({m: {s: 9 * s + rng.normal(0, 0.02) for s in range(3)} for m in "abcdefgh"})
        for _ in range(300)
    ]
    variances = [one.variance for one in found if one is not None]
    assert np.mean(variances) == pytest.approx(0.02**2, rel=0.05)


def test_a_pool_weighs_less_where_masks_differ_in_their_spread() -> None:
    rng = np.random.default_rng(3)

    def degrees(deviations: list[float]) -> float:
        found = spread(
            {f"{i}": {s: rng.normal(0, one) for s in range(3)} for i, one in enumerate(deviations)}
        )
        assert found is not None
        return found.degrees

    equal = [degrees([0.02] * 16) for _ in range(40)]
    assert np.median(equal) > 8
    assert max(equal) == 30, "as many as it was estimated with"
    unequal = [degrees([0.002] * 8 + [0.2] * 8) for _ in range(40)]
    assert np.median(unequal) < 3


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [0.03, 0.06, 0.06, None]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# Words


@pytest.mark.parametrize(
    ("direction", "value", "half", "p", "agree", "word"),
    [
        (1, 0.10, 0.04, 0.001, True, "holds"),
        (-1, 0.10, 0.04, 0.001, True, "does not"),
        (-1, -0.10, 0.04, 0.001, True, "holds"),
        (1, 0.10, 0.04, 0.001, False, "cannot tell"),
        (1, 0.10, 0.04, 0.06, True, "cannot tell"),  # beyond doubt alone, not among so many
        (1, 0.01, 0.01, 0.001, True, "does not"),  # beyond doubt, and nothing to speak of
        (1, 0.00, 0.10, 1.0, False, "cannot tell"),
        (0, 0.00, 0.02, 1.0, False, "holds"),
        (0, 0.10, 0.04, 0.001, True, "does not"),
        (0, 0.02, 0.04, 0.3, True, "cannot tell"),
    ],
)
def test_words(direction: Any, value: float, half: float, p: float, agree: bool, word: str) -> None:
    found = Difference(value, value - half, value + half, p, 3, agree)
    assert judge(direction, 0.03, found, p) == word


def test_what_is_not_there_cannot_be_told() -> None:
    assert judge(1, 0.03, None, None) == "cannot tell"
    assert judge(1, 0.03, Difference(0.5, None, None, None, 1, agree=True), None) == "cannot tell"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "cannot tell"], "cannot tell"),
        (["cannot tell", "does not"], "does not"),
        ([], "cannot tell"),
    ],
)
def test_a_claim_is_as_strong_as_its_weakest_comparison(words: list[str], said: str) -> None:
    assert verdict(words) == said


# What the rule finds


def test_a_planted_effect_is_found_and_the_rest_is_not() -> None:
    table = world(np.random.default_rng(3), effect={PRINCIPAL: -0.15})
    found = asked(table)
    words = {
        claim.text: verdict(one.word for one in found if one.claim is claim)
        for claim in TABLE3.claims
    }
    assert words["principal-only is the worst of the paper's masks"] == "holds"
    assert words["principal-only is worse than its controls"] == "holds"
    assert words["the union is the best of the paper's masks"] != "holds"
    assert words["the union is better than its controls"] != "holds"
    value = next(one.found.value for one in found if one.against == ALL)
    assert value == pytest.approx(-0.15, abs=0.04)


def test_an_effect_against_the_claim_is_said_to_be_one() -> None:
    table = world(np.random.default_rng(4), effect={PRINCIPAL: 0.12})
    found = asked(table)
    own = [one for one in found if one.claim.first == PRINCIPAL]
    assert {one.word for one in own} == {"does not"}


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (0.03, 0.1),
        *(
            pytest.param(run, problem, marks=pytest.mark.slow)
            for run, problem in ((0.0, 0.0), (0.02, 0.0), (0.08, 0.0), (0.0, 0.08))
        ),
    ],
)
def test_equal_masks_are_seldom_told_apart(run: float, problem: float) -> None:
    """The whole rule under no effect: one study in twenty at most finds anything anywhere."""
    rng = np.random.default_rng(5)
    worlds, told, single = 120, 0, []
    for _ in range(worlds):
        found = asked(world(rng, run=run, problem=problem))
        told += any(one.p_holm < 0.05 and one.found.agree for one in found)
        single += [one.found.p < 0.05 for one in found]
    assert told / worlds <= 0.06, "one study in twenty"
    assert np.mean(single) <= 0.065
    assert np.mean(single) >= 0.02, "so careful that nothing would be found"


def test_masks_that_vary_differently_are_seldom_told_apart() -> None:
    """A quarter of the masks has runs that vary three times as much."""
    rng = np.random.default_rng(11)
    worlds, told = 120, 0
    wild = dict.fromkeys(MASKS[::4], 0.09)
    for _ in range(worlds):
        found = asked(world(rng, run=0.03, wild=wild))
        told += any(one.word == "holds" for one in found if one.claim.direction)
    assert told / worlds <= 0.06


def test_the_plain_bootstrap_would_find_what_is_not_there() -> None:
    """Why nothing is judged by it: three seeds are too few to be drawn again."""
    rng = np.random.default_rng(6)
    wrong = []
    for _ in range(200):
        table = world(rng, run=0.08)
        pair = [np.stack(list(table[mask].values())) for mask in (PRINCIPAL, SAFE)]
        low, high = plain_interval(pair[0], pair[1], draws=500)
        wrong.append(not low <= 0 <= high)
    assert np.mean(wrong) > 0.12


def test_an_interval_covers_what_it_promises() -> None:
    """Other seeds and other problems: the truth is the effect over all of them."""
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(300):
        table = world(rng, run=0.03, problem=0.08, effect={SAFE: -0.1})
        pooled = spread(
            {mask: {s: float(v.mean()) for s, v in row.items()} for mask, row in table.items()}
        )
        pair = [np.stack(list(table[mask].values())) for mask in (SAFE, ALL)]
        found = difference(*pair, pooled=pooled, draws=DRAWS)
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= -0.095 <= found.high)  # clipping at 1 takes a little of it
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_names_of_masks_do_not_matter() -> None:
    """Swap two masks' runs: every word of one becomes that of the other."""
    table = world(np.random.default_rng(8), effect={PRINCIPAL: -0.2})
    swapped = table | {PRINCIPAL: table[NON_PRINCIPAL], NON_PRINCIPAL: table[PRINCIPAL]}
    claims = tuple(Claim(mask, mask, -1, (ALL, SAFE)) for mask in (PRINCIPAL, NON_PRINCIPAL))

    def words(found: list[Any]) -> dict[tuple[str, str], str]:
        return {(one.claim.first, one.against): one.word for one in found}

    before, after = words(asked(table, claims)), words(asked(swapped, claims))
    for other in (ALL, SAFE):
        assert before[PRINCIPAL, other] == after[NON_PRINCIPAL, other] == "holds"
        assert before[NON_PRINCIPAL, other] == after[PRINCIPAL, other] != "holds"


def test_one_comparison_counts_once_for_holm() -> None:
    """Mask minus other and other minus mask are the same doubt."""
    table = world(np.random.default_rng(9))
    there = Claim("there", PRINCIPAL, -1, (SAFE,))
    back = Claim("back", SAFE, 1, (PRINCIPAL,))
    both = asked(table, (there, back))
    assert both[0].p_holm == both[0].found.p == both[1].p_holm
    assert both[0].found.value == -both[1].found.value
    assert both[0].word == both[1].word
    assert both[0].plain == pytest.approx((-both[1].plain[1], -both[1].plain[0]))


def test_missing_runs_are_told_and_change_nothing_else() -> None:
    table = world(np.random.default_rng(10), effect={PRINCIPAL: -0.15})
    del table[ALL]
    table[SAFE] = {0: table[SAFE][0]}
    found = {(one.claim.first, one.against): one for one in asked(table)}
    assert found[PRINCIPAL, ALL].found is None
    assert found[PRINCIPAL, ALL].word == "cannot tell"
    assert found[PRINCIPAL, SAFE].found.seeds == 1
    assert found[PRINCIPAL, SAFE].word == "cannot tell"
    assert found[PRINCIPAL, random_like(PRINCIPAL)].word == "holds"


# Names


def test_a_control_belongs_to_its_rule() -> None:
    assert [family(one) for one in (SAFE, random_like(SAFE), matched_like(SAFE))] == [SAFE] * 3
    assert [kind(one) for one in (SAFE, random_like(SAFE), matched_like(SAFE))] == [
        "itself", "random", "matched",
    ]  # fmt: skip
    assert (family(ONE), kind(ONE)) == (ONE, "itself")
    assert (family(""), label("")) == ("", "all parameters")
    assert label(matched_like(SAFE)) == "matched to safe (union)"
    assert label("gradient(density=0.1)") == "gradient(density=0.1)"
    assert label("a rule of tomorrow(") == "a rule of tomorrow("


def test_masks_stand_beside_their_controls() -> None:
    masks = [matched_like(LIFT), "gradient(density=0.1)", LIFT, "", PRINCIPAL, ALL]
    masks += [random_like(LIFT), random_like(PRINCIPAL)]
    assert ordered(masks) == [
        "", ALL, PRINCIPAL, random_like(PRINCIPAL), LIFT, random_like(LIFT), matched_like(LIFT),
        "gradient(density=0.1)",
    ]  # fmt: skip


def test_a_random_mask_serves_every_rule_of_its_density() -> None:
    densities: dict[str, float | None] = {
        PRINCIPAL: 0.5, NON_PRINCIPAL: 0.5, random_like(PRINCIPAL): 0.5, ONE: 0.01,
        matched_like(PRINCIPAL): 0.5, SAFE: 0.75, "": None,
    }  # fmt: skip
    own = {"random": random_like(PRINCIPAL), "matched": matched_like(PRINCIPAL)}
    assert controls(PRINCIPAL, densities) == own
    assert controls(NON_PRINCIPAL, densities) == {"random": random_like(PRINCIPAL)}
    assert controls(SAFE, densities) == {}
    assert controls("", densities) == {}
