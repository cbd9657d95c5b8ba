"""The sparse study's files and its command: saved and read back, planned, put into a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from lab_base import untrained_model
from offaxis.cli.app import build
from offaxis.errors import InputError, OutputError
from offaxis.lab.queue import Store, read_grid
from offaxis.lab.sparse import SparseStudy
from offaxis.lab.sparse.naming import ALL, SAFE
from offaxis.lab.sparse.words import blocks
from sparse_rows import FIGURES, PLANTED, World, make_rows, rows_of

TABLES = {
    "runs", "summary", "comparisons", "by_rate", "agreements", "recovery", "changes", "leaves",
}  # fmt: skip
run = CliRunner().invoke


@pytest.fixture(scope="module")
def study() -> SparseStudy:
    return SparseStudy(make_rows(PLANTED))


@pytest.fixture(scope="module")
def saved(study: SparseStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.save(tmp_path_factory.mktemp("sparse") / "new" / "study")


def test_a_saved_study_reads_back_the_same_and_draws(
    study: SparseStudy, saved: Path, tmp_path: Path
) -> None:
    again = SparseStudy.read(saved)
    assert again.markdown() == study.markdown() == (saved / "sparse.md").read_text()
    names = {path.name for path in saved.iterdir()}
    assert names == FIGURES | {f"{one}.parquet" for one in TABLES} | {"sparse.md"}
    other = again.save(tmp_path / "again")
    for name in FIGURES:
        assert (other / name).read_bytes() == (saved / name).read_bytes(), name
        assert (saved / name).stat().st_size < 300_000, name
    with pytest.raises(OutputError):
        study.save(saved)
    for name in TABLES - {"runs"}:
        assert pl.read_parquet(saved / f"{name}.parquet").equals(getattr(study, name))


@pytest.mark.slow
def test_the_command_prints_markdown_json_and_plain_tables(saved: Path) -> None:
    text = run(build(), ["lab", "sparse", str(saved), "--markdown"])
    assert text.output == (saved / "sparse.md").read_text()
    told = json.loads(run(build(), ["lab", "sparse", str(saved), "--json"]).output)
    assert told["schema"] == 1
    assert {one["word"] for one in told["verdicts"]} <= {"holds", "does not", "cannot tell"}
    assert {"summary", "comparisons", "leaves", "recovered", "ranking"} <= told.keys()
    plain = run(build(), ["lab", "sparse", str(saved)])
    assert plain.exit_code == 0
    assert "principal" in plain.output


@pytest.mark.slow
def test_marked_tables_of_a_text_are_made_new(saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- block: tickets -->\nold\n<!-- end -->\nafter\n")
    assert run(build(), ["lab", "sparse", str(saved), "--into", str(page)]).exit_code == 0
    new = page.read_text()
    table = blocks(SparseStudy.read(saved))["tickets"]
    assert new == f"before\n<!-- block: tickets -->\n{table}\n<!-- end -->\nafter\n"
    run(build(), ["lab", "sparse", str(saved), "--into", str(page)])
    assert page.read_text() == new
    page.write_text("<!-- block: tickts -->\n<!-- end -->\n")
    failed = run(build(), ["lab", "sparse", str(saved), "--into", str(page)])
    assert isinstance(failed.exception, InputError)
    assert "no block tickts; there are state, rates" in str(failed.exception)
    assert page.read_text() == "<!-- block: tickts -->\n<!-- end -->\n"


def test_the_plan_adds_what_the_rows_call_for(tmp_path: Path) -> None:
    grid = [one for one in read_grid("sparse") if one.mask in (ALL, SAFE) or one.method == "base"]
    store = Store.create(tmp_path / "queue", grid, untrained_model(tmp_path / "base"))
    world = World(best={SAFE: 3e-3})

    def planned() -> dict[str, Any]:
        found = run(build(), ["lab", "sparse", str(store.directory), "--plan", "--json"])
        assert found.exit_code == 0, found.exception
        told: dict[str, Any] = json.loads(found.output)
        return told

    def work() -> None:
        for config in Store.open(store.directory).pending():
            name = config.identity(store.base_digest)
            row = rows_of(world, [config]).with_columns(pl.lit(name).alias("run"))
            row.write_parquet(store.row(name))

    early = run(build(), ["lab", "sparse", str(store.directory), "--plan"])
    assert isinstance(early.exception, InputError)
    work()
    first = planned()
    assert first["added"] == 2, "the rate beyond the highest, for both methods"
    work()
    second = planned()
    assert second["added"] == second["planned"] - len(grid) - 2 > 30
    work()
    assert planned()["added"] == 0
    assert SparseStudy.read(store.directory).verdicts.height


def test_the_documented_tables_are_what_the_command_prints() -> None:
    """Docs hold the tables of the rows beside them, word for word."""
    docs = Path(__file__).parents[1] / "docs"
    if not (docs / "studies" / "sparse" / "runs.parquet").is_file():
        pytest.skip("docs/studies/sparse holds no rows yet")
    found = SparseStudy.read(docs / "studies" / "sparse")
    text = (docs / "sparse.md").read_text(encoding="utf-8")
    for name, table in blocks(found).items():
        assert f"<!-- block: {name} -->\n{table}\n<!-- end -->" in text, name
    assert (docs / "studies" / "sparse" / "sparse.md").read_text("utf-8") == found.markdown()
