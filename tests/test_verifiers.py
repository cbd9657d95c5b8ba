"""The integer verifier: what is an answer, and that nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.verifiers import final_integer, integer_reward


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
