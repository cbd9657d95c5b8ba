"""Results appear whole or not at all."""

import os
from pathlib import Path

import pytest

from offaxis.errors import OutputError
from offaxis.output import staged_directory


def _interrupted(out: Path, error: type[BaseException]) -> None:
    with staged_directory(out, overwrite=True) as staged:
        (staged / "x").write_text("new")
        raise error


def test_a_result_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with staged_directory(out) as staged:
        (staged / "x").write_text("1")
        assert not out.exists()
    assert (out / "x").read_text() == "1"
    assert os.listdir(out.parent) == ["b"]
    assert out.stat().st_mode & 0o777 == tmp_path.joinpath("a").stat().st_mode & 0o777


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_is_left_after_an_interruption(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _interrupted(tmp_path / "out", error)
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_an_earlier_result_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "out", KeyboardInterrupt)
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_replaces_its_own_entries_and_no_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "rl" / "checkpoint-90").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with staged_directory(out, overwrite=True) as staged:
        (staged / "rl" / "checkpoint-60").mkdir(parents=True)
    assert os.listdir(out / "rl") == ["checkpoint-60"]
    assert (out / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_directory(tmp_path / "out") as staged:
        (staged / "x").touch()
    assert os.listdir(tmp_path / "out") == ["x"]


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for name, reason in [("full", "--overwrite"), ("file", "file"), ("file/in", "choose another")]:
        with pytest.raises(OutputError, match=reason), staged_directory(tmp_path / name):
            pytest.fail("the block was entered")
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]
