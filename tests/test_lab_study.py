"""The study's arithmetic on made-up rows in which every effect is planted."""

import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest

from offaxis.errors import InputError
from offaxis.lab.study import Study
from offaxis.lab.study.answers import RL, TUNING, against_nulls, contrasts
from offaxis.lab.study.matching import LEAST_GAIN, Trajectory, read_pair
from offaxis.lab.study.questions import QUESTIONS, Question, answer
from offaxis.lab.study.reproducibility import footprints, reproducibility
from study_rows import RATES, SEEDS, STEPS, TASKS_USED, make_rows

COMPARED = [(False, False, True), (False, True, False), (True, False, True)]
SLOW_RL = dict.fromkeys(RL, 0.5)
NSS = Question("spectrum-preserving", "nss", -1, "ratio", math.log(1.05))


def one(table: pl.DataFrame, **where: object) -> dict[str, object]:
    chosen = table.filter(**where)
    assert chosen.height == 1, where
    return chosen.row(0, named=True)


def test_what_only_the_step_size_explains_holds_at_equal_rate_and_not_at_equal_norm() -> None:
    found = contrasts(make_rows(speed=SLOW_RL))
    at_rate = one(found, measure="nss", against="sft", matching="step")
    assert at_rate["word"] == "holds"
    assert at_rate["value"] == pytest.approx(math.log(0.5), abs=0.05)
    at_norm = one(found, measure="nss", against="sft", matching="norm")
    assert at_norm["value"] == pytest.approx(0, abs=0.02)
    assert at_norm["word"] == "does not"


def test_a_planted_effect_is_recovered_at_equal_norm_and_at_equal_accuracy() -> None:
    def fill(method: str, norm: float, step: int, z: float) -> dict[str, float]:
        return {"nss": norm * (0.8 if method in RL else 1.0)}

    found = contrasts(make_rows(speed=SLOW_RL, fill=fill))
    at_norm = one(found, measure="nss", against="rejection_sft", matching="norm")
    assert at_norm["value"] == pytest.approx(math.log(0.8), abs=0.02)
    assert at_norm["word"] == "holds"
    at_accuracy = one(found, measure="nss", against="rejection_sft", matching="accuracy")
    assert at_accuracy["value"] == pytest.approx(math.log(0.8 * 0.5), abs=0.05)


def test_an_effect_against_the_claim_is_said_to_be_one() -> None:
    found = contrasts(make_rows(speed=dict.fromkeys(RL, 2.0)))
    row = one(found, measure="nss", against="sft", matching="step")
    assert row["word"] == "does not"
    assert row["low"] > 0


def test_an_effect_in_one_opponent_stays_with_it() -> None:
    found = contrasts(make_rows(speed={"distill": 3.0}))
    assert one(found, measure="nss", against="distill", matching="step")["word"] == "holds"
    assert one(found, measure="nss", against="sft", matching="step")["word"] != "holds"


def test_accuracy_matches_only_runs_that_learn() -> None:
    found = contrasts(make_rows(speed={}, gain={"sft_foreign": LEAST_GAIN / 2}))
    assert one(found, measure="nss", against="sft_foreign", matching="accuracy")["pairs"] == 0
    row = one(found, measure="nss", against="sft", matching="accuracy")
    assert row["pairs"] == len(RL) * len(RATES) * len(TASKS_USED) * len(SEEDS)
    assert row["units"] == len(TASKS_USED) * len(SEEDS)


def test_forgetting_is_the_other_tasks_rise_above_the_base() -> None:
    def fill(method: str, norm: float, step: int, z: float) -> dict[str, float]:
        rise = 0.3 if method in TUNING else 0.1
        return {"mixture_loss_programs": 1 + rise + 0.001 * z}

    found = contrasts(make_rows(speed={}, fill=fill))
    row = one(found, measure="forgetting", against="sft", matching="step")
    assert row["value"] == pytest.approx(-0.1, abs=0.005)  # programs is one of two other tasks
    assert row["word"] == "holds"


def test_overlaps_are_judged_against_their_nulls() -> None:
    def fill(method: str, norm: float, step: int, z: float) -> dict[str, float]:
        excess = -0.02 if method == "grpo" else 0.0
        return {"principal_overlap_excess": excess + 0.0004 * z}

    table = against_nulls(make_rows(speed={}, fill=fill))
    claim = "off-principal against the magnitude null"
    rows = table.filter(claim=claim).filter(pl.col("learning_rate").is_null())
    words = dict(rows.select("method", "word").iter_rows())
    assert words["grpo"] == "holds"
    assert words["sft"] != "holds"
    assert words["rl"] == "holds"  # a quarter of it is grpo
    value = one(rows, method="rl")["value"]
    assert value == pytest.approx(-0.005, abs=0.0005)


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = answer(NSS, rng.normal(0.3, 1.0, size=6).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.3 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], "cannot tell"),
        ([-1.0], "cannot tell"),
        ([-1.0, -1.1, -0.9], "holds"),
        ([1.0, 1.1, 0.9], "does not"),
        ([-1.0, 1.0, 0.2], "cannot tell"),
        ([-0.01, 0.01, 0.0], "does not"),
        ([-0.02, -0.0201, -0.0199], "does not"),  # beyond doubt, and within the margin
    ],
)
def test_words(values: list[float], word: str) -> None:
    assert answer(NSS, values).word == word


