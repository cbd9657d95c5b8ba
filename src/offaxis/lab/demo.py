"""The demo: one RL run and one SFT run from the bundled base, scored, compared and contrasted."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

import offaxis
from offaxis.lab import BASE
from offaxis.lab.matching import Point, Series, contrasts
from offaxis.lab.provenance import library_versions, require_training_libraries
from offaxis.lab.scoring import SCORES, Exam, differences, score_rows, sit
from offaxis.lab.session import quiet_libraries
from offaxis.lab.training import Run, TrainingSettings, train_run
from offaxis.output import staged_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CAVEAT", "run_demo"]

CAVEAT = (
    "Contrasts: intervals are over the matrices of one run of each method. They say nothing about "
    "another seed, and none is corrected for the number of contrasts. SFT learns from the "
    "generator's right solutions, RL from its own samples: the data differ as well as the method."
)


class _Clock:
    """Seconds spent in each part of the demo, announced on standard error as it begins."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def part(self, name: str, note: str) -> Any:
        if self._progress:
            print(note, file=sys.stderr, flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        if self._progress:
            print(f"({name}: {self.seconds[name]} s)", file=sys.stderr, flush=True)


def run_demo(
    out: str | Path,
    *,
    overwrite: bool = False,
    training: TrainingSettings | None = None,
    exam: Exam | None = None,
    base: str | Path = BASE,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, score, compare and contrast into `out`; returns what `offaxis demo --json` prints.

    `out` gets `base/` (a copy), `rl/` and `sft/` (checkpoints, `run.json`, `log.json`),
    `scores.parquet`, `contrasts.parquet`, `run.json` and what `compare` writes, with `report.html`
    among it. Paths in the results are relative to `out`, so it can be moved. It appears whole or
    not at all. The process's working directory is changed while this runs, and then restored.

    Raises OutputError where `out` is not empty and `overwrite` is not set.
    """
    require_training_libraries()
    training, exam = training or TrainingSettings(), exam or Exam()
    exam = replace(exam, task=training.task, difficulty=training.difficulty)
    base = Path(base).expanduser().absolute()
    out = Path(out).expanduser().absolute()
    with (
        staged_directory(out, overwrite=overwrite) as staged,
        quiet_libraries(),
        contextlib.chdir(staged),
    ):
        shutil.copytree(base, "base")
        clock = _Clock(progress)
        runs = _train(training, clock, progress)
        answers, scores = _score(runs, exam, clock)
        with clock.part("compare", "comparing the checkpoints with the base"):
            found = _compare(runs, scores, training.seed)
        record = _record(training, exam, runs, clock)
        Path("run.json").write_text(json.dumps(record, indent=1) + "\n")
    return {
        "schema": 1,
        "out": str(out),
        "report": str(out / "report.html"),
        "base": "base",
        "checkpoints": {
            run.name: [_name(run, step) for step, _ in run.checkpoints] for run in runs
        },
        "scores": scores.to_dicts(),
        "differences": _differences(runs, answers, exam),
        "contrasts": found.to_dicts(),
        "caveat": CAVEAT,
        "run": record,
    }


def _name(run: Run, step: int) -> str:
    """A checkpoint's path, relative to the result: what `compare` is given and the tables hold."""
    return f"{run.name}/checkpoint-{step}"


def _differences(
    runs: tuple[Run, Run], answers: dict[str, NDArray[np.bool_]], exam: Exam
) -> list[dict[str, Any]]:
    """Each run's end against the base, and the ends against each other."""
    rl, sft = (_name(run, run.checkpoints[-1][0]) for run in runs)
    return differences(answers, [(rl, "base"), (sft, "base"), (rl, sft)], seed=exam.seed)


def _train(training: TrainingSettings, clock: _Clock, progress: bool) -> tuple[Run, Run]:
    with clock.part("rl", f"training by RL (GRPO, {training.steps} steps)"):
        rl = train_run(
            "grpo", base=Path("base"), out=Path("rl"), settings=training, progress=progress
        )
    with clock.part("sft", f"training by SFT on right solutions ({training.steps} steps)"):
        sft = train_run(
            "sft", base=Path("base"), out=Path("sft"), settings=training, progress=progress
        )
    return rl, sft


def _score(
    runs: tuple[Run, Run], exam: Exam, clock: _Clock
) -> tuple[dict[str, NDArray[np.bool_]], pl.DataFrame]:
    """Right or wrong for every model, and the table of scores."""
    models = [
        ("base", 0),
        *((_name(run, step), step) for run in runs for step, _ in run.checkpoints),
    ]
    note = f"scoring {len(models)} models ({exam.problems} problems, {exam.samples} samples each)"
    answers: dict[str, NDArray[np.bool_]] = {}
    rows: list[dict[str, Any]] = []
    with clock.part("scores", note):
        for name, step in models:
            answers[name] = sit(name, exam).correct
            rows.extend(score_rows(name, step, answers[name], seed=exam.seed))
    return answers, pl.DataFrame(rows, schema=SCORES)


def _compare(runs: tuple[Run, Run], scores: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Write the comparison with its report into the working directory; returns the contrasts."""
    names = [_name(run, step) for run in runs for step, _ in run.checkpoints]
    comparison = offaxis.compare("base", names)
    norms = {pair["tuned"]: pair["relative_update_norm"] for pair in comparison.summary()["pairs"]}
    accuracy = dict(
        scores.filter(pl.col("metric").str.starts_with("avg@")).select("tuned", "value").iter_rows()
    )
    series = [
        Series(
            run.name,
            tuple(
                Point(name := _name(run, step), step, norms[name], accuracy[name])
                for step, _ in run.checkpoints
            ),
        )
        for run in runs
    ]
    found = contrasts(comparison.measurements, series[0], series[1], seed=seed)
    comparison.save("compare", overwrite=False, scores=scores, contrasts=found)
    for entry in Path("compare").iterdir():
        entry.rename(entry.name)
    Path("compare").rmdir()
    scores.write_parquet("scores.parquet")
    found.write_parquet("contrasts.parquet")
    return found


def _record(
    training: TrainingSettings, exam: Exam, runs: tuple[Run, Run], clock: _Clock
) -> dict[str, Any]:
    """What made this result: settings, seeds, versions, seconds."""
    return {
        "training": asdict(training),
        "exam": asdict(exam),
        "methods": [run.method for run in runs],
        "seconds": clock.seconds,
        "versions": library_versions(),
        "note": CAVEAT,
    }
