"""The sparse study: which entries to train, from a queue's rows; tables, answers and figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.lab.saved import SavedStudy
from offaxis.lab.sparse.curve import leaves
from offaxis.lab.sparse.naming import label
from offaxis.lab.sparse.questions import QUESTIONS, answers, verdicts
from offaxis.lab.sparse.recovery import agreements, recovered, recovery
from offaxis.lab.sparse.sensitivity import by_rate, changes, ranking
from offaxis.lab.sparse.summary import MEASURES, Runs, kinds, summarise
from offaxis.lab.sparse.words import blocks, markdown

__all__ = ["SparseStudy"]


@dataclass(frozen=True)
class SparseStudy(SavedStudy):
    """A queue's rows; everything else follows from them. Runs may still be missing."""

    name = "sparse"
    saved = ("summary", "comparisons", "by_rate", "agreements", "recovery", "changes", "leaves")

    def check(self) -> None:
        """InputError where there is no base or no trained run."""
        self.runs.points  # noqa: B018 (what cannot be read is refused here)

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
            **{name: getattr(self, name).to_dicts() for name in self.saved},
        }

    def blocks(self) -> dict[str, str]:
        """Markdown by the name of the block that it stands in."""
        return blocks(self)

    def draw(self, out: Path) -> None:
        """Write the figures into a directory."""
        from offaxis.lab.plots import save_figure
        from offaxis.lab.sparse.figures import figures

        for name, figure in figures(self):
            save_figure(figure, out / name)
