"""Results appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from offaxis.errors import OutputError
from offaxis.output import check_output, staged_directory


def fill(out: Path, *, overwrite: bool = False, text: str = "new") -> None:
    with staged_directory(out, overwrite=overwrite) as staged:
        (staged / "a.txt").write_text(text)
        (staged / "sub").mkdir()
        (staged / "sub" / "b.txt").write_text(text)


def fail(out: Path, error: type[BaseException], *, overwrite: bool = False) -> None:
    with staged_directory(out, overwrite=overwrite) as staged:
        (staged / "a.txt").write_text("half")
        raise error


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("where", ["out", "deep/er/out", "with space", "ünïcode"])
def test_a_result_appears_with_its_parents(tmp_path: Path, where: str) -> None:
    fill(tmp_path / where)
    assert tree(tmp_path / where) == ["a.txt", "sub", "sub/b.txt"]
    assert len(list((tmp_path / where).parent.iterdir())) == 1, "nothing hidden stays beside it"


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_directory(out) as staged:
        (staged / "a.txt").write_text("half")
        assert not out.exists()
        assert staged.parent == out.parent, "one file system, so that the rename is atomic"
    assert (out / "a.txt").read_text() == "half"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail(tmp_path / "out", error)
    assert tree(tmp_path) == []


def test_a_failure_leaves_an_earlier_result_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, text="old")
    with pytest.raises(RuntimeError):
        fail(out, RuntimeError, overwrite=True)
    assert (out / "a.txt").read_text() == "old"
    assert tree(tmp_path) == ["out", "out/a.txt", "out/sub", "out/sub/b.txt"]


def test_a_directory_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "theirs.txt").write_text("keep")
    with pytest.raises(OutputError, match="--overwrite"):
        fill(out)
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(out)
    assert tree(tmp_path) == ["out", "out/theirs.txt"]
    fill(out, overwrite=True)
    fill(out, overwrite=True, text="newer")
    assert (out / "theirs.txt").read_text() == "keep"
    assert (out / "sub" / "b.txt").read_text() == "newer"
    assert tree(tmp_path) == ["out", "out/a.txt", "out/sub", "out/sub/b.txt", "out/theirs.txt"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


def test_a_symbolic_link_to_a_directory_stays_one(tmp_path: Path) -> None:
    real, out = tmp_path / "real", tmp_path / "out"
    real.mkdir()
    out.symlink_to(real)
    fill(out)
    assert out.is_symlink()
    assert (real / "a.txt").read_text() == "new"


def test_the_working_directory_can_be_the_output(tmp_path: Path) -> None:
    """`--out .` in an empty directory: the shell that stands in it must see the result."""
    code = (
        "from pathlib import Path; from offaxis.output import staged_directory\n"
        "with staged_directory(Path('.')) as staged: (staged / 'a.txt').write_text('new')\n"
        "print(sorted(p.name for p in Path('.').iterdir()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "['a.txt']"


@pytest.mark.parametrize("where", ["file", "file/out"])
def test_a_file_in_the_way_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("theirs")
    for attempt in (check_output, fill):
        with pytest.raises(OutputError, match="file"):
            attempt(tmp_path / where)
    assert tree(tmp_path) == ["file"]


def test_the_result_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        fill(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory that everyone may read, and a process that for a while may write nowhere."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become nobody and back")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        (Path(place) / "theirs").mkdir()
        (Path(place) / "mine").mkdir()
        os.chown(Path(place) / "mine", 65534, 65534)
        os.setresuid(65534, 65534, 0)
        try:
            yield Path(place)
        finally:
            os.setresuid(0, 0, 0)


@pytest.mark.parametrize("where", ["theirs", "theirs/new", "new", "mine", "mine/new"])
def test_what_cannot_be_written_is_refused_before_any_work(as_nobody: Path, where: str) -> None:
    """`check_output` must refuse whatever `staged_directory` will, or hours of work are lost."""
    outcome = []
    for attempt in (check_output, fill):
        try:
            attempt(as_nobody / where)
        except OutputError:
            outcome.append("refused")
        else:
            outcome.append("accepted")
    assert outcome in (["refused", "refused"], ["accepted", "accepted"])
    assert outcome[0] == ("accepted" if where == "mine/new" else outcome[0])
