"""Problems from files and directories, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from offaxis.errors import InputError
from offaxis.evaluate import Columns, Problem, ProblemSet, load_problems
from offaxis.evaluate.golds import (
    after_hashes,
    boxed_formula,
    contest_integer,
    listed,
    plain,
    solution_boxed,
)
from offaxis.verifiers import last_boxed

ROWS = [{"problem": "1+1=", "answer": "2"}, {"problem": "0+25=", "answer": "025"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path, rows: list[object]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_format_holds_the_same_problems(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind in ("jsonl", "ndjson"):
        lines(path, ROWS)
    elif kind == "json":
        write(path, json.dumps(ROWS))
    elif kind == "parquet":
        pl.DataFrame(ROWS).write_parquet(path)
    else:
        pl.DataFrame(ROWS).write_csv(path, separator="\t" if kind == "tsv" else ",")
    found = load_problems(path).problems
    assert [(one.id, one.prompt, one.answer) for one in found] == [
        ("1", "1+1=", "2"),
        ("2", "0+25=", "025"),
    ]
    assert load_problems(path, limit=1).problems == found[:1]


def test_a_directory_is_opened_as_datasets_would(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:1]), ("test", ROWS)):
        pl.DataFrame(rows).write_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert [one.answer for one in load_problems(tmp_path).problems] == ["2", "025"]
    assert len(load_problems(tmp_path, split="train").problems) == 1
    with pytest.raises(InputError, match="cannot be loaded"):
        load_problems(tmp_path, split="validation")


def test_columns_are_mapped_and_kept(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", [{"q": "1+1=", "a": 2.0, "name": "x", "level": 3}])
    (one,) = load_problems(path, columns=Columns("q", "a", "name")).problems
    assert (one.id, one.prompt, one.answer, one.columns["level"]) == ("x", "1+1=", "2", 3)


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n", encoding="utf-8-sig")
    assert len(load_problems(path).problems) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{"problem": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", "[1]\n", r"line 1: holds list"),
        ("a.jsonl", '{"problem": "x"}\n', r"line 1: no answer column .*--answer-column"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{"answer": "1"}\n', "line 2: column problem"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{"problem": "y", "answer": " "}\n',
         "line 2: column answer is empty"),
        ("a.jsonl", '{"problem": "x", "answer": true}\n', "column answer holds True"),
        ("a.jsonl", '{"problem": 7, "answer": "1"}\n', "column problem holds 7"),
        ("a.jsonl", '{"id": 1, "problem": "x", "answer": "1"}\n' * 2, "1 and 2 share the id '1'"),
        ("a.jsonl", "\n", "holds no row"),
        ("a.json", '{"problem": "x"}', "a list of objects is needed"),
        ("a.csv", "problem,answer\nx,1,2\n", "line 2: has not as many cells"),
        ("a.csv", "problem,answer\nx\n", "line 2: has not as many cells"),
        ("a.csv", 'problem,answer\n"x,1\n', "line 1: unexpected end of data"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.xlsx", "", "unknown ending"),
    ],
)  # fmt: skip
def test_bad_data_names_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_problems(write(tmp_path / name, text))


def test_bytes_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"problem": "\xff", "answer": "1"}\n')
    with pytest.raises(InputError, match=r"not UTF-8 .*0xff"):
        load_problems(path)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("absent.jsonl", {}, "no such file"),
        ("nonsense", {}, "nor a preset"),
        ("data.jsonl", {"preset": "gsm9k"}, "preset 'gsm9k': choose one of gsm8k"),
        ("data.jsonl", {"limit": 0}, "limit 0"),
        ("data.jsonl", {"columns": Columns("q")}, "no column 'q'; the columns are problem, answer"),
        ("data.jsonl", {"columns": Columns(id="uid")}, "no column 'uid'"),
    ],
)
def test_bad_requests_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, options: dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "data.jsonl", ROWS)
    with pytest.raises(InputError, match=said):
        load_problems(source, **options)


def test_the_digest_tells_problems_apart() -> None:
    def digest(*problems: Problem) -> str:
        return ProblemSet(problems, "somewhere").digest

    a, b = Problem("1", "x", "1"), Problem("2", "y", "2")
    assert digest(a, b) == digest(a, b) != digest(b, a)
    assert digest(a) != digest(Problem("1", "x", "1", tolerance=0.1))
    assert digest(a) != digest(Problem("1", "x", "2"))
    assert digest(a) == digest(Problem("1", "x", "1", {"level": 3})), "other columns do not count"


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (plain, 27.0, "27"),
        (plain, 0.5, "0.5"),
        (plain, 7, "7"),
        (plain, " x ", "x"),
        (plain, ["1", 2.0], "1, 2"),
        (after_hashes, "a #### b\n#### 1,234", "1234"),
        (after_hashes, "#### $-5", "-5"),
        (after_hashes, "1,000", "1000"),
        (contest_integer, "025", "25"),
        (contest_integer, "336^\\circ", "336"),
        (contest_integer, "$336^{\\circ}$", "336"),
        (contest_integer, "-1.0", "-1"),
        (contest_integer, 27.0, "27"),
        (contest_integer, "000", "0"),
        (solution_boxed, "so $\\boxed{x+$ $y}$.", "x+ y"),
        (boxed_formula, "\\boxed{np.arcsin(10/13)}", "\\arcsin(10/13)"),
    ],
)
def test_answers_are_taken_out_of_their_wrapping(
    read: object, value: object, expected: str
) -> None:
    assert callable(read)
    assert read(value) == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [(plain, None), (plain, []), (plain, {}), (plain, False), (after_hashes, "no number"),
     (after_hashes, "#### "), (contest_integer, "1/2"), (contest_integer, "27.5"),
     (solution_boxed, "no box"), (solution_boxed, "\\boxed{}"), (listed, ["$$"])],
)  # fmt: skip
def test_what_is_no_answer_says_so(read: object, value: object) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match=r"is|has|holds|boxes"):
        read(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} and \\boxed{\\frac{a}{b^{2}}}.", "\\frac{a}{b^{2}}"),
        ("\\fbox{3}", "3"),
        ("\\framebox{ 204 }", "204"),
        ("\\boxed 5$.", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("\\boxed", None),
        ("none", None),
    ],
)
def test_the_last_box_counts(text: str, expected: str | None) -> None:
    found = last_boxed(text)
    assert (found and found.strip()) == expected


def test_tolerances_are_read() -> None:
    assert listed(["$4.2$"], "1e-1").tolerance == 0.1
    assert listed(["$69$,$84$"]).answer == "69,84"
    assert listed(["4"], "None").tolerance is None
    for bad in ("x", "-1", "inf"):
        with pytest.raises(ValueError, match="tolerance"):
            listed(["4"], bad)
