"""Score rows and paired comparisons: planted answers, laws along k, coverage, the verdict."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate import Answers, pass_rates, score_rows, scores_frame, versus
from offaxis.evaluate.scores import SCORE_COLUMNS, powers
from offaxis.evaluate.versus import Difference, compared, unequal_settings, verdict

Marks = NDArray[np.bool_]


def answers(correct: Marks, *, names: str = "p", wrong: int = 3) -> Answers:
    """Wrong samples vote for one of `wrong` answers, right ones for the right one."""
    rng = np.random.default_rng(5)
    other = rng.integers(1, wrong + 1, size=correct.shape)
    votes = np.where(correct, 0, other).tolist()
    ids = tuple(f"{names}{at}" for at in range(len(correct)))
    return Answers(ids, correct, tuple(map(tuple, votes)))


def drawn(rates: NDArray[np.float64], samples: int, seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    return answers(rng.random((len(rates), samples)) < rates[:, None])


def test_rows_are_avg_pass_and_maj_along_k() -> None:
    run = drawn(np.random.default_rng(0).random(30), 12, 1)
    rows = score_rows(run, model="m", data="d")
    names = [row.metric for row in rows]
    ks = (1, 2, 4, 8, 12)
    assert names == ["avg@12", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks)]
    value = {row.metric: row.value for row in rows}
    assert value["avg@12"] == pytest.approx(run.correct.mean())
    assert value["pass@1"] == pytest.approx(value["avg@12"])
    assert value["maj@1"] == pytest.approx(value["avg@12"])
    assert value["pass@12"] == run.correct.any(axis=1).mean()
    passes = [value[f"pass@{k}"] for k in ks]
    assert passes == sorted(passes)
    assert all(row.low is not None and row.high is not None for row in rows)
    assert all((row.low or 0) <= row.value <= (row.high or 0) for row in rows)
    frame = scores_frame(rows)
    assert dict(frame.schema) == SCORE_COLUMNS
    assert frame["n"].unique().to_list() == [30]


def test_powers_end_with_the_number_of_samples() -> None:
    assert [powers(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_without_votes_there_is_no_maj() -> None:
    run = Answers(("a",), np.array([[True, False]]), None)
    assert [row.metric for row in score_rows(run, model="", data="")] == [
        "avg@2", "pass@1", "pass@2",
    ]  # fmt: skip
    with pytest.raises(InputError, match="maj@1"):
        run.per_problem("maj", 1)


def test_a_run_does_not_differ_from_itself_in_any_order() -> None:
    run = drawn(np.random.default_rng(0).random(30), 16, 1)
    order = np.random.default_rng(1).permutation(30)
    classes = run.classes or ()
    turned = Answers(
        tuple(run.ids[at] for at in order), run.correct[order], tuple(classes[at] for at in order)
    )
    found = versus(run, turned)
    assert all(one.value == one.low == one.high == 0 for one in found.differences)
    assert found.verdict.label == "cannot tell"
    assert "both solve the same problems" in found.verdict.sentence
    assert found.crossing is None


def test_differences_are_those_of_the_scores_up_to_the_smaller_run() -> None:
    rates = np.random.default_rng(0).random(50)
    a, b = drawn(rates, 16, 1), drawn(rates, 8, 2)
    found = {one.metric: one for one in versus(a, b).differences}
    assert set(found) == {"avg", *(f"{kind}@{k}" for kind in ("pass", "maj") for k in (1, 2, 4, 8))}
    for one in found.values():
        kind = one.metric.partition("@")[0]
        theirs = a.per_problem(kind, one.k).mean() - b.per_problem(kind, one.k).mean()
        assert one.value == pytest.approx(theirs)
        assert one.low < one.value < one.high


def test_other_problems_are_refused() -> None:
    a, b = drawn(np.full(3, 0.5), 2, 1), drawn(np.full(4, 0.5), 2, 1)
    for one, two in ((a, b), (b, a)):
        with pytest.raises(InputError, match="pairs need the same problems"):
            versus(one, two)
    with pytest.raises(InputError, match="3 of them not in the other run, for example 'p0'"):
        versus(a, answers(a.correct, names="q"))


def test_intervals_of_differences_cover_the_truth_at_every_k() -> None:
    """Problems and samples drawn afresh 200 times; the truth is known from the distribution."""
    rng = np.random.default_rng(0)

    def rates(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        base = rng.beta(0.6, 0.9, size=size)
        return base, np.clip(base + 0.15 * (base > 0.2), 0, 1)

    many, tuned = rates(400_000)
    truth = {k: ((1 - many) ** k - (1 - tuned) ** k).mean() for k in (1, 2, 4, 8)}
    hits = dict.fromkeys(truth, 0)
    trials = 200
    for trial in range(trials):
        ours, theirs = rates(80)
        a, b = drawn(theirs, 8, 2 * trial), drawn(ours, 8, 2 * trial + 1)
        a, b = (Answers(one.ids, one.correct, None) for one in (a, b))
        for one in versus(a, b, seed=trial).differences:
            if one.metric.startswith("pass"):
                hits[one.k] += one.low <= truth[one.k] <= one.high
    for k, hit in hits.items():
        assert 0.89 <= hit / trials <= 0.99, (k, hit / trials)


def planted(kind: str) -> tuple[Answers, Answers]:
    """A tuned model and its base, 200 problems, 32 samples."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0.05, 0.4, size=200)
    tuned = {
        "sharpened only": np.where(rng.random(200) < 0.7, 0.9, 0.0),
        "widened": base,
        "narrowed": np.where(rng.random(200) < 0.4, base, 0.0),
    }[kind]
    if kind == "widened":
        base = np.where(rng.random(200) < 0.7, base, 0.0)
    return drawn(tuned, 32, 1), drawn(base, 32, 2)


