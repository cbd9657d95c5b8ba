"""How much the learning rate decides: accuracy by rate, what is lost beside the best, collapses.

All from the selection runs: DAPO, three seeds, the rates that the rule of `planning` tried. A run
has *collapsed* where its accuracy at the last step lies below the lower end of the base's 95 %
interval over problems: it knows less than before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.claims import Word
from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.paired import spread
from offaxis.lab.peft.naming import FULL, LORA, ordered
from offaxis.lab.peft.planning import SELECTION_SEEDS
from offaxis.lab.peft.summary import RATES, Runs

__all__ = ["BY_RATE", "COLLAPSES", "RATIO", "SENSITIVITY", "by_rate", "collapses",
           "rate_ratio", "sensitivity"]  # fmt: skip

BY_RATE: dict[str, Any] = {
    "adapter": pl.String(),
    "learning_rate": pl.Float64(),
    **dict.fromkeys(("accuracy", "low", "high", "kl_tuned_base"), pl.Float64()),
    **dict.fromkeys(("seeds", "collapsed"), pl.Int64()),
    **dict.fromkeys(("chosen", "open"), pl.Boolean()),
}
"""Columns of `by_rate`. accuracy: mean over the selection seeds with Student's t interval; chosen:
the rate by the rule; open: it is at an end of those tried, so that the rule goes on."""

SENSITIVITY: dict[str, Any] = {
    "adapter": pl.String(),
    **dict.fromkeys(("best", "accuracy", "below", "above"), pl.Float64()),
}
"""Columns of `sensitivity`. best: the chosen rate; below, above: accuracy minus the best half a
decade down and up, each a little too low, for the best was chosen as the highest."""

COLLAPSES: dict[str, Any] = {
    "adapter": pl.String(),
    **dict.fromkeys(
        ("runs", "collapsed", "common_runs", "common_collapsed", "own_runs", "own_collapsed",
         "shared_runs", "shared_collapsed"), pl.Int64(),
    ),
    **dict.fromkeys(("first", "first_over_best"), pl.Float64()),
}  # fmt: skip
"""Columns of `collapses`: runs and those of them that collapsed, over all selection runs; over
those at the rates that every adapter was tried at; over the test runs at the own and at the shared
rate. first: the lowest rate at which a selection run collapsed; first_over_best: over the own rate,
which tells how far an adapter may be off, where counts tell where its best rate lies."""

RATIO: dict[str, Any] = {
    **dict.fromkeys(("lora", "full", "ratio", "low", "high", "near_ten"), pl.Float64()),
    "word": pl.String(),
}
"""Columns of `rate_ratio`. ratio: LoRA's rate over full's, with the 95 % range of its draws;
near_ten: the share of draws from 3 to 33."""


def _selected(runs: Runs) -> pl.DataFrame:
    return runs.points.filter("last", stage="selection")


def _floor(runs: Runs) -> float:
    """The accuracy below which a run has collapsed."""
    low = runs.base.get("avg_low")
    return float(runs.base["avg"] if low is None else low)


def by_rate(runs: Runs) -> pl.DataFrame:
    """Accuracy at the last step of the selection runs, with the columns `BY_RATE`."""
    found = []
    last, floor = _selected(runs), _floor(runs)
    for adapter in runs.adapters:
        own = last.filter(adapter=adapter)
        for (rate,), at in sorted(own.partition_by("learning_rate", as_dict=True).items()):
            value, low, high = over_seeds(at["accuracy"].to_list())
            chosen = runs.rates.get(adapter) == rate
            found.append(
                {"adapter": adapter, "learning_rate": rate, "seeds": at.height}
                | {"accuracy": value, "low": low, "high": high}
                | {"kl_tuned_base": at["kl_tuned_base"].mean()}
                | {"collapsed": at.filter(pl.col("accuracy") < floor).height}
                | {"chosen": chosen, "open": chosen and adapter in runs.open_rates}
            )
    return pl.DataFrame(found, schema=BY_RATE)


def sensitivity(table: pl.DataFrame) -> pl.DataFrame:
    """What a rate beside the best one costs, from `by_rate`, with the columns `SENSITIVITY`.

    Of rates that all selection seeds have. Adapters without a rate are left out.
    """
    found = []
    for adapter in ordered(table["adapter"]):
        whole = pl.col("seeds") == len(SELECTION_SEEDS)
        own = table.filter(whole, adapter=adapter).sort("learning_rate")
        rates, level = own["learning_rate"].to_list(), own["accuracy"].to_list()
        if not any(own["chosen"]):
            continue
        at = own["chosen"].to_list().index(True)
        found.append(
            {
                "adapter": adapter,
                "best": rates[at],
                "accuracy": level[at],
                "below": level[at - 1] - level[at] if at else None,
                "above": level[at + 1] - level[at] if at + 1 < len(level) else None,
            }
        )
    return pl.DataFrame(found, schema=SENSITIVITY)


def collapses(runs: Runs) -> pl.DataFrame:
    """How often runs collapse, with the columns `COLLAPSES`."""
    last, floor = _selected(runs), _floor(runs)
    tried = [set(last.filter(adapter=one)["learning_rate"]) for one in runs.adapters]
    common = set.intersection(*tried) if tried else set()
    found = []
    for adapter in runs.adapters:
        own = last.filter(adapter=adapter)
        row: dict[str, Any] = {"adapter": adapter}
        parts = {"": own, "common_": own.filter(pl.col("learning_rate").is_in(common))}
        for rates in RATES:
            runs_at = runs.tested(adapter, runs.rate(adapter, rates))
            parts[f"{rates}_"] = runs_at.filter("last")
        for name, part in parts.items():
            row[f"{name}runs"] = part.height
            row[f"{name}collapsed"] = part.filter(pl.col("accuracy") < floor).height
        fallen = own.filter(pl.col("accuracy") < floor)["learning_rate"].to_list()
        first, best = min(fallen, default=None), runs.rates.get(adapter)
        row["first"] = first
        row["first_over_best"] = first / best if first is not None and best else None
        found.append(row)
    return pl.DataFrame(found, schema=COLLAPSES)


def rate_ratio(runs: Runs, *, draws: int = 4000, seed: int = 0) -> pl.DataFrame:
    """Is LoRA's best rate about ten times full fine-tuning's? One row, or none; columns `RATIO`.

    Each rate's mean over the selection seeds is drawn anew, Student's t by the moderated variance
    of its runs, and the rule applied to the draws. word, of "about ten times": holds where 95 % of
    the draws lie from 3 to 33 (half a decade about ten), does not where 5 % of them or fewer do.
    """
    empty = pl.DataFrame([], schema=RATIO)
    if not {LORA, FULL} <= runs.rates.keys():
        return empty
    rng = np.random.default_rng(seed)
    drawn = {}
    for adapter in (LORA, FULL):
        best = _best_rates(runs, adapter, draws, rng)
        if best is None:
            return empty
        drawn[adapter] = best
    ratios = drawn[LORA] / drawn[FULL]
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    near = float(((ratios > 2.9) & (ratios < 34)).mean())
    word: Word = "holds" if near >= 0.95 else "does not" if near <= 0.05 else "cannot tell"
    lora, full = runs.rates[LORA], runs.rates[FULL]
    row = {"lora": lora, "full": full, "ratio": lora / full, "low": float(low)}
    return pl.DataFrame([row | {"high": float(high), "near_ten": near, "word": word}], schema=RATIO)


def _best_rates(
    runs: Runs, adapter: str, draws: int, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """(draws,): the rate that the rule would choose."""
    table: dict[str, dict[int, float]] = {}
    own = _selected(runs).filter(adapter=adapter).sort("learning_rate")
    for rate, run_seed, value in own.select("learning_rate", "seed", "accuracy").iter_rows():
        table.setdefault(f"{rate!r}", {})[run_seed] = value
    table = {rate: row for rate, row in table.items() if len(row) == len(SELECTION_SEEDS)}
    pooled = spread(table)
    if pooled is None:
        return None
    rates = np.array([float(rate) for rate in table])
    level = np.empty((draws, len(rates)))
    for place, (rate, row) in enumerate(table.items()):
        variance, degrees = pooled.of(rate)
        noise = rng.standard_t(min(degrees, 1e6), draws) * math.sqrt(variance / len(row))
        level[:, place] = float(np.mean(list(row.values()))) + noise
    found: np.ndarray[Any, np.dtype[np.float64]] = rates[level.argmax(axis=1)]
    return found
