"""Runs that are kept: what they hold, how they go on, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.evaluate import (
    Evaluation,
    Problem,
    Sampling,
    avg_at_k,
    evaluate,
    load_evaluation,
    pass_at_k,
)
from offaxis.evaluate.folder import Folder
from offaxis.evaluate.marking import MarkedProblem
from offaxis.evaluate.running import Step
from offaxis.lab import BASE
from offaxis.lab.tasks import TASKS
from offaxis.live import load_live

SAMPLING = Sampling(k=4, max_new_tokens=30, batch_size=8)
TASK = TASKS["arithmetic"]
PROBLEMS = [
    Problem(str(at), one.prompt, one.answer)
    for at, one in enumerate(TASK.problems(7, seed=1, split="held_out"))
]


def run(out: Path | None, problems: Sequence[Problem] = PROBLEMS, **options: object) -> Evaluation:
    settings: dict = {"sampling": SAMPLING, "verifier": "integer", "device": "cpu"}
    return evaluate(str(BASE), problems, out=out, **settings | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    return out


def copied(source: Path, out: Path) -> Path:
    shutil.copytree(source, out)
    return out


def test_a_run_holds_its_samples_and_their_scores(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "curve.svg", "results.json", "samples.jsonl", "scores.parquet", "settings.json",
    ]  # fmt: skip
    found = load_evaluation(whole)
    assert sorted(found.answers.ids, key=int) == [one.id for one in PROBLEMS]
    by_id = {one.id: one for one in PROBLEMS}
    for problem in found.problems:
        assert (problem.prompt, problem.gold) == (
            by_id[problem.id].prompt, by_id[problem.id].answer,
        )  # fmt: skip
        for one in problem.samples:
            assert one.correct == (TASK.reward(one.text, problem.prompt, problem.gold) > 0.5)
            assert one.correct == (one.reason == "equal")
    results = json.loads((whole / "results.json").read_text())
    assert results == json.loads(json.dumps(found.summary()))
    assert (results["schema"], results["problems"], results["samples"]) == (1, 7, 4)
    assert results["settings"]["temperature"] == 1.0
    assert len(results["model"]["digest"]) == 32
    assert results["versions"]["torch"]
    value = {one["metric"]: one["value"] for one in results["scores"]}
    assert value["avg@4"] == avg_at_k(found.answers.correct).value
    assert value["pass@2"] == pass_at_k(found.answers.correct, 2).value
    assert pl.read_parquet(whole / "scores.parquet").equals(found.score)
    assert (whole / "curve.svg").read_text().lstrip().startswith("<?xml")


def test_a_loaded_model_and_no_directory_give_the_same(whole: Path) -> None:
    live = load_live(BASE, device="cpu")
    found = evaluate(live, PROBLEMS, sampling=SAMPLING, verifier="integer")
    assert found.problems == load_evaluation(whole).problems


def test_saving_and_loading_is_a_round_trip(whole: Path, tmp_path: Path) -> None:
    found = load_evaluation(whole)
    found.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "samples.jsonl").read_bytes() == (
        whole / "samples.jsonl"
    ).read_bytes()
    assert load_evaluation(tmp_path / "saved").problems == found.problems
    with pytest.raises(OutputError, match="not empty"):
        found.save(tmp_path / "saved")


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
@pytest.mark.parametrize("torn", [b"", b'{"id": "2", "prom'])
def test_a_run_goes_on_to_the_same_bytes(
    whole: Path, tmp_path: Path, kept: int, torn: bytes
) -> None:
    """Whatever a kill left: whole lines, inside a batch of two, and a line that was cut off."""
    out = copied(whole, tmp_path / "out")
    for name in ("results.json", "scores.parquet", "curve.svg"):
        (out / name).unlink()
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (out / "samples.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
    steps: list[Step] = []
    said: list[str] = []
    run(out, progress=steps.append, announce=said.append)
    for name in ("samples.jsonl", "results.json", "scores.parquet", "curve.svg"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert steps[-1].done == steps[-1].total == 7
    assert said == ([f"{kept} of 7 problems are kept already"] if kept else [])


def test_a_finished_run_is_scored_again_without_its_model(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    options = {"sampling": SAMPLING, "verifier": "integer", "device": "cpu"}
    evaluate(tmp_path / "model", PROBLEMS, out=tmp_path / "out", **options)
    (tmp_path / "out" / "results.json").unlink()
    steps: list[Step] = []
    evaluate(tmp_path / "model", PROBLEMS, out=tmp_path / "out", progress=steps.append, **options)
    assert steps == []
    assert (tmp_path / "out" / "results.json").is_file()
    samples = (tmp_path / "out" / "samples.jsonl").read_bytes()
    assert samples == (whole / "samples.jsonl").read_bytes(), "the place of a model does not count"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampling": Sampling(k=5, max_new_tokens=30, batch_size=8)}, r"settings\.k \(4 there, 5"),
        ({"sampling": Sampling(4, max_new_tokens=30, seed=1, batch_size=8)}, r"settings\.seed \(0"),
        ({"verifier": "exact"}, r"settings\.verifier \('integer' there, 'exact' here\)"),
        ({"verifier_options": {"marker": "="}}, r"settings\.verifier_options\.marker \(None there"),
        ({"template": "{problem} "}, r"settings\.template"),
        ({"problems": PROBLEMS[:6]}, r"differs in data \("),
        ({"dtype": "bfloat16"}, r"settings\.dtype"),
    ],
)
def test_another_run_is_refused_with_the_difference(
    whole: Path, tmp_path: Path, changed: dict, said: str
) -> None:
    out = copied(whole, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=said):
        run(out, **changed)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_other_weights_are_another_run(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    out = copied(whole, tmp_path / "out")
    with pytest.raises(InputError, match="differs in model"):
        evaluate(tmp_path / "model", PROBLEMS, out=out, sampling=SAMPLING, verifier="integer")


def test_overwrite_starts_anew_and_leaves_other_files(whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    run(out, PROBLEMS[:2], overwrite=True)
    assert len((out / "samples.jsonl").read_bytes().splitlines()) == 2
    assert (out / "notes.txt").read_text() == "mine"


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_fails_before_its_first_sample_leaves_nothing(tmp_path: Path) -> None:
    long = Sampling(k=1, max_new_tokens=500)
    with pytest.raises(InputError, match=r"positions; pass --max-new-tokens 1\d\d or less"):
        run(tmp_path / "deep" / "out", sampling=long)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        evaluate(tmp_path / "model", PROBLEMS, out=tmp_path / "out", sampling=SAMPLING)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        evaluate(tmp_path / "model", PROBLEMS, out=tmp_path / "out", sampling=SAMPLING)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupt_in_the_middle_of_keeping_a_sample_loses_nothing(
    whole: Path, tmp_path: Path
) -> None:
    """Ctrl-C between the write of the first line and its being counted."""

    class Interrupted(dict[str, MarkedProblem]):
        def __setitem__(self, *_: object) -> None:
            raise KeyboardInterrupt

    def interrupted() -> None:
        with Folder.opened(tmp_path / "out", {"identity": {"model": "m"}}) as folder:
            folder.done = Interrupted()
            folder.append(load_evaluation(whole).problems)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(load_evaluation(tmp_path / "out").problems) == 1


def test_what_a_kill_before_the_settings_leaves_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").touch()
    (tmp_path / ".123.partial-00.json").write_text("{")
    run(tmp_path, PROBLEMS[:1])
    assert (tmp_path / "results.json").is_file()


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    header = {"identity": {"model": "m"}}
    code = """
