"""Numbers as people write them: what is read, exactly, and what is no number."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.verifiers import Match, read_number
from offaxis.verifiers.match import normal_text, same_in_base, same_number

READ = {
    "5": 5,
    "-5": -5,
    "−5": -5,
    "+5": 5,
    "1,234.50": Fraction(2469, 2),
    "14{,}916": 14916,
    "32,\\! 349": 32349,
    "1 000": 1000,
    "$1,000.99": Fraction(100099, 100),
    "1,000.99€": Fraction(100099, 100),
    "\\$18.00": 18,
    "-$5": -5,
    "1000,99": Fraction(100099, 100),
    "0,111": Fraction(111, 1000),
    ".4": Fraction(2, 5),
    "18.": 18,
    "-10/9": Fraction(-10, 9),
    "(13)/(4)": Fraction(13, 4),
    "\\frac{-1}{2}": Fraction(-1, 2),
    "-\\dfrac13": Fraction(-1, 3),
    "2 1/2": Fraction(5, 2),
    "-2\\frac{1}{2}": Fraction(-5, 2),
    "3\\times 10^{8}": 300_000_000,
    "1e-3": Fraction(1, 1000),
    "336^\\circ": 336,
    "90°": 90,
    "15\\mbox{ cm}^2": 15,
    "35 cm": 35,
    "5 m": 5,
    "3.5 km/h": Fraction(7, 2),
    "$5 million": 5_000_000,
    "5 million dollars": 5_000_000,
    "12 hundred": 1200,
}
UNREAD = [
    "", " ", "x", "5x", "5 or 6", "5 and 6", "32, 349", "1,2,3", "--5", "1.2.3", "12:00", "1/0",
    "٣", "1_0", "2^10", "9" * 41, "1e99", "5 x", "-", ".", "1,23,456", "3 4", "inf", "nan",
    "5 of it",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_what_is_read(text: str, value: int | Fraction) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize("text", ["28%", "28\\%", "28 percent", "28 pct", "28\\text{ percent}"])
def test_percent_is_kept_apart(text: str) -> None:
    number = read_number(text)
    assert number is not None
    assert (number.value, number.percent) == (28, True)


def test_a_comma_in_latex_separates_a_list() -> None:
    assert read_number("1,2", decimal_comma=False) is None
    assert read_number("1,234", decimal_comma=False) == read_number("1234")


@given(st.text(max_size=60))
def test_any_text_is_accepted(text: str) -> None:
    read_number(text)


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_any_decimal_is_read_exactly(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    written = f"{'-' if value < 0 else ''}{abs(digits) // 10**places:,}"
    if places:
        written += f".{abs(digits) % 10**places:0{places}d}"
    number = read_number(written)
    assert number is not None
    assert number.value == value


def same(gold: str, answer: str, match: Match | None = None) -> bool:
    one, other = read_number(gold), read_number(answer)
    assert one is not None
    assert other is not None
    return same_number(one, other, match or Match())


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("5", "5.0", True),
        ("5", "5.1", False),
        ("1/3", "0.333333", True),
        ("1/3", "0.3333", False),
        ("1/3", "33/100", False),
        ("1/12", "0.0833333333333333", True),
        ("0.0000001", "0.0000002", False),  # math-verify calls these equal
        ("0.0000001", "1e-7", True),
        ("1000000.5", "1000000.6", False),
        ("28%", "28", True),
        ("28", "28%", True),
        ("28%", "0.28", True),
        ("0.28", "28%", True),
        ("28%", "2800", False),
        ("5 km", "5 m", True),
    ],
)
def test_equality_by_default(gold: str, answer: str, expected: bool) -> None:
    assert same(gold, answer) is expected


def test_choices_of_equality() -> None:
    assert not same("1/3", "0.3333333333", Match(precision=None))
    assert same("1/3", "0.33", Match(precision=2))
    assert not same("28%", "28", Match(percent="value"))
    assert same("28%", "0.28", Match(percent="value"))
    assert not same("1/2", "50%", Match(percent="literal"))
    assert same("50%", "50.0%", Match(percent="literal"))
    assert not same("5 km", "5 m", Match(units="same"))
    assert same("5 dollars", "5 dollar", Match(units="same"))
    assert same("5 km", "5", Match(units="same"))


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("204_5", "204_{5}", True),
        ("204_5", "204", True),
        ("204_5", "204_6", False),
        ("12", "12_5", False),  # math-verify calls these equal
        ("12", "12_{10}", True),
        ("12", "12", None),
        ("x", "y", None),
    ],
)
def test_numerals_with_a_base(gold: str, answer: str, expected: bool | None) -> None:
    assert same_in_base(gold, answer) is expected


def test_plain_texts() -> None:
    assert normal_text("\\text{Evelyn}") == normal_text(" evelyn. ")
    assert normal_text("\\text{(C)}") == "C"
    assert normal_text("e") != normal_text("E")
    assert normal_text("\\left( 1, 2 \\right)") == normal_text("(1,2)")
