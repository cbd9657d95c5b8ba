"""The geometry as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from offaxis.lab.blocks import SIGNS, decimal, markdown_table, mean_cell, places
from offaxis.lab.peft.geometry.claims import QUESTIONS, claims
from offaxis.lab.peft.geometry.equal import matched
from offaxis.lab.peft.geometry.series import (
    EITHER,
    ENERGIES,
    LOGARITHMIC,
    NORM,
    Rates,
    geometry,
    isotropic,
)
from offaxis.lab.peft.naming import FULL, LORA, label

__all__ = ["blocks", "markdown"]

_PLAIN = {
    NORM: "‖ΔW‖/‖W₀‖",
    "unchanged_bf16": "unchanged",
    "nss": "NSS",
    "rotation_left_deg": "left, °",
    "rotation_right_deg": "right, °",
    "rank1_norm_share": "rank-1 share",
    "effective_rank": "effective rank",
}
_BESIDE = {
    EITHER: "either",
    **dict(zip(ENERGIES, ("left", "right", "both"), strict=False)),
    "principal_overlap": "principal − null",
    "principal_overlap_top5": "top 5 %: principal − null",
    "low_magnitude_overlap_top5": "top 5 %: small − null",
}
_EQUAL = {
    EITHER: "either",
    "principal_overlap_top5": "top 5 %: principal − null",
    "nss": "NSS",
    "rotation_left_deg": "left angle",
    "effective_rank": "effective rank",
    "rank1_norm_share": "rank-1 share",
}
_AT: Mapping[Rates, str] = {"own": "at each adapter's own rate", "shared": "at LoRA's rate"}
_MARKS = {"above": " ↑", "below": " ↓", "level": " =", "cannot tell": " ?"}

_NEGLIGIBLE = 1e-9

Row = Mapping[str, Any]


def markdown(rows: pl.DataFrame) -> str:
    """All blocks, in order."""
    return "\n\n".join(blocks(rows).values()) + "\n"


def blocks(rows: pl.DataFrame) -> dict[str, str]:
    """Name -> caption and table. A block whose runs are still missing says so."""
    measured = geometry(rows)
    equal: dict[Rates, pl.DataFrame] = {rates: matched(rows, rates) for rates in _AT}
    found = {}
    for rates, compared in equal.items():
        own = measured.filter(rates=rates)
        found[f"geometry-{rates}"] = _last(own, rates)
        found[f"geometry-energy-{rates}"] = _over_time(own, rates)
        for against, name in ((LORA, "lora"), (FULL, "full")):
            other = compared.filter(against=against)
            found[f"geometry-norm-{name}-{rates}"] = _equal(other, against, rates)
    found["geometry-claims"] = _claims(claims(rows, known=equal))
    return found


def _last(own: pl.DataFrame, rates: Rates) -> str:
    nulls = isotropic()
    caption = (
        f"**Geometry at the last step, DAPO, {_AT[rates]}** (mean over seeds ± half of Student's t "
        "interval, 95 %; energies are shares of ‖ΔW‖², of an update without direction either "
        f"{nulls[EITHER]:.3f}, left {nulls[ENERGIES[0]]:.3f}, right {nulls[ENERGIES[1]]:.3f}, both "
        f"{nulls[ENERGIES[2]]:.4f}; overlaps are minus their magnitude nulls)"
    )
    rows = []
    for adapter in own["adapter"].unique(maintain_order=True):
        mine = own.filter(adapter=adapter)
        found = _by_measure(mine.filter(step=mine["step"].max()))
        cells = [_cell(found.get(name)) for name in _PLAIN]
        for name in _BESIDE:
            cells.append(_cell(found.get(name), excess="overlap" in name))
        rows.append([label(adapter), f"{mine['learning_rate'][0]:g}", *cells])
    return markdown_table(caption, ["adapter", "rate", *_PLAIN.values(), *_BESIDE.values()], rows)


def _over_time(own: pl.DataFrame, rates: Rates) -> str:
    caption = (
        f"**Share of ‖ΔW‖² in the base's principal left or right directions by step, "
        f"{_AT[rates]}** (an update without direction: {isotropic()[EITHER]:.3f})"
    )
    mine = own.filter(measure=EITHER)
    steps = mine["step"].unique().sort().to_list()
    rows = []
    for adapter in mine["adapter"].unique(maintain_order=True):
        found = {row["step"]: row for row in mine.filter(adapter=adapter).iter_rows(named=True)}
        rows.append([label(adapter), *(_cell(found.get(step)) for step in steps)])
    return markdown_table(caption, ["adapter", *(f"step {step}" for step in steps)], rows)


def _equal(equal: pl.DataFrame, against: str, rates: Rates) -> str:
    caption = (
        f"**At equal ‖ΔW‖ of the matrices, {_AT[rates]}: adapter minus {label(against)}** (95 % "
        "interval; NSS, angle and rank in percent; ↑ ↓ by Holm's p < 0.05 and every seed, = within "
        "the margin, ? cannot be told)"
    )
    rows = []
    for adapter in equal["adapter"].unique(maintain_order=True):
        found = _by_measure(equal.filter(adapter=adapter))
        norms = [row["norm"] for row in found.values() if row["norm"] is not None]
        at = f"{norms[0]:.2g}" if norms else "never equal"
        rows.append([label(adapter), at, *(_difference(found.get(name)) for name in _EQUAL)])
    return markdown_table(caption, ["adapter", "‖ΔW‖/‖W₀‖", *_EQUAL.values()], rows)


def _claims(told: pl.DataFrame) -> str:
    caption = "**What holds of the geometry** (by the rule of `offaxis.lab.peft.geometry.claims`)"
    rows = []
    for question, title in QUESTIONS.items():
        mine = told.filter(question=question)
        for place, (claim, adapter) in enumerate(
            mine.select("claim", "adapter").unique(maintain_order=True).iter_rows()
        ):
            both = mine.filter(claim=claim, adapter=adapter)
            found = {row["rates"]: row for row in both.iter_rows(named=True)}
            cells = [_judged(found.get(rates)) for rates in _AT]
            rows.append(["" if place else title, claim, *cells])
    return markdown_table(caption, ["question", "claim", "own rate", "shared rate"], rows)


def _by_measure(table: pl.DataFrame) -> dict[str, Row]:
    return {row["measure"]: row for row in table.iter_rows(named=True)}


def _cell(row: Row | None, *, excess: bool = False) -> str:
    """Mean ± half of the interval; of the excess over the null where that is asked for."""
    names = ("excess", "excess_low", "excess_high") if excess else ("value", "low", "high")
    if row is None or row[names[0]] is None:
        return "—"
    value, low, high = (row[name] for name in names)
    if abs(value) < _NEGLIGIBLE:
        return f"{value:.0e}".replace("-", "−") if value else "0"
    if not excess:
        return mean_cell(row)
    if low is None or high == low:
        return decimal(value, 4, "+")
    decimals = places((high - low) / 2, digits=2)
    return f"{decimal(value, decimals, '+')} ± {(high - low) / 2:.{decimals}f}"


def _difference(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "—"
    return f"{_interval(row)}{_MARKS[row['word']]}"


def _interval(row: Row) -> str:
    """`+0.021 [+0.010, +0.032]`; of what is compared by its logarithm in percent."""
    ratio = row["measure"] in LOGARITHMIC
    shown = [
        ""
        if one is None
        else decimal(100 * math.expm1(one) if ratio else one, 0 if ratio else 3, "+")
        for one in (row["value"], row["low"], row["high"])
    ]
    unit = " %" if ratio else ""
    return (
        f"{shown[0]}{unit} [{shown[1]}, {shown[2]}]" if shown[1] else f"{shown[0]}{unit} (one seed)"
    )


def _judged(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "not run yet" if row is None else row["why"]
    if row["low"] is None and row["seeds"] > 1:
        return f"at most {row['value']:.0e}: {SIGNS[row['word']]}"
    return f"{_interval(row)}: {SIGNS[row['word']]}"
