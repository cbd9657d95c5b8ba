"""The verifiers: what is an answer, and that nothing else is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.verifiers import (
    countdown_reward,
    final_integer,
    integer_reward,
    marked_answer,
    read_expression,
)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("7*3=21;12+21=33#33", 33),
        ("#33", 33),
        ("# 33 \n", 33),
        ("#-4", -4),
        ("#033", 33),
        ("33", None),
        ("", None),
        ("#", None),
        ("#33#33", None),
        ("#1#33", None),
        ("#33;", None),
        ("#3 3", None),
        ("#3.0", None),
        ("#--3", None),
        ("#+3", None),
        ("#٣٣", None),  # int() would read these digits
        ("#1_0", None),  # and this underscore
        ("#" + "9" * 5000, None),  # and raise on this length
        ("#33\x00", None),
    ],
)
def test_what_counts_as_an_answer(completion: str, expected: int | None) -> None:
    assert final_integer(completion) == expected


@given(st.text(), st.integers())
def test_any_text_gives_zero_or_one(completion: str, answer: int) -> None:
    assert integer_reward(completion, answer) in (0.0, 1.0)


@given(st.text().filter(lambda text: "#" not in text), st.integers(-(10**18) + 1, 10**18 - 1))
def test_working_before_the_marker_never_matters(working: str, answer: int) -> None:
    assert integer_reward(f"{working}#{answer}", answer) == 1.0
    assert integer_reward(f"{working}#{answer}", answer + 1) == 0.0


def test_another_marker() -> None:
    assert final_integer("so A: 12", marker="A:") == 12


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("12#ri", "ri"),
        ("# ri \n", "ri"),
        ("#a b", "a b"),
        ("ri", None),
        ("", None),
        ("#", None),
        ("# \n ", None),
        ("##", None),
        ("#a#", None),
        ("a#b#c", None),
    ],
)
def test_where_an_answer_stands(completion: str, expected: str | None) -> None:
    assert marked_answer(completion) == expected
    assert marked_answer(completion.replace("#", "A:"), marker="A:") == expected


def _joined(parts: tuple[str, str, str]) -> str:
    return "".join(parts)


numbers = st.integers(0, 10**9 - 1).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(_joined),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
).filter(lambda text: len(text) <= 200)


@given(expressions)
def test_expressions_are_read_as_python_reads_them(text: str) -> None:
    found = read_expression(text)
    assert found is not None
    assert found.value == eval(text)
    assert list(found.numbers) == [int(number) for number in re.findall("[0-9]+", text)]


@given(st.text(alphabet="0123456789+-*() #.٣", max_size=12))
def test_what_is_read_is_always_what_python_reads(text: str) -> None:
    found = read_expression(text)
    if found is not None:
        plain = re.sub(r"(?<![0-9])0+(?=[0-9])", "", text)  # Python refuses leading zeros
        assert found.value == eval(plain)
        assert re.fullmatch(r"[0-9+\-*()]+", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("007", 7),
        ("2-3-4", -5),
        ("2-(3-4)", 3),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("((7))", 7),
        ("0*5", 0),
        ("(" * 20 + "1" + ")" * 20, 1),
        ("999999999*999999999", 999999999**2),
        ("+".join(["1"] * 100), 100),
    ],
)
def test_the_value_of_an_expression(text: str, value: int) -> None:
    found = read_expression(text)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "(",
        ")",
        "(1",
        "1)",
        "1+",
        "+1",
        "-1",
        "1--1",
        "1 + 1",
        "2**3",
        "7//2",
        "7/2",
        "7%2",
        "2(3)",
        "(2)(3)",
        "1.0",
        "1e3",
        "0x10",
        "1_0",
        "x",
        "1\n1",
        "1\x00",
        "٣",
        "²",
        "１",  # a full-width digit
        "1234567890",  # ten digits
        "(" * 21 + "1" + ")" * 21,
        "(" * 100_000,
        "(" * 99 + "1" + ")" * 99,
        "+".join(["1"] * 101),  # 201 characters
        "9" * 100_000,
        "__import__('os')",
    ],
)
def test_what_is_no_expression(text: str) -> None:
    assert read_expression(text) is None
    assert countdown_reward(f"#{text}", [1], 1) == 0.0


@given(st.text(), st.lists(st.integers(0, 9), max_size=4), st.integers())
def test_any_text_is_a_right_or_a_wrong_countdown(
    completion: str, given_numbers: list[int], target: int
) -> None:
    assert countdown_reward(completion, given_numbers, target) in (0.0, 1.0)


def test_each_number_is_used_exactly_once() -> None:
    assert countdown_reward("7-2=5#(7-2)*3", [3, 7, 2], 15) == 1.0
    assert countdown_reward("#3*(7-2)", (2, 3, 7), 15) == 1.0
    for wrong in ("#5*3", "#15", "#(7-2)*3*1", "#(7-2)+7+3", "#7-2+3", "#(7-2)*3#", "(7-2)*3"):
        assert countdown_reward(wrong, [3, 7, 2], 15) == 0.0
    assert countdown_reward("#3+3", [3, 3], 6) == 1.0
    assert countdown_reward("#3+3", [3, 6], 6) == 0.0
    assert countdown_reward("so A: 3+3", [3, 3], 6, marker="A:") == 1.0
