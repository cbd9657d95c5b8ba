"""The verdict's study: scores, intervals and decisions on made-up runs with a planted effect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from typer.testing import CliRunner

from offaxis.cli.lab import app
from offaxis.comparison.method import probability as shipped_probability
from offaxis.errors import InputError
from offaxis.lab.queue.rows import CHECKPOINT, RUN
from offaxis.lab.verdict import FEATURES, LABELS, SETS, VerdictStudy, fitted
from offaxis.lab.verdict.calibration import calibration, coverage, labelled, threshold
from offaxis.lab.verdict.linear import left_out, probability, rule_on, told, with_settings
from offaxis.lab.verdict.material import SETTINGS_SET, Material
from offaxis.lab.verdict.rows import checkpoints, ends
from offaxis.lab.verdict.scoring import Contest, Interval, proportion
from offaxis.lab.verdict.shipped import rows_digest, shipped
from offaxis.lab.verdict.survival import CellFound, Found, adds, chosen, judged

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
CELLS = (("adamw_torch", "float32"), ("adamw_torch", "bfloat16"), ("sgd", "float32"))
USED = ("grpo", "rloo", "sft", "distill")
DRAWS = 300


def row(key: list[int], told: dict[str, Any], rank: Callable[[bool], float]) -> dict[str, Any]:
    """One run, two checkpoints; features are noise but for the norm (by rate) and the rank."""
    rng = np.random.default_rng(key)
    points = []
    for step in (told["steps"] // 4, told["steps"]):
        one = {name: 0.3 + 0.05 * rng.random() for name in FEATURES}
        norm = told["learning_rate"] * step * math.exp(0.3 * rng.standard_normal())
        one |= {"step": step, "relative_update_norm": norm}
        rl = LABELS.get(told["method"], True)
        one["effective_rank"] = rank(rl) * math.exp(0.1 * rng.standard_normal())
        points.append({name: one.get(name) for name in CHECKPOINT})
    return {name: told.get(name) for name in RUN} | {
        "run": "-".join(map(str, key)),
        "base": "made up",
        "prompts_per_step": 8,
        "completions_per_prompt": 8,
        "checkpoints": points,
    }


def made(
    *,
    test: bool,
    rank: Callable[[bool, str], float],
    methods: tuple[str, ...] = (*USED, "dpo"),
    seeds: int = 3,
) -> pl.DataFrame:
    """Rows of a queue; of the test in three cells, else in AdamW and float32 as None."""
    rows = []
    cells = CELLS if test else ((None, None),)
    for number, (optimizer, dtype) in enumerate(cells):
        for m, method in enumerate(methods if test else USED):
            for rate in (1e-5, 1e-4):
                for seed in range(seeds):
                    task = ("arithmetic", "countdown")[seed % 2]
                    about = {"method": method, "task": task, "learning_rate": rate, "seed": seed,
                             "steps": 40, "optimizer": optimizer, "dtype": dtype}  # fmt: skip
                    key = [int(test), number, m, round(rate * 1e5), seed]
                    cell = optimizer or "adamw_torch"
                    rows.append(row(key, about, lambda rl, cell=cell: rank(rl, cell)))
    return pl.DataFrame(rows, schema=RUN)


def separated(rl: bool, optimizer: str) -> float:
    return 20.0 if rl else 12.0


def alike(rl: bool, optimizer: str) -> float:
    return 15.0


def turned_under_sgd(rl: bool, optimizer: str) -> float:
    return separated(rl != (optimizer == "sgd"), optimizer)


@pytest.fixture(scope="module")
def telling() -> VerdictStudy:
    rows = [made(test=test, rank=separated, seeds=4) for test in (True, False)]
    return VerdictStudy(rows[0], rows[1], DRAWS)


@pytest.fixture(scope="module")
def silent() -> VerdictStudy:
    rows = [made(test=test, rank=alike, seeds=4) for test in (True, False)]
    return VerdictStudy(rows[0], rows[1], DRAWS)


@pytest.fixture(scope="module")
def points() -> pl.DataFrame:
    return ends(checkpoints(made(test=True, rank=separated)))


# ---------------------------------------------------------------------------------------- AUC


def test_auc_is_that_of_scikit_learn_and_turns_with_the_labels(points: pl.DataFrame) -> None:
    score = np.random.default_rng(0).standard_normal(points.height).round(1)  # with ties
    found = Contest(points, draws=DRAWS).auc(score)
    assert found.value == pytest.approx(roc_auc_score(points["rl"], score))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert Contest(points, draws=DRAWS).auc(-score).value == pytest.approx(1 - found.value)


def test_matched_pairs_share_a_task_and_nearly_a_norm(points: pl.DataFrame) -> None:
    contest = Contest(points, matched=True, draws=DRAWS)
    rl, tuned = (points.filter(pl.col("rl") == one) for one in (True, False))
    score = np.random.default_rng(1).standard_normal(points.height)
    own = dict(zip(points["run"], score, strict=True))
    wins = []
    for one in rl.iter_rows(named=True):
        for other in tuned.iter_rows(named=True):
            norms = sorted((one["relative_update_norm"], other["relative_update_norm"]))
            if one["task"] == other["task"] and norms[1] / norms[0] < 1.1:
                wins.append(own[one["run"]] > own[other["run"]])
    assert contest.pairs == len(wins) > 5
    assert contest.auc(score).value == pytest.approx(np.mean(wins))
    norm = points["relative_update_norm"].to_numpy()
    assert Contest(points, alike=("optimizer",), draws=DRAWS).pairs < Contest(points).pairs
    assert abs(contest.auc(norm).value - 0.5) < 0.35  # type: ignore[operator]


def test_runs_of_one_setting_that_are_copies_widen_the_interval_over_settings() -> None:
    rng = np.random.default_rng(3)
    some = pl.DataFrame({"rl": [True, False] * 12, "block": [i // 2 for i in range(24)]})
    score = rng.standard_normal(24)
    whole = pl.concat([some.with_columns(run=pl.lit(copy)) for copy in range(6)])
    whole = whole.with_columns(run=pl.int_range(pl.len()))
    many = np.tile(score, 6)
    by_run = Contest(whole, draws=2000).auc(many)
    by_block = Contest(whole, units=("block",), draws=2000).auc(many)
    assert by_run.value == by_block.value

    def width(one: Interval) -> float:
        assert one.low is not None
        assert one.high is not None
        return one.high - one.low

    assert width(by_block) > 1.5 * width(by_run)


def test_no_pairs_no_number(points: pl.DataFrame) -> None:
    few = points.filter(pl.col("rl")).head(1).vstack(points.filter(~pl.col("rl")).head(1))
    apart = few.with_columns(task=pl.Series(["arithmetic", "countdown"]))
    contest = Contest(apart, matched=True, draws=DRAWS)
    assert contest.auc(np.zeros(2)) == Interval(None, None, None, 0)
    assert contest.gain(np.zeros(2), np.ones(2)).value is None


def test_the_gain_of_a_score_over_itself_is_nothing(points: pl.DataFrame) -> None:
    score = points["effective_rank"].to_numpy()
    contest = Contest(points, draws=DRAWS)
    assert contest.gain(score, score) == Interval(0, 0, 0, contest.pairs)


@pytest.mark.parametrize(
    ("good", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_wilsons_interval(good: int, of: int, low: float, high: float) -> None:
    found = proportion(good, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert proportion(0, 0).value is None


# ------------------------------------------------------------------------------------- the rules


def test_a_rule_as_numbers_is_the_fitted_model_and_the_one_that_compare_reads(
    points: pl.DataFrame,
) -> None:
    from offaxis.lab.verdict import features

    names = SETS["all"]
    rule = rule_on(points, names)
    wanted = fitted(points, names).predict_proba(features(points, names))[:, 1]
    np.testing.assert_allclose(probability(rule.logit(points)), wanted, rtol=1e-9)
    file = {"intercept": rule.intercept, "terms": json.loads(json.dumps(told(rule)))}
    seen = [shipped_probability(file, one) for one in points.iter_rows(named=True)]
    np.testing.assert_allclose(seen, wanted, rtol=1e-9)
    whole = with_settings(points, names)
    file = {"intercept": whole.intercept, "terms": told(whole)}
    seen = [shipped_probability(file, one) for one in points.iter_rows(named=True)]
    np.testing.assert_allclose(seen, probability(whole.logit(points)), rtol=1e-9)


def test_left_out_scores_do_not_know_their_own_fold(points: pl.DataFrame) -> None:
    """SGD's runs turned round: a rule that had seen them would not get all of them wrong."""
    swapped = points.with_columns(
        effective_rank=pl.when(pl.col("optimizer") == "sgd")
        .then(240 / pl.col("effective_rank"))
        .otherwise(pl.col("effective_rank")),
        fold=pl.col("optimizer") == "sgd",
    )
    score = left_out(swapped, SETS["rank"])
    inside = swapped["fold"].to_numpy()
    assert roc_auc_score(swapped["rl"].to_numpy()[inside], score[inside]) < 0.1


