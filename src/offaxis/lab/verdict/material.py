"""Both studies' runs, what each set of features scores them, and who contends with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.verdict.linear import Rule, left_out, probability, rule_on
from offaxis.lab.verdict.rows import CELL, FOLD, checkpoints, ends
from offaxis.lab.verdict.rule import SETS
from offaxis.lab.verdict.scoring import DRAWS, Contest

__all__ = ["SETTINGS_SET", "SOURCES", "Material", "Source"]

Floats = npt.NDArray[np.float64]
Source = Literal["training", "test", "both"]

SOURCES: Mapping[Source, str] = {
    "training": "first study, each task and rate left out",
    "test": "test runs",
    "both": "all runs, each task, rate, optimizer and store left out",
}
"""Which runs, and by which rule they are scored: the test runs by the one fitted to the first
study, all others by rules fitted to the rest."""

SETTINGS_SET = "settings"
"""The name of the rule on all features and the run's settings. It is scored on `both` alone: rate,
optimizer and steps vary too little in the first study."""

_BLOCK = tuple(dict.fromkeys((*FOLD, *CELL)))


@dataclass
class Material:
    """What every table of the study is made from. All scores are logits, one a labelled run."""

    training: pl.DataFrame
    """Checkpoints of the first study (`rows.checkpoints`)."""
    test: pl.DataFrame
    draws: int = DRAWS
    _scores: dict[tuple[Source, str], Floats] = field(default_factory=dict)
    _contests: dict[tuple[object, ...], Contest] = field(default_factory=dict)

    @staticmethod
    def of(training: pl.DataFrame, test: pl.DataFrame, *, draws: int = DRAWS) -> Material:
        """From rows of both queues. InputError where either lacks RL or fine-tuning, or where they
        do not start from one base."""
        found = Material(checkpoints(training), checkpoints(test), draws)
        for name, points in (("training", found.training), ("test", found.test)):
            kinds = ends(points)["rl"]
            if kinds.sum() < 2 or (~kinds).sum() < 2:
                raise InputError(
                    f"{name} rows: {kinds.sum()} finished runs of RL and {(~kinds).sum()} of "
                    "fine-tuning; at least two of each are needed"
                )
        bases = {*found.training["base"].to_list(), *found.test["base"].to_list()}
        if len(bases) > 1:
            names = ", ".join(sorted(map(str, bases)))
            raise InputError(
                f"rows from the bases {names}: the rule is for one; leave out the rest"
            )
        return found

    @cached_property
    def runs(self) -> Mapping[Source, pl.DataFrame]:
        """The labelled runs at their last steps."""
        training, test = ends(self.training), ends(self.test)
        return {
            "training": training,
            "test": test,
            "both": pl.concat([training, test], how="diagonal"),
        }

    @cached_property
    def rules(self) -> Mapping[str, Rule]:
        """The rules that are tested, by set: fitted to the first study."""
        return {name: rule_on(self.runs["training"], names) for name, names in SETS.items()}

    def score(self, source: Source, name: str) -> Floats:
        """Logits of `runs[source]` by the rule of a set."""
        key = (source, name)
        if key not in self._scores:
            points = self.runs[source]
            if name == SETTINGS_SET:
                self._scores[key] = left_out(points, SETS["all"], settings=True)
            elif source == "test":
                self._scores[key] = self.rules[name].logit(points)
            else:
                self._scores[key] = left_out(points, SETS[name])
        return self._scores[key]

    def p(self, source: Source, name: str) -> Floats:
        """P(on-policy RL)."""
        return probability(self.score(source, name))

    def rl(self, source: Source) -> npt.NDArray[np.bool_]:
        return self.runs[source]["rl"].to_numpy().astype(bool)

    def contest(
        self,
        source: Source,
        *,
        matched: bool = False,
        alike: Sequence[str] = (),
        blocks: bool = False,
    ) -> Contest:
        """Over all runs of a source. blocks: whole settings are resampled."""
        key = (source, matched, tuple(alike), blocks)
        if key not in self._contests:
            self._contests[key] = Contest(
                self.runs[source],
                matched=matched,
                alike=alike,
                units=_BLOCK if blocks else ("run",),
                draws=self.draws,
            )
        return self._contests[key]
