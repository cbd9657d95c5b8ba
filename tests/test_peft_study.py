"""The comparison of adapters on its plan's rows: what is planted is found, what is missing told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from offaxis.cli.app import build
from offaxis.errors import InputError, OutputError
from offaxis.lab.peft import PeftStudy
from offaxis.lab.peft.naming import (
    DORA,
    FULL,
    LORA,
    LORA_PLUS,
    MILORA,
    PISSA,
    label,
)
from offaxis.lab.peft.questions import QUESTIONS
from offaxis.lab.peft.summary import Runs
from offaxis.lab.peft.words import blocks
from offaxis.lab.queue import RunConfig
from peft_rows import BEST, PLANTED, World, make_rows, rows_of

run = CliRunner().invoke
TABLES = {
    "ranking", "comparisons", "by_rate", "sensitivity", "collapses", "rate_ratio", "agreement",
    "variants", "power",
}  # fmt: skip


@pytest.fixture(scope="module")
def study() -> PeftStudy:
    return PeftStudy(make_rows(PLANTED))


@pytest.fixture(scope="module")
def saved(study: PeftStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.save(tmp_path_factory.mktemp("peft") / "new" / "study")


def cell(table: pl.DataFrame, **where: object) -> dict[str, Any]:
    chosen = table.filter(**where)
    assert chosen.height == 1, where
    return chosen.row(0, named=True)


def words(study: PeftStudy, question: str, rates: str) -> dict[str, str]:
    own = study.verdicts.filter(question=question, rates=rates)
    return dict(own.select("claim", "word").iter_rows())


# What rows are for


def test_rates_are_chosen_on_the_selection_seeds_alone(study: PeftStudy) -> None:
    rates = study.runs.rates
    assert (rates[LORA], rates[FULL], rates[PISSA]) == (BEST, 3e-4, 1e-3)
    assert study.runs.open_rates == {}
    own = study.by_rate.filter(adapter=FULL)
    assert own["learning_rate"].to_list() == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert own["seeds"].to_list() == [3] * 5
    assert own.filter("chosen")["learning_rate"].to_list() == [3e-4]
    table = study.runs.measured("own", "accuracy")
    assert {seed for row in table.values() for seed in row} == {0, 1, 2}
    alone = study.rows.filter((pl.col("seed") >= 100) | (pl.col("method") == "base"))
    assert Runs(alone).rates == rates


def test_a_cell_is_the_mean_over_test_seeds(study: PeftStudy) -> None:
    for rates, rate in (("own", 1e-3), ("shared", BEST)):
        found = cell(study.ranking, method="dapo", rates=rates, adapter=PISSA)
        runs = study.rows.filter(
            pl.col("seed") < 100, adapter=PISSA, method="dapo", learning_rate=rate
        )
        ends = [points[-1] for points in runs["checkpoints"].to_list()]
        assert (len(ends), found["seeds"], found["learning_rate"]) == (3, 3, rate)
        assert found["accuracy"] == pytest.approx(np.mean([one["avg"] for one in ends]))
        kl = np.mean([one["kl_tuned_base"] for one in ends])
        assert found["kl_tuned_base"] == pytest.approx(kl)
    lora = cell(study.ranking, method="dapo", rates="own", adapter=LORA)
    assert lora["difference"] is None
    pissa = cell(study.ranking, method="dapo", rates="own", adapter=PISSA)
    assert pissa["difference"] == pytest.approx(pissa["accuracy"] - lora["accuracy"])
    assert (pissa["trainable"], lora["train_cpu_seconds"]) == (70_000, pytest.approx(20, abs=2))


def test_other_ranks_and_batches_are_no_part_of_the_ranking(study: PeftStudy) -> None:
    own = study.ranking.filter(method="dapo", rates="own")
    assert own.height == own["adapter"].n_unique() == 17
    assert own["seeds"].to_list() == [3] * 17
    ranks = study.variants.filter(study="rank", adapter=DORA)
    assert ranks["setting"].to_list() == [1, 8, 16, 32]
    assert ranks["accuracy"].arg_min() == 0
    batches = study.variants.filter(study="batch")
    assert batches.select("adapter", "setting").rows() == [
        (one, size) for one in (FULL, LORA) for size in (4, 8, 16)
    ]
    eight = cell(study.variants, study="rank", adapter=DORA, setting=8)
    assert eight["accuracy"] == cell(own, adapter=DORA)["accuracy"]


# Answers


@pytest.mark.parametrize("rates", ["own", "shared"])
def test_what_is_planted_is_found(study: PeftStudy, rates: str) -> None:
    assert set(words(study, "structural", rates).values()) == {"holds"}
    assert set(words(study, "rival", rates).values()) == {"holds"}
    assert set(words(study, "svd", rates).values()) == {"holds"}
    floor = words(study, "floor", rates)
    assert floor["all four are"] == "holds"
    native = words(study, "native", rates)
    assert native["off-principal LoRA beats its random control"] == "holds"
    assert native["GeoRA beats LoRA"] == "holds"
    assert native["GeoRA beats the other starts from an SVD"] == "holds"
    assert words(study, "lora_fa", rates)["LoRA-FA is level with LoRA"] in ("holds", "cannot tell")
    tuned = words(study, "tuned", rates)
    assert tuned["PiSSA is within 0.02 of LoRA"] == tuned["all five are"] == "does not"
    assert words(study, "regret", rates)["rank-1 LoRA is level with LoRA or better"] == "does not"


def test_the_papers_other_claims_about_lora_are_asked(study: PeftStudy) -> None:
    assert words(study, "behind", "own")["LoRA is worse than full"] in ("does not", "cannot tell")
    assert words(study, "plus", "own")["LoRA+ beats LoRA"] in ("does not", "cannot tell")
    other = replace(PLANTED, accuracy={**PLANTED.accuracy, FULL: 0.0, LORA_PLUS: 0.0})
    found = PeftStudy(make_rows(other))
    assert words(found, "behind", "own") == {"LoRA is worse than full": "holds"}
    assert words(found, "plus", "own") == {"LoRA+ beats LoRA": "holds"}


def test_one_set_of_runs_has_one_answer(study: PeftStudy) -> None:
    """At LoRA's rate full collapses, and no interval of adapters that stay where they are moves."""
    numbers = ["value", "low", "high", "p", "p_holm", "word"]
    both = [study.comparisons.filter(question="svd", rates=one) for one in ("own", "shared")]
    milora, pissa = ([one.filter(adapter=name).select(numbers) for one in both]
                     for name in (MILORA, PISSA))  # fmt: skip
    assert milora[0].equals(milora[1]), "its own rate is LoRA's"
    assert not pissa[0].equals(pissa[1])


