"""Every preset on every row of the real files: counts, golds, and golds that equal themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from offaxis.evaluate import PRESETS, Problem, load_problems
from offaxis.evaluate.marking import mark_all
from offaxis.evaluate.sampling import Completion
from offaxis.verifiers import Verifier, verifier_named

DATA = Path(__file__).parents[2] / "shared" / "data" / "benchmarks"
FILES = {
    "gsm8k": ("gsm8k/test.jsonl", 1319),
    "math500": ("math500/test.jsonl", 500),
    "aime24": ("aime24/test.jsonl", 30),
    "amc23": ("amc23/test.jsonl", 40),
    "hmmt_feb25": ("matharena/hmmt_feb_2025.jsonl", 30),
    "minerva_math": ("minerva_math/test.jsonl", 272),
    "olympiadbench": ("olympiadbench/test.jsonl", 675),
}
EVERY = [(name, *where) for name, where in FILES.items()] + [
    ("aime25", "matharena/aime_2025_I.jsonl", 15),
    ("aime25", "matharena/aime_2025_II.jsonl", 15),
]


@pytest.fixture(scope="module")
def math() -> Iterator[Verifier]:
    with verifier_named("math") as verifier:
        yield verifier


def problems(name: str, file: str | None = None) -> tuple[Problem, ...]:
    path = DATA / (file or FILES[name][0])
    if not path.is_file():
        pytest.skip(f"no {path} (local test material: see SOURCES.md beside it)")
    return load_problems(path, preset=name).problems


def said(text: str) -> Completion:
    return Completion(text, (1,), ended=True)


@pytest.mark.parametrize(("name", "file", "count"), EVERY)
def test_every_row_is_a_problem_with_an_answer_that_equals_itself(
    math: Verifier, name: str, file: str, count: int
) -> None:
    found = problems(name, file)
    assert len(found) == count
    assert len({one.prompt for one in found}) == count
    assert all(one.answer.strip() for one in found)
    assert not any(re.search(r"(?<!\\)\$", one.answer) for one in found)
    rows = [[said(f"So it is $\\boxed{{{one.answer}}}$.")] for one in found]
    marked = mark_all(found, rows, math, name="math")
    assert [one.id for one in marked if not one.samples[0].correct] == []


@pytest.mark.parametrize(("name", "file", "count"), EVERY)
def test_no_answer_equals_a_number_drawn_beside_it(
    math: Verifier, name: str, file: str, count: int
) -> None:
    """An answer that no parser reads would show up here as `bad_gold`, or as anything's equal."""
    found = problems(name, file)[::6]
    rows = [[said("So it is $\\boxed{98765.4321}$.")] for _ in found]
    marked = mark_all(found, rows, math, name="math")
    assert {one.samples[0].reason for one in marked} == {"different"}
    assert len(marked) == -(-count // 6)


@pytest.mark.parametrize("name", ["gsm8k", "aime24", "amc23"])
def test_whole_numbers_are_written_plainly(name: str) -> None:
    for one in problems(name):
        assert re.fullmatch(r"0|-?[1-9][0-9]*", one.answer), one.answer


def test_aime_2025_is_written_plainly_in_both_halves() -> None:
    for half in ("I", "II"):
        for one in problems("aime25", f"matharena/aime_2025_{half}.jsonl"):
            assert re.fullmatch(r"[1-9][0-9]*", one.answer), one.answer


def test_an_aime_answer_in_degrees_is_a_number(tmp_path: Path) -> None:
    """The form in which one release of AIME 2025 on the Hub has problem II-5."""
    path = tmp_path / "aime.jsonl"
    path.write_text(json.dumps({"question": "arcs?", "answer": "336^\\circ"}) + "\n")
    assert load_problems(path, preset="aime25").problems[0].answer == "336"


def test_gsm8k_agrees_with_its_own_marks() -> None:
    for one in problems("gsm8k"):
        assert one.columns["answer"].rpartition("#### ")[2].replace(",", "") == one.answer


def test_minerva_boxes_with_braces_come_out_whole() -> None:
    answers = {one.id: one.answer for one in problems("minerva_math")}
    assert all(one.count("{") == one.count("}") for one in answers.values())
    assert answers["5"] == "\\arcsin(10/13)"
    assert sum("frac" in one for one in answers.values()) > 20


def test_olympiadbench_keeps_its_lists_and_its_tolerance(math: Verifier) -> None:
    found = {one.id: one for one in problems("olympiadbench")}
    assert found["1664"].answer == "69,84"
    assert {one.id: one.tolerance for one in found.values() if one.tolerance is not None} == {
        "2592": 0.1
    }
    close = [said(f"\\boxed{{{text}}}") for text in ("4.2", "4.3", "4.1", "4.31", "4.2\\%", "x")]
    (marked,) = mark_all([found["2592"]], [close], math, name="math")
    assert [one.correct for one in marked.samples] == [True, True, True, False, True, False]
    assert marked.samples[1].reason == "within_tolerance"
    texts = ("84, 69", "\\{69, 84\\}", "69", "69, 84, 1")
    (marked,) = mark_all(
        [found["1664"]], [[said(f"\\boxed{{{text}}}") for text in texts]], math, name="math"
    )
    assert [one.correct for one in marked.samples] == [True, True, False, False]


def test_every_preset_says_where_it_lies() -> None:
    assert set(PRESETS) == {*FILES, "aime25"}
    for name, preset in PRESETS.items():
        assert re.fullmatch(r"[\w-]+/[\w-]+", preset.hub)
        assert (preset.name, preset.rows > 0, "{problem}" in preset.template) == (name, True, True)
        assert abs(preset.rows - FILES.get(name, ("", 30))[1]) <= 1


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("gsm8k", {"question": "q", "answer": "18"}, "18"),
        ("aime24", {"ID": "2024-I-1", "Problem": "q", "Solution": "s", "Answer": 204}, "204"),
        ("aime24", {"problem": "q", "solution": "so \\boxed{025}"}, "25"),
        ("amc23", {"question": "q", "answer": "27.0"}, "27"),
        ("math500", {"problem": "q", "solution": "\\boxed{\\frac12}"}, "\\frac12"),
        ("minerva_math", {"question": "q", "answer": "1.6"}, "1.6"),
        ("olympiadbench", {"question": "q", "final_answer": ["1", "2"], "error": None}, "1, 2"),
        ("hmmt_feb25", {"problem_idx": 1, "problem": "q", "answer": "\\frac{1}{576}"},
         "\\frac{1}{576}"),
    ],
)  # fmt: skip
def test_presets_know_the_columns_of_other_releases(
    tmp_path: Path, name: str, row: dict, answer: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (one,) = load_problems(path, preset=name).problems
    assert (one.prompt, one.answer) == ("q", answer)


def test_a_context_stands_before_its_problem(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"context": "Let x be 1.", "question": "What is x?", "final_answer": ["1"]}
    path.write_text(json.dumps(row) + "\n")
    assert load_problems(path, preset="olympiadbench").problems[0].prompt == (
        "Let x be 1.\n\nWhat is x?"
    )