import sys
from pathlib import Path
from offaxis.evaluate.folder import Folder
from offaxis.evaluate.marking import MarkedProblem
with Folder.opened(Path(sys.argv[1]), {"identity": {"model": "m"}}):
    pass
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with Folder.opened(tmp_path / "out", header):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another process is sampling into it" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0, "free again"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("samples.jsonl", "nonsense\n", r"samples\.jsonl, line 1: no samples of a problem"),
        ("samples.jsonl", '{"id": "1"}\n', "line 1: no samples"),
        ("settings.json", "{", r"settings\.json: cannot be read"),
        ("settings.json", "[]", "no settings of a run"),
    ],
)
def test_damage_is_told(whole: Path, tmp_path: Path, name: str, text: str, said: str) -> None:
    out = copied(whole, tmp_path / "out")
    (out / name).write_text(text)
    with pytest.raises(InputError, match=said):
        run(out)
    with pytest.raises(InputError, match=said):
        load_evaluation(out)
    assert (out / name).read_text() == text


def test_a_comparison_is_paired_and_kept(whole: Path, tmp_path: Path) -> None:
    other = Sampling(k=8, max_new_tokens=30, batch_size=8, seed=5)
    found = run(tmp_path / "out", sampling=other, against=whole)
    assert found.versus is not None
    first = {one.metric: one for one in found.versus.differences}
    theirs = load_evaluation(whole)
    assert first["avg"].value == pytest.approx(
        found.answers.correct.mean() - theirs.answers.correct.mean()
    )
    assert set(first) == {"avg", *(f"{kind}@{k}" for kind in ("pass", "maj") for k in (1, 2, 4))}
    assert "pass@4 is no large k" in found.versus.verdict.sentence
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["versus"]
    assert kept == json.loads(json.dumps(found.versus.summary()))
    hot = Sampling(k=4, max_new_tokens=30, batch_size=8, temperature=0.5)
    cool = run(None, sampling=hot, against=whole).versus
    assert cool is not None
    assert cool.notes == ("the runs differ in temperature (0.5 and 1.0)",)


@pytest.mark.parametrize(
    ("problems", "said"),
    [
        (PROBLEMS[:6], "7 problems there, 6 here"),
        ([*PROBLEMS, Problem("new", "1+1=", "2")], "no samples of problem 'new'"),
        ([Problem("0", "1+1=", "2"), *PROBLEMS[1:]], "has another text there"),
        ([Problem("0", PROBLEMS[0].prompt, "-1"), *PROBLEMS[1:]], "another reference answer"),
    ],
)
def test_only_the_same_problems_are_compared(
    whole: Path, tmp_path: Path, problems: list[Problem], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(tmp_path / "out", problems, against=whole)
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    for options, said in (
        ({"sampler": "magic"}, "sampler 'magic'"),
        ({"verifier": "magic"}, "verifier 'magic'"),
        ({"verifier_options": {"colour": 1}}, "no option colour"),
        ({"chat_template": "always"}, "chat template 'always'"),
        ({"against": tmp_path / "absent"}, "no such file or directory"),
    ):
        with pytest.raises(InputError, match=said):
            run(tmp_path / "out", **options)
    with pytest.raises(InputError, match="no problem is left"):
        run(tmp_path / "out", [])
    with pytest.raises(InputError, match="cannot be read"):
        load_evaluation(tmp_path)