def test_the_rate_decides_where_it_is_planted(study: PeftStudy) -> None:
    own = words(study, "regret", "own")["LoRA is level with full or better"]
    shared = words(study, "regret", "shared")["LoRA is level with full or better"]
    assert own in ("holds", "cannot tell")
    assert shared == "holds", "full collapses at LoRA's rate"


def test_ranks_are_compared_at_the_rate_of_rank_eight(study: PeftStudy) -> None:
    assert set(words(study, "ranks", "own").values()) == {"holds"}
    assert study.verdicts.filter(question="ranks", rates="shared").is_empty()
    apart = study.comparisons.filter(question="ranks", adapter="dora?rank=1")
    assert apart["against"].to_list() == [DORA, "dora?rank=16", "dora?rank=32"]


def test_equal_adapters_are_seldom_told_apart() -> None:
    """Each question may err once in twenty; eighteen are asked of two made-up studies."""
    told, places = [], []
    for seed in (7, 8):
        found = PeftStudy(make_rows(World(run=0.005, seed=seed)))
        level = pl.col("claim").str.contains("level|within")
        told += found.comparisons.filter(~level, rates="own")["word"].to_list()
        own = found.ranking.filter(rates="own")
        assert own["p_holm"].min() > 0.005  # type: ignore[operator]
        places += (own["rank_high"] - own["rank_low"]).to_list()
    assert len(told) > 40
    assert told.count("holds") <= 2
    assert np.median(places) > 8, "of seventeen"


def test_what_a_rate_beside_the_best_costs(study: PeftStudy) -> None:
    lora = cell(study.sensitivity, adapter=LORA)
    assert lora["best"] == BEST
    for side in ("below", "above"):
        assert lora[side] == pytest.approx(-0.11, abs=0.06), "0.3 a decade, less at the ceiling"
    flat = study.by_rate.with_columns(pl.lit(0.7).alias("accuracy"))
    table = PeftStudy(study.rows)
    table.__dict__["by_rate"] = flat
    row = cell(table.sensitivity, adapter=LORA)
    assert (row["below"], row["above"]) == (0.0, 0.0)


