"""The prediction study on rows with known answers: pooling, claims, shares, pages, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.lab.blocks import refreshed
from offaxis.lab.predict import PredictStudy
from offaxis.lab.predict.candidates import CONTESTANTS, FRACTIONS, STOP
from offaxis.lab.predict.exams import Validation, harder, judging, validation
from offaxis.lab.predict.history import History
from offaxis.lab.predict.measuring import Key, asked, check_steps, missing
from offaxis.lab.predict.pooling import FULL, measured
from offaxis.lab.predict.questions import PREDICTION
from offaxis.lab.predict.standing import against
from offaxis.lab.predict.summary import _share
from offaxis.lab.queue import RunConfig, Store, expand, read_grid
from predict_rows import BASE, LAST, PROBLEMS, study

STOPPED = {8: 0.55, 16: 0.6, 32: 0.65, 48: 0.7}


def word(of: PredictStudy, claim: str, rates: str = "40%") -> str:
    found = of.verdicts.filter(claim=claim, rates=rates, method="rl")
    return str(found["word"].item())


# Settings and exams


def test_kept_steps_are_saved_and_not_scored_and_make_another_run() -> None:
    plain = RunConfig(steps=12, save_at=(6, 12))
    kept = replace(plain, series=(3, 9))
    assert kept.settings().save_at == (3, 6, 9, 12)
    assert [step for step in (3, 6, 9, 12) if kept.scores(step)] == [6, 12]
    assert plain.identity("base") != kept.identity("base")
    with pytest.raises(InputError, match="within the steps"):
        expand([{"steps": 12, "save_at": [6], "series": [13]}])


def test_the_study_keeps_five_seeds_of_every_method_on_both_tasks() -> None:
    runs = [run for run in read_grid("predict") if run.method != "base"]
    cells = {(run.method, run.task) for run in runs}
    assert cells == {
        (method, task)
        for method in ("grpo", "dapo", "rloo", "sft", "distill")
        for task in ("arithmetic", "countdown")
    }
    assert all(sum((r.method, r.task) == cell for r in runs) == 5 for cell in cells)
    for run in runs:
        steps = {*run.save_at, *run.series}
        assert run.keep
        assert steps == set(range(4, 81, 4))
        assert {round(one * run.steps) for one in FRACTIONS} <= set(run.save_at)


@pytest.mark.parametrize("task", ["arithmetic", "countdown"])
def test_no_problem_is_in_two_exams(task: str) -> None:
    config = RunConfig(task=task, problems=150)
    judged = {one.prompt for one in judging(config).draw()}
    chosen = {one.prompt for one in validation(config).draw()}
    assert isinstance(validation(config), Validation)
    assert (len(judged), len(chosen)) == (150, 100)
    assert not judged & chosen
    above = harder(config)
    assert above is not None
    assert above.difficulty == 3
    assert harder(replace(config, difficulty=3)) is None


# What is measured


def test_a_new_contestant_alone_is_missing() -> None:
    keys = asked(LAST)
    assert len(set(keys)) == len(keys)
    assert {key.origin for key in keys} == {8, 16, 32, LAST}
    table = pl.DataFrame([key._asdict() for key in keys if key.predictor != "alpharl"])
    assert missing(LAST, None) == keys
    assert {key.predictor for key in missing(LAST, table)} == {"alpharl"}
    assert Key("alpharl", 32, LAST) in missing(LAST, table)


def test_a_prediction_is_held_against_the_real_update_over_all_its_tensors() -> None:
    real = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    half = {"a": np.array([1.5, 0.0]), "b": np.array([[2.0]])}
    assert against(real, real) == pytest.approx({"relative_error": 0, "moved": 1, "cosine": 1})
    assert against(half, real) == pytest.approx({"relative_error": 0.5, "moved": 0.5, "cosine": 1})
    left_out = against({"a": np.array([3.0, 0.0])}, real)
    assert left_out == pytest.approx({"relative_error": 0.8, "moved": 0.6, "cosine": 0.6})
    assert np.isnan(against({}, real)["cosine"])
    still = {"a": np.zeros(2)}
    assert np.isnan(list(against(still, still).values())).all()


def test_a_run_without_the_steps_that_predictions_need_is_refused(tmp_path: Path) -> None:
    short = RunConfig(steps=40, save_at=(5, 10, 20, 40), keep=True)
    good = replace(short, save_at=(4, 8, 16, 24, 40))
    for config in (short, good):
        store = Store(tmp_path, (config,), "digest")
        for step in config.save_at:
            (tmp_path / "checkpoints" / config.identity("digest") / f"checkpoint-{step}").mkdir(
                parents=True
            )
        history = History(store, config)
        if config is good:
            check_steps(history)
            continue
        with pytest.raises(
            InputError, match=r"steps \[4, 8, 16, 24, 40\].*\[4, 8, 16, 24\] were not"
        ):
            check_steps(history)


def test_runs_that_do_not_go_together_are_refused() -> None:
    whole = study({}, stop=STOPPED, full=0.8, seeds=(0, 1))
    again = pl.col("run") == "grpo-arithmetic-1"
    twice = whole.rows.with_columns(seed=pl.when(again).then(0).otherwise("seed"))
    with pytest.raises(InputError, match="several runs are grpo on arithmetic with seed 0"):
        replace(whole, rows=twice).check()
    shorter = whole.rows.with_columns(steps=pl.when(again).then(40).otherwise("steps"))
    with pytest.raises(InputError, match=r"differ in steps \[40, 80\]"):
        replace(whole, rows=shorter).check()


def test_a_seed_counts_where_every_method_and_task_has_it() -> None:
    whole = study({}, stop=STOPPED, full=0.8)
    lacking = whole.models.filter(
        ~((pl.col("run") == "dapo-countdown-2") & (pl.col("origin") == 8))
    )
    arms = ("scale", STOP, FULL)
    table = measured(lacking, "accuracy", origin=8, target=LAST, arms=arms)
    assert sorted(table["scale"]) == [0, 1, 3]
    assert sorted(table[STOP]) == [0, 1, 3]
    assert sorted(table[FULL]) == [0, 1, 2, 3]
    assert all(one.shape == (2 * PROBLEMS,) for one in table["scale"].values())


def test_a_problem_is_one_problem_however_many_methods_there_are() -> None:
    shares = {"relex": 0.7}  # the planted answers of a seed are the same whatever the method
    one, three = (
        study(shares, stop=STOPPED, full=0.8, methods=methods)
        for methods in (("grpo",), ("grpo", "dapo", "rloo"))
    )
    assert_frame_equal(one.comparisons, three.comparisons, abs_tol=2e-3)
    losses = measured(three.models, "elsewhere", origin=32, target=LAST, arms=("relex",))
    assert [numbers.shape for numbers in losses["relex"].values()] == [(1,)] * 4


# Claims


def test_what_is_planted_is_found() -> None:
    shares = {"alpharl": 0.55, "relex": 0.8, "scale": 0.7, "scale_chosen": 0.81, "linear": 0.7}
    found = study(shares | {"rank 1, as is": 0.6}, stop=STOPPED, full=0.8)
    assert word(found, "RELEX is better than stopping") == "holds"
    assert word(found, "RELEX is better than ΔW × target/origin") == "holds"
    assert word(found, "AlphaRL is better than stopping") == "does not"
    assert word(found, "AlphaRL is better than one factor on ΔW") == "does not"
    assert word(found, "a chosen factor on ΔW is level with the full run, or better") == "holds"
    assert word(found, "a chosen factor's gain carries to harder problems") == "holds"
    assert word(found, "AlphaRL forgets more than the full run") == "holds"
    end = "rank 1, as it is, is level with all directions, or better"
    assert word(found, end, "100%") == "does not"


def test_nothing_is_found_where_nothing_is() -> None:
    same = dict.fromkeys(CONTESTANTS, 0.7)
    found = study(same, stop=dict.fromkeys(STOPPED, 0.7), full=0.7)
    better = [
        claim.text for claim in PREDICTION.claims if claim.direction == 1 and not claim.or_level
    ]
    assert better
    assert "holds" not in {word(found, text) for text in better}


def test_a_method_that_refused_leaves_its_claims_open() -> None:
    found = study({}, stop=STOPPED, full=0.8, refused=["alpharl"])
    assert word(found, "AlphaRL is better than stopping") == "cannot tell"
    assert "refused by their method" in found.blocks()["state"]


def test_share_of_the_gain_and_relative_accuracy_differ_as_they_should() -> None:
    found = study({"scale": 0.65, "relex": BASE}, stop=STOPPED, full=0.8)
    rows = found.shares.filter(method="grpo", task="arithmetic", origin=32)
    told = {row["predictor"]: row for row in rows.iter_rows(named=True)}
    assert told["scale"]["share_of_gain"] == pytest.approx(0.5, abs=0.1)
    assert told["scale"]["relative_accuracy"] == pytest.approx(0.81, abs=0.05)
    assert told["relex"]["share_of_gain"] == pytest.approx(0.0, abs=0.15)
    assert told["relex"]["relative_accuracy"] > 0.55
    assert told["scale"]["share_of_gain_low"] < told["scale"]["share_of_gain"]
    alone = study({"scale": 0.65}, stop=STOPPED, full=0.8, seeds=(0,)).shares
    assert alone.filter(predictor="scale")["share_of_gain"].null_count() == 0
    assert alone["share_of_gain_low"].drop_nulls().is_empty()


def test_shares_of_few_seeds_are_as_wide_as_student_has_it() -> None:
    base = np.full(400, 0.2)
    apart = np.array([-0.05, 0.0, 0.05])
    full = {seed: np.full(400, 0.8) for seed in range(3)}
    arm = {seed: np.full(400, 0.5 + apart[seed]) for seed in range(3)}
    found = _share(arm, full, base)
    half = student_t(2) * 0.05 / np.sqrt(3) / 0.6
    assert found["share_of_gain"] == pytest.approx(0.5)
    assert found["share_of_gain_high"] - 0.5 == pytest.approx(half, rel=0.15)
    assert 0.5 - found["share_of_gain_low"] == pytest.approx(half, rel=0.15)


def test_no_share_of_a_gain_that_is_none() -> None:
    found = study({"scale": 0.6}, stop=STOPPED, full=BASE)
    rows = found.shares.filter(predictor="scale", origin=32)
    assert rows["share_of_gain"].null_count() == rows.height
    assert rows["relative_accuracy"].null_count() == 0


# Pages


def test_verdicts_stand_under_the_fraction_that_they_were_asked_at() -> None:
    found = study({}, stop=STOPPED, full=0.8).blocks()
    table = [line.split("|") for line in found["verdicts"].splitlines()[2:]]
    claim = "rank 4, rescaled, is level with all directions, or better"
    head, rank = table[0], next(row for row in table if row[2].strip() == claim)
    told = [place.strip() for place, cell in zip(head, rank, strict=True) if "holds" in cell]
    assert told == ["GRPO, DAPO and RLOO, 100%"]
    row = next(line for line in found["factors"].splitlines() if line.startswith("| GRPO"))
    assert row.count("2, 2, 2, 2") == len(FRACTIONS)


def test_refused_and_scored_models_are_counted_apart() -> None:
    keys = asked(LAST)
    refused = sum(key.predictor == "relex" for key in keys)
    stopped = sum(key.predictor == STOP for key in keys)
    found = study({}, stop=STOPPED, full=0.8, methods=("sft",), seeds=(0,), refused=["relex"])
    made = 2 * (len(keys) - refused - stopped)
    assert (
        f"{made} predicted and rebuilt models were scored, {2 * refused} "
        in (found.blocks()["state"])
    )


def test_runs_half_measured_or_without_lines_have_pages() -> None:
    whole = study({}, stop=STOPPED, full=0.8, seeds=(0, 1))
    runs = ["grpo-arithmetic-0", "sft-countdown-1", "grpo-arithmetic-1"]
    part = replace(
        whole,
        found=whole.found.filter(pl.col("run").is_in(runs)),
        linearity=whole.linearity.filter(pl.col("run") == "sft-countdown-1"),
    )
    for one in (part, replace(part, linearity=part.linearity.clear())):
        one.check()
        assert "GRPO arithmetic 2" in one.blocks()["state"]
    assert json.dumps(part.told(), allow_nan=False)


# Files


def test_the_study_is_saved_read_again_and_drawn(tmp_path: Path) -> None:
    whole = study({"alpharl": 0.6}, stop=STOPPED, full=0.8, seeds=(0, 1))
    place = whole.save(tmp_path / "study")
    again = PredictStudy.read(place)
    assert again.markdown() == whole.markdown()
    assert (place / "fractions.svg").stat().st_size < 300_000
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- block: table1-grpo -->\n<!-- end -->\nafter\n")
    again.refresh(page)
    assert "| 40% of training | stop here |" in page.read_text()


def test_lines_stand_beside_walks() -> None:
    found = study({}, stop=STOPPED, full=0.8, seeds=(0, 1)).blocks()
    row = next(line for line in found["lines-raw"].splitlines() if line.startswith("| GRPO"))
    assert [cell.strip() for cell in row.split("|")][3:7] == ["0.900", "0.890", "0.800", "0.790"]
    assert "0.900 (0.890)" in found["lines-roles"]


def test_tables_of_another_version_or_without_the_base_are_refused(tmp_path: Path) -> None:
    whole = study({}, stop=STOPPED, full=0.8, seeds=(0,))
    with pytest.raises(InputError, match="lack cosine"):
        replace(whole, found=whole.found.drop("cosine")).check()
    with pytest.raises(InputError, match="no row of the base for arithmetic, countdown"):
        replace(whole, rows=whole.rows.filter(pl.col("method") != "base")).check()
    other = pl.when(pl.col("method") == "base").then(3).otherwise(2).cast(pl.Int64)
    with pytest.raises(InputError, match="no row of the base for arithmetic, countdown"):
        replace(whole, rows=whole.rows.with_columns(difficulty=other)).check()
    with pytest.raises(InputError, match="neither a queue nor a saved study"):
        PredictStudy.read(tmp_path)


def test_the_documented_tables_are_what_the_command_prints() -> None:
    docs = Path(__file__).parents[1] / "docs"
    found = PredictStudy.read(docs / "studies" / "predict")
    page = (docs / "predict.md").read_text(encoding="utf-8")
    assert refreshed(page, found.blocks()) == page
    saved = docs / "studies" / "predict" / "predict.md"
    assert saved.read_text(encoding="utf-8") == found.markdown()
