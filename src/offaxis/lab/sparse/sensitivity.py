"""How much the learning rate decides: accuracy by rate, and whether it changes how masks compare.

The selection seed alone has every mask at the rate of `all` and at its own, so one run stands for
each; what a run varies by is taken from the test runs. A mask's own rate is its best of several, so
its accuracy there is flattered by chance, by about one standard deviation of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.claims import MARGINS, SIGNIFICANT
from offaxis.lab.paired import Difference, Spread, difference, holm, kendall, spread
from offaxis.lab.sparse.naming import ALL, ordered
from offaxis.lab.sparse.summary import Runs, last_values

__all__ = ["BY_RATE", "CHANGES", "by_rate", "changes", "ranking"]

BY_RATE: dict[str, Any] = {
    "method": pl.String(),
    "mask": pl.String(),
    "learning_rate": pl.Float64(),
    "accuracy": pl.Float64(),
    "kl_tuned_base": pl.Float64(),
    "chosen": pl.Boolean(),
    "open": pl.Boolean(),
}
"""Columns of `by_rate`. chosen: the rate by the rule; open: the best so far is at an end of those
tried, so that the rule goes on."""

CHANGES: dict[str, Any] = {
    "method": pl.String(),
    "mask": pl.String(),
    "against": pl.String(),
    "shared": pl.Float64(),
    "shared_p_holm": pl.Float64(),
    "own": pl.Float64(),
    "own_p_holm": pl.Float64(),
    "change": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "p_holm": pl.Float64(),
}
"""Columns of `changes`: the difference in accuracy of two masks at the rate of `all` and at each
one's own, and own minus shared with its 95 % interval; p corrected over the pairs of a method."""

Scores = npt.NDArray[np.float64]
_KINDS = ("shared", "own", "change")


def by_rate(runs: Runs) -> pl.DataFrame:
    """Accuracy at the last step of the selection runs, with the columns `BY_RATE`."""
    own = runs.points.filter("last", stage="selection")
    found = []
    for method in runs.methods:
        for mask in ordered(own.filter(method=method)["mask"]):
            key = (method, mask)
            for row in (
                own.filter(method=method, mask=mask).sort("learning_rate").iter_rows(named=True)
            ):
                told = {name: row[name] for name in BY_RATE if name in row}
                best = runs.rates[key] == row["learning_rate"]
                found.append(told | {"chosen": best, "open": best and key in runs.open_rates})
    return pl.DataFrame(found, schema=BY_RATE)


def _scores(runs: Runs, method: str) -> dict[str, dict[str, Scores]]:
    """Kind of rate -> mask -> (1, problems), of masks whose selection run is there at both."""
    found: dict[str, dict[str, Scores]] = {kind: {} for kind in _KINDS}
    own = runs.points.filter(stage="selection", method=method)
    for mask in ordered(own["mask"]):
        runs_of = own.filter(mask=mask)
        at: dict[str, Scores] = {}
        for kind, rate in (
            ("shared", runs.rates.get((method, ALL))),
            ("own", runs.rates[method, mask]),
        ):
            if rate is not None:
                told = last_values(runs_of.filter(learning_rate=rate), "accuracy")
                if told:
                    at[kind] = next(iter(told.values()))[None, :]
        if {"shared", "own"} <= at.keys():
            found["shared"][mask], found["own"][mask] = at["shared"], at["own"]
            found["change"][mask] = at["own"] - at["shared"]
    return found


def changes(runs: Runs, *, draws: int = 10_000) -> pl.DataFrame:
    """Every pair of masks at both kinds of rate on the selection seed, with columns `CHANGES`.

    Pairs of which neither has a rate of its own that differs are left out: nothing can change. No
    p and no interval before test runs tell what runs vary by.
    """
    found = []
    for method in runs.methods:
        table = runs.measured(method, "own", "accuracy")
        pooled = spread(
            {
                mask: {seed: float(one.mean()) for seed, one in seeds.items()}
                for mask, seeds in table.items()
            }
        )
        scores = _scores(runs, method)
        moved = {mask for mask, one in scores["change"].items() if one.any()}
        pairs = [pair for pair in combinations(scores["own"], 2) if set(pair) & moved]
        found += [{"method": method} | row for row in _pairs(scores, pairs, moved, pooled, draws)]
    return pl.DataFrame(found, schema=CHANGES)


def _pairs(
    scores: Mapping[str, Mapping[str, Scores]],
    pairs: list[tuple[str, str]],
    moved: set[str],
    pooled: Spread | None,
    draws: int,
) -> list[dict[str, Any]]:
    found: dict[str, list[Difference]] = {}
    for kind in _KINDS:
        table = scores[kind]
        found[kind] = [
            difference(
                table[first], table[second], least=1, draws=draws,
                pooled=_of_change(pooled, len({first, second} & moved))
                if kind == "change"
                else pooled,
            )
            for first, second in pairs
        ]  # fmt: skip
    adjusted = {kind: holm([one.p for one in found[kind]]) for kind in _KINDS}
    return [
        {
            "mask": first,
            "against": second,
            **{kind: found[kind][place].value for kind in _KINDS},
            "shared_p_holm": adjusted["shared"][place],
            "own_p_holm": adjusted["own"][place],
            "low": found["change"][place].low,
            "high": found["change"][place].high,
            "p_holm": adjusted["change"][place],
        }
        for place, (first, second) in enumerate(pairs)
    ]


def _of_change(pooled: Spread | None, moved: int) -> Spread | None:
    """Of own minus shared: two runs for each of the `moved` masks of a pair, none for the others.

    The runs of one seed at two rates count as independent, which is on the safe side.
    """
    return pooled and Spread(pooled.variance * moved, pooled.degrees)


def ranking(runs: Runs, pairs: pl.DataFrame) -> list[dict[str, Any]]:
    """By method: does the choice of the rate change how masks compare?

    tau: Kendall's rank correlation of accuracy at the two kinds of rate. pairs: that could change.
    ordered_shared, ordered_own: of them, in an order beyond doubt (Holm over pairs). changed: whose
    difference changes beyond doubt; reversed: in an order beyond doubt at both, and not the same.
    word, of "the choice of the rate changes how masks compare": holds where a pair changed; does
    not where every change's interval lies within ± the margin of accuracy.
    """
    found = []
    for method in runs.methods:
        own = pairs.filter(method=method)
        sure = {
            name: (pl.col(f"{name}_p_holm") < SIGNIFICANT).fill_null(value=False)
            for name in ("shared", "own")
        }
        opposite = pl.col("shared") * pl.col("own") < 0
        changed = own.filter(pl.col("p_holm") < SIGNIFICANT).height
        margin = MARGINS["accuracy"]
        level = own.filter(pl.col("low") >= -margin, pl.col("high") <= margin).height
        word = "holds" if changed else "cannot tell"
        if own.height and level == own.height:
            word = "does not"
        found.append(
            {
                "method": method,
                "tau": _tau(_scores(runs, method)),
                "pairs": own.height,
                "ordered_shared": own.filter(sure["shared"]).height,
                "ordered_own": own.filter(sure["own"]).height,
                "changed": changed,
                "reversed": own.filter(sure["shared"], sure["own"], opposite).height,
                "word": word,
            }
        )
    return found


def _tau(scores: Mapping[str, Mapping[str, Scores]]) -> float | None:
    """Kendall's tau-a of the masks' accuracies at the two kinds of rate."""
    means = [[float(one.mean()) for one in scores[kind].values()] for kind in ("shared", "own")]
    return float(kendall(*map(np.array, means))) if len(means[0]) > 1 else None
