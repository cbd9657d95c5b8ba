"""What counts as surviving, and what may become a label. Written before a test run was made.

`rule` names three numbers: AUC over all test runs, AUC of pairs matched in task and norm, and AUC
by cell. A set of features *survives* where the lower ends of the first two lie above ½, and that of
no cell (optimizer, dtype, problems, steps) with at least `LEAST` runs of each kind lies below ½.
Ends are those of 95 % bootstrap intervals over runs.

A label needs a threshold that holds as well. The abstention band is set on the first study
(`calibration.threshold`); of the test runs that get a label, the upper end of the share of wrong
ones (Wilson, 95 %) must lie below ½, over all and in each such cell.

Where a set does not survive everywhere, it may in single cells: the AUC of all the cell's pairs and
of its matched pairs must have their lower ends above ½, and the share of wrong labels its upper end
below ½. Such a label needs to be told all four settings of the cell (`compare --run-info`). This
said optimizer and store, until the results showed the threshold to fail at other lengths.

Of several sets that survive, the one with the highest AUC in the first study, each task and rate
left out, is used.

The rule on settings as well (rate, steps, optimizer) *adds* where the gain in matched AUC over the
same features without them has its lower end above 0 and the gain in no pair of optimizer and store
its upper end below 0. It is used only where it adds and survives; its scores are left-out ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.lab.verdict.scoring import Interval

__all__ = ["LEAST", "CellFound", "Found", "Survival", "adds", "chosen", "judged"]

LEAST = 8
"""Runs of RL, and of fine-tuning, from which on a cell is judged."""


@dataclass(frozen=True)
class CellFound:
    """What was measured in one cell of the test runs."""

    cell: tuple[Any, ...]
    fewer: int
    """Runs of the kind that has fewer."""
    auc: Interval
    matched: Interval
    wrong: Interval
    """Share of wrong labels among the labels given."""


@dataclass(frozen=True)
class Found:
    """What was measured of one set of features on the test runs."""

    auc: Interval
    matched: Interval
    wrong: Interval
    cells: tuple[CellFound, ...]


@dataclass(frozen=True)
class Survival:
    """conditions: each in words, and whether it is met. cells: where it survives alone."""

    conditions: tuple[tuple[str, bool], ...]
    tells: bool
    """The first conditions, those on AUC, are all met."""
    everywhere: bool
    """All are: a label may be given whatever the settings."""
    cells: tuple[tuple[Any, ...], ...]


def above(one: Interval, bound: float = 0.5) -> bool:
    """The whole interval lies above; False for none."""
    return one.low is not None and one.low > bound


def _no_guess(wrong: Interval) -> bool:
    """Labels that are better than guesses, or none at all."""
    return wrong.high is None or wrong.high < 0.5


def judged(found: Found) -> Survival:
    """By the rule of the module's text."""
    large = [one for one in found.cells if one.fewer >= LEAST]
    below = [one for one in large if one.auc.low is None or one.auc.low < 0.5]
    guesses = [one for one in large if not _no_guess(one.wrong)]
    areas = (
        ("AUC over all test runs above ½", above(found.auc)),
        ("AUC at equal task and norm above ½", above(found.matched)),
        (f"AUC of no cell below ½ ({len(large) - len(below)} of {len(large)})", not below),
    )
    labels = (
        ("labels better than guesses", found.wrong.size > 0 and _no_guess(found.wrong)),
        (f"in every cell ({len(large) - len(guesses)} of {len(large)})", not guesses),
    )
    tells = bool(large) and all(met for _, met in areas)
    alone = tuple(
        one.cell
        for one in large
        if above(one.auc) and above(one.matched) and one.wrong.size and _no_guess(one.wrong)
    )
    everywhere = tells and all(met for _, met in labels)
    return Survival((*areas, *labels), tells, everywhere, alone)


def chosen(found: Mapping[str, Survival], order: Sequence[str]) -> str | None:
    """The set to use: the first in `order` that survives everywhere, or else in some cell."""
    for kept in (lambda one: one.everywhere, lambda one: bool(one.cells)):
        for name in order:
            if kept(found[name]):
                return name
    return None


def adds(gains: pl.DataFrame) -> bool:
    """Of `looking.settings_gain`."""
    matched = gains.filter(over="equal task and norm")["gain_low"].to_list()
    cells = gains.filter(~pl.col("over").is_in(["all pairs", "equal task and norm"]))
    worse = any(high is not None and high < 0 for high in cells["gain_high"])
    return matched[0] is not None and matched[0] > 0 and not worse
