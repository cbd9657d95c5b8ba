"""`offaxis gates` as a user meets it, and the tables that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

import models
from offaxis.errors import InputError, OutputError
from offaxis.gates import Gates, check_checkpoints
from offaxis.gates.checkpoints import COLUMNS

PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offaxis", "gates", *map(str, arguments)],
        env=PLAIN, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    base = models.tiny(layers=1)
    tuned = models.nudged(base, seed=1, dtype=torch.float32)
    return models.write(root / "base", base), models.write(root / "tuned", tuned)


@pytest.fixture(scope="module")
def result(pair: tuple[Path, Path]) -> Gates:
    return check_checkpoints(*pair, draws=3, seed=7)


def test_one_row_a_matrix_and_check(result: Gates) -> None:
    assert dict(result.table.schema) == COLUMNS
    assert result.table["tensor"].n_unique() == 7 == result.summary()["matrices"]
    assert result.table.height == 7 * 14
    assert set(result.table["role"]) == set(models.ROLES)
    assert not result.table.filter(pl.col("status") == "exceeded").height
    low, mean, high = (f"random_ratio_{end}" for end in ("low", "mean", "high"))
    known = result.table.filter(pl.col(low).is_not_null())
    assert known.filter((pl.col(low) <= pl.col(mean)) & (pl.col(mean) <= pl.col(high))).equals(
        known
    )


def test_a_gaussian_step_is_like_its_nulls(result: Gates) -> None:
    """The norm null is drawn from the update's own law: few matrices stand out."""
    (check,) = [c for c in result.summary()["checks"] if c["check"] == "hoffman_wielandt"]
    null = check["nulls"]["random"]
    assert (null["matrices"], null["chance"]) == (7, 1 / 4)
    assert null["times"] == pytest.approx(1, abs=0.3)
    assert check["nulls"]["turned"]["matrices"] == 7


def test_the_same_seed_gives_the_same_table(pair: tuple[Path, Path], result: Gates) -> None:
    again = check_checkpoints(*pair, draws=3, seed=7)
    assert again.table.equals(result.table)
    assert not check_checkpoints(*pair, draws=3, seed=8).table.equals(result.table)
    none = check_checkpoints(*pair, draws=0)
    assert none.table["random_ratio_mean"].null_count() == none.table.height
    assert none.summary()["checks"][0]["nulls"]["random"] is None


def test_saving_is_whole_or_nothing(result: Gates, tmp_path: Path) -> None:
    out = result.save(tmp_path / "out")
    files = ["gates.json", "gates.parquet", "melting.parquet"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert pl.read_parquet(out / "gates.parquet").equals(result.table)
    assert json.loads((out / "gates.json").read_text()) == result.summary()
    with pytest.raises(OutputError, match="not empty"):
        result.save(out)


def test_a_matrix_that_is_not_finite_is_told(tmp_path: Path) -> None:
    state = models.tiny(layers=1)
    base = models.write(tmp_path / "base", state)
    name = next(n for n in state if "q_proj" in n)
    hurt = {n: w.clone() for n, w in state.items()}
    hurt[name][0, 0] = float("nan")
    tuned = models.write(tmp_path / "tuned", hurt)
    found = check_checkpoints(base, tuned, draws=1)
    rows = found.table.filter(pl.col("tensor") == name)
    assert set(rows["reason"]) == {"nonfinite"}
    others = found.table.filter(pl.col("tensor") != name)
    assert set(others["reason"]) == {"no_update"}
    assert found.summary()["run"]["nonfinite_entries"] == 1


def test_bad_settings_are_refused(pair: tuple[Path, Path]) -> None:
    for wrong in ({"draws": -1}, {"rank": 0}, {"factors": ()}):
        with pytest.raises(InputError, match=r"choose|give"):
            check_checkpoints(*pair, **wrong)  # type: ignore[arg-type]


def test_the_verb_writes_its_directory(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(*pair, "--out", out, "--draws", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "gates.json").read_text())
    text = run(*pair, "--out", out, "--draws", "0", "--overwrite")
    assert text.returncode == 0, text.stderr
    assert "wedin_left_mixed" in text.stdout
    assert "Gate III" in text.stdout


def test_usage_and_bad_paths(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(pair[0]).returncode == 2
    assert run(*pair, "--lemmas", "--out", tmp_path / "x").returncode == 2
    missing = run(pair[0], tmp_path / "none", "--out", tmp_path / "x")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "x").exists()


def test_the_lemmas_as_json() -> None:
    done = run("--lemmas", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["verdict"] for one in found} == {"holds", "loose", "false"}
    assert len(found) == 18


def test_a_real_run_stands_beside_its_nulls(pairs: Path) -> None:
    """The lab's GRPO run moves the singular values of one matrix more than chance does."""
    found = check_checkpoints(pairs / "base", pairs / "rl-checkpoint-60", draws=1)
    checks = {one["check"]: one for one in found.summary()["checks"]}
    assert checks["weyl"]["ok"] == found.summary()["matrices"] == 28
    assert all(one["exceeded"] == 0 for one in checks.values())
    assert checks["hoffman_wielandt"]["nulls"]["turned"]["times"] > 1.2
    row = next(r for r in found.summary()["melting"] if r["factor"] == 1)
    assert row["unchanged"] == pytest.approx(row["expected"], abs=0.01)
