"""The sparse study on the rows of its own plan: what is planted is found, what is missing told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from offaxis.errors import InputError
from offaxis.lab.queue import RunConfig
from offaxis.lab.sparse import SparseStudy
from offaxis.lab.sparse.curve import leaves
from offaxis.lab.sparse.naming import (
    ALL,
    LIFT,
    LOW,
    NON_PRINCIPAL,
    ONE,
    PRINCIPAL,
    SAFE,
    SUBNETWORK,
    matched_like,
    random_like,
)
from offaxis.lab.sparse.questions import QUESTIONS
from offaxis.lab.sparse.summary import Runs
from offaxis.lab.sparse.words import blocks
from sparse_rows import BEST, FIGURES, PLANTED, PROBLEMS, SAMPLES, World, make_rows, rows_of


@pytest.fixture(scope="module")
def study() -> SparseStudy:
    return SparseStudy(make_rows(PLANTED))


def cell(table: pl.DataFrame, **where: object) -> dict[str, Any]:
    chosen = table.filter(**where)
    assert chosen.height == 1, where
    return chosen.row(0, named=True)


def words(study: SparseStudy, question: str, rates: str) -> dict[str, str]:
    own = study.verdicts.filter(question=question, rates=rates)
    return dict(own.select("claim", "word").iter_rows())


# What rows are for


def test_rates_are_chosen_on_the_selection_seed_alone(study: SparseStudy) -> None:
    rates = study.runs.rates
    assert rates["grpo", PRINCIPAL] == rates["sft", ALL] == BEST
    assert rates["grpo", LIFT] == rates["sft", LIFT] == 3e-3
    assert rates["grpo", ONE] == 3e-3
    assert study.runs.open_rates == {}
    own = study.by_rate.filter(method="grpo", mask=ONE)
    assert own["learning_rate"].to_list() == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "half a decade beyond"
    assert own.filter("chosen")["learning_rate"].to_list() == [3e-3]
    assert not own["open"].any()
    values = study.runs.measured("grpo", "own", "accuracy")
    assert {seed for row in values.values() for seed in row} == {0, 1, 2}


def test_a_test_run_never_changes_a_rate(study: SparseStudy) -> None:
    better = pl.col("seed").is_in([0, 1, 2]) & (pl.col("learning_rate") == 1e-5)
    assert study.rows.filter(better).height
    base = study.rows.filter(pl.col("method") == "base")
    alone = pl.concat([base, study.rows.filter(pl.col("seed") == 100)])
    assert Runs(alone).rates == study.runs.rates


def test_every_run_has_one_stage(study: SparseStudy) -> None:
    ends = study.runs.points.filter("last")
    assert ends.height == ends["run"].n_unique() == study.rows.height - 1
    twins = ends.filter(stage="twin")
    assert twins["twin_cosine"].null_count() == 0
    assert set(twins["mask"]) == {ALL, SUBNETWORK, random_like(SUBNETWORK),
                                  matched_like(SUBNETWORK)}  # fmt: skip
    assert ends.filter(pl.col("stage") != "twin")["twin_cosine"].count() == 0
    low = ends.filter(stage="test", learning_rate=1e-5)
    assert set(low["mask"]) == {ALL}
    assert SUBNETWORK not in study.runs.masks("grpo")
    values = study.summary.filter(mask=ALL, measure="accuracy", rates="own", method="grpo")
    assert values["seeds"].to_list() == [3], "neither the low rate's runs nor those with a twin"


def test_a_cell_is_the_mean_over_test_seeds(study: SparseStudy) -> None:
    found = cell(study.summary, method="grpo", mask=SAFE, rates="own", measure="accuracy")
    runs = study.rows.filter(
        pl.col("mask") == SAFE, pl.col("seed") < 3, method="grpo", learning_rate=BEST
    )
    ends = [points[-1] for points in runs["checkpoints"].to_list()]
    assert found["value"] == pytest.approx(np.mean([one["avg"] for one in ends]))
    shares = [np.mean(one["right"]) / SAMPLES for one in ends]
    assert found["value"] == pytest.approx(np.mean(shares))
    assert (found["seeds"], found["learning_rate"], len(ends)) == (3, BEST, 3)
    gain = cell(study.summary, method="grpo", mask=SAFE, rates="own", measure="gain")
    assert gain["value"] == pytest.approx(found["value"] - 0.55)
    forgotten = cell(study.summary, method="grpo", mask=SAFE, rates="own", measure="forgetting")
    assert forgotten["value"] == pytest.approx(0.1)
    mixed = cell(study.summary, method="grpo", mask=SAFE, rates="own", measure="mixture_rise")
    assert mixed["value"] == pytest.approx(0.05)


def test_a_curves_distance_is_the_mean_logarithm_of_its_ratio(study: SparseStudy) -> None:
    where = {"method": "grpo", "rates": "shared", "measure": "kl_distance"}
    assert cell(study.summary, mask=PRINCIPAL, **where)["value"] == pytest.approx(
        -np.log(0.4), abs=0.06
    )
    assert cell(study.summary, mask=NON_PRINCIPAL, **where)["value"] == pytest.approx(
        np.log(1.6), abs=0.06
    )
    dense = cell(study.summary, mask=ALL, **where)
    assert 0 < dense["value"] < 0.15, "between its own seeds: the noise of ln KL"
    assert dense["low"] is None, "pairs of seeds are not independent"
    other = cell(study.summary, mask=PRINCIPAL, method="grpo", rates="shared",
                 measure="kl_base_distance")  # fmt: skip
    assert other["value"] == pytest.approx(-np.log(0.4), abs=0.06)


# Answers


@pytest.mark.parametrize("rates", ["own", "shared"])
def test_what_is_planted_is_found(study: SparseStudy, rates: str) -> None:
    table = words(study, "table3", rates)
    for claim in ("the worst of the paper's masks", "worse than dense", "worse than its controls"):
        assert table[f"principal-only is {claim}"] == "holds"
    assert table["the union is better than its controls"] != "holds"
    figure = words(study, "figure7", rates)
    assert set(figure.values()) == {"holds"}


def test_masks_of_a_few_per_cent_are_judged_at_their_own_rates(study: SparseStudy) -> None:
    lift = words(study, "lift_rl", "own")
    assert lift["LIFT is worse than dense"] == lift["LIFT is worse than its controls"] == "holds"
    assert words(study, "lift_sft", "own")["LIFT is better than its controls"] == "does not"
    assert words(study, "tickets", "own") == {"a random 1 % is level with dense": "does not"}
    assert set(words(study, "lift_rl", "shared").values()) == {"cannot tell"}, "no such runs"
    assert words(study, "lift_sft", "shared") == {}, "SFT has no shared rate"


def test_equal_masks_give_no_answer_but_that() -> None:
    found = SparseStudy(make_rows(World(run=0.005, seed=7)))
    directed = found.comparisons.filter(pl.col("direction") != 0)
    assert "holds" not in set(directed["word"])
    assert found.comparisons["p_holm"].min() > 0.01  # type: ignore[operator]
    assert {row["word"] for row in found.ranking} == {"cannot tell"}
    assert "holds" not in set(found.recovered.filter(level="direction")["word"])


def test_a_rate_that_suits_some_masks_changes_how_they_compare(study: SparseStudy) -> None:
    for row in study.ranking:
        assert row["word"] == "holds"
        assert 0 < row["changed"] <= row["pairs"]
    pair = cell(study.changes, method="grpo", mask=ALL, against=random_like(LIFT))
    assert pair["shared"] == pytest.approx(0.3, abs=0.06)
    assert pair["own"] == pytest.approx(0, abs=0.06)
    assert pair["change"] == pytest.approx(pair["own"] - pair["shared"])
    assert pair["low"] < pair["change"] < pair["high"]
    same = study.changes.filter(mask=PRINCIPAL, against=NON_PRINCIPAL)
    assert same.is_empty(), "neither has another rate of its own: nothing can change"


@pytest.mark.parametrize("rate", [BEST, 1e-5])
def test_a_subnetwork_recovers_what_is_planted(study: SparseStudy, rate: float) -> None:
    found = cell(study.agreements, method="grpo", learning_rate=rate, mask=SUBNETWORK,
                 measure="twin_cosine")  # fmt: skip
    assert found["value"] == pytest.approx(0.98, abs=0.02)
    own = study.recovered.filter(method="grpo", learning_rate=rate)
    told = dict(own.select("level", "word").iter_rows())
    assert told["direction"] == told["values"] == "holds"
    assert told["all three"] == ("holds" if told["accuracy"] == "holds" else told["accuracy"])


def test_a_subnetwork_that_is_no_nearer_recovers_nothing() -> None:
    twin = {SUBNETWORK: (0.6, 0.4), matched_like(SUBNETWORK): (0.6, 0.4)}
    found = SparseStudy(make_rows(World(twin=twin, run=0.005)))
    told = found.recovered.filter(level="direction")
    assert "holds" not in set(told["word"])
    assert set(found.recovered.filter(level="values")["word"]) == {"does not"}


def test_a_mask_that_learns_more_at_equal_kl_leaves_the_curve(study: SparseStudy) -> None:
    for scale in ("kl_tuned_base", "relative_update_norm"):
        row = cell(study.leaves, method="sft", rates="own", scale=scale, mask=PRINCIPAL)
        assert row["word"] == "holds"
        assert row["value"] < -0.03
        safe = cell(study.leaves, method="grpo", rates="own", scale=scale, mask=SAFE)
        assert safe["word"] != "holds" or abs(safe["value"]) < 0.08


def test_a_mask_is_no_part_of_the_curve_that_it_is_held_against(study: SparseStudy) -> None:
    """Two masks have checkpoints enough for a line between them, and each alone has not."""
    two = study.rows.filter(
        (pl.col("method") == "base")
        | ((pl.col("method") == "sft") & pl.col("mask").is_in([ALL, PRINCIPAL]))
    )
    assert leaves(Runs(two)).is_empty()


def test_masks_that_share_a_curve_do_not_leave_it() -> None:
    """Accuracy is a function of KL alone, and masks go differently far along it."""
    factors = {PRINCIPAL: 0.3, NON_PRINCIPAL: 0.6, SAFE: 1.5, LOW: 0.8, random_like(SAFE): 1.2}
    rows = make_rows(World(kl=factors, run=0.002, seed=3))

    def one(point: dict[str, Any], seed: int) -> dict[str, Any]:
        if point["kl_tuned_base"] is None:
            return point
        rng = np.random.default_rng([seed, int(1e9 * point["kl_tuned_base"])])
        chance = np.clip(0.75 + 0.08 * np.log(point["kl_tuned_base"]) + rng.normal(0, 0.01), 0, 1)
        right = rng.binomial(SAMPLES, chance, PROBLEMS)
        return point | {"right": right.tolist(), "avg": float(right.mean()) / SAMPLES}

    told = [
        row
        if row["seed"] == 100  # rates stay what they are
        else row | {"checkpoints": [one(point, row["seed"]) for point in row["checkpoints"]]}
        for row in rows.to_dicts()
    ]
    found = leaves(Runs(pl.DataFrame(told, schema=rows.schema)))
    own = found.filter(method="grpo", scale="kl_tuned_base", rates="shared")
    assert PRINCIPAL in set(own["mask"])
    assert "holds" not in set(own["word"])
    assert own["value"].abs().mean() < 0.02  # type: ignore[operator]


# Rows that are missing, shuffled or wrong


def test_the_order_of_rows_does_not_matter(study: SparseStudy) -> None:
    shuffled = SparseStudy(study.rows.sample(fraction=1.0, shuffle=True, seed=1))
    assert shuffled.comparisons.equals(study.comparisons)
    assert shuffled.summary.equals(study.summary)


def stage(study: SparseStudy, name: str) -> pl.DataFrame:
    """The rows of a queue that has come so far."""
    base, seed = pl.col("method") == "base", pl.col("seed")
    so_far = {
        "base and one run": base | ((seed == 100) & (pl.col("mask") == ALL)),
        "half of the selection": base | ((seed == 100) & (pl.col("learning_rate") <= 3e-4)),
        "selection": base | (seed == 100),
        "one seed": base | seed.is_in([100, 0]),
        "no dense": base | (pl.col("mask") != ALL),
        "no twins": base | ((pl.col("twin_seed") < 0) & ~pl.col("mask").str.contains("subnetwork")),
        "no sft": pl.col("method") != "sft",
    }
    return study.rows.filter(so_far[name])


@pytest.mark.parametrize(
    "name",
    ["base and one run", "half of the selection", "selection", "one seed", "no dense", "no twins",
     "no sft"],
)  # fmt: skip
def test_a_queue_under_way_has_tables_and_figures(
    study: SparseStudy, name: str, tmp_path: Path
) -> None:
    found = SparseStudy(stage(study, name))
    text = found.markdown()
    if name in ("base and one run", "selection", "no dense"):
        out = found.save(tmp_path / "out")
        assert {path.name for path in out.glob("*.svg")} == FIGURES
    assert "nan" not in text.lower().replace("nans", "")
    assert set(blocks(found)) >= {"state", "verdicts", *(one.name for one in QUESTIONS)}
    json.dumps(found.told(), allow_nan=False)
    if name in ("selection", "one seed"):
        told = found.comparisons
        assert set(told["word"]) == {"cannot tell"}
    if name == "selection":
        assert "*No runs yet.*" in text
    if name == "half of the selection":
        assert "(open)" in text
        assert "Rates not settled: " in text


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cells_that_are_missing_crash_nothing(study: SparseStudy, seed: int) -> None:
    base = study.rows.filter(pl.col("method") == "base")
    part = study.rows.filter(pl.col("method") != "base").sample(fraction=0.5, seed=seed)
    found = SparseStudy(pl.concat([base, part]))
    assert found.markdown()
    assert set(found.comparisons["word"]) <= {"holds", "does not", "cannot tell"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": 50}, "differ in problems"),
        ({"steps": 20, "save_at": (20,)}, "differ in steps"),
        ({"prompts_per_step": 4}, "differ in prompts_per_step"),
        ({"save_at": (5, 40)}, "two runs share method grpo, mask safe.*learning rate 0.0003"),
    ],
)
def test_rows_that_make_no_single_table_are_refused(
    study: SparseStudy, settings: dict[str, Any], message: str
) -> None:
    like = {"learning_rate": BEST, "seed": 0, "prompts_per_step": 8, "own_exam": True}
    other = rows_of(World(), [RunConfig(**{"mask": SAFE, "method": "grpo"} | like | settings)])
    with pytest.raises(InputError, match=message):
        SparseStudy(pl.concat([study.rows, other])).markdown()


def test_a_study_needs_the_base_and_a_run(study: SparseStudy, tmp_path: Path) -> None:
    for part, message in (
        (study.rows.filter(pl.col("method") == "base"), "no row yet of a trained run"),
        (study.rows.filter(pl.col("method") != "base"), "no row yet of the base"),
    ):
        part.write_parquet(tmp_path / "rows.parquet")
        with pytest.raises(InputError, match=message):
            SparseStudy.read(tmp_path / "rows.parquet")
