"""The demo end to end: real training, real comparison, through the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from offaxis.lab import BASE
from offaxis.lab.demo import run_demo
from offaxis.lab.matching import CONTRASTS
from offaxis.lab.scoring import SCORES, Exam
from offaxis.lab.training import TrainingSettings

DEMO = [sys.executable, "-m", "offaxis", "demo"]
CHECKPOINTS = ["rl/checkpoint-2", "sft/checkpoint-2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A demo of two steps: its directory, what it printed as JSON, and its standard error."""
    out = tmp_path_factory.mktemp("demo") / "new" / "report"
    done = subprocess.run(
        [*DEMO, "--out", str(out), "--steps", "2", "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def test_it_leaves_a_whole_result_and_nothing_beside_it(
    run: tuple[Path, dict[str, Any], str],
) -> None:
    out, result, _ = run
    assert os.listdir(out.parent) == ["report"]
    expected = {"base", "rl", "sft", "run.json", "scores.parquet", "contrasts.parquet"}
    expected |= {"report.html", "summary.json", "measurements.parquet", "curves.parquet"}
    assert set(os.listdir(out)) == expected
    assert result["report"] == str(out / "report.html")
    assert [
        pair["tuned"] for pair in json.loads((out / "summary.json").read_text())["pairs"]
    ] == CHECKPOINTS
    assert not list(out.glob("**/*.bin"))


def test_checkpoints_are_float32_models_that_moved(run: tuple[Path, dict[str, Any], str]) -> None:
    out, _, _ = run
    base = load_file(BASE / "model.safetensors")
    weights = [load_file(out / name / "model.safetensors") for name in CHECKPOINTS]
    for tensors in weights:
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert tensors.keys() == base.keys()
        assert all(not torch.equal(tensors[name], base[name].float()) for name in base)
        largest = max(float((tensors[name] - base[name].float()).abs().max()) for name in base)
        assert 0.5 * 5e-5 < largest < 2.5 * 5e-5  # two Adam steps of 5e-5
    assert not torch.equal(*(tensors["model.layers.0.mlp.up_proj.weight"] for tensors in weights))


def test_scores_and_contrasts_have_their_columns_and_intervals(
    run: tuple[Path, dict[str, Any], str],
) -> None:
    out, result, _ = run
    scores = pl.read_parquet(out / "scores.parquet")
    assert scores.schema == pl.Schema(SCORES)
    assert set(scores["tuned"]) == {"base", *CHECKPOINTS}
    assert set(scores["metric"]) == {"avg@16", "pass@4", "pass@16"}
    assert ((scores["low"] <= scores["value"]) & (scores["value"] <= scores["high"])).all()
    contrasts = pl.read_parquet(out / "contrasts.parquet")
    assert contrasts.schema == pl.Schema(CONTRASTS)
    assert set(contrasts["matched_by"]) == {"step"}  # one checkpoint each: nothing to interpolate
    assert set(contrasts["n"]) == {28}
    assert result["scores"] == scores.to_dicts()
    assert result["contrasts"] == contrasts.to_dicts()


def test_both_runs_share_optimizer_rate_and_steps(run: tuple[Path, dict[str, Any], str]) -> None:
    out, _, _ = run
    rl, sft = (json.loads((out / name / "run.json").read_text()) for name in ("rl", "sft"))
    own = {"loss_type", "completion_only_loss", "max_length"}
    shared = rl["arguments"].keys() & sft["arguments"].keys() - own
    assert {"learning_rate", "optim", "max_steps", "max_grad_norm", "seed"} <= shared
    assert {key: rl["arguments"][key] for key in shared} == {
        key: sft["arguments"][key] for key in shared
    }
    assert (rl["arguments"]["loss_type"], rl["arguments"]["beta"]) == ("grpo", 0.0)
    assert rl["versions"]["trl"] is not None
    assert json.loads((out / "rl" / "log.json").read_text())


def test_no_result_names_the_place_where_it_was_made(
    run: tuple[Path, dict[str, Any], str],
) -> None:
    out, _, _ = run
    for path in out.glob("**/*"):
        if path.is_file() and path.suffix in {".json", ".html", ".md"}:
            assert str(out.parent) not in path.read_text(), path
            assert ".partial-" not in path.read_text(), path


def test_progress_goes_to_standard_error(run: tuple[Path, dict[str, Any], str]) -> None:
    _, _, errors = run
    for words in ("training by RL", "rl step 2/2", "training by SFT", "scoring 3 models"):
        assert words in errors
    assert "Warning" not in errors


def test_a_full_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    done = subprocess.run(
        [*DEMO, "--out", str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    assert not done.stdout
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*DEMO, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("rl step"):  # in the middle of TRL's loop
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_both_methods_learn_and_the_contrasts_reach_every_matching(tmp_path: Path) -> None:
    before = Path.cwd()
    result = run_demo(
        tmp_path / "out",
        training=TrainingSettings(steps=40, seed=1, save_at=(10, 20, 30, 40)),
        exam=Exam(problems=100, samples=8, seed=1),
        progress=False,
    )
    assert Path.cwd() == before
    gains = {row["a"]: row for row in result["differences"] if row["b"] == "base"}
    assert gains["rl/checkpoint-40"]["low"] > 0.05
    assert gains["sft/checkpoint-40"]["low"] > 0.03
    assert {row["matched_by"] for row in result["contrasts"]} == {"step", "norm", "accuracy"}
    assert len(result["contrasts"]) == 24