# ---------------------------------------------------------------------------------- calibration


def test_calibration_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200)
    rl = rng.random(200) < p
    found = calibration(p, rl)
    assert found.brier == pytest.approx(brier_score_loss(rl, p))
    assert found.log_loss == pytest.approx(log_loss(rl, p))
    assert found.ece < 0.1 < calibration(p, ~rl).ece
    assert sum(size for _, _, size in found.bins) == 200


def test_the_band_leaves_out_what_is_called_wrongly_too_often() -> None:
    p = np.array([0.99, 0.95, 0.9, 0.85, 0.8, 0.2, 0.15, 0.1, 0.05, 0.01, 0.6, 0.55, 0.45, 0.4])
    rl = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1], bool)
    assert threshold(p, rl) == pytest.approx(0.6)  # one wrong of eleven
    share, wrong = labelled(p, rl, 0.7)
    assert (share.value, share.size) == (pytest.approx(10 / 14), 14)
    assert (wrong.value, wrong.size) == (0, 10)
    assert coverage(p, rl)[-1][1:] == (1, pytest.approx(4 / 14))
    assert threshold(1 - p, rl) is None
    assert labelled(p, rl, 2.0)[1] == Interval(None, None, None, 0)


# ----------------------------------------------------------------------------------- survival


def seen(*, matched: float = 0.6, cell: float = 0.6, wrong: float = 0.2, fewer: int = 12) -> Found:
    one = CellFound(("sgd", "float32", 8, 40), fewer, Interval(0.8, cell, 0.9, 9),
                    Interval(0.8, matched, 0.9, 9), Interval(0.1, 0.05, wrong, 20))  # fmt: skip
    return Found(Interval(0.9, 0.8, 1.0, 99), Interval(0.8, matched, 0.9, 9),
                 Interval(0.1, 0.05, wrong, 20), (one,))  # fmt: skip


