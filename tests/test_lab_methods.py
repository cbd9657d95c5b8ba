"""The table of methods on made-up rows in which every number is known."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from offaxis.cli.app import build
from offaxis.errors import InputError, OutputError
from offaxis.evaluate import pass_at_k
from offaxis.lab.methods import MethodTable
from offaxis.lab.methods.passing import against_base, word
from offaxis.lab.methods.summary import MEASURES, answers, over_seeds, summarise
from offaxis.lab.methods.words import NAMES, markdown
from offaxis.lab.queue.rows import CHECKPOINT, RUN
from offaxis.lab.tasks import TASKS
from offaxis.lab.training import METHODS

PROBLEMS, SAMPLES = 40, 16
RATES = (3e-5, 1e-4)
SETTINGS = {
    "task": "arithmetic", "difficulty": 2, "steps": 40, "prompts_per_step": 8,
    "completions_per_prompt": 8, "problems": PROBLEMS, "samples": SAMPLES,
}  # fmt: skip
Rows = pl.DataFrame


def counts(share: float, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.binomial(SAMPLES, share, size=PROBLEMS).tolist()


def row(method: str, rate: float, seed: int, **fields: Any) -> dict[str, Any]:
    """A run at its last checkpoint, and a useless earlier one."""
    right = fields.pop("right", counts(0.5, seed))
    one = {
        "step": 40,
        "right": right,
        "right_harder": fields.pop("right_harder", [0] * PROBLEMS),
        "avg": float(np.mean(right)) / SAMPLES,
        "relative_update_norm": 0.01,
        **{f"mixture_loss_{task}": 1.0 for task in TASKS},
    }
    run = {key: fields.pop(key) for key in list(fields) if key in RUN}
    one |= fields
    points = [one] if method == "base" else [one | {"step": 20, "avg": 0.0, "nss": 99.0}, one]
    told = {"run": f"{method}-{rate}-{seed}", "method": method, "learning_rate": rate,
            "seed": seed, "revision": 0, "sampled": 2560, "train_cpu_seconds": 20.0}  # fmt: skip
    points = [{name: point.get(name) for name in CHECKPOINT} for point in points]
    whole = SETTINGS | told | run | {"checkpoints": points}
    return {name: whole.get(name) for name in RUN}


def frame(*rows: dict[str, Any]) -> Rows:
    return pl.DataFrame(rows, schema=RUN)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Every method at two rates and three seeds."""
    found = [row("base", 3e-5, 0)]
    for method, rate, seed in product(METHODS, RATES, range(3)):
        share = 0.6 + 0.02 * list(METHODS).index(method) / len(METHODS)
        more = {"nss": rate * (1 + seed), "kl_tuned_base": 0.1, "mixture_loss_countdown": 1.2}
        found.append(row(method, rate, seed, right=counts(share, 100 + seed), **more))
    return frame(*found)


def cell(table: Rows, method: str, measure: str, rate: float | None = 3e-5) -> dict[str, Any]:
    own = table.filter(method=method, measure=measure)
    own = own.filter(pl.col("learning_rate").eq_missing(pl.lit(rate)))
    assert own.height == 1
    return own.row(0, named=True)


def test_a_cell_is_the_mean_over_seeds_with_students_interval(rows: Rows) -> None:
    table = summarise(rows)
    found = cell(table, "sft", "nss")
    assert found["value"] == pytest.approx(2 * 3e-5)
    half = 4.303 * 3e-5 / math.sqrt(3)  # t of two degrees of freedom, standard deviation 3e-5
    assert found["high"] - found["value"] == pytest.approx(half)
    assert found["value"] - found["low"] == pytest.approx(half)
    assert found["seeds"] == 3
    assert cell(table, "sft", "nss", 1e-4)["value"] == pytest.approx(2e-4)


def test_intervals_over_three_seeds_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(3000):
        _, low, high = over_seeds(rng.normal(0.3, 1.0, size=3).tolist())
        assert low is not None
        assert high is not None
        hits += low <= 0.3 <= high
    assert hits / 3000 == pytest.approx(0.95, abs=0.015)
    assert over_seeds([0.5]) == (0.5, None, None)


