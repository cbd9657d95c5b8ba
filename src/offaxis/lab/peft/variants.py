"""What else was varied: the rank of three adapters, the batch of two, at the rate of rank 8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.peft.naming import RANK, with_rank
from offaxis.lab.peft.planning import BATCH_ADAPTERS, BATCHES, PROMPTS, RANKED, RANKS
from offaxis.lab.peft.summary import Runs, last_values

__all__ = ["VARIANTS", "variants"]

VARIANTS: dict[str, Any] = {
    "study": pl.String(),
    "adapter": pl.String(),
    "setting": pl.Int64(),
    "learning_rate": pl.Float64(),
    **dict.fromkeys(("accuracy", "low", "high", "kl_tuned_base", "trainable"), pl.Float64()),
    "seeds": pl.Int64(),
}
"""Columns of `variants`. study: `rank` or `batch`; adapter: as at rank 8; setting: its rank, or the
problems of a step; accuracy: with Student's t interval over test seeds, 95 %. A setting without
runs has no row."""


def variants(runs: Runs) -> pl.DataFrame:
    """Accuracy and KL of every rank and every batch, with the columns `VARIANTS`."""
    return pl.DataFrame(list(_rows(runs)), schema=VARIANTS)


def _rows(runs: Runs) -> Iterator[dict[str, Any]]:
    for adapter in RANKED:
        for rank in sorted({RANK, *RANKS}):
            text = adapter if rank == RANK else with_rank(adapter, rank)
            own = runs.tested(text, runs.rates.get(adapter))
            yield from _row("rank", adapter, rank, own)
    for adapter in BATCH_ADAPTERS:
        for prompts in sorted({PROMPTS, *BATCHES}):
            own = runs.tested(adapter, runs.rates.get(adapter), prompts=prompts)
            yield from _row("batch", adapter, prompts, own)


def _row(study: str, adapter: str, setting: int, own: pl.DataFrame) -> Iterator[dict[str, Any]]:
    values = [float(one.mean()) for one in last_values(own, "accuracy").values()]
    if not values:
        return
    value, low, high = over_seeds(values)
    last = own.filter("last")
    yield {
        "study": study,
        "adapter": adapter,
        "setting": setting,
        "learning_rate": last["learning_rate"][0],
        "accuracy": value,
        "low": low,
        "high": high,
        "kl_tuned_base": last["kl_tuned_base"].mean(),
        "trainable": last["trainable"].mean(),
        "seeds": len(values),
    }
