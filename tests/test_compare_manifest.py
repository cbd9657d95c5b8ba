"""`compare_manifest`: every pair as if compared alone, in one table, in the manifest's order."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import models
import offaxis
from manifests import PAIRS, write_models, write_table
from offaxis.comparison import ManyComparison, stream
from offaxis.comparison.stream import Progress
from offaxis.errors import InputError, OffaxisError, OutputError

NAMES = [tuned for _, tuned, *_ in PAIRS]
FILES = ["curves.parquet", "measurements.parquet", "pairs.csv", "pairs.parquet", "report.html",
         "summary.json"]  # fmt: skip
OFFAXIS = [sys.executable, "-m", "offaxis"]
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_models(tmp_path_factory.mktemp("home"))
    write_table(root / "pairs.csv", PAIRS)
    return root


@pytest.fixture(scope="module")
def found(home: Path) -> ManyComparison:
    return offaxis.compare_manifest(home / "pairs.csv")


def variant(home: Path, rows: Any, header: str = "", name: str = "variant.csv") -> Path:
    return write_table(home / name, rows, header)


# ------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("place", range(len(PAIRS)))
def test_each_pair_is_as_if_compared_alone(found: ManyComparison, home: Path, place: int) -> None:
    base, tuned, *_ = PAIRS[place]
    alone = offaxis.compare(home / base, home / tuned)
    (want,) = alone.summary()["pairs"]
    got = found.summary()["pairs"][place]
    assert {k: v for k, v in got.items() if k not in ("name", "base", "tuned", "columns")} == {
        k: v for k, v in want.items() if k != "tuned"
    }
    rows = found.measurements.filter(pl.col("tuned") == tuned).drop("tuned")
    assert rows.equals(alone.measurements.drop("tuned"))
    curves = found.curves.filter(pl.col("tuned") == tuned).drop("tuned")
    assert curves.equals(alone.curves.drop("tuned"))


def test_all_stays_in_the_manifests_order(found: ManyComparison) -> None:
    pairs = found.summary()["pairs"]
    assert [(p["base"], p["tuned"]) for p in pairs] == [(b, t) for b, t, *_ in PAIRS]
    assert [pair["name"] for pair in pairs] == found.pairs["name"].to_list() == NAMES
    single = pl.col("tuned").is_in(NAMES)
    order = found.measurements["tuned"].unique(maintain_order=True).to_list()
    assert order[: len(NAMES)] == NAMES
    assert found.measurements.filter(~single)["measure"].str.starts_with("jaccard").all()
    assert found.curves["tuned"].unique(maintain_order=True).to_list() == NAMES
    assert [row["tuned"] for row in found.summary()["run"]["alignment"]] == NAMES


def test_a_shared_base_is_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its spectra and masks are made once a tensor, under whatever name the base goes."""
    made: list[str] = []
    real = stream.BaseSide

    def counted(part: Any, *rest: Any, **more: Any) -> Any:
        made.append(part.tensor)
        return real(part, *rest, **more)

    monkeypatch.setattr(stream, "BaseSide", counted)
    rows = [("one", "runs/a"), ("runs/../one", "runs/c"), (str(home / "one"), "runs/e")]
    found = offaxis.compare_manifest(variant(home, rows, "base,tuned"), spectra="none")
    assert len(made) == len(set(made)) == len(models.tiny(layers=1))
    assert [pair["base"] for pair in found.summary()["pairs"]] == [base for base, _ in rows]
    assert len(found.summary()["run"]["bases"]) == 1


def test_settings_reach_every_base(home: Path) -> None:
    settings: dict[str, Any] = {"spectra": "sample:3", "seed": 4, "alpha": 0.3, "angle_rank": 2}
    found = offaxis.compare_manifest(home / "pairs.csv", **settings)
    alone = offaxis.compare(home / "two", [home / "runs/b", home / "runs/d"], **settings)
    for place, want in zip((1, 3), alone.summary()["pairs"], strict=True):
        assert found.summary()["pairs"][place]["nss"] == want["nss"]
        assert found.summary()["pairs"][place]["principal_overlap"] == want["principal_overlap"]
    run, want_run = found.summary()["run"], alone.summary()["run"]
    assert run["settings"] == want_run["settings"]
    with pytest.raises(InputError, match="alpha"):
        offaxis.compare_manifest(home / "pairs.csv", alpha=1.0)
    with pytest.raises(InputError, match="sample:N"):
        offaxis.compare_manifest(home / "pairs.csv", spectra="most")


# ------------------------------------------------------------------------------------- the tables