def test_gain_forgetting_and_cost_are_what_their_names_say(rows: Rows) -> None:
    table = summarise(rows)
    base, after = cell(table, "base", "avg", None), cell(table, "grpo", "avg")
    assert cell(table, "grpo", "gain")["value"] == pytest.approx(after["value"] - base["value"])
    # countdown rose by 0.2, programs did not; arithmetic is what was trained.
    assert cell(table, "grpo", "forgetting")["value"] == pytest.approx(0.1)
    assert cell(table, "base", "forgetting", None)["value"] == 0
    assert cell(table, "grpo", "sampled_per_step")["value"] == 64
    assert cell(table, "grpo", "cpu_per_step")["value"] == 0.5
    with pytest.raises(AssertionError):
        cell(table, "base", "gain", None)


def test_pass_at_k_is_that_of_the_answers(rows: Rows) -> None:
    table = summarise(rows)
    expected = [pass_at_k(answers(counts(0.6, 100 + seed), SAMPLES), 8).value for seed in range(3)]
    assert cell(table, "grpo", "pass_8")["value"] == pytest.approx(np.mean(expected))
    assert answers([0, 2], 3).tolist() == [[False] * 3, [True, True, False]]


def test_the_last_step_alone_counts(rows: Rows) -> None:
    assert summarise(rows).filter(measure="nss")["value"].max() < 1


def paired(method_right: list[int], base_right: list[int]) -> Rows:
    return frame(
        row("base", 3e-5, 0, right=base_right),
        *(row("grpo", 3e-5, seed, right=method_right) for seed in (0, 1)),
    )


def test_sharpening_raises_pass_1_and_not_pass_16() -> None:
    """Problems that were half right are all right now, and hopeless ones stay so."""
    found = against_base(paired([16] * 30 + [0] * 10, [8] * 30 + [0] * 10)).filter(exam="own")
    first, last = (found.filter(k=k).row(0, named=True) for k in (1, 16))
    assert first["difference"] == pytest.approx(0.75 * 0.5)
    assert first["low"] > 0.2
    assert last["difference"] == 0
    # Of 40 problems none differs: the share of those that would is below 8.8 %.
    assert last["high"] == -last["low"] == pytest.approx(1 - 0.025 ** (1 / 40))
    assert word(last) == "cannot tell"
    assert found["k"].to_list() == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("after", "before", "said"),
    [
        ([16] * 20 + [1] * 20, [16] * 20 + [0] * 20, "widened"),
        ([16] * 20 + [0] * 20, [16] * 20 + [1] * 20, "narrowed"),
    ],
)
def test_what_is_planted_at_the_largest_k_is_found(
    after: list[int], before: list[int], said: str
) -> None:
    found = against_base(paired(after, before)).filter(exam="own", k=16).row(0, named=True)
    assert abs(found["difference"]) == 0.5
    assert word(found) == said
    assert (found["problems"], found["seeds"]) == (40, 2)


def test_what_the_base_solves_already_cannot_be_widened() -> None:
    found = against_base(paired([16] * 40, [8] * 40)).filter(exam="own", k=16)
    assert word(found.row(0, named=True)) == "at the ceiling"
    found = against_base(paired([0] * 20 + [16] * 20, [8] * 40)).filter(exam="own", k=16)
    assert word(found.row(0, named=True)) == "narrowed"


def test_differences_are_paired_by_problem() -> None:
    """The same gain on each problem: little doubt is left, though the problems differ a lot."""
    right = [15] * 20 + [0] * 20
    found = against_base(paired([one + 1 for one in right], right)).filter(exam="own", k=1)
    assert found["difference"][0] == found["low"][0] == found["high"][0] == 1 / 16
    shuffled = against_base(paired(right, right[::-1])).filter(exam="own", k=1).row(0, named=True)
    assert shuffled["difference"] == 0
    assert shuffled["high"] > 0.2


def test_samples_that_are_no_power_of_two_are_all_used() -> None:
    right = [6] * PROBLEMS
    told = frame(
        row("base", 3e-5, 0, right=right, samples=12), row("sft", 3e-5, 0, right=right, samples=12)
    )
    assert against_base(told).filter(exam="own")["k"].to_list() == [1, 2, 4, 8, 12]
    table = summarise(told)
    assert cell(table, "sft", "pass_8")["value"] == pytest.approx(
        pass_at_k(answers(right, 12), 8).value
    )
    assert table.filter(measure="pass_16").is_empty()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([row("sft", 3e-5, 7, task="countdown")], "differ in task"),
        ([row("sft", 3e-5, 7, steps=20)], "differ in steps"),
        ([row("sft", 3e-5, 7, samples=8)], "differ in samples"),
        ([row("sft", 3e-5, 7, revision=1)], "sft was trained by two revisions"),
        ([row("sft", 3e-5, 1, run="other")], "two runs share"),
    ],
)
def test_rows_that_make_no_single_table_are_refused(
    more: list[dict[str, Any]], words: str, rows: Rows
) -> None:
    with pytest.raises(InputError, match=words):
        summarise(pl.concat([rows, frame(*more)]))


