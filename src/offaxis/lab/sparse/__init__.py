"""The sparse study: which entries to train, from a queue's rows; tables, answers and figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.blocks import refreshed
from offaxis.lab.queue import read_rows
from offaxis.lab.sparse.curve import leaves
from offaxis.lab.sparse.naming import label
from offaxis.lab.sparse.questions import QUESTIONS, answers, verdicts
from offaxis.lab.sparse.recovery import agreements, recovered, recovery
from offaxis.lab.sparse.sensitivity import by_rate, changes, ranking
from offaxis.lab.sparse.summary import MEASURES, Runs, kinds, summarise
from offaxis.lab.sparse.words import blocks, markdown
from offaxis.output import staged_directory, staged_file

__all__ = ["SparseStudy"]

_TABLES = ("summary", "comparisons", "by_rate", "agreements", "recovery", "changes", "leaves")


@dataclass(frozen=True)
class SparseStudy:
    """A queue's rows; everything else follows from them. Runs may still be missing."""

    rows: pl.DataFrame

    @staticmethod
    def read(source: str | Path) -> SparseStudy:
        """From a queue's directory, a directory that `save` wrote, or a table of rows.

        Raises InputError where it is none of them, or holds no base or no trained run.
        """
        path = Path(source)
        saved = path / "runs.parquet"
        study = SparseStudy(read_rows(saved if saved.is_file() else path))
        study.runs.points  # noqa: B018 (what cannot be read is refused here)
        return study

    @cached_property
    def runs(self) -> Runs:
        """The rows by what each run is for."""
        return Runs(self.rows)

    @cached_property
    def summary(self) -> pl.DataFrame:
        """Means over test seeds: columns `summary.SUMMARY`."""
        return summarise(self.runs)

    @cached_property
    def comparisons(self) -> pl.DataFrame:
        """Masks against their controls: columns `questions.COMPARISONS`."""
        return answers(self.runs)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """The word for each claim at each kind of rate."""
        return verdicts(self.comparisons)

    @cached_property
    def by_rate(self) -> pl.DataFrame:
        """Accuracy by rate on the selection seed: columns `sensitivity.BY_RATE`."""
        return by_rate(self.runs)

    @cached_property
    def agreements(self) -> pl.DataFrame:
        """Subnetworks against full runs: columns `recovery.AGREEMENT`."""
        return agreements(self.runs)

    @cached_property
    def recovery(self) -> pl.DataFrame:
        """The comparisons behind "recovers"."""
        return recovery(self.runs)

    @cached_property
    def recovered(self) -> pl.DataFrame:
        """The word for each level of "recovers"."""
        return recovered(self.recovery)

    @cached_property
    def changes(self) -> pl.DataFrame:
        """Pairs of masks at both kinds of rate: columns `sensitivity.CHANGES`."""
        return changes(self.runs)

    @cached_property
    def ranking(self) -> list[dict[str, Any]]:
        """By method: does the choice of the rate change how masks compare?"""
        return ranking(self.runs, self.changes)

    @cached_property
    def leaves(self) -> pl.DataFrame:
        """Masks off the common curve: columns `curve.LEAVES`."""
        return leaves(self.runs)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""
        names = pl.col("mask").map_elements(label, return_dtype=pl.String)
        for method in self.runs.methods:
            for rates in kinds(method):
                own = self.summary.filter(method=method, rates=rates)
                keys = ["mask", "density", "learning_rate"]
                wide = own.with_columns(names).pivot(on="measure", index=keys, values="value")
                shown = [one for one in MEASURES if one in wide.columns]
                if wide.height:
                    yield f"{method}, {rates} rate", wide.select(*keys, *shown)
        titles = {one.name: one.title for one in QUESTIONS}
        for name, title in titles.items():
            yield title, self.verdicts.filter(question=name).select("claim", "rates", "word")
        yield "Re-training subnetworks", self.agreements
        yield "Does the subnetwork recover the full run?", self.recovered
        yield "Does the choice of the rate change how masks compare?", pl.DataFrame(self.ranking)

    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""
        return markdown(self)

    def told(self) -> dict[str, Any]:
        """What `offaxis lab sparse --json` prints."""
        return {
            "schema": 1,
            "runs": self.rows.height,
            "measures": dict(MEASURES),
            "verdicts": self.verdicts.to_dicts(),
            "recovered": self.recovered.to_dicts(),
            "ranking": self.ranking,
            **{name: getattr(self, name).to_dicts() for name in _TABLES},
        }

    def refresh(self, path: str | Path) -> None:
        """Make the marked blocks of a Markdown file new (`blocks.refreshed`).

        InputError where there is no such file, or where it asks for a block that is not known.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as a text file: {error}") from error
        new = refreshed(text, blocks(self), where=str(file))
        with staged_file(file) as staged:
            staged.write_text(new, encoding="utf-8")

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write rows, tables and figures; the directory can be read again.

        `runs.parquet`, a Parquet file a table, `sparse.md` and figures. Raises OutputError where
        it is not empty (unless `overwrite`).
        """
        from offaxis.lab.plots import save_figure
        from offaxis.lab.sparse.figures import figures

        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            self.rows.write_parquet(staged / "runs.parquet", compression="zstd")
            for name in _TABLES:
                getattr(self, name).write_parquet(staged / f"{name}.parquet", compression="zstd")
            (staged / "sparse.md").write_text(self.markdown(), encoding="utf-8")
            for name, figure in figures(self):
                save_figure(figure, staged / name)
        return out
