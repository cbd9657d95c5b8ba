"""Contributions of several users as one table: the base is the unit, and repeats count once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import models
import offaxis
from offaxis.cli.app import build as build_app
from offaxis.comparison.contribution import contribute, pool, write_contribution
from offaxis.errors import InputError
from offaxis.masks import build

OFFAXIS = [sys.executable, "-m", "offaxis"]
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}
BASES = (0, 1, 2)


def _avoiding(base: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tuned model that left every principal entry where it was."""
    kept = build(base, "principal")
    tuned = {name: value.float() for name, value in state.items()}
    for name, principal in kept.items():
        tuned[name] = torch.where(principal, tuned[name], tuned[name] * 1.05)
    return tuned


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """For each of three bases a file of noise, and one of an update off the principal entries."""
    root = tmp_path_factory.mktemp("users")
    found: dict[str, list[Path]] = {"noise": [], "avoiding": []}
    for seed in BASES:
        state = models.tiny(seed=seed, layers=2, scale=2)
        base = models.write(root / f"base-{seed}", state)
        sides = {
            "noise": models.nudged(state, seed=seed + 10, size=2e-4, dtype=torch.float32),
            "avoiding": _avoiding(base, state),
        }
        for kind, tuned in sides.items():
            place = models.write(root / f"{kind}-{seed}", tuned)
            out = offaxis.compare(base, place).save(root / f"out-{kind}-{seed}")
            told = contribute(
                out,
                base_ids=[f"org/base-{seed}"],
                tuned_ids=[f"org/{kind}-{seed}"],
                run_infos=[{"method": kind, "learning_rate": 1e-6}],
            )
            found[kind].append(write_contribution(told, root / f"{kind}-{seed}.json"))
    return found


def test_a_planted_avoidance_is_found_and_noise_is_not(files: dict[str, list[Path]]) -> None:
    found = pool([*files["noise"], *files["avoiding"]])
    answers = {(row["method"], row["measure"]): row for row in found.answers.iter_rows(named=True)}
    planted = answers["avoiding", "principal_overlap_excess"]
    assert (planted["word"], planted["bases"], planted["pairs"]) == ("below the null", 3, 3)
    assert planted["high"] < -0.2
    noise = answers["noise", "principal_overlap_excess"]
    assert noise["low"] < 0 < noise["high"]
    assert noise["word"] in ("cannot tell", "nothing beyond the null")


def test_the_unit_is_the_base(files: dict[str, list[Path]]) -> None:
    one = pool(files["avoiding"][:1])
    assert set(one.answers["word"]) == {"cannot tell"}, "one base has no interval"
    assert one.answers["low"].null_count() == one.answers.height
    means = [
        pool([path]).answers.filter(pl.col("measure") == "principal_overlap_excess")["mean"][0]
        for path in files["avoiding"]
    ]
    together = pool(files["avoiding"]).answers
    answer = together.filter(pl.col("measure") == "principal_overlap_excess")
    assert answer["mean"][0] == pytest.approx(sum(means) / 3)


