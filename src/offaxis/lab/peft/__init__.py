"""The comparison of adapters, from a queue's rows; tables, answers and figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.lab.naming import NAMES
from offaxis.lab.peft.naming import label
from offaxis.lab.peft.questions import QUESTIONS, answers, verdicts
from offaxis.lab.peft.ranking import agreement, power, ranking
from offaxis.lab.peft.sensitivity import by_rate, collapses, rate_ratio, sensitivity
from offaxis.lab.peft.summary import RATES, Runs
from offaxis.lab.peft.variants import variants
from offaxis.lab.peft.words import blocks, markdown
from offaxis.lab.saved import SavedStudy

__all__ = ["PeftStudy"]

_SHOWN = (
    "place", "adapter", "learning_rate", "seeds", "accuracy", "difference", "p_holm",
    "kl_tuned_base", "trainable",
)  # fmt: skip


_COSTS = "costs.json"
"""Beside saved rows: what `benchmarks/adapters.py --json` wrote."""


@dataclass(frozen=True)
class PeftStudy(SavedStudy):
    """A queue's rows; everything else follows from them. Runs may still be missing."""

    benchmark: Path | None = None
    """Figures of `benchmarks/adapters.py`, shown beside the costs."""

    name = "peft"
    saved = (
        "ranking", "comparisons", "by_rate", "sensitivity", "collapses", "rate_ratio", "agreement",
        "variants", "power",
    )  # fmt: skip

    @classmethod
    def read(cls, source: str | Path) -> PeftStudy:
        """As every study; of a saved one with the benchmark's `costs.json`, where it lies there."""
        found = super().read(source)
        beside = Path(source) / _COSTS
        return replace(found, benchmark=beside) if beside.is_file() else found

    def check(self) -> None:
        """InputError where there is no base or no run on an adapter."""
        self.runs.points  # noqa: B018 (what cannot be read is refused here)

    @cached_property
    def runs(self) -> Runs:
        """The rows by what each run is for."""
        return Runs(self.rows)

    @cached_property
    def ranking(self) -> pl.DataFrame:
        """Adapters side by side, the best first: columns `ranking.RANKING`."""
        return ranking(self.runs)

    @cached_property
    def comparisons(self) -> pl.DataFrame:
        """Adapters against one another: columns `questions.COMPARISONS`."""
        return answers(self.runs)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """The word for each claim at each kind of rate."""
        return verdicts(self.comparisons)

    @cached_property
    def by_rate(self) -> pl.DataFrame:
        """Accuracy by rate on the selection seeds: columns `sensitivity.BY_RATE`."""
        return by_rate(self.runs)

    @cached_property
    def sensitivity(self) -> pl.DataFrame:
        """What a rate beside the best costs: columns `sensitivity.SENSITIVITY`."""
        return sensitivity(self.by_rate)

    @cached_property
    def collapses(self) -> pl.DataFrame:
        """How often runs collapse: columns `sensitivity.COLLAPSES`."""
        return collapses(self.runs)

    @cached_property
    def rate_ratio(self) -> pl.DataFrame:
        """LoRA's best rate over full fine-tuning's: columns `sensitivity.RATIO`."""
        return rate_ratio(self.runs)

    @cached_property
    def agreement(self) -> pl.DataFrame:
        """The ranking under one algorithm against another: columns `ranking.AGREEMENT`."""
        return agreement(self.runs)

    @cached_property
    def variants(self) -> pl.DataFrame:
        """Ranks and batch sizes: columns `variants.VARIANTS`."""
        return variants(self.runs)

    @cached_property
    def power(self) -> pl.DataFrame:
        """What the test seeds could have told: columns `ranking.POWER`."""
        return power(self.runs)

    @cached_property
    def others(self) -> dict[str, str]:
        """The Markdown blocks of geometry and costs."""
        from offaxis.lab.peft.costs import costs
        from offaxis.lab.peft.costs import markdown as costs_markdown
        from offaxis.lab.peft.geometry import blocks as geometry_blocks

        return geometry_blocks(self.rows) | {
            "costs": costs_markdown(costs(self.rows, benchmark=self.benchmark))
        }

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""
        names = pl.col("adapter").map_elements(label, return_dtype=pl.String)
        for method in self.ranking["method"].unique(maintain_order=True):
            for rates in RATES:
                own = self.ranking.filter(method=method, rates=rates).with_columns(names)
                if own.height:
                    shown = own.rename({"rank": "place"}).select(_SHOWN)
                    yield f"{NAMES[method]}, {rates} rate", shown
        for question in QUESTIONS:
            own = self.verdicts.filter(question=question.name)
            yield question.title, own.select("claim", "rates", "word")
        yield "What the rate costs", self.sensitivity.with_columns(names)
        yield "Is the ranking the same under another algorithm?", self.agreement

    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""
        return markdown(self)

    def told(self) -> dict[str, Any]:
        """What `offaxis lab peft --json` prints."""
        return {
            "schema": 1,
            "runs": self.runs.trained.height,
            "verdicts": self.verdicts.to_dicts(),
            **{name: getattr(self, name).to_dicts() for name in self.saved},
        }

    def blocks(self) -> dict[str, str]:
        """Markdown by the name of the block that it stands in."""
        return blocks(self)

    def draw(self, out: Path) -> None:
        """Write the figures into a directory."""
        from offaxis.lab.peft.figures import write_figures

        write_figures(self, out)
