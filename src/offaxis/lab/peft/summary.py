"""The study's runs by algorithm, adapter and kind of rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.claims import Measured
from offaxis.lab.peft.naming import LORA, canonical, ordered
from offaxis.lab.peft.planning import (
    ALGORITHMS,
    METHOD,
    PROMPTS,
    SELECTION_SEEDS,
    STEPS,
    TEST_SEEDS,
    chosen_rates,
    further_rates,
)
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.queue.rows import by_checkpoint

__all__ = ["MEASURES", "RATES", "Rates", "Runs", "last_values", "means"]

Rates = Literal["own", "shared"]
RATES: tuple[Rates, ...] = ("own", "shared")
"""Each adapter at the rate that was chosen for it; all at the rate that was chosen for LoRA."""

MEASURES: Mapping[str, str] = {
    "accuracy": "accuracy, avg@k on held-out problems",
    "gain": "accuracy minus the base's",
    "kl_tuned_base": "KL(tuned ‖ base) at the end, nats a completion",
    "kl_base_tuned": "KL(base ‖ tuned) at the end, nats a completion",
    "reward": "share of right training samples after the last but one saved step",
    "mixture_rise": "rise of the loss on the pretraining mixture, nats a token",
    "relative_update_norm": "‖ΔW‖/‖W₀‖, all parameters together",
    "trainable": "parameters that are trained",
    "train_cpu_seconds": "CPU seconds of the training steps",
}
"""What is told of each adapter, at the last step of its runs."""

_SETTINGS = ("task", "difficulty", "completions_per_prompt", "problems", "samples")
_EXAM = ("task", "difficulty", "problems", "samples")
_KEYS = ("method", "adapter", "learning_rate", "seed", "prompts_per_step")


@dataclass(frozen=True)
class Runs:
    """A queue's rows, sorted into what each run is for. Rows may still be missing."""

    rows: pl.DataFrame

    @cached_property
    def trained(self) -> pl.DataFrame:
        """The study's rows among all. InputError where there are none, or they fit no one table."""
        rows = self.rows
        if "adapter" not in rows.columns:
            rows = rows.clear().with_columns(adapter=pl.lit(None, dtype=pl.String))
        known = rows.filter(
            pl.col("adapter").fill_null("") != "",
            pl.col("method").is_in(ALGORITHMS),
            pl.col("steps") == STEPS,
            pl.col("seed").is_in([*SELECTION_SEEDS, *TEST_SEEDS]),
        )
        if known.is_empty():
            raise InputError(
                "no row yet of a run on an adapter: `offaxis lab queue peft` makes them, and "
                "`offaxis lab status` tells how far the queue is"
            )
        found = known.with_columns(
            pl.col("adapter").map_elements(canonical, return_dtype=pl.String)
        )
        _one_table(found)
        return found

    @cached_property
    def base(self) -> Mapping[str, Any]:
        """The base's scores on the study's exam. InputError where its row is missing."""
        first = self.trained.row(0, named=True)
        same = [pl.col(name) == first[name] for name in _EXAM]
        found = self.rows.filter(pl.col("method") == BASE_METHOD, *same)
        if found.is_empty():
            raise InputError(
                "no row yet of the base: the grid needs a run of method base, and `offaxis lab "
                "status` tells how far the queue is"
            )
        told: Mapping[str, Any] = by_checkpoint(found).row(0, named=True)
        return told

    @cached_property
    def points(self) -> pl.DataFrame:
        """Every checkpoint of the study's runs, with `accuracy`, `gain`, `mixture_rise`, `last`.

        `stage`: selection (of rates) or test, by the seed.
        """
        table = by_checkpoint(self.trained)
        chooses = pl.col("seed").is_in(SELECTION_SEEDS)
        return table.with_columns(
            pl.when(chooses).then(pl.lit("selection")).otherwise(pl.lit("test")).alias("stage"),
            pl.col("avg").alias("accuracy"),
            (pl.col("avg") - self.base["avg"]).alias("gain"),
            (pl.col("mixture_loss") - self.base["mixture_loss"]).alias("mixture_rise"),
            (pl.col("step") == pl.col("step").max().over("run")).alias("last"),
        ).sort(*_KEYS, "step")

    @cached_property
    def rates(self) -> Mapping[str, float]:
        """Adapter -> its rate, by the rule of `planning`, from the selection runs so far."""
        return chosen_rates(self.rows)

    @cached_property
    def open_rates(self) -> Mapping[str, float]:
        """Adapter -> the rate that the rule would try next: its rate may still change."""
        return further_rates(self.rows)

    @cached_property
    def adapters(self) -> list[str]:
        """Those of which rates are chosen, in order."""
        return ordered(self.points.filter(stage="selection")["adapter"])

    def rate(self, adapter: str, rates: Rates) -> float | None:
        """The learning rate, None where it is not known yet."""
        return self.rates.get(adapter if rates == "own" else LORA)

    def tested(
        self,
        adapter: str,
        rate: float | None,
        *,
        method: str = METHOD,
        prompts: int = PROMPTS,
    ) -> pl.DataFrame:
        """All checkpoints of an adapter's test runs at a rate."""
        return self._cells.get((method, adapter, rate, prompts), self.points.clear())

    @cached_property
    def _cells(self) -> Mapping[tuple[Any, ...], pl.DataFrame]:
        keys = ("method", "adapter", "learning_rate", "prompts_per_step")
        return self.points.filter(stage="test").partition_by(*keys, as_dict=True)

    def measured(self, rates: Rates, measure: str, *, method: str = METHOD) -> Measured:
        """A measure at the last step of every adapter's test runs: adapters that have any."""
        found = {}
        for adapter in self.adapters:
            own = self.tested(adapter, self.rate(adapter, rates), method=method)
            seeds = last_values(own, measure)
            if seeds:
                found[adapter] = seeds
        return found


def _one_table(trained: pl.DataFrame) -> None:
    for name in _SETTINGS:
        told = trained[name].unique().sort().to_list()
        if len(told) > 1:
            raise InputError(
                f"the runs on adapters differ in {name} ({', '.join(map(str, told))}), and a table "
                "of adapters needs one setting: make a queue of one"
            )
    same = trained.group_by(*_KEYS).len().filter(pl.col("len") > 1).sort(*_KEYS)
    for method, adapter, rate, seed, *_ in same.iter_rows():
        raise InputError(
            f"two runs share method {method}, adapter {adapter}, learning rate {rate:g} and seed "
            f"{seed}, and differ in something that the tables do not show: make a queue of one "
            "setting"
        )


def last_values(own: pl.DataFrame, measure: str) -> dict[int, npt.NDArray[np.float64]]:
    """Seed -> a measure at the last step; of accuracy the share of right samples by problem."""
    found = {}
    names = ("seed", "samples", "last", measure, "right")
    for seed, samples, last, value, right in own.select(names).iter_rows():
        if last and measure == "accuracy" and right is not None:
            found[seed] = np.array(right) / samples
        elif last and value is not None:
            found[seed] = np.array([value], dtype=np.float64)
    return found


def means(table: Measured) -> dict[str, dict[int, float]]:
    """Arm -> seed -> the mean over problems."""
    return {
        arm: {seed: float(one.mean()) for seed, one in row.items()} for arm, row in table.items()
    }