@pytest.mark.parametrize(
    ("found", "tells", "everywhere", "cells"),
    [
        (seen(), True, True, 1),
        (seen(matched=0.5), False, False, 0),
        (seen(cell=0.49), False, False, 0),
        (seen(cell=0.5), True, True, 0),  # not below, but not above either
        (seen(wrong=0.5), True, False, 0),
        (seen(cell=0.49, fewer=7), False, False, 0),  # no cell that can be judged
    ],
)
def test_what_survives(found: Found, tells: bool, everywhere: bool, cells: int) -> None:
    one = judged(found)
    assert (one.tells, one.everywhere, len(one.cells)) == (tells, everywhere, cells)


def test_the_set_that_was_best_before_the_test_is_used() -> None:
    good, bad, partly = judged(seen()), judged(seen(matched=0.4)), judged(seen())
    assert chosen({"a": good, "b": partly}, ["b", "a"]) == "b"
    assert chosen({"a": good, "b": bad}, ["b", "a"]) == "a"
    assert chosen({"a": bad}, ["a"]) is None


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0.01, 0.2, True), (0.0, 0.2, False), (0.01, -0.001, False)]
)
def test_settings_add_at_equal_norm_or_not_at_all(low: float, high: float, wanted: bool) -> None:
    gains = pl.DataFrame(
        {"over": ["all pairs", "equal task and norm", "sgd, float32"],
         "gain_low": [0.1, low, -0.2], "gain_high": [0.2, 0.2, high]}
    )  # fmt: skip
    assert adds(gains) is wanted


# ---------------------------------------------------------------------------------- the study


def test_a_planted_difference_survives_and_ships(telling: VerdictStudy) -> None:
    assert telling.survival["rank"].everywhere
    assert not telling.survival["norm"].tells
    assert telling.chosen in ("rank", "all")
    alone = telling.carried.sort("alone_matched", descending=True)
    assert alone["feature"][0] == "effective_rank"
    dpo = telling.methods.filter(method="dpo", set="rank").row(0, named=True)
    assert dpo["rl"] is None
    assert dpo["rl_like"] > dpo["sft_like"]
    assert telling.folds.filter(set="rank")["value"].min() > 0.5  # type: ignore[operator]