def test_the_same_weights_count_once(files: dict[str, list[Path]], tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    told = json.loads(files["noise"][0].read_text())
    told["pairs"][0]["tuned"]["id"] = "someone/else"
    write_contribution(told, again)
    once, twice = pool(files["noise"]), pool([*files["noise"], again])
    assert (once.repeated, twice.repeated) == (0, 1)
    assert twice.rows.equals(once.rows)


def test_the_same_weights_count_once_in_one_file(
    files: dict[str, list[Path]], tmp_path: Path
) -> None:
    told = json.loads(files["noise"][0].read_text())
    told["pairs"] *= 3
    found = pool([write_contribution(told, tmp_path / "thrice.json")])
    assert found.repeated == 2
    assert found.answers.equals(pool(files["noise"][:1]).answers)


def test_an_id_without_a_digest_is_the_model_of_that_id(
    files: dict[str, list[Path]], tmp_path: Path
) -> None:
    told = json.loads(files["noise"][0].read_text())
    for side in ("base", "tuned"):
        told["pairs"][0][side] |= {"digest": None, "dtypes": None}
    same = write_contribution(told, tmp_path / "same.json")
    for order in ([files["noise"][0], same], [same, files["noise"][0]]):
        assert pool(order).repeated == 1
    told["pairs"][0]["tuned"]["id"] = "org/other-run"
    other = pool([files["noise"][0], write_contribution(told, tmp_path / "other.json")])
    assert (other.answers["pairs"][0], other.answers["bases"][0]) == (2, 1)


def test_an_answer_is_of_means_alone(files: dict[str, list[Path]], tmp_path: Path) -> None:
    told = json.loads(files["noise"][0].read_text())
    asked = "principal_overlap_excess"
    told["pairs"][0]["numbers"] |= {asked: 1e300}
    told["pairs"][0]["means"] |= {asked: [None, None, None, 0]}
    found = pool([write_contribution(told, tmp_path / "odd.json")])
    assert asked not in found.answers["measure"].to_list()


def test_every_number_is_in_the_table(files: dict[str, list[Path]]) -> None:
    found = pool(files["noise"])
    assert set(found.rows["by"]) == {"pair", "role", "layer"}
    told = json.loads(files["noise"][1].read_text())
    for group in told["pairs"][0]["roles"]:
        row = found.rows.filter(
            pl.col("tuned") == "org/noise-1",
            pl.col("by") == "role",
            pl.col("group") == group["role"],
            pl.col("measure") == "nss",
        )
        assert list(row.select("mean", "low", "high", "matrices").row(0)) == group["means"]["nss"]
    with pytest.raises(InputError, match="nothing to pool"):
        pool([])


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*OFFAXIS, *map(str, arguments)]
    return subprocess.run(
        command, env=PLAIN, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison of relative paths, in the working directory, made into a file by the command."""
    monkeypatch.chdir(tmp_path)
    base = models.tiny(layers=1)
    models.write(Path("base"), base)
    for step in (5, 9):
        side = models.nudged(base, seed=step, dtype=torch.float32)
        models.write(Path("run") / f"checkpoint-{step}", side)
    offaxis.compare("base", ["run/checkpoint-5", "run/checkpoint-9"]).save("out")
    names = ("--base", "me/base", "--tuned", "me/run@5", "--tuned", "me/run@9")
    done = run("contribute", "out", "--out", "sent.json", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "me/run@9" in done.stdout
    return tmp_path / "sent.json"


def test_pool_on_the_command_line(sent: Path) -> None:
    table = run("pool", sent, "--out", "all.parquet", "--json", cwd=sent.parent)
    assert table.returncode == 0, table.stderr
    assert json.loads(table.stdout)["answers"][0]["word"] == "cannot tell"
    assert pl.read_parquet("all.parquet").height == json.loads(table.stdout)["rows"]
    inside = CliRunner()
    shown = inside.invoke(build_app(), ["pool", str(sent), "--by", "role", "--measures", "nss"])
    assert shown.output.count("nss") == 2 * len(models.ROLES)
    steps = inside.invoke(build_app(), ["pool", str(sent), "--by", "overlap"])
    assert "second_in_first" in steps.output
    for wrong in (["--by", "colour"], ["--by", "role", "--measures", "nothing"]):
        bad = inside.invoke(build_app(), ["pool", str(sent), *wrong])
        assert isinstance(bad.exception, InputError)
        assert "choose one of" in str(bad.exception) or "there are" in str(bad.exception)
    assert inside.invoke(build_app(), ["pool", str(sent), "--measures", "nss"]).exit_code == 2


def test_contribute_refuses_paths_on_the_command_line(sent: Path) -> None:
    refused = run("contribute", "out", "--out", "again.json", cwd=sent.parent)
    assert refused.returncode == 1
    assert "--base ID" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (sent.parent / "again.json").exists()
