"""Reading a manifest: four formats, one table; every fault named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from manifests import PAIRS, as_objects, write_table
from offaxis.comparison.manifest import Manifest, read_manifest
from offaxis.errors import CheckpointError, InputError, OffaxisError

COLUMNS = ("base", "tuned", "algorithm", "data", "lr")


def written(path: Path) -> Path:
    """`PAIRS` in the format of the ending."""
    objects = as_objects(COLUMNS, PAIRS)
    if path.suffix in (".csv", ".tsv"):
        return write_table(path, PAIRS)
    if path.suffix == ".json":
        path.write_text(json.dumps(objects, indent=1))
    else:
        path.write_text("\n".join(map(json.dumps, objects)))
    return path


def of(tmp_path: Path, text: str, name: str = "pairs.csv") -> Manifest:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_manifest(path)


# ---------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "ndjson", "json", "CSV"])
def test_each_format_holds_the_same_table(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    if ending == "CSV":
        written(tmp_path / "pairs.csv").rename(path)
    else:
        written(path)
    found = read_manifest(path)
    assert found.path == str(path)
    assert found.columns == COLUMNS
    assert [row.name for row in found.rows] == [tuned for _, tuned, *_ in PAIRS]
    cells = [tuple(row.cells[column] or "" for column in COLUMNS) for row in found.rows]
    assert tuple(cells) == PAIRS
    assert found.rows[3].extra == {"algorithm": "DAPO", "data": "Math", "lr": None}
    start, step = {"jsonl": (1, 1), "ndjson": (1, 1), "json": (2, 7)}.get(ending, (2, 1))
    lines = [row.line for row in found.rows]
    assert lines == [start + step * place - (ending == "json" and place > 3) for place in range(5)]


def test_cells_are_kept_as_they_are_written(tmp_path: Path) -> None:
    text = (
        '\ufeffname, tuned ,base,"data, all",lr\r\n'
        '\r\n"x ""y""\nz",t,b," spaced ",1.0e-06\r\n,,,,\r\n,t, b ,"a,b",\r\n'
    )
    found = of(tmp_path, text)
    assert found.columns == ("name", "tuned", "base", "data, all", "lr")
    assert [row.line for row in found.rows] == [3, 6]
    first, second = found.rows
    assert (first.name, first.extra) == ('x "y"\nz', {"data, all": " spaced ", "lr": "1.0e-06"})
    assert (second.name, second.base, second.extra) == ("t", "b", {"data, all": "a,b", "lr": None})


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    rows = [
        {"tuned": "t", "base": "b", "steps": 10, "lr": 1e-6, "mix": 1, "on": True, "tags": ["a"]},
        {"tuned": "u", "base": "b", "steps": None, "lr": 1, "mix": "é", "huge": 2**70},
    ]
    frame = of(tmp_path, json.dumps(rows, ensure_ascii=False), "pairs.json").frame()
    assert frame.columns == ["name", "tuned", "base", "steps", "lr", "mix", "on", "tags", "huge"]
    kinds = [pl.String] * 3 + [pl.Int64, pl.Float64, pl.String, pl.Boolean, pl.String, pl.String]
    assert frame.dtypes == kinds
    assert frame.row(0) == ("t", "t", "b", 10, 1e-6, "1", True, '["a"]', None)
    assert frame.row(1) == ("u", "u", "b", None, 1.0, "é", None, None, str(2**70))


def test_names_are_given_or_made_from_tuned(tmp_path: Path) -> None:
    text = "base,tuned,name\nb,t,\nb,t,mine\nc,t,\nc,u,t (2)\n"
    assert [row.name for row in of(tmp_path, text).rows] == ["t", "mine", "t (3)", "t (2)"]


# ------------------------------------------------------------------------------------------ faults

GOOD = "base,tuned\nb,t\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("pairs.txt", GOOD, r"pairs\.txt: a manifest is \.csv.*rename or convert"),
        ("pairs", GOOD, "told by its ending"),
        ("pairs.csv", "", "holds no pair"),
        ("pairs.csv", "base,tuned\n,\n\n", "holds no pair"),
        ("pairs.json", "[]", "holds no pair"),
        ("pairs.csv", "base;tuned\nb;t\n", "no column 'base', only 'base;tuned'"),
        ("pairs.csv", "base,model\nb,t\n", "no column 'tuned'"),
        ("pairs.csv", "base,tuned,base\nb,t,b\n", "line 1: two columns 'base'; rename one"),
        ("pairs.csv", "base,,tuned\nb,x,t\n", "line 1: column 2 has no name"),
        ("pairs.csv", "base,tuned\nb,t\nb,t,x\n", "line 3: 3 cells where the header has 2.*quotes"),
        ("pairs.csv", "base,tuned\nb\n", "line 2: 1 cells"),
        ("pairs.csv", 'base,tuned\nb,t\nb,"t" x\n', "line 3: .*correct the quotes"),
        ("pairs.csv", 'base,tuned\nb,t\nb,"t', "line 3: .*correct the quotes"),
        ("pairs.csv", "base,tuned,data\nb,t,x\n\n,t,x\n", "line 4: no base; write"),
        ("pairs.tsv", "base\ttuned\tdata\nb\t\tx\n", "line 2: no tuned"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t"}\n{"base": "b"}', "line 2: no tuned"),
        ("pairs.jsonl", '{"base": "b", "tuned": 3}', "line 1: no tuned"),
        ("pairs.jsonl", '\n{"base": "b", "tuned": "t"', "line 2: is no JSON.*correct it"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t", "x": NaN}', "line 1: .*NaN is no number"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t", "x": 1e999}', "line 1: .*1e999 is no number"),
        ("pairs.jsonl", '{"base": "b", "base": "c", "tuned": "t"}', "line 1: .*'base' stands"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t", "x": "\\ud800"}', "line 1: .*surrogate"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t", "": 1}', "line 1: a column has no name"),
        ("pairs.jsonl", '["b", "t"]', "line 1: is no JSON object"),
        ("pairs.jsonl", "[" * 100_000, "line 1: is no JSON"),
        ("pairs.json", '{"base": "b", "tuned": "t"}', "is no JSON array"),
        ("pairs.json", '[\n{"base": "b", "tuned": "t"},\n{"base": "b",}]', "line 3: is no JSON"),
        ("pairs.json", '[\n{"base": "b", "tuned": "t"},\n\n{"tuned": "t"}]', "line 4: no base"),
        ("pairs.jsonl", '{"base": "b", "tuned": "t", "name": 3}', "line 1: the name 3 is no text"),
        ("pairs.csv", "base,tuned,name\nb,t,x\nb,u,y\nc,t,x\n", "line 4: .*'x' is that of line 2"),
        ("pairs.csv", "base,tuned,name\nb,t,\nb,u,t\n", "line 3: .*'t' is that of line 2"),
        ("pairs.csv", "base,tuned,name\nb,u,t\nb,t,\n", "line 3: .*'t' is that of line 2"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line_and_the_remedy(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        of(tmp_path, text, name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert ";" in str(caught.value), "a remedy"


def test_other_bytes_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("base,tuned\nb,é\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"byte 13.*UTF-8"):
        read_manifest(tmp_path / "latin.csv")
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_manifest(tmp_path / name)


# ------------------------------------------------------------------------------------------- paths


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "home" / "org" / "here").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return of(tmp_path / "home", GOOD)


def test_a_path_is_taken_from_the_manifests_directory(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    home = tmp_path / "home"
    assert manifest.locate("org/here") == (str(home / "org" / "here"), False), "before a Hub id"
    assert manifest.locate("../elsewhere") == (str(home / ".." / "elsewhere"), False)
    assert manifest.locate(str(tmp_path)) == (str(tmp_path), False)
    monkeypatch.setenv("HOME", str(home))
    assert manifest.locate("~/org") == (str(home / "org"), False)


def test_a_hub_id_stays_as_it_is(manifest: Manifest) -> None:
    for text in ("org/there", "Qwen/Qwen3-8B-Base", "org/name@v1.0"):
        assert manifest.locate(text) == (text, True)


def test_what_is_neither_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    for text in ("./org/there", "nothing", "/nowhere/at/all", "a/b/c"):
        with pytest.raises(CheckpointError, match=r"looked for .*give a path from the manifest's"):
            manifest.locate(text)


def test_a_path_of_the_working_directory_alone_is_not_guessed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "org" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="in the working directory, but not in the manifest"):
        manifest.locate("org/there")


@pytest.mark.parametrize("error", [OSError(36, "File name too long"), InputError("bad; mend it")])
def test_errors_about_a_row_name_its_line(manifest: Manifest, error: Exception) -> None:
    words = r"pairs\.csv, line 2: .*(too long|mend it)"
    with pytest.raises(OffaxisError, match=words), manifest.at(manifest.rows[0]):
        raise error
