"""`offaxis gates` as a user meets it, and the tables that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import models
from offaxis.cli import gates_shown
from offaxis.cli.app import build
from offaxis.cli.gates import _prompts
from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.gates import Gates, check_checkpoints, policy_tables, store_table
from offaxis.gates.checkpoints import COLUMNS, FURTHER

ROOT = Path(__file__).parents[1]

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
    for wrong in (
        (pair[0],),
        (*pair, "--lemmas", "--out", tmp_path / "x"),
        ("--lemmas", "--stores"),
        (*pair, "--out", tmp_path / "x", "--against", pair[1]),
        (*pair, "--out", tmp_path / "x", "--data", "a", "--prompts", "b"),
    ):
        done = in_process(*wrong)
        assert done.exit_code == 2, wrong
    missing = run(pair[0], tmp_path / "none", "--out", tmp_path / "x")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "x").exists()


def test_what_gate_i_reads_is_opened_before_gate_ii_takes_its_time(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object, **__: object) -> None:
        raise AssertionError("Gate II began")

    monkeypatch.setattr("offaxis.gates.check_checkpoints", late)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1+1=\n")
    none = tmp_path / "none"
    for wrong in (("--data", none), ("--prompts", prompts, "--against", none)):
        done = in_process(*pair, "--out", tmp_path / "x", *wrong)
        assert isinstance(done.exception, InputError | CheckpointError)
        assert str(none) in str(done.exception)


def in_process(*arguments: str | Path) -> Any:
    return CliRunner().invoke(build(), ["gates", *map(str, arguments)])


def test_the_lemmas_as_json() -> None:
    done = run("--lemmas", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["verdict"] for one in found} == {"holds", "loose", "false"}
    assert len(found) == 19


def test_all_three_gates_in_one_directory(tmp_path: Path) -> None:
    """Gate I on two prompts, beside another run, and the first study's rows: one gates.json."""
    base = ROOT / "src" / "offaxis" / "lab" / "base"
    state = load_file(base / "model.safetensors")
    for number, name in enumerate(("one", "other")):
        generator = torch.Generator().manual_seed(number)
        (tmp_path / name).mkdir()
        moved = {
            n: w.float() + 1e-4 * torch.randn(w.shape, generator=generator)
            for n, w in state.items()
        }
        save_file(moved, tmp_path / name / "model.safetensors")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3+4*2=\n\n5+1*3=\n")
    out = tmp_path / "out"
    done = in_process(
        base, tmp_path / "one", "--out", out, "--prompts", prompts, "--max-new-tokens", "6",
        "--probes", "1", "--draws", "0", "--device", "cpu", "--against", tmp_path / "other",
        "--rows", ROOT / "docs" / "studies" / "first" / "runs.parquet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((out / "gates.json").read_text())
    assert set(found) >= {"checks", "melting", "anchor", "against", "rates"}
    assert found["anchor"]["run"]["prompts"] == 2
    assert found["rates"]["runs"] == 192
    assert found["against"]["contrasts"][0]["scope"] == "model"
    tables = {path.stem for path in out.glob("*.parquet")}
    assert tables == {
        "gates", "melting", "rates_runs",
        *(f"anchor_{one}" for one in ("quotients", "confined", "contrasts", "shrinking")),
    }  # fmt: skip
    for title in ("Gate I: KL", "Gate I: both runs", "Gate II", "Gate III: share unchanged in 192"):
        assert title in done.output
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        _prompts(empty)
    with pytest.raises(InputError, match="UTF-8"):
        _prompts(tmp_path / "none.txt")


def test_what_was_added_is_named(result: Gates) -> None:
    assert {name: result.summary()[name] for name in FURTHER} == dict.fromkeys(FURTHER)
    more = result.adding("rates", {"runs": 1}, {"runs": result.table})
    assert more.summary()["rates"] == {"runs": 1}
    assert list(more.further) == ["rates_runs"]
    assert result.summary()["rates"] is None
    with pytest.raises(InputError, match="anchor, against, rates"):
        result.adding("other", {}, {})


def test_the_studies_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    gates_shown.stores(store_table(entries=500, steps=20).to_dicts())
    told = capsys.readouterr().out
    assert "nearest" in told
    assert "random_walk" in told
    tables = policy_tables(draws=1)
    gates_shown.policies({name: table.to_dicts() for name, table in tables.items()})
    told = capsys.readouterr().out
    for title in ("Proposition 3.1", "circle", "Lemma E.9"):
        assert title in told
    linear = tables["leash"].filter(pl.col("family") != "curved")
    assert (linear["largest_ratio"] <= 1 + 1e-9).all()
    first = tables["clipping"].filter(pl.col("updates") == 1, pl.col("rate") == 0.03)
    assert first["outside"].to_list() == [0, 0], "at one update every ratio was 1"


def test_a_real_run_stands_beside_its_nulls(pairs: Path) -> None:
    """The lab's GRPO run moves the singular values of one matrix more than chance does."""
    found = check_checkpoints(pairs / "base", pairs / "rl-checkpoint-60", draws=1)
    checks = {one["check"]: one for one in found.summary()["checks"]}
    assert checks["weyl"]["ok"] == found.summary()["matrices"] == 28
    assert all(one["exceeded"] == 0 for one in checks.values())
    assert checks["hoffman_wielandt"]["nulls"]["turned"]["times"] > 1.2
    row = next(r for r in found.summary()["melting"] if r["factor"] == 1)
    assert row["unchanged"] == pytest.approx(row["expected"], abs=0.01)
