"""The study's answers as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from offaxis.lab.naming import NAMES as METHODS
from offaxis.lab.study.answers import MATCHINGS, RL, TUNING

__all__ = ["NAMES", "markdown"]

NAMES: Mapping[str, str] = {**METHODS, "rl": "RL, all four"}
"""Methods, and RL as a whole, as a reader knows them."""

_MATCHED = {
    "step": "At equal learning rate and step",
    "norm": "At equal update norm",
    "accuracy": "At equal accuracy",
}
_SIGNS = {"holds": "**holds**", "does not": "does not", "cannot tell": "?"}


def markdown(contrasts: pl.DataFrame, nulls: pl.DataFrame) -> str:
    """Three tables of RL against each kind of fine-tuning, and one of each method's overlaps.

    A ratio is shown as a change in percent, a difference as it is; both with 95 % intervals.
    """
    return "\n".join([*_contrast_tables(contrasts), *_null_table(nulls)]) + "\n"


def _contrast_tables(contrasts: pl.DataFrame) -> Iterator[str]:
    claims = contrasts["claim"].unique(maintain_order=True).to_list()
    for matching in MATCHINGS:
        yield f"**{_MATCHED[matching]}**\n"
        yield "| RL is … | " + " | ".join(f"than {NAMES[other]}" for other in TUNING) + " |"
        yield "|---" * (len(TUNING) + 1) + "|"
        for claim in claims:
            rows = contrasts.filter(claim=claim, matching=matching)
            found = {row["against"]: row for row in rows.iter_rows(named=True)}
            yield f"| {claim} | " + " | ".join(_answer(found[other]) for other in TUNING) + " |"
        yield ""


def _answer(row: Mapping[str, Any]) -> str:
    if row["value"] is None or math.isnan(row["value"]):
        return "no pair to compare"
    return f"{_SIGNS[row['word']]}: {_interval(row)}"


def _interval(row: Mapping[str, Any]) -> str:
    ratio = row["scale"] == "ratio"
    digits = "+.0f" if ratio else _digits(row)
    numbers = [
        "—" if number is None else format(100 * math.expm1(number) if ratio else number, digits)
        for number in (row["value"], row["low"], row["high"])
    ]
    unit = " %" if ratio else ""
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}]".replace("-", "−")


def _digits(row: Mapping[str, Any]) -> str:
    """Decimals that show two digits of the interval's half width."""
    if row["low"] is None or row["high"] is None or row["high"] <= row["low"]:
        return "+.3f"
    places = 1 - math.floor(math.log10((row["high"] - row["low"]) / 2))
    return f"+.{min(6, max(1, places))}f"


def _null_table(nulls: pl.DataFrame) -> Iterator[str]:
    pooled = nulls.filter(pl.col("learning_rate").is_null())
    claims = pooled["claim"].unique(maintain_order=True).to_list()
    methods = [name for name in (*RL, *TUNING, "rl") if name in pooled["method"].to_list()]
    yield "**Overlap minus its null, each method alone**\n"
    yield "| | " + " | ".join(NAMES[method] for method in methods) + " |"
    yield "|---" * (len(methods) + 1) + "|"
    for claim in claims:
        rows = pooled.filter(claim=claim)
        found = {row["method"]: row for row in rows.iter_rows(named=True)}
        yield f"| {claim} | " + " | ".join(_answer(found[method]) for method in methods) + " |"
