"""The prediction study on a real run of a tiny base: measured, resumed, read, without a leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lab_base import DIFFICULTY, TASK
from offaxis.errors import InputError
from offaxis.lab.predict import PredictStudy
from offaxis.lab.predict.candidates import CONTESTANTS, REBUILT, STOP
from offaxis.lab.predict.history import History
from offaxis.lab.predict.linearity import linear
from offaxis.lab.predict.measuring import asked, measure_run
from offaxis.lab.predict.rows import CURVE, MODELS
from offaxis.lab.predict.running import measure
from offaxis.lab.predict.standing import Stand, against
from offaxis.lab.queue import RunConfig, Store
from offaxis.lab.queue.job import execute
from offaxis.live import load_live
from offaxis.predict import Linear, Relex
from offaxis.predict import predict as write

pytestmark = pytest.mark.slow

_COMMON = {
    "task": TASK, "difficulty": DIFFICULTY, "steps": 10, "save_at": (1, 2, 4, 10), "seed": 3,
    "prompts_per_step": 4, "completions_per_prompt": 4, "problems": 6, "samples": 2,
    "own_exam": True,
}  # fmt: skip
RUN = RunConfig("sft", learning_rate=1e-3, series=(6, 8), keep=True, **_COMMON)  # type: ignore[arg-type]
BASE = RunConfig("base", **_COMMON)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.create(tmp_path_factory.mktemp("predict") / "queue", (BASE, RUN), small_base)
    for run in (BASE, RUN):
        execute(found, run)
    return found


@pytest.fixture(scope="module")
def history(store: Store) -> History:
    return History(store, RUN)


@pytest.fixture(scope="module")
def tables(store: Store) -> dict[str, pl.DataFrame]:
    lines = list(measure(store.directory))
    assert len(lines) == 1
    place = store.directory / "predicted" / RUN.identity(store.base_digest)
    return {one.stem: pl.read_parquet(one) for one in place.glob("*.parquet")}


def test_kept_steps_are_there_and_only_the_others_have_rows(history: History) -> None:
    assert list(history.paths) == [1, 2, 4, 6, 8, 10]
    from offaxis.lab.queue import by_checkpoint, read_rows

    rows = by_checkpoint(read_rows(history.row))
    assert rows["step"].to_list() == [1, 2, 4, 10]


def test_every_model_is_there_once_and_the_rest_say_why_not(
    tables: dict[str, pl.DataFrame],
) -> None:
    models = tables["models"].filter(pl.col("kind") != "real")
    assert sorted(models.select("predictor", "origin", "target").rows()) == sorted(asked(10))
    refused = models.filter(pl.col("refused").is_not_null())
    lines = refused.filter(predictor="linear")
    assert lines["origin"].to_list() == [1]
    assert "needs 2 checkpoints" in lines["refused"].item()
    told = models.filter(pl.col("refused").is_null(), pl.col("predictor") != STOP)
    assert told["avg"].null_count() == 0
    assert told["relative_error"].null_count() == 0
    assert set(tables["models"].schema) == set(MODELS)
    assert tables["curve"]["step"].to_list() == [0, 1, 2, 4, 6, 8, 10]


def test_measuring_again_does_nothing_and_a_new_contestant_alone(
    store: Store, history: History, tables: dict[str, pl.DataFrame]
) -> None:
    assert list(measure(store.directory)) == []
    known = tables | {"models": tables["models"].filter(pl.col("predictor").ne_missing("relex"))}
    again = measure_run(history, known)["models"]
    both = [one.filter(predictor="relex").sort("origin", "target")
            for one in (again, tables["models"])]  # fmt: skip
    assert both[0].equals(both[1])
    assert again.height == tables["models"].height


def test_the_stand_in_is_the_model_that_predict_writes(history: History, tmp_path: Path) -> None:
    curve = pl.DataFrame({"step": [0, *history.paths], "validation": 0.5}, schema_overrides=CURVE)
    for predictor in (Relex(), Linear()):
        (updates,) = history.predicted(predictor, 4, curve=curve, at=[10.0])
        stand = Stand(history.store, RUN)
        stand.put(updates)
        paths = [path for step, path in history.paths.items() if step <= 4]
        out = tmp_path / predictor.name
        write(history.store.base, paths, method=predictor, out=out, at=10)
        written = load_live(out).model.state_dict()
        for name, weights in stand.live.model.state_dict().items():
            assert (weights == written[name]).all(), name


def test_no_later_score_reaches_a_prediction(history: History) -> None:
    curve = pl.DataFrame(
        {"step": [0, *history.paths], "validation": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
    )
    other = curve.with_columns(
        pl.when(pl.col("step") > 4).then(0.0).otherwise(pl.col("validation")).alias("validation")
    )
    assert history.timeline(4, curve, 10).scores is not None
    for one in (curve, other):
        timeline = history.timeline(4, one, 10)
        assert timeline.scores is not None
        assert timeline.scores.tolist() == [0.2, 0.3, 0.4]
        assert timeline.steps.tolist() == [1, 2, 4]
    assert len(history.until(4)) == 3


def test_the_whole_final_update_rebuilt_is_the_run_but_for_what_is_no_matrix(
    history: History, tables: dict[str, pl.DataFrame]
) -> None:
    row = tables["models"].filter(predictor="all").row(0, named=True)
    real = history.update(10)
    matrices = {trail.name for trail in history.series.matrices()}
    assert 0 < len(matrices) < len(real)
    expected = against({name: one for name, one in real.items() if name in matrices}, real)
    assert row["relative_error"] == pytest.approx(expected["relative_error"], abs=1e-9)
    assert set(tables["models"]["predictor"].drop_nulls()) == {STOP, *CONTESTANTS, *REBUILT}


def test_the_study_reads_the_queue(store: Store, tables: dict[str, pl.DataFrame]) -> None:
    assert tables
    study = PredictStudy.read(store.directory)
    assert study.models["run"].n_unique() == 1
    assert "1 runs (SFT programs 1)" in study.blocks()["state"]
    assert np.isfinite(study.lines["value"].to_numpy()).all()


def test_a_run_that_cannot_be_measured_is_told(small_base: Path, tmp_path: Path) -> None:
    lost = replace(RUN, seed=4)
    queue = Store.create(tmp_path / "queue", (BASE, lost), small_base)
    queue.row(lost.identity(queue.base_digest)).write_bytes(b"")
    lines = measure(queue.directory)
    assert next(lines).startswith("1 of 1: sft programs seed 4, failed: ")
    with pytest.raises(InputError, match=r"1 of 1 runs could not be measured.*keep = true"):
        next(lines)
    assert not (queue.directory / "predicted").exists()


def test_a_run_whose_scores_are_all_alike_has_no_lines(history: History) -> None:
    curve = pl.DataFrame({"step": [0, *history.paths], "validation": 0.5}, schema_overrides=CURVE)
    assert linear(history, curve).is_empty()


def test_runs_whose_checkpoints_are_gone_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match="queue it with keep = true"):
        _ = History(store, BASE).paths
