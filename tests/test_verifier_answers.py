"""The one answer that a response states: where it is found, and what does not count."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.verifiers import boxed, final_answer, last_boxed
from offaxis.verifiers.answers import LONGEST_ANSWER, TAIL

FOUND = [
    # markup
    ("so \\boxed{42}.", "42", "boxed"),
    ("\\boxed{1/3}, later \\boxed{2/3}", "2/3", "boxed"),
    ("Earlier box \\boxed{1/3} was wrong. Now \\boxed{2/3}", "2/3", "boxed"),
    ("\\boxed{1} and \\boxed{-2}", "1, -2", "boxed"),
    ("\\boxed{5}. Indeed \\boxed 7", "7", "boxed"),
    ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}", "boxed"),
    ("5 apples\n#### 1,234", "1,234", "hashes"),
    ("#### 10\nmore\n#### 20", "20", "hashes"),
    ("#### 99 dollars.", "99 dollars", "hashes"),
    ("<think>\\boxed{3}</think><answer>4</answer>", "4", "tag"),
    ("<answer>Paris</answer>", "Paris", "tag"),
    ("<answer>The answer is 5 cm.</answer>", "5 cm", "tag"),
    ("<think>\\boxed{3}</think>It is \\boxed{4}", "4", "boxed"),
    ("\\boxed{255}\nFinal Answer: The final answer is $10,455$. I hope", "10,455", "phrase"),
    # words
    ("A: 18", "18", "phrase"),
    ("2+2=4\nA: 18\n", "18", "phrase"),
    ("The answer is 131.", "131", "phrase"),
    ("The answer is $5 million.", "$5 million", "phrase"),
    ("**Answer:** 18 dollars", "18 dollars", "phrase"),
    ("Final Answer: Jane grew 3 spheres", "3", "phrase"),
    ("Final Answer: The largest $n$ is 34.", "34", "phrase"),
    ("The answer is 5 or 6", "5, 6", "phrase"),
    ("the answer is yes", "yes", "phrase"),
    ("Answer: $\\frac{1}{2}$ of it", "\\frac{1}{2}", "phrase"),
    ("Answer: 12 of the 30 students", "12", "phrase"),
    # the whole, or the last
    ("7,425,000", "7,425,000", "whole"),
    ("sqrt(2)/2", "sqrt(2)/2", "whole"),
    ("$x+1$", "x+1", "whole"),
    ("64 + 67 = **131**", "64 + 67 = 131", "whole"),
    ("not 10 but 1,000.99m²", "1,000.99", "number"),
    ("we get $x = 3$ and so 5 apples", "5", "number"),
    ("she pays $5 and has $3 left", "$3", "number"),
    ("Thus $x \\geq 5$ is it", "x \\geq 5", "latex"),
    ("it is 5, 6, or 7", "5, 6, 7", "number"),
    ("it grows by $28$ %", "28\\%", "latex"),
]
NONE = [
    "", "  ", "no number", "AZYUK2A", "\\boxed{}", "\\boxed{ }", "\\boxed{5", "#### ",
    "<answer> </answer>", "\\boxed{5} and \\boxed{}", "<think>the answer is 5",
    "The answer is 5 \\boxed{", "<answer>5",
    "x" * 30 + "\\boxed{" + "7" * (LONGEST_ANSWER + 1) + "}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer", "place"), FOUND)
def test_what_is_found(text: str, answer: str, place: str) -> None:
    found = final_answer(text)
    assert found is not None
    assert (found.text, found.place) == (answer, place)


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_answer(text: str) -> None:
    assert final_answer(text) is None


def test_a_denial_is_no_statement() -> None:
    found = final_answer("The answer is 4. The answer is not 5.")
    assert found is not None
    assert found.text == "4"
    assert final_answer("There are 18. But the answer is not 18.") is None


def test_an_explicit_answer_can_be_asked_for() -> None:
    assert final_answer("I tried 1, 2, 3 apples", explicit=True) is None
    assert final_answer("$x+1$ is nice but", explicit=True) is None
    for stated in ("A: 5", "\\boxed{5}", "5", "#### 5"):
        assert final_answer(stated, explicit=True) is not None


def test_numbers_outside_latex_can_be_left_out() -> None:
    found = final_answer("$x$ is 5 and $y$ is 6", plain=False)
    assert found is not None
    assert found.text == "y"
    assert final_answer("the answer is 5", plain=False) is None


def test_only_the_tail_is_read() -> None:
    padding = "word " * (TAIL // 5)
    assert final_answer("\\boxed{5} " + padding) is None
    assert final_answer(padding + "\\boxed{5}") is not None


def test_a_next_turn_does_not_count() -> None:
    found = final_answer("it is 5.<|im_end|><|im_start|>user\nwhat of 7?")
    assert found is not None
    assert found.text == "5"


def test_boxes() -> None:
    assert [one.content for one in boxed("\\boxed{a} \\fbox{b{c}} \\boxed 7")] == ["a", "b{c}", "7"]
    assert last_boxed("\\boxed{\\{1,2\\}}") == "\\{1,2\\}"
    assert last_boxed("\\boxed not_brace") is None
    assert last_boxed("\\boxed{a \\boxed{b}}") == "a \\boxed{b}"


@given(st.text(alphabet="\\{}$()[]#<>/answer boxed is:.,=0123456789\n", max_size=400))
def test_any_text_is_accepted(text: str) -> None:
    found = final_answer(text)
    assert found is None or all(part.strip() for part in found.parts)


HOSTILE = [
    "\\boxed{", "$", "\\(", "\\[", "$$", "answer is ", "answer", "A:\n", "#### ", "<answer>",
    "1,", "1/", "1,000", "\\frac{", "\\frac{1}{", "**", "\\", "(", " ", "\n", "5 and ", "5 x y ",
    "\\boxed{1}", "{", "}", "<think>", "=", "is ", "1 000", "\\text{", "a", "9", "%", "$5 ", "-",
    "\x00", "\ud800", "**a ", "a. B",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_repetition_costs_linear_time(piece: str) -> None:
    """A megabyte of any piece takes no longer than the tail allows (20 000 characters)."""
    started = time.process_time()
    final_answer(piece * (1_000_000 // len(piece)))
    final_answer("\\boxed{5}" + piece * (TAIL // len(piece) - 10))
    assert time.process_time() - started < 1.0
