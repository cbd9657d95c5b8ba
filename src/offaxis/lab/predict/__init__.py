"""Where the weights will be: predictions of a queue's runs, scored against their real ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.predict.linearity import means
from offaxis.lab.predict.pooling import with_settings
from offaxis.lab.predict.questions import answers, verdicts
from offaxis.lab.predict.rows import NUMBERS, SHARES, TABLES
from offaxis.lab.predict.running import read_measured
from offaxis.lab.predict.summary import scores, shares
from offaxis.lab.predict.words import blocks
from offaxis.lab.queue import read_rows
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.queue.rows import by_checkpoint
from offaxis.lab.saved import SavedStudy

__all__ = ["PredictStudy"]


@dataclass(frozen=True)
class PredictStudy(SavedStudy):
    """A queue's rows with what was measured on its kept checkpoints; the rest follows."""

    curve: pl.DataFrame
    """`rows.CURVE`."""
    found: pl.DataFrame
    """`rows.MODELS`."""
    linearity: pl.DataFrame
    """`rows.LINEARITY`."""

    name = "predict"
    saved = ("curve", "found", "linearity")

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """From a queue that was measured, or a directory that `save` wrote.

        Raises InputError where it is neither, or lacks the base's rows.
        """
        path = Path(source)
        if (path / "queue.json").is_file():
            tables = read_measured(path)
            study = cls(read_rows(path), *(tables[name] for name in TABLES))
        else:
            files = [path / f"{name}.parquet" for name in ("runs", *cls.saved)]
            if absent := [file.name for file in files if not file.is_file()]:
                raise InputError(
                    f"{path}: neither a queue nor a saved study ({', '.join(absent)} is not "
                    "there); name the directory of one"
                )
            study = cls(read_rows(files[0]), *(pl.read_parquet(file) for file in files[1:]))
        study.check()
        return study

    def check(self) -> None:
        """InputError for tables of another version, runs that do not go together, or no base."""
        measured = (self.curve, self.found, self.linearity)
        for table, schema in zip(measured, TABLES.values(), strict=True):
            if absent := sorted(set(schema) - set(table.columns)):
                raise InputError(
                    f"these tables lack {', '.join(absent)}, so they are of another version; "
                    "remove the queue's predicted/ and measure it again"
                )
        self._check_alike()
        if absent := sorted(set(self.models["task"]) - set(self.base)):
            raise InputError(
                f"no row of the base for {', '.join(absent)}, from which gains are counted; queue "
                'method = "base" for it, with the problems and the difficulty of the runs'
            )

    def _check_alike(self) -> None:
        """InputError where two runs would be taken for one, or sat unlike exams."""
        runs = self.models.unique("run", maintain_order=True)
        settings = ("steps", "difficulty", "problems", "samples")
        if unlike := [name for name in settings if runs[name].n_unique() > 1]:
            told = ", ".join(f"{one} {runs[one].unique().sort().to_list()}" for one in unlike)
            raise InputError(
                f"the runs differ in {told}, so that they cannot be averaged; put them into queues "
                "of their own"
            )
        twice = runs.filter(runs.select("method", "task", "seed").is_duplicated())
        if twice.height:
            first = twice.row(0, named=True)
            raise InputError(
                f"several runs are {first['method']} on {first['task']} with seed {first['seed']}; "
                "put other rates, masks and adapters into queues of their own"
            )

    @cached_property
    def models(self) -> pl.DataFrame:
        """`rows.MODELS` with the settings of the runs."""
        return with_settings(self.found, self.rows)

    @property
    def last(self) -> int:
        """The step at which the runs end."""
        return int(self.models["steps"].max())  # type: ignore[arg-type]

    @cached_property
    def base(self) -> dict[str, np.ndarray[Any, Any]]:
        """Task -> the base's accuracy on each judging problem."""
        alike = self.models.select("task", "difficulty", "problems").unique()
        rows = self.rows.filter(method=BASE_METHOD)
        own = by_checkpoint(rows.join(alike, on=alike.columns, how="semi", nulls_equal=True))
        return {
            row["task"]: np.array(row["right"], dtype=np.float64) / row["samples"]
            for row in own.iter_rows(named=True)
        }

    @cached_property
    def scores(self) -> pl.DataFrame:
        """Columns `summary.SCORES`."""
        return scores(self.models)

    @cached_property
    def shares(self) -> pl.DataFrame:
        """Columns `summary.SHARES`."""
        return shares(self.models, self.base)

    @cached_property
    def norms(self) -> pl.DataFrame:
        """Mean update norm and rank-1 norm share at the runs' ends, by method and task."""
        rows = self.rows.filter(pl.col("run").is_in(self.models["run"].unique().to_list()))
        last = by_checkpoint(rows).filter(pl.col("step") == pl.col("steps"))
        return last.group_by("method", "task", maintain_order=True).agg(
            pl.col("relative_update_norm", "rank1_norm_share", "avg").mean()
        )

    @cached_property
    def lines(self) -> pl.DataFrame:
        """`linearity.means` over seeds."""
        measures = [*NUMBERS, *SHARES, "step_r2", "step_q2", "embedding_shift"]
        return means(with_settings(self.linearity, self.rows), measures)

    @cached_property
    def comparisons(self) -> pl.DataFrame:
        """Columns `questions.COMPARISONS`."""
        return answers(self.models)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """The word for each claim of each group and fraction."""
        return verdicts(self.comparisons)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""
        yield "What holds", self.verdicts
        yield "Accuracy", self.scores.filter(measure="accuracy").drop("measure")
        yield "Relative accuracy and share of the gain", self.shares

    def blocks(self) -> Mapping[str, str]:
        """Markdown by the name of the block that it stands in."""
        return blocks(self)

    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""
        return "\n\n".join(self.blocks().values()) + "\n"

    def told(self) -> dict[str, Any]:
        """What `offaxis lab predict --json` prints."""
        names = ("scores", "shares", "comparisons", "verdicts")
        return {"schema": 1, "runs": self.models["run"].n_unique()} | {
            name: getattr(self, name).fill_nan(None).to_dicts() for name in names
        }

    def draw(self, out: Path) -> None:
        """Write the figure into a directory."""
        from offaxis.lab.plots import save_figure
        from offaxis.lab.predict.figures import accuracy_by_fraction

        save_figure(accuracy_by_fraction(self), out / "fractions.svg")
