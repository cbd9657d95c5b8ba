"""The command line as a user meets it: real processes, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models

OFFAXIS = [sys.executable, "-m", "offaxis"]
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*OFFAXIS, *map(str, arguments)]
    return subprocess.run(
        command, env=PLAIN, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    base = models.tiny(layers=1)
    tuned = models.nudged(base, seed=1, dtype=torch.float32)
    return models.write(root / "base", base), models.write(root / "tuned", tuned)


def test_compare_writes_its_directory_and_says_where(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    done = run("compare", *pair, "--out", out)
    assert done.returncode == 0, done.stderr
    assert str(out / "report.html") in done.stdout.replace("\n", "")
    assert "small" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.parquet", "measurements.parquet", "report.html", "summary.json",
    ]  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing hidden beside it"


def test_json_alone_goes_to_standard_output(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("compare", *pair, "--out", tmp_path / "out", "--json", "--spectra", "none")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "GB to read" in done.stderr


def test_describe_as_json(pair: tuple[Path, Path]) -> None:
    done = run("describe", pair[0], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["matrices"] == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare"],
        ["compare", "base"],
        ["compare", "base", "tuned"],
        ["compare", "base", "tuned", "--out", "x", "--sooner"],
        ["compare", "base", "tuned", "--out", "x", "--seed", "many"],
        ["describe"],
        ["juggle"],
        ["--juggle"],
    ],
    ids=" ".join,
)
def test_bad_syntax_is_two(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compare", "--help"]], ids=str)
def test_help_and_version_are_zero(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert "offaxis" in done.stdout
    assert done.stderr == ""


def test_one_bad_tuned_is_one_and_nothing_is_written(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header }")
    done = run("compare", *pair, bad, "--out", tmp_path / "deep" / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert str(bad) in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_missing_path_is_one_and_a_traceback_needs_debug(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ("compare", tmp_path / "missing", pair[1], "--out", tmp_path / "out")
    quiet, loud = run(*arguments), run(*arguments, "--debug")
    assert quiet.returncode == 1
    assert str(tmp_path / "missing") in quiet.stderr.replace("\n", "")
    assert "Traceback" not in quiet.stderr
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_empty_needs_overwrite(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "theirs.txt").write_text("keep")
    refused = run("compare", *pair, "--out", tmp_path, "--spectra", "none")
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert "GB to read" not in refused.stderr, "refused before any work"
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]
    taken = run("compare", *pair, "--out", tmp_path, "--spectra", "none", "--overwrite")
    assert taken.returncode == 0, taken.stderr
    assert (tmp_path / "theirs.txt").read_text() == "keep"
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("where", ["file", "file/out"])
def test_an_output_that_cannot_be_is_one(
    pair: tuple[Path, Path], tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("theirs")
    done = run("compare", *pair, "--out", tmp_path / where)
    assert done.returncode == 1
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "theirs"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Many seconds of spectra."""
    root = tmp_path_factory.mktemp("large")
    base = models.tiny(layers=5, scale=24)
    tuned = models.nudged(base, seed=1, dtype=torch.bfloat16)
    return models.write(root / "base", base), models.write(root / "tuned", tuned)


def interrupted(command: list[str], *, after: str, wait: float) -> tuple[int, str, str]:
    """Start, wait for the word on standard error, wait a little longer, press Ctrl-C."""
    process = subprocess.Popen(
        command, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    seen = b""
    assert process.stderr is not None
    while after.encode() not in seen:
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, seen.decode()
        seen += piece
    time.sleep(wait)
    assert process.poll() is None, "it was done before it could be interrupted"
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    return process.returncode, out.decode(), (seen + rest).decode()


def test_ctrl_c_is_130_and_leaves_nothing(large: tuple[Path, Path], tmp_path: Path) -> None:
    command = [*OFFAXIS, "compare", *map(str, large), "--out", str(tmp_path / "deep" / "out")]
    start = time.monotonic()
    code, out, err = interrupted(command, after="GB to read", wait=0.5)
    assert code == 130
    assert out == ""
    assert "Ctrl-C" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - start < 30


def test_ctrl_c_while_loading_is_130_as_well(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Before any work: the imports take a second or two, and people change their mind."""
    code = (
        "import sys; from offaxis.cli import main;"
        f"sys.argv = ['offaxis', 'compare', {str(pair[0])!r}, {str(pair[1])!r}, '--out', 'x'];"
        "sys.stderr.write('ready'); sys.stderr.flush(); main()"
    )
    status, out, err = interrupted([sys.executable, "-c", code], after="ready", wait=0.6)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