def test_a_run_below_the_bases_interval_has_collapsed(study: PeftStudy) -> None:
    low = study.runs.base["avg_low"]
    last = study.runs.points.filter("last", stage="selection", adapter=FULL)
    fallen = last.filter(pl.col("accuracy") < low)
    assert fallen.filter(pl.col("learning_rate") >= BEST).height == 6, "as it is planted"
    row = cell(study.collapses, adapter=FULL)
    assert (row["runs"], row["collapsed"]) == (15, fallen.height)
    assert row["first"] == fallen["learning_rate"].min()
    common = fallen.filter(pl.col("learning_rate") > 2e-4)
    assert (row["common_runs"], row["common_collapsed"]) == (12, common.height), "3e-4 to 1e-2"
    assert row["first_over_best"] == pytest.approx(row["first"] / study.runs.rates[FULL])
    assert (row["own_runs"], row["own_collapsed"]) == (3, 0)
    assert (row["shared_runs"], row["shared_collapsed"]) == (3, 3)


def test_the_short_answer_groups_adapters_by_what_can_be_said(study: PeftStudy) -> None:
    """Every adapter once, under the heading of its interval to LoRA and Holm's p."""
    lines = study.blocks()["answer"].splitlines()[4:]
    heading, groups = "", {}
    for line in lines:
        cells = [one.strip() for one in line.strip("|").split("|")]
        heading = cells[0].strip("*") or heading
        groups[cells[1]] = heading
    own = study.ranking.filter(method="dapo", rates="own")
    assert set(groups) == {label(one) for one in own["adapter"] if one != LORA}
    for row in own.filter(pl.col("adapter") != LORA).iter_rows(named=True):
        certain, inside = row["p_holm"] < 0.05, max(-row["difference_low"], row["difference_high"])
        expected = "better than LoRA" if row["difference"] > 0 else "worse"
        if not certain:
            expected = "level with LoRA" if inside <= 0.03 else "not told apart"
        assert groups[label(row["adapter"])] == expected, row["adapter"]
    assert len(set(groups.values())) > 1


def test_the_ratio_of_rates_has_a_range_and_a_word(study: PeftStudy) -> None:
    row = cell(study.rate_ratio)
    assert (row["lora"], row["full"], row["word"]) == (BEST, 3e-4, "holds")
    assert row["ratio"] == pytest.approx(10)
    assert row["low"] <= row["ratio"] <= row["high"]
    same = PeftStudy(make_rows(World(run=0.005)))
    assert cell(same.rate_ratio)["word"] == "does not"
    flat = World(best={FULL: 3e-4}, run=0.2, seed=2)
    assert cell(PeftStudy(make_rows(flat)).rate_ratio)["word"] == "cannot tell"


# Rows that are missing, shuffled or wrong


def test_the_order_of_rows_does_not_matter(study: PeftStudy) -> None:
    shuffled = PeftStudy(study.rows.sample(fraction=1.0, shuffle=True, seed=1))
    assert shuffled.comparisons.equals(study.comparisons)
    assert shuffled.ranking.equals(study.ranking)


def test_rows_of_other_studies_change_nothing(study: PeftStudy) -> None:
    plain = RunConfig("dapo", prompts_per_step=8, own_exam=True, learning_rate=BEST)
    others = [
        plain,
        replace(plain, mask="all"),
        replace(plain, adapter=LORA, method="rloo"),
        replace(plain, adapter=LORA, seed=17),
        replace(plain, adapter=LORA, steps=20, save_at=(20,)),
        replace(plain, method="base", samples=16),
    ]
    rows = pl.concat([rows_of(World(), others), study.rows])
    assert PeftStudy(rows).ranking.equals(study.ranking)
    assert PeftStudy(rows).verdicts.equals(study.verdicts)


SO_FAR = {
    "one run": (pl.col("seed") == 100) & (pl.col("adapter") == LORA)
    & (pl.col("learning_rate") < 4e-4),
    "one seed of the selection": pl.col("seed") == 100,
    "half of the rates": (pl.col("seed") >= 100) & (pl.col("learning_rate") <= 1e-3),
    "selection": pl.col("seed") >= 100,
    "one test seed": pl.col("seed") != 2,
    "no lora": pl.col("adapter") != LORA,
    "no full": pl.col("adapter") != FULL,
    "dapo": pl.col("method") == "dapo",
}  # fmt: skip


@pytest.mark.parametrize("name", list(SO_FAR))
def test_a_queue_under_way_has_tables(study: PeftStudy, name: str) -> None:
    base = pl.col("method") == "base"
    found = PeftStudy(study.rows.filter(base | SO_FAR[name]))
    text = found.markdown()
    assert "nan" not in text.lower()
    assert set(blocks(found)) >= {"state", "verdicts", *(one.name for one in QUESTIONS)}
    json.dumps(found.told(), allow_nan=False)
    list(found.tables())
    if name in ("one run", "one seed of the selection"):
        assert "No rate yet" in text
    if name == "half of the rates":
        assert "(open)" in text
        assert "Rates not settled: " in text
    if name in ("one run", "one seed of the selection", "half of the rates", "selection"):
        assert set(found.verdicts["word"]) == {"cannot tell"}
        assert "Not run yet: DAPO, own rate (all)." in text
        assert "*No runs yet.*" in text
    if name == "dapo":
        assert "Not run yet: GRPO, own rate (all)." in text