def trajectory(norms: tuple[float, ...], accuracies: tuple[float, ...]) -> Trajectory:
    return Trajectory(STEPS, norms, accuracies, {"nss": norms})


def test_runs_without_a_common_norm_are_not_compared() -> None:
    low = trajectory((1e-5, 2e-5, 3e-5, 4e-5), (0.5, 0.6, 0.7, 0.8))
    high = trajectory((1e-3, 2e-3, 3e-3, 4e-3), (0.5, 0.6, 0.7, 0.8))
    assert read_pair(low, high, ["nss"], matching="norm", start=0.5) is None
    read = read_pair(low, high, ["nss"], matching="step", start=0.5)
    assert read == ({"nss": 4e-5}, {"nss": 4e-3})


def test_a_missing_value_is_left_out_not_guessed() -> None:
    a = trajectory((1.0, 2.0, 3.0, 4.0), (0.5, 0.6, 0.7, 0.8))
    b = Trajectory(STEPS, a.norms, a.accuracies, {"nss": (1.0, 2.0, 3.0, None)})
    assert read_pair(a, b, ["nss"], matching="step", start=0.5) == ({}, {})


def pair_rows(rows: pl.DataFrame, excess: dict[str, float]) -> pl.DataFrame:
    """Overlaps in which pairs of runs of a method exceed the null by what is planted."""
    told = rows.filter(pl.col("method") != "base").select(
        "run", "learning_rate", "method", "task", "seed"
    )
    found = []
    for a, b in combinations(told.iter_rows(), 2):
        if a[1] == b[1] and tuple(x != y for x, y in zip(a[2:], b[2:], strict=True)) in COMPARED:
            planted = excess.get(a[2], 0.0) if a[2] == b[2] else 0.0
            for step in STEPS:
                found.append((a[0], b[0], step, 0.5 + planted, 0.4, 0.5))
    names = ["run_a", "run_b", "step", "jaccard", "jaccard_chance", "jaccard_magnitude_null"]
    return pl.DataFrame(found, schema=names, orient="row")


def test_reproducibility_over_seeds_is_recovered() -> None:
    rows = make_rows(speed={})
    found = reproducibility(rows, pair_rows(rows, dict.fromkeys(RL, 0.05)))
    seeds = one(found, claim="more reproducible over seeds", against="sft", matching="step")
    assert seeds["value"] == pytest.approx(0.05)
    assert seeds["word"] == "holds"
    assert seeds["units"] == len(TASKS_USED) * 3  # pairs of three seeds
    algorithms = one(
        found, claim="more reproducible over algorithms", against="sft", matching="step"
    )
    assert algorithms["value"] == pytest.approx(0)
    assert algorithms["word"] == "does not"


def test_footprints_hold_every_kind_of_pair() -> None:
    rows = make_rows(speed={}, methods=("grpo", "rloo", "sft"))
    found = footprints(rows, pair_rows(rows, {"sft": 0.1}))
    counts = dict(found.group_by("over").agg(pl.col("pairs").sum()).iter_rows())
    rates, tasks, seeds = len(RATES), len(TASKS_USED), len(SEEDS)
    assert counts == {
        "seeds": 3 * rates * tasks * 3,
        "tasks": 3 * rates * seeds,
        "algorithms": 3 * rates * tasks * seeds * (seeds - 1),
    }
    own = found.filter(over="seeds", method_a="sft")
    assert own["jaccard_excess"].to_list() == pytest.approx([0.1] * rates)


def test_a_saved_study_reads_back_the_same_and_draws(tmp_path: object) -> None:
    from pathlib import Path

    def fill(method: str, norm: float, step: int, z: float) -> dict[str, float]:
        return {
            q.measure: 0.1 + 0.01 * z for q in QUESTIONS if q.measure not in ("nss", "forgetting")
        }

    rows = make_rows(speed=SLOW_RL, fill=fill)
    study = Study(rows, pair_rows(rows, {}))
    out = study.save(Path(str(tmp_path)) / "new")
    again = Study.read(out)
    assert again.contrasts.equals(study.contrasts)
    pictures = {path.name: path.read_bytes() for path in out.glob("*.svg")}
    assert set(pictures) == {
        f"{n}.svg" for n in ("trajectories", "nulls", "contrasts", "footprints")
    }
    again.save(Path(str(tmp_path)) / "other")
    for name, picture in pictures.items():
        assert (Path(str(tmp_path)) / "other" / name).read_bytes() == picture, name


def test_rows_without_the_base_are_refused() -> None:
    rows = make_rows(speed={}).filter(pl.col("method") != "base")
    with pytest.raises(InputError, match="base"):
        contrasts(rows)


def test_what_is_no_study_is_refused(tmp_path: object) -> None:
    with pytest.raises(InputError, match="neither"):
        Study.read(str(tmp_path))
