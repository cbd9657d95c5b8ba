"""Verifiers without algebra, forms, lengths, votes and certainty: pure functions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offaxis.errors import InputError
from offaxis.verifiers import (
    VERIFIERS,
    CountdownVerifier,
    ExactVerifier,
    IntegerVerifier,
    MathVerifier,
    NumericVerifier,
    has_box,
    has_tags,
    majority,
    majority_rewards,
    overlong,
    verifier_named,
)
from offaxis.verifiers.certainty import self_certainty, token_certainty


def reasons(verifier: object, *pairs: tuple[str, str]) -> list[str]:
    return [mark.reason for mark in verifier.mark(pairs)]  # type: ignore[attr-defined]


def test_numbers() -> None:
    pairs = [("A: 0.30", "0.3"), ("A: 0.3000001", "0.3"), ("A: 0.333", "1/3"), ("none", "1"),
             ("A: 5", "word"), ("A: 5, 6", "5"), ("x = 5", "5"),
             ("#### $1,000", "1000.0")]  # fmt: skip
    assert reasons(NumericVerifier(), *pairs) == [
        "equal", "different", "different", "no_answer", "bad_gold", "no_answer", "equal", "equal",
    ]  # fmt: skip
    close = NumericVerifier(relative=1e-3)
    assert reasons(close, ("9.99", "10"), ("9.9899", "10"), ("-9.99", "-10"), ("0.001", "0")) == [
        "equal", "different", "equal", "different",
    ]  # fmt: skip
    assert reasons(NumericVerifier(absolute=0.5), ("10.5", "10"), ("10.51", "10")) == [
        "equal", "different",
    ]  # fmt: skip
    assert reasons(NumericVerifier(percent_value=True), ("28%", "0.28")) == ["equal"]
    assert reasons(NumericVerifier(explicit=True), ("about 5 apples", "5")) == ["no_answer"]
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="tolerance"):
            NumericVerifier(relative=bad)


@given(st.fractions(-(10**6), 10**6, max_denominator=10**6), st.integers(0, 9))
def test_a_tolerance_is_met_exactly(gold: Fraction, step: int) -> None:
    """Rational arithmetic: a difference of exactly the tolerance passes, one beyond does not."""
    bound = Fraction(1, 1 << step)
    verifier = NumericVerifier(absolute=float(bound))
    written = f"{gold.numerator}/{gold.denominator}"
    edge, beyond = gold + bound, gold + bound + Fraction(1, 10**9)
    answers = [f"A: {one.numerator}/{one.denominator}" for one in (edge, beyond)]
    assert reasons(verifier, *((answer, written) for answer in answers)) == ["equal", "different"]


def test_strings() -> None:
    assert reasons(
        ExactVerifier(), ("The answer is  Blue\tcheese.", "blue cheese"),
        ("<answer>ﬁne</answer>", "fine"), ("the answer is red", "blue"),
        ("no statement of it at all", "blue"), ("x", " "),
    ) == ["equal", "equal", "different", "no_answer", "bad_gold"]  # fmt: skip
    whole = ExactVerifier(whole=True, fold_case=False)
    assert reasons(whole, (" a  b ", "a b"), ("A b", "a b"), ("", "a")) == [
        "equal", "different", "no_answer",
    ]  # fmt: skip


def test_the_labs() -> None:
    assert reasons(IntegerVerifier(), ("1+1=2#2", "2"), ("#3", "#2"), ("2", "2"), ("#2", "x")) == [
        "equal", "different", "no_answer", "bad_gold",
    ]  # fmt: skip
    pairs = [("#(9*5)-9", "9,9,5@36"), ("#36", "9,9,5@36="), ("36", "9,9,5@36"), ("#1", "36")]
    assert reasons(CountdownVerifier(), *pairs) == ["equal", "different", "no_answer", "bad_gold"]


def test_by_name() -> None:
    assert set(VERIFIERS) == {"math", "numeric", "exact", "integer", "countdown", "code"}
    assert isinstance(verifier_named("numeric", relative=0.1), NumericVerifier)
    found = verifier_named("math", timeout_s=1.0, match={"precision": 2})
    assert isinstance(found, MathVerifier)
    assert found.match.precision == 2
    with verifier_named("exact") as opened:
        assert opened.mark([("A: x", "x")])[0].correct
    for name, options, words in (
        ("maths", {}, "math, numeric, exact"),
        ("numeric", {"tolerance": 1}, "relative, absolute"),
        ("math", {"match": {"precise": 2}}, "precision"),
    ):
        with pytest.raises(InputError, match=words):
            verifier_named(name, **options)


TAGGED = "<think>a</think> <answer>b</answer>"


@pytest.mark.parametrize(
    ("response", "fine"),
    [
        (TAGGED, True),
        (f" \n{TAGGED}\n", True),
        ("<think></think><answer>b</answer>", True),
        (TAGGED + TAGGED, False),
        (f"{TAGGED} more", False),
        (f"before {TAGGED}", False),
        ("<think>a</think> between <answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a<answer>b</answer></think>", False),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think>", False),
        ("<think>a<think></think><answer>b</answer>", False),
        ("</think>a<think><answer>b</answer>", False),
        ("", False),
    ],
)
def test_tags(response: str, fine: bool) -> None:
    assert has_tags(response) is fine
    rest = response.removeprefix("<think>")
    if fine and rest != response:
        assert has_tags(rest, opened=True)
        assert not has_tags(response, opened=True)


def test_boxes() -> None:
    assert has_box("so \\boxed{5}")
    assert has_box("\\boxed{5} \\boxed{6}")
    assert not has_box("\\boxed{5} \\boxed{6}", once=True)
    assert has_box("\\boxed{5}", once=True)
    for none in ("\\boxed{}", "\\boxed{ $ }", "\\boxed{5", "<think>\\boxed{5}</think>", "5", ""):
        assert not has_box(none)


def test_overlong() -> None:
    """DAPO's numbers: 16 384 expected tokens, a cache of 4 096."""
    of = {0: 0.0, 16_384: 0.0, 18_432: -0.5, 20_480: -1.0, 20_481: -1.0, 10**9: -1.0}
    assert {n: overlong(n, max_length=20_480, cache=4_096) for n in of} == of
    values = [overlong(n, max_length=40, cache=20) for n in range(60)]
    assert values == sorted(values, reverse=True)
    for cache in (0, 41, -1):
        with pytest.raises(InputError, match="cache"):
            overlong(1, max_length=40, cache=cache)
    with pytest.raises(InputError, match="length -1"):
        overlong(-1, max_length=40, cache=20)


