"""`offaxis eval` as a user meets it: real processes, a real kill, exit codes, the two streams."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from offaxis.lab import BASE
from offaxis.lab.tasks import TASKS

PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
OFFAXIS = [sys.executable, "-m", "offaxis"]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Done:
    """The command line inside this process, which has loaded everything already."""
    from offaxis.cli import main

    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["offaxis", "eval", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def lab_file(path: Path, task: str, count: int) -> Path:
    """Held-out problems of the lab as a user would write them down."""
    with path.open("w", encoding="utf-8") as file:
        for one in TASKS[task].problems(count, seed=2, split="held_out"):
            gold = one.prompt.rstrip("=") if task == "countdown" else one.answer
            file.write(json.dumps({"problem": one.prompt, "answer": gold}) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab_file(tmp_path_factory.mktemp("data") / "arithmetic.jsonl", "arithmetic", 12)


def wanted(data: Path, out: Path) -> list[str]:
    return [str(BASE), "--data", str(data), "--k", "8", "--max-new-tokens", "40", "--verifier",
            "integer", "--batch-size", "8", "--device", "cpu", "--out", str(out)]  # fmt: skip


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "deep" / "whole"
    done = run(*wanted(data, out))
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout.replace("\n", "")
    for metric in ("avg@8", "pass@1", "pass@8", "maj@4"):
        assert metric in done.stdout
    return out


def test_a_run_is_written_and_right_as_often_as_the_base_is(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "curve.svg", "results.json", "samples.jsonl", "scores.parquet", "settings.json",
    ]  # fmt: skip
    scores = json.loads((whole / "results.json").read_text())["scores"]
    assert 0.35 < {one["metric"]: one["value"] for one in scores}["avg@8"] < 0.7


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_killed_run_goes_on_to_the_same_bytes(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*OFFAXIS, "eval", *wanted(data, out)],
        env=PLAIN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while lines(out / "samples.jsonl") < 3 and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = lines(out / "samples.jsonl")
    assert 3 <= kept < 12
    assert not (out / "results.json").exists()
    assert (out / "settings.json").is_file()
    with (out / "samples.jsonl").open("ab") as file:
        file.write(b'{"id": "3", "pro')  # as if the kill had come in the middle of a write
    done = run(*wanted(data, out))
    assert done.returncode == 0, done.stderr
    assert f"{kept} of 12 problems are kept already" in done.stderr
    for name in ("samples.jsonl", "results.json", "scores.parquet", "curve.svg"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_json_alone_goes_to_standard_output(data: Path, whole: Path) -> None:
    done = run(*wanted(data, whole), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((whole / "results.json").read_text())
    assert "12 of 12 problems are kept already" in done.stderr


def test_ctrl_c_keeps_what_is_done(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*OFFAXIS, "eval", *wanted(data, out)],
        env=PLAIN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while lines(out / "samples.jsonl") < 1 and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in " ".join(said.split())
    assert lines(out / "samples.jsonl") >= 1


def test_a_comparison_is_told(data: Path, whole: Path, tmp_path: Path) -> None:
    done = run(*wanted(data, tmp_path / "out"), "--seed", "3", "--against", whole)
    assert done.returncode == 0, done.stderr
    assert "Against the other:" in done.stdout
    assert "Cannot tell: " in done.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["versus"]["verdict"]


def test_a_dry_run_samples_nothing(data: Path, tmp_path: Path) -> None:
    shown = run(BASE, "--data", data, "--dry-run", "--k", "4", "--template", "Solve {problem}")
    assert shown.returncode == 0, shown.stderr
    first = json.loads(data.read_text().splitlines()[0])
    assert f"Solve {first['problem']}" in shown.stdout
    assert "12 problems, 48 samples, verifier math" in shown.stdout
    assert f"  {first['answer']}\n" in shown.stdout
    out = tmp_path / "out"
    told = run(BASE, "--data", data, "--dry-run", "--json", "--limit", "3", "--out", out)
    assert json.loads(told.stdout)["problems"] == 3
    assert json.loads(told.stdout)["first_prompt"] == first["problem"]
    assert not out.exists()


def test_countdown_keeps_different_right_answers_apart(tmp_path: Path) -> None:
    data = lab_file(tmp_path / "countdown.jsonl", "countdown", 6)
    done = run(BASE, "--data", data, "--k", "16", "--max-new-tokens", "40", "--verifier",
               "countdown", "--device", "cpu", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = {one["metric"]: one["value"] for one in json.loads(done.stdout)["scores"]}
    assert 0.2 < value["avg@16"] < 0.8 < value["pass@16"]
    ways = 0
    for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines():
        right = [one for one in json.loads(line)["samples"] if one["correct"]]
        spelt = {one["answer"] for one in right}
        assert len({one["vote"] for one in right}) == len(spelt)
        ways = max(ways, len(spelt))
    assert ways > 1, "some problem was solved in two ways"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "data.jsonl"], 2, "--out"),
        (["--out", "o"], 2, "--data"),
        (["--data", "data.jsonl", "--out", "o", "--verifier-option", "x"], 2, "NAME=VALUE"),
        (["--data", "absent.jsonl", "--out", "o"], 1, "no such file"),
        (["--data", "bad.jsonl", "--out", "o"], 1, "bad.jsonl, line 2: not JSON"),
        (["--data", "data.jsonl", "--out", "o", "--answer-column", "gold"], 1, "no column 'gold'"),
        (["--data", "data.jsonl", "--out", "o", "--k", "0"], 1, "k 0"),
        (["--data", "data.jsonl", "--out", "o", "--k", "2", "--temperature", "0"], 1, "pass k 1"),
        (["--data", "data.jsonl", "--out", "o", "--verifier", "magic"], 1, "verifier 'magic'"),
        (["--data", "data.jsonl", "--out", "o", "--sampler", "vllm"], 1, "pip install vllm"),
        (["--data", "data.jsonl", "--out", "o", "--max-new-tokens", "999"], 1, "positions"),
        (["--data", "data.jsonl", "--out", "data.jsonl"], 1, "a file is there"),
        (["--data", "data.jsonl", "--out", "full"], 1, "not empty"),
        (["--data", "data.jsonl", "--out", "o", "--against", "full"], 1, "neither results"),
    ],
)
def test_mistakes_have_their_exit_code_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    lab_file(tmp_path / "data.jsonl", "arithmetic", 2)
    (tmp_path / "bad.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n{"problem\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = run(BASE, "--device", "cpu", *arguments)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_heavy_is_loaded_for_help() -> None:
    code = (
        "import sys\n"
        "from offaxis.cli import main\n"
        "sys.argv = ['offaxis', 'eval', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'polars', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=PLAIN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--verifier" in done.stdout