def test_no_difference_no_rule(silent: VerdictStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert silent.chosen is None
    monkeypatch.setattr("offaxis.lab.verdict.shipped._model", lambda base: {"parameters": 1e6})
    file = shipped(silent)
    assert file["rules"] == []
    assert file["finding"]["failed"]


def test_what_turns_round_under_one_optimizer_survives_only_in_the_others() -> None:
    rows = [made(test=test, rank=turned_under_sgd, seeds=4) for test in (True, False)]
    study = VerdictStudy(rows[0], rows[1], DRAWS)
    one = study.survival["rank"]
    assert not one.tells
    assert {cell[:2] for cell in one.cells} == {(cell[0], cell[1]) for cell in CELLS[:2]}


def test_the_tables_and_the_document(telling: VerdictStudy, tmp_path: Path) -> None:
    blocks = telling.blocks()
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- block: {one} -->\n<!-- end -->\n" for one in blocks))
    telling.refresh(page)
    assert all(text in page.read_text() for text in blocks.values())
    assert "nan" not in page.read_text()
    json.dumps(telling.told(), allow_nan=False)
    assert telling.areas.filter(set=SETTINGS_SET)["source"].to_list() == ["both"] * 3


def test_rows_that_cannot_be_used_are_refused() -> None:
    first, second = made(test=False, rank=alike), made(test=True, rank=alike)
    only = second.filter(pl.col("method") == "grpo")
    with pytest.raises(InputError, match="test rows: 18 finished runs of RL and 0 of fine-tuning"):
        Material.of(first, only)
    with pytest.raises(InputError, match=r"other.*leave out the rest"):
        Material.of(first, second.with_columns(base=pl.lit("other")))


def test_the_command_writes_the_study_the_page_and_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = VerdictStudy.read

    def quick(source: Path, *, training: Path) -> VerdictStudy:
        return read(source, training=training, draws=DRAWS)

    monkeypatch.setattr(VerdictStudy, "read", staticmethod(quick))
    monkeypatch.setattr("offaxis.lab.verdict.shipped._model", lambda base: {"parameters": 1e6})
    for name, test in (("first", False), ("test", True)):
        (tmp_path / name).mkdir()
        made(test=test, rank=separated).write_parquet(tmp_path / name / "runs.parquet")
    page = tmp_path / "page.md"
    page.write_text("<!-- block: answer -->\n<!-- end -->\n")
    wanted = ["verdict", tmp_path / "first", tmp_path / "test", "--out", tmp_path / "out",
              "--into", page, "--write", tmp_path / "rule.json", "--json"]  # fmt: skip
    found = CliRunner().invoke(app, list(map(str, wanted)), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["schema"] == 1
    assert "effective rank" in page.read_text()
    rule = json.loads((tmp_path / "rule.json").read_text())
    test_rows = ends(checkpoints(pl.read_parquet(tmp_path / "test" / "runs.parquet")))
    assert rule["tested"] == {"runs": test_rows.height, "rows": rows_digest(test_rows)}
    assert rule["ranges"]["effective_rank"][1] >= test_rows["effective_rank"].max()
    assert (tmp_path / "out" / "verdict.svg").stat().st_size > 1000
    again = read(tmp_path / "out", training=tmp_path / "first", draws=DRAWS)
    assert again.rows.height == 90


# ---------------------------------------------------------------------------- what ships


def test_the_rule_that_ships_is_made_from_the_rows_that_ship() -> None:
    from offaxis.comparison.method import shipped as known

    tables = {name: STUDIES / name / "runs.parquet" for name in ("first", "verdict")}
    if not all(path.is_file() for path in tables.values()):
        pytest.skip("no rows of the verdict's study beside the documents")
    first, second = (ends(checkpoints(pl.read_parquet(path))) for path in tables.values())
    file = known()
    assert file["fitted"] == {"runs": first.height, "rows": rows_digest(first)}
    assert file["tested"] == {"runs": second.height, "rows": rows_digest(second)}
    for rule in file["rules"]:
        for cell in rule["cells"]:
            own = second.filter(
                pl.col("optimizer").str.starts_with(cell["optimizer"]),
                pl.col("prompts_per_step") * pl.col("completions_per_prompt") == cell["batch"],
                dtype=cell["dtype"],
                steps=cell["steps"],
            )
            rates = own["learning_rate"].unique().sort()
            assert cell["learning_rate"] == [rates[0], rates[-1]]
        if rule["name"] != SETTINGS_SET:
            again = told(rule_on(first, SETS[rule["name"]]))
            for one, other in zip(rule["terms"], again, strict=True):
                assert one["name"] == other["name"]
                for key in ("mean", "scale", "weight"):
                    assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key
