"""What an evaluation found: samples, scores, the file that tells of them, and the way back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.evaluate.folder import read_header, read_samples
from offaxis.evaluate.marking import MarkedProblem
from offaxis.evaluate.scores import Answers, ScoreRow, score_rows, scores_frame
from offaxis.evaluate.versus import Versus
from offaxis.output import staged_directory, staged_file

__all__ = ["Evaluation", "load_evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """Samples of one model on one set of problems, and the scores that follow from them."""

    problems: tuple[MarkedProblem, ...]
    """In the order in which they were drawn."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """What they are samples of: `model`, `data`, `settings`, `identity`, `versions`."""
    versus: Versus | None = None
    """The paired comparison with another run, where one was asked for."""

    @cached_property
    def answers(self) -> Answers:
        """Marks and votes as tables, a row a problem."""
        samples = [one.samples for one in self.problems]
        if len({len(row) for row in samples}) != 1:
            raise InputError(f"{self.model}: problems have different numbers of samples; sample on")
        return Answers(
            tuple(one.id for one in self.problems),
            np.array([[one.correct for one in row] for row in samples], dtype=np.bool_),
            tuple(tuple(one.vote for one in row) for row in samples),
        )

    @property
    def model(self) -> str:
        return str(self.header.get("model", {}).get("source", ""))

    @property
    def data(self) -> str:
        return str(self.header.get("data", {}).get("source", ""))

    @cached_property
    def rows(self) -> tuple[ScoreRow, ...]:
        """avg@n, and pass@k and maj@k for k = 1, 2, 4, ..., n, with intervals."""
        return tuple(score_rows(self.answers, model=self.model, data=self.data))

    @property
    def score(self) -> pl.DataFrame:
        """`rows` as a table with the columns `SCORE_COLUMNS`."""
        return scores_frame(self.rows)

    def summary(self) -> dict[str, Any]:
        """The content of `results.json`."""
        samples = [one for problem in self.problems for one in problem.samples]
        return {
            "schema": 1,
            **{name: self.header.get(name) for name in ("model", "data", "settings")},
            "problems": len(self.problems),
            "samples": self.answers.samples,
            "scores": [
                {name: getattr(row, name) for name in ("metric", "k", "value", "low", "high", "n")}
                for row in self.rows
            ],
            "reasons": dict(sorted(Counter(one.reason for one in samples).items())),
            "ended": sum(one.ended for one in samples) / len(samples),
            "tokens_mean": sum(one.tokens for one in samples) / len(samples),
            "versus": self.versus.summary() if self.versus is not None else None,
            "versions": self.header.get("versions"),
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write `results.json`, `scores.parquet`, `curve.svg`, `settings.json`, `samples.jsonl`.

        Whole, at once, into a directory that is missing or empty unless `overwrite`.
        """
        with staged_directory(Path(out), overwrite=overwrite) as staged:
            header = {"identity": {}, **self.header}
            (staged / "settings.json").write_text(
                json.dumps(header, indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
            with (staged / "samples.jsonl").open("w", encoding="utf-8") as file:
                for problem in self.problems:
                    file.write(json.dumps(asdict(problem), allow_nan=False) + "\n")
            self.write_results(staged)

    def write_results(self, directory: Path) -> None:
        """Write the files that follow from the samples, `results.json` last, each one whole."""
        with staged_file(directory / "scores.parquet") as staged:
            self.score.write_parquet(staged)
        try:
            from offaxis.evaluate.plots import draw_curve
        except ModuleNotFoundError:  # no matplotlib: the table says the same
            pass
        else:
            draw_curve(self.rows, directory / "curve.svg")
        with staged_file(directory / "results.json") as staged:
            text = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False)
            staged.write_text(text + "\n", encoding="utf-8")


def load_evaluation(directory: str | Path) -> Evaluation:
    """A run that `offaxis eval` or `Evaluation.save` wrote, finished or not.

    Raises InputError where it holds no samples.
    """
    path = Path(directory).expanduser()
    problems = tuple(read_samples(path))
    if not problems:
        raise InputError(f"{path}: holds no samples yet; run offaxis eval into it first")
    return Evaluation(problems, read_header(path))