def test_majority() -> None:
    found = majority(["5", "6", None, "5", "7"])
    assert found is not None
    assert (found.index, found.answer, found.voters, found.tied) == (0, "5", (0, 3), ())
    tied = majority(["6", "5", "5", "6", "7"])
    assert tied is not None
    assert (tied.answer, tied.tied) == ("6", (1,))
    assert majority([None, None]) is None
    assert majority([]) is None
    assert majority_rewards(["5", "6", None, "5"]) == [1.0, 0.0, 0.0, 1.0]
    assert majority_rewards(["5", "6"]) == [1.0, 0.0]
    assert majority_rewards(["5", "6"], ties="none") == [0.0, 0.0]
    assert majority_rewards([None, None]) == [0.0, 0.0]


def test_majority_through_a_verifier() -> None:
    with MathVerifier(timeout_s=20.0) as verifier:
        answers = ["x+1", "2x", "1+x", "0.5", "\\frac{1}{2}", "1 + x"]
        found = majority(answers, equal=verifier.equal)
    assert found is not None
    assert found.voters == (0, 2, 5)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12))
def test_no_answer_has_more_votes_than_the_majority(answers: list[str | None]) -> None:
    found = majority(answers)
    counts = {one: answers.count(one) for one in answers if one is not None}
    assert (found is None) == (not counts)
    if found:
        assert len(found.voters) == max(counts.values())
        assert sum(majority_rewards(answers)) == len(found.voters)


# Certainty


def test_certainty_against_the_formula() -> None:
    logits = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0)) * 4
    p = torch.softmax(logits.double(), -1)
    expected = (1 / 50 * torch.log((1 / 50) / p)).sum(-1)
    torch.testing.assert_close(token_certainty(logits), expected, rtol=1e-12, atol=1e-12)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, :3], mask[1, 6] = True, True
    found = self_certainty(logits, mask)
    assert found[0] == pytest.approx(float(expected[0, :3].mean()), rel=1e-12)
    assert found[1] == pytest.approx(float(expected[1, 6]), rel=1e-12)
    assert math.isnan(found[2])


def test_certainty_of_known_distributions() -> None:
    assert token_certainty(torch.zeros(4, 10)).tolist() == [0.0] * 4
    half = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64))
    known = math.log(0.25) - (math.log(0.5) + math.log(0.25) + 2 * math.log(0.125)) / 4
    assert float(token_certainty(half)) == pytest.approx(known, rel=1e-12)
    shifted = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(token_certainty(shifted), token_certainty(shifted + 100))
    assert token_certainty(torch.tensor([[0.0, -math.inf]])).tolist() == [math.inf]


def test_certainty_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    whole = token_certainty(logits)
    monkeypatch.setattr("offaxis.verifiers.certainty._CHUNK", 48)
    assert torch.equal(token_certainty(logits), whole)


def test_certainty_keeps_float64() -> None:
    """Large equal logits in bfloat16: the sums of a float32 computation would drown it."""
    logits = torch.full((1, 100_000), 300.0, dtype=torch.bfloat16)
    assert float(token_certainty(logits)) < 1e-9
    with pytest.raises(InputError, match="one mask entry a token"):
        self_certainty(torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