def test_the_table_has_the_users_columns_then_every_number(found: ManyComparison) -> None:
    frame = found.pairs
    assert frame.columns[:6] == ["name", "base", "tuned", "algorithm", "data", "lr"]
    assert found.columns == tuple(frame.columns[:6])
    assert frame["lr"].to_list() == ["1e-6", "1e-5", "1e-6", None, "2e-5"]
    for row, pair in zip(frame.iter_rows(named=True), found.summary()["pairs"], strict=True):
        numbers = {k: v for k, v in pair.items() if isinstance(v, int | float) or v is None}
        assert {key: row[key] for key in numbers} == numbers
        assert row["verdict"] == pair["verdict"]["label"]
        for name, count in pair["measured"].items():
            assert row[f"{name}_matrices"] == count
            ends = pair["intervals"].get(name, [None, None])
            assert [row[f"{name}_low"], row[f"{name}_high"]] == ends
    assert len(numbers) > 30
    assert frame["parameters"].dtype == pl.Int64
    assert frame["nss"].dtype == frame["principal_overlap_rounding_null"].dtype == pl.Float64
    assert frame["nss"][4] == 0
    assert frame["principal_overlap"][4] is None, "nothing changed"


def test_the_summary_keeps_the_contract(found: ManyComparison, home: Path) -> None:
    summary = found.summary()
    assert list(summary) == ["schema", "base", "pairs", "across", "run"]
    assert (summary["schema"], summary["across"]) == (1, None)
    assert summary["base"] == str(home / "pairs.csv")
    assert summary["pairs"][3]["columns"] == {"algorithm": "DAPO", "data": "Math", "lr": None}
    one, two = summary["run"]["bases"]
    assert (one["base"], one["pairs"]) == ("one", ["runs/a", "runs/c", "runs/e"])
    assert (two["base"], two["pairs"]) == ("two", ["runs/b", "runs/d"])
    together = offaxis.compare(home / "two", [home / "runs/b", home / "runs/d"], spectra="none")
    across = together.summary()["across"]
    assert two["across"]["jaccard_mean"] == across["jaccard_mean"]


def test_names_label_the_rows(home: Path) -> None:
    rows = [("one", "runs/a", "first"), ("one", "runs/a", ""), ("two", "runs/b", "x∥y")]
    path = variant(home, rows, "base,tuned,name")
    found = offaxis.compare_manifest(path, spectra="none")
    names = ["first", "runs/a", "x∥y"]
    assert found.pairs["name"].to_list() == names
    assert found.pairs.columns[:4] == ["base", "tuned", "name", "parameters"]
    assert found.measurements["tuned"].unique(maintain_order=True).to_list()[:3] == names
    assert [pair["tuned"] for pair in found.summary()["pairs"]] == ["runs/a", "runs/a", "runs/b"]


def test_saved_tables_read_back_equal(found: ManyComparison, tmp_path: Path) -> None:
    out = found.save(tmp_path / "deep" / "out")
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert pl.read_parquet(out / "pairs.parquet").equals(found.pairs)
    assert pl.read_parquet(out / "measurements.parquet").equals(found.measurements)
    assert pl.read_parquet(out / "curves.parquet").equals(found.curves)
    assert json.loads((out / "summary.json").read_text()) == found.summary()
    table = pl.read_csv(out / "pairs.csv", infer_schema_length=None)
    assert table.columns == found.pairs.columns
    for name in ("nss", "principal_overlap_excess_low"):
        for got, want in zip(table[name].to_list(), found.pairs[name].to_list(), strict=True):
            assert got == want or math.isclose(got, want, rel_tol=1e-15)
    with pytest.raises(OutputError, match="overwrite"):
        found.save(out)
    found.save(out, overwrite=True)


