"""Do weights alone tell on-policy RL from fine-tuning? The rule, fixed before it is tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl

from offaxis.lab.queue import read_rows
from offaxis.lab.saved import SavedStudy
from offaxis.lab.verdict import looking, measuring, survival
from offaxis.lab.verdict.material import SETTINGS_SET, Material
from offaxis.lab.verdict.rule import FEATURES, LABELS, SETS, features, fitted
from offaxis.lab.verdict.scoring import DRAWS

__all__ = ["FEATURES", "LABELS", "SETS", "VerdictStudy", "features", "fitted"]


@dataclass(frozen=True)
class VerdictStudy(SavedStudy):
    """The test runs' rows, and those that the rule is fitted to; everything else follows."""

    training: pl.DataFrame = field(default_factory=pl.DataFrame)
    draws: int = DRAWS
    """Of every bootstrap."""

    name = "verdict"
    saved = (
        "areas", "cells", "folds", "reliability", "risks", "carried", "steps", "methods",
        "confounds", "gains", "survived",
    )  # fmt: skip

    @classmethod
    def read(
        cls, source: str | Path, *, training: str | Path = "", draws: int = DRAWS
    ) -> Self:  # fmt: skip
        """source: the test runs; training: those of the first study. Each as for every study.

        Raises InputError where either holds too few runs, or where they have several bases.
        """
        first, second = (_rows(Path(one)) for one in (training, source))
        study = cls(second, first, draws)
        study.check()
        return study

    def check(self) -> None:
        """InputError where either table lacks RL or fine-tuning."""
        self.material  # noqa: B018 (what cannot be used is refused here)

    @cached_property
    def material(self) -> Material:
        """Runs, scores and contests."""
        return Material.of(self.training, self.rows, draws=self.draws)

    @cached_property
    def areas(self) -> pl.DataFrame:
        """AUC by set of features, source of runs and kind of pairs."""
        return measuring.areas(self.material)

    @cached_property
    def bands(self) -> dict[str, float | None]:
        """Set -> the least confidence of a label."""
        return measuring.bands(self.material)

    @cached_property
    def cells(self) -> pl.DataFrame:
        """AUC, accuracy, calibration and labels in every cell of the test runs."""
        return pl.concat(
            [measuring.cells(self.material, name, least) for name, least in self.bands.items()],
            how="vertical_relaxed",
        )

    @cached_property
    def folds(self) -> pl.DataFrame:
        """AUC in every task, rate, optimizer and store, the least first."""
        return measuring.folds(self.material)

    @cached_property
    def reliability(self) -> pl.DataFrame:
        """Predicted and observed shares of RL."""
        return measuring.reliability(self.material)

    @cached_property
    def risks(self) -> pl.DataFrame:
        """Risk and coverage."""
        return measuring.risks(self.material)

    @cached_property
    def carried(self) -> pl.DataFrame:
        """Each feature alone, and all but it."""
        return looking.carried(self.material)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """AUC by step."""
        return looking.by_step(self.material)

    @cached_property
    def methods(self) -> pl.DataFrame:
        """What each method's test runs are called, by set."""
        return pl.concat(
            looking.by_method(self.material, self.bands[name], name).with_columns(set=pl.lit(name))
            for name in SETS
        )

    @cached_property
    def confounds(self) -> pl.DataFrame:
        """What else the features tell."""
        return looking.confounds(self.material)

    @cached_property
    def gains(self) -> pl.DataFrame:
        """What rate, steps and optimizer add to all features."""
        return looking.settings_gain(self.material)

    @cached_property
    def found(self) -> Mapping[str, survival.Found]:
        """By set, and for the rule on settings: what survival is judged by."""
        return {
            name: measuring.found(self.material, name, least, self.cells.filter(set=name))
            for name, least in self.bands.items()
        }

    @cached_property
    def survival(self) -> Mapping[str, survival.Survival]:
        """By set, and for the rule on settings: what survives."""
        return {name: survival.judged(one) for name, one in self.found.items()}

    @cached_property
    def survived(self) -> pl.DataFrame:
        """`survival` as a table: set, condition, met."""
        rows = [
            {"set": name, "condition": condition, "met": met}
            for name, one in self.survival.items()
            for condition, met in (*one.conditions, ("labels everywhere", one.everywhere))
        ]
        return pl.DataFrame(rows)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Sets by AUC in the first study, each task and rate left out, the highest first."""
        first = self.areas.filter(source="training", over="all pairs").sort(
            "value", descending=True
        )
        return tuple(first["set"])

    @cached_property
    def chosen(self) -> str | None:
        """The set that labels are given by, if any."""
        return survival.chosen(self.survival, self.order)

    @cached_property
    def settings_used(self) -> bool:
        """Does the rule on settings add, and survive?"""
        own = self.survival[SETTINGS_SET]
        return survival.adds(self.gains) and (own.everywhere or bool(own.cells))

    def write(self, path: str | Path) -> None:
        """The rule's file, which `compare` reads (`shipped`)."""
        from offaxis.lab.verdict.shipped import write

        write(self, path)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""
        yield "What survives", self.survived
        yield "AUC", self.areas
        shown = ("set", "cell", "rl", "tuned", "auc", "auc_low", "matched", "matched_low",
                 "right", "labelled", "wrong", "ece")  # fmt: skip
        yield "By cell", self.cells.select(shown)
        yield "By method", self.methods
        yield "What carries it", self.carried
        yield "How early", self.steps
        yield "What rate, steps and optimizer add", self.gains
        yield "What else the features tell", self.confounds

    def blocks(self) -> dict[str, str]:
        """Markdown by the name of the block that it stands in."""
        from offaxis.lab.verdict.words import blocks

        return blocks(self)

    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""
        return "\n\n".join(self.blocks().values()) + "\n"

    def told(self) -> dict[str, Any]:
        """What `offaxis lab verdict --json` prints."""
        return {
            "schema": 1,
            "fitted": self.material.runs["training"].height,
            "tested": self.material.runs["test"].height,
            "chosen": self.chosen,
            "bands": self.bands,
            **{name: getattr(self, name).to_dicts() for name in self.saved},
        }

    def draw(self, out: Path) -> None:
        """Write the figures into a directory."""
        from offaxis.lab.plots import save_figure
        from offaxis.lab.verdict.figures import figures

        for name, figure in figures(self):
            save_figure(figure, out / name)


def _rows(path: Path) -> pl.DataFrame:
    kept = path / "runs.parquet"
    return read_rows(kept if kept.is_file() else path)
