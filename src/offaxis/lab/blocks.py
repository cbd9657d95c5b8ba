"""Studies as Markdown: named blocks, each a caption and a table, and the cells of tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.claims import LOGARITHMIC

__all__ = [
    "SIGNS",
    "comparison_table",
    "decimal",
    "difference_cell",
    "markdown_table",
    "mean_cell",
    "places",
    "probability",
    "refreshed",
]

SIGNS: Mapping[str, str] = {"holds": "**holds**", "does not": "does not", "cannot tell": "?"}
"""Words of `offaxis.lab.claims` in a cell."""

_MARK = re.compile(r"<!-- block: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def refreshed(text: str, blocks: Mapping[str, str], *, where: str = "the text") -> str:
    """A Markdown text with what lies between `<!-- block: NAME -->` and `<!-- end -->` made new.

    InputError where a name is not known.
    """
    unknown = [name for name in _MARK.findall(text) if name not in blocks]
    if unknown:
        raise InputError(f"{where}: no block {', '.join(unknown)}; there are {', '.join(blocks)}")
    return _MARK.sub(
        lambda found: f"<!-- block: {found[1]} -->\n{blocks[found[1]]}\n<!-- end -->", text
    )


def markdown_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A caption and a table, or that there are no runs yet."""
    if not rows:
        return f"{caption}\n\n*No runs yet.*"
    lines = [caption, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def mean_cell(row: Mapping[str, Any] | None) -> str:
    """`0.612 ± 0.034`: two digits of the half width; three of a mean without a width."""
    if row is None or row["value"] is None:
        return "—"
    half = 0.0 if row["low"] is None else (row["high"] - row["low"]) / 2
    if half <= 1e-9 * abs(row["value"]):  # one seed, or seeds that are all the same
        return decimal(row["value"], places(abs(row["value"]), digits=3))
    decimals = places(half, digits=2)
    return f"{decimal(row['value'], decimals)} ± {half:.{decimals}f}"


def places(scale: float, *, digits: int) -> int:
    """Decimals that show so many digits of a number."""
    return min(7, max(0, digits - 1 - math.floor(math.log10(scale)))) if scale > 0 else 3


def decimal(value: float, digits: int, sign: str = "") -> str:
    """So many decimals, with a true minus sign."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")  # no negative zero


def difference_cell(row: Mapping[str, Any]) -> str:
    """`+0.021 [−0.010, +0.052], p 0.3: ?`; KL as a change in percent."""
    if row["value"] is None:
        return "—"
    ratio = row["measure"] in LOGARITHMIC
    numbers = [
        None if row[name] is None else 100 * math.expm1(row[name]) if ratio else row[name]
        for name in ("value", "low", "high")
    ]
    value, low, high = ("" if n is None else decimal(n, 0 if ratio else 3, "+") for n in numbers)
    interval = f"[{low}, {high}]" if low else "(one seed)"
    p = "" if row["p_holm"] is None else f", p {probability(row['p_holm'])}"
    return f"{value}{' %' if ratio else ''} {interval}{p}: {SIGNS[row['word']]}"


def probability(value: float) -> str:
    """One digit of a small p, two decimals of a large one."""
    return f"{value:.1g}" if value < 0.1 else f"{value:.2f}"


def comparison_table(
    caption: str,
    comparisons: pl.DataFrame,
    *,
    arm: str,
    label: Callable[[str], str],
    kinds: Mapping[str, str],
) -> str:
    """Rows of `claims.columns(arm)`: first minus other at each kind of rate (kind -> heading)."""
    rows: list[list[str]] = []
    keys, last = ["claim", "measure", arm, "against"], None
    for claim, measure, first, other in comparisons.select(keys).unique(maintain_order=True).rows():
        both = comparisons.filter(
            pl.col("claim") == claim,
            pl.col("measure") == measure,
            pl.col(arm) == first,
            pl.col("against") == other,
        )
        found = {row["rates"]: row for row in both.iter_rows(named=True)}
        cells = [difference_cell(found[kind]) if kind in found else "—" for kind in kinds]
        text = "" if claim == last else claim
        rows.append([text, f"{label(first)} − {label(other)}", *cells])
        last = claim
    return markdown_table(caption, ["claim", "difference", *kinds.values()], rows)