def test_a_table_needs_the_base_and_a_run(rows: Rows) -> None:
    for method, words in (("base", "a trained run"), ("grpo", "the base")):
        with pytest.raises(InputError, match=f"no row yet of {words}"):
            summarise(rows.filter(method=method))


def test_every_method_has_its_row_and_every_measure_its_column(rows: Rows) -> None:
    text = MethodTable(rows).markdown()
    parts = text.split("\n\n")
    for method in METHODS:
        assert sum(f"\n| {NAMES[method]} | " in part for part in parts) == 2 * 3 + 2
    known = {"nss", "avg", "gain", "pass_8", "pass_16", "kl_tuned_base", "forgetting",
             "relative_update_norm", "sampled_per_step", "cpu_per_step"}  # fmt: skip
    for measure in MEASURES:
        assert (f" {measure.heading} |" in text) == (measure.name in known)
    assert "| 0.000060 ± 0.000075 |" in text  # NSS at the smaller rate
    assert "pass@16 | at 16 |" in text


def test_a_single_seed_has_no_interval(rows: Rows) -> None:
    text = markdown(summarise(rows.filter(pl.col("seed") == 0)), None)
    assert "Mean over seeds (1)" in text
    assert not any(" ± " in line for line in text.splitlines() if line.startswith("|"))


def test_a_saved_table_reads_back_the_same_and_draws(rows: Rows, tmp_path: Path) -> None:
    table = MethodTable(rows)
    out = table.save(tmp_path / "new" / "table")
    assert MethodTable.read(out).markdown() == table.markdown() == (out / "methods.md").read_text()
    assert {path.name for path in out.iterdir()} == {
        "runs.parquet", "summary.parquet", "passes.parquet", "methods.md", "accuracy-kl.svg",
        "passk.svg",
    }  # fmt: skip
    again = MethodTable.read(out).save(tmp_path / "again")
    for name in ("accuracy-kl.svg", "passk.svg"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    with pytest.raises(OutputError):
        table.save(out)


def test_rows_of_an_older_offaxis_have_a_table_without_pass_at_k() -> None:
    path = Path(__file__).parents[1] / "docs" / "studies" / "first" / "runs.parquet"
    old = pl.read_parquet(path).filter(pl.col("task") == "arithmetic")
    table = MethodTable(old)
    assert table.passes is None
    assert cell(table.summary, "grpo", "forgetting", 1e-4)["seeds"] == 3
    assert set(table.summary["measure"]).isdisjoint({"pass_8", "cpu_per_step", "sampled_per_step"})
    with pytest.raises(InputError, match="older offaxis"):
        against_base(old)


def test_the_command_prints_markdown_json_and_plain_tables(rows: Rows, tmp_path: Path) -> None:
    source = MethodTable(rows).save(tmp_path / "table")
    run = CliRunner().invoke
    assert (
        run(build(), ["lab", "methods", str(source), "--markdown"]).output
        == (source / "methods.md").read_text()
    )
    told = json.loads(run(build(), ["lab", "methods", str(source), "--json"]).output)
    assert told["runs"] == 1 + 2 * 3 * len(METHODS)
    assert {one["measure"] for one in told["summary"]} <= told["measures"].keys()
    assert len(told["passes"]) == 2 * len(METHODS) * 2 * 5
    plain = run(build(), ["lab", "methods", str(source)])
    assert plain.exit_code == 0
    assert "learning" in plain.output


def test_the_documented_table_is_what_the_command_prints() -> None:
    """Docs hold the tables of the rows beside them, word for word."""
    docs = Path(__file__).parents[1] / "docs"
    text = MethodTable.read(docs / "studies" / "methods").markdown()
    assert text == (docs / "studies" / "methods" / "methods.md").read_text(encoding="utf-8")
    findings = (docs / "findings.md").read_text(encoding="utf-8")
    tables = [part for part in text.split("\n\n") if part.startswith("| method | seeds ")]
    assert len(tables) == 2 * 3
    assert all(table.strip() in findings for table in tables)