def test_a_whole_study_lacks_nothing(study: PeftStudy) -> None:
    state = blocks(study)["state"]
    assert "Not run yet" not in state
    assert "No rate" not in state


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_that_are_missing_crash_nothing(study: PeftStudy, seed: int) -> None:
    base = study.rows.filter(pl.col("method") == "base")
    part = study.rows.filter(pl.col("method") != "base").sample(fraction=0.5, seed=seed)
    found = PeftStudy(pl.concat([base, part]))
    assert found.markdown()
    assert set(found.verdicts["word"]) <= {"holds", "does not", "cannot tell"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": 50}, "differ in problems"),
        ({"completions_per_prompt": 4}, "differ in completions_per_prompt"),
        ({"save_at": (5, 40)}, r"two runs share method dapo, adapter lora\?rank=8, learning rate"),
    ],
)
def test_rows_that_make_no_single_table_are_refused(
    study: PeftStudy, settings: dict[str, Any], message: str
) -> None:
    like = {"learning_rate": BEST, "seed": 0, "prompts_per_step": 8, "own_exam": True}
    other = rows_of(World(), [RunConfig("dapo", adapter=LORA, **(like | settings))])
    with pytest.raises(InputError, match=message):
        PeftStudy(pl.concat([study.rows, other])).markdown()


def test_a_study_needs_the_base_and_a_run_on_an_adapter(study: PeftStudy, tmp_path: Path) -> None:
    for part, message in (
        (study.rows.filter(pl.col("method") == "base"), "no row yet of a run on an adapter"),
        (study.rows.drop("adapter"), "no row yet of a run on an adapter"),
        (study.rows.filter(pl.col("method") != "base"), "no row yet of the base"),
    ):
        part.write_parquet(tmp_path / "rows.parquet")
        with pytest.raises(InputError, match=message):
            PeftStudy.read(tmp_path / "rows.parquet")


# Files and the command


def test_a_saved_study_reads_back_the_same(study: PeftStudy, saved: Path) -> None:
    again = PeftStudy.read(saved)
    assert again.markdown() == study.markdown() == (saved / "peft.md").read_text()
    assert {path.stem for path in saved.glob("*.parquet")} == TABLES | {"runs"}
    assert {path.name for path in saved.glob("*.svg")} >= {"rates.svg", "ranking.svg"}
    for name in TABLES:
        assert pl.read_parquet(saved / f"{name}.parquet").equals(getattr(study, name))
    with pytest.raises(OutputError):
        study.save(saved)


def test_the_command_prints_markdown_json_and_plain_tables(saved: Path, tmp_path: Path) -> None:
    text = run(build(), ["lab", "peft", str(saved), "--markdown"])
    assert text.output == (saved / "peft.md").read_text()
    told = json.loads(run(build(), ["lab", "peft", str(saved), "--json"]).output)
    assert told["schema"] == 1
    assert {one["word"] for one in told["verdicts"]} <= {"holds", "does not", "cannot tell"}
    assert told.keys() >= TABLES
    plain = run(build(), ["lab", "peft", str(saved)])
    assert plain.exit_code == 0
    assert "DoRA beats LoRA" in plain.output
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- block: floor -->\nold\n<!-- end -->\nafter\n")
    assert run(build(), ["lab", "peft", str(saved), "--into", str(page)]).exit_code == 0
    table = blocks(PeftStudy.read(saved))["floor"]
    assert page.read_text() == f"before\n<!-- block: floor -->\n{table}\n<!-- end -->\nafter\n"


def test_the_documented_tables_are_what_the_command_prints() -> None:
    """Docs hold the tables of the rows beside them, word for word."""
    docs = Path(__file__).parents[1] / "docs"
    if not (docs / "studies" / "peft" / "runs.parquet").is_file():
        pytest.skip("docs/studies/peft holds no rows yet")
    found = PeftStudy.read(docs / "studies" / "peft")
    text = (docs / "peft.md").read_text(encoding="utf-8")
    for name, table in blocks(found).items():
        if f"<!-- block: {name} -->" in text:
            assert f"<!-- block: {name} -->\n{table}\n<!-- end -->" in text, name
    assert (docs / "studies" / "peft" / "peft.md").read_text("utf-8") == found.markdown()