@pytest.mark.parametrize("kind", ["sharpened only", "widened", "narrowed"])
def test_what_was_planted_is_found(kind: str) -> None:
    found = versus(*planted(kind), first="rl", second="base")
    assert found.verdict.label == kind
    assert found.verdict.sentence.startswith(kind.capitalize() + ": rl ")
    assert "pass@32" in found.verdict.sentence
    if kind == "sharpened only":
        assert found.crossing is not None
        assert found.crossing.between == (4, 8)
        assert found.crossing.resampled > 0.99
        curve = {one.k: one for one in found.differences if one.metric.startswith("pass")}
        assert curve[4].value > 0 > curve[8].value
    else:
        assert found.crossing is None


def test_unequal_sampling_forbids_a_verdict() -> None:
    a, b = planted("widened")
    found = versus(a, b, unequal=["temperature (1.0 and 0.6)"])
    assert found.verdict.label == "cannot tell"
    assert "temperature (1.0 and 0.6)" in found.verdict.sentence
    assert found.notes == ("the runs differ in temperature (1.0 and 0.6)",)
    ours = {"settings": {"temperature": 1.0, "seed": 0, "k": 4}}
    theirs = {"settings": {"temperature": 0.6, "seed": 1, "k": 8}}
    assert unequal_settings(ours, theirs) == ["temperature (1.0 and 0.6)"]


def difference(k: int, low: float, high: float, p: float = 0.01) -> Difference:
    return Difference(f"pass@{k}", k, (low + high) / 2, low, high, p, 50)


@pytest.mark.parametrize(
    ("start", "end", "label"),
    [
        ((0.1, 0.2), (0.01, 0.1), "widened"),
        ((-0.2, -0.1), (0.01, 0.1), "widened"),
        ((0.1, 0.2), (-0.1, -0.01), "sharpened only"),
        ((-0.1, 0.2), (-0.1, -0.01), "narrowed"),
        ((-0.2, -0.1), (-0.1, -0.01), "narrowed"),
        ((0.1, 0.2), (-0.1, 0.01), "cannot tell"),
        ((-0.1, 0.2), (0.0, 0.1), "cannot tell"),
    ],
)
def test_the_rule_of_the_verdict(
    start: tuple[float, float], end: tuple[float, float], label: str
) -> None:
    said = verdict([difference(1, *start), difference(8, *end)], "a", "b")
    assert said.label == label
    assert verdict([difference(1, *start), difference(4, *end)], "a", "b").label == "cannot tell"
    assert verdict([difference(2, *start), difference(8, *end)], "a", "b").label == "cannot tell"
    assert verdict([], "a", "b").label == "cannot tell"
    by_chance = [difference(1, *start), difference(8, *end, p=0.06)]
    assert verdict(by_chance, "a", "b").label == "cannot tell"


def test_p_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(0.3, 1, size=(10, 2))
    columns = {("pass", 1): table[:, 0], ("pass", 8): table[:, 1]}
    found = compared(columns, first="a", second="b")
    signs = np.array(list(product((-1, 1), repeat=10)))
    for one, values in zip(found.differences, table.T, strict=True):
        exact = (np.abs(signs @ values) >= abs(values.sum()) - 1e-12).mean()
        assert one.p == pytest.approx(exact, abs=0.015)


def test_equal_models_are_seldom_told_apart() -> None:
    """30 problems, 64 samples, pass@32: the interval alone is off zero in 13 % of such pairs."""
    rng = np.random.default_rng(0)
    false, trials = 0, 150
    for trial in range(trials):
        rates = rng.beta(0.6, 0.9, size=30)
        a, b = (pass_rates(rng.random((30, 64)) < rates[:, None], 32) for _ in range(2))
        first = {("pass", 1): np.zeros(30), ("pass", 32): a - b}
        said = compared(first, first="a", second="b", seed=trial).verdict
        false += said.label != "cannot tell"
    assert false / trials < 0.1