def test_a_failed_save_leaves_nothing(
    found: ManyComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_csv", fail)
    with pytest.raises((OffaxisError, OSError)):
        found.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- before any reading


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("one", "runs/missing"), r"line 7: runs/missing: .*(no such file)"),
        (("./none", "runs/a"), r"line 7: \./none: no such file"),
        (("one", "bad"), r"line 7: .*bad"),
        (("one", "other"), r"line 7: .*other"),
        (("adapter", "runs/a"), r"line 7: .*adapter; BASE must be the model"),
    ],
    ids=["missing", "no base", "broken", "nothing aligns", "an adapter as base"],
)
def test_one_bad_row_fails_the_whole_before_anything_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch, row: tuple[str, str], words: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("bad", "other", "adapter"):
        (home / name).mkdir(exist_ok=True)
    (home / "bad" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header }")
    (home / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    state = {"other.weight": torch.zeros(3, 5)}
    for name in ("other/model", "adapter/adapter_model"):
        models.write(home / "made", state)
        (home / "made" / "model.safetensors").replace(home / f"{name}.safetensors")
        shutil.rmtree(home / "made")
    monkeypatch.setattr(stream.Stream, "run", lambda *_: pytest.fail("work had begun"))
    told: list[str] = []
    rows = [(base, tuned) for base, tuned, *_ in PAIRS] + [row]
    with pytest.raises(OffaxisError, match=words) as caught:
        offaxis.compare_manifest(variant(home, rows, "base,tuned"), announce=told.append)
    assert str(caught.value).startswith(str(home / "variant.csv"))
    assert told == []


def test_local_rows_are_checked_before_the_hub_is_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offaxis.checkpoint import locate

    monkeypatch.setattr(locate, "fetch", lambda *_, **__: pytest.fail("the Hub was asked"))
    rows = [("org/far", "org/away"), ("one", "other-model")]
    models.write(home / "other-model", {"other.weight": torch.zeros(3, 5)})
    with pytest.raises(OffaxisError, match="line 3: "):
        offaxis.compare_manifest(variant(home, rows, "base,tuned"))


def test_a_hub_id_comes_through_the_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offaxis.checkpoint import locate

    asked: list[str] = []

    def fetch(source: str, **settings: object) -> Path:
        asked.append(source)
        return home / {"org/far": "one", "org/tuned@v2": "runs/a"}[source]

    monkeypatch.setattr(locate, "fetch", fetch)
    rows = [("org/far", "org/tuned@v2"), ("org/far", "runs/c"), ("one", "runs/a")]
    found = offaxis.compare_manifest(variant(home, rows, "base,tuned"), spectra="none")
    assert asked == ["org/far", "org/tuned@v2"]
    first, _, third = found.summary()["pairs"]
    assert (first["base"], first["tuned"]) == rows[0]
    assert first["unchanged_bf16"] == third["unchanged_bf16"]


@pytest.mark.parametrize("column", ["nss", "verdict", "nss_low", "parameters", "nonfinite_base"])
def test_a_column_that_offaxis_writes_is_refused(home: Path, column: str) -> None:
    path = variant(home, [("one", "runs/a", "1")], f"base,tuned,{column}")
    with pytest.raises(InputError, match=f"'{column}' is one that offaxis writes; rename"):
        offaxis.compare_manifest(path)


def test_plan_and_progress_are_of_the_whole(home: Path) -> None:
    steps: list[Progress] = []
    lines: list[str] = []
    offaxis.compare_manifest(
        home / "pairs.csv", spectra="none", progress=steps.append, announce=lines.append
    )
    one, two = (sum(w.numel() for w in models.tiny(layers=n).values()) for n in (1, 2))
    assert {step.total for step in steps} == {3 * one + 2 * two}
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done[-1] == steps[-1].total
    assert lines[-1].startswith("5 pairs over 2 bases: ")


# ------------------------------------------------------------------------------- the command line


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*OFFAXIS, *map(str, arguments)]
    return subprocess.run(
        command, env=PLAIN, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_writes_its_directory_from_anywhere(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("compare", "--manifest", home / "pairs.csv", "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert "report.html" in done.stdout
    assert all(name.rpartition("/")[2] in done.stdout for name in NAMES)
    assert "GB to read" in done.stderr


def test_json_alone_goes_to_standard_output(home: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", "--json", "--spectra", "none")
    done = run("compare", "--manifest", "pairs.csv", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["base"] == "pairs.csv", "verbatim"


@pytest.mark.parametrize(
    "arguments",
    [
        ["base", "tuned", "--manifest", "x.csv", "--out", "x"],
        ["base", "--manifest", "x.csv", "--out", "x"],
        ["--out", "x"],
        ["--manifest", "x.csv"],
    ],
    ids=" ".join,
)
def test_both_or_neither_is_bad_syntax(arguments: list[str], tmp_path: Path) -> None:
    done = run("compare", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("base,tuned\none,./gone\n", "line 2"), ("tuned\nx\n", "no column"), (None, "read")],
)
def test_a_bad_manifest_is_one_and_nothing_is_written(
    home: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    path = home / "broken.csv"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    done = run("compare", "--manifest", path, "--out", tmp_path / "deep" / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert str(path) in done.stderr.replace("\n", "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------- the real pairs


def test_the_real_pairs_from_end_to_end(pairs: Path, tmp_path: Path) -> None:
    rows = [("rl-checkpoint-20", "RL", "20"), ("sft-60", "SFT", "60"),
            ("rl-checkpoint-60", "RL", "60")]  # fmt: skip
    path = write_table(
        tmp_path / "real.csv",
        [(str(pairs / "base"), str(pairs / tuned), *more) for tuned, *more in rows],
        "base,tuned,method,steps",
    )
    found = offaxis.compare_manifest(path, spectra="sample:8")
    direct = offaxis.compare(pairs / "base", [pairs / t for t, *_ in rows], spectra="sample:8")
    for got, want in zip(found.summary()["pairs"], direct.summary()["pairs"], strict=True):
        for name in ("unchanged_bf16", "nss", "principal_overlap_excess"):
            assert got[name] == want[name]
    unchanged = dict(zip(found.pairs["method"], found.pairs["unchanged_bf16"], strict=True))
    assert unchanged["RL"] > unchanged["SFT"], "as in table 1"
    out = found.save(tmp_path / "out")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "3 pairs over 1 base: " in page
    assert all(tuned in page for tuned, *_ in rows)
