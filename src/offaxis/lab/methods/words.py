"""The table of methods as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.lab.methods.passing import word
from offaxis.lab.methods.summary import MEASURES
from offaxis.lab.naming import NAMES
from offaxis.lab.queue.grid import BASE_METHOD

__all__ = ["markdown"]

_PARTS = {
    "learning": "What it learnt",
    "weights": "Where the weights went",
    "cost": "What a step costs",
}
_EXAMS = {"own": "at the difficulty that was trained", "harder": "one difficulty up"}


def markdown(table: pl.DataFrame, passes: pl.DataFrame | None) -> str:
    """Three parts of the table at each learning rate, and pass@k minus the base's.

    table: of `summarise`. passes: of `against_base`, None where there is none. A cell is the mean
    over seeds ± half the 95 % interval over seeds.
    """
    lines = [*_opening(table)]
    for rate in table["learning_rate"].drop_nulls().unique().sort():
        for part, title in _PARTS.items():
            lines += [f"**{title}, learning rate {rate:g}**", ""]
            lines += [*_part(table, rate, part), ""]
    if passes is not None:
        for exam in passes["exam"].unique(maintain_order=True):
            lines += [*_passes(passes.filter(exam=exam), exam), ""]
    return "\n".join(lines).rstrip() + "\n"


def _opening(table: pl.DataFrame) -> Iterator[str]:
    seeds = sorted(table.filter(pl.col("method") != BASE_METHOD)["seeds"].unique())
    told = "–".join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))
    yield (
        f"Mean over seeds ({told}) ± half of Student's t interval over seeds, 95 % (with three "
        "seeds t is 4.3: two methods whose intervals overlap may still differ)."
    )
    yield ""


def _part(table: pl.DataFrame, rate: float, part: str) -> Iterator[str]:
    """One part of the table at one rate: methods are rows."""
    measures = [one for one in MEASURES if one.part == part]
    rows = table.filter((pl.col("learning_rate") == rate) | pl.col("learning_rate").is_null())
    known = set(rows["measure"])
    measures = [one for one in measures if one.name in known]
    yield "| method | seeds | " + " | ".join(one.heading for one in measures) + " |"
    yield "|---" * (len(measures) + 2) + "|"
    for method in rows["method"].unique(maintain_order=True):
        own = {row["measure"]: row for row in rows.filter(method=method).iter_rows(named=True)}
        if not any(one.name in own for one in measures):
            continue
        cells = [_cell(own.get(one.name)) for one in measures]
        seeds = max(row["seeds"] for row in own.values())
        yield f"| {NAMES.get(method, method)} | {seeds} | " + " | ".join(cells) + " |"


def _cell(row: Mapping[str, Any] | None) -> str:
    """`0.612 ± 0.034`, two digits of the half width; three of a mean without a width."""
    if row is None:
        return "—"
    half = 0.0 if row["low"] is None else (row["high"] - row["low"]) / 2
    if half == 0:  # one seed, or seeds that are all the same
        return _number(row["value"], _places(abs(row["value"]), digits=3))
    places = _places(half, digits=2)
    return f"{_number(row['value'], places)} ± {half:.{places}f}"


def _places(scale: float, *, digits: int) -> int:
    """Decimals that show so many digits of a number."""
    if not scale > 0:
        return 3
    return min(7, max(0, digits - 1 - math.floor(math.log10(scale))))


def _number(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")  # no negative zero


def _passes(passes: pl.DataFrame, exam: str) -> Iterator[str]:
    """pass@k minus the base's, one row a method and rate, with what the largest k says."""
    ks: Sequence[int] = passes["k"].unique().sort().to_list()
    base = dict(passes.select("k", "base").unique().iter_rows())
    problems = passes["problems"][0]
    yield (
        f"**pass@k minus the base's, {_EXAMS[exam]}** ({problems} problems, paired; mean over "
        "seeds, 95 % intervals over problems)"
    )
    yield ""
    yield "| method | rate | " + " | ".join(f"pass@{k}" for k in ks) + f" | at {ks[-1]} |"
    yield "|---" * (len(ks) + 3) + "|"
    yield "| the base itself | | " + " | ".join(f"{base[k]:.3f}" for k in ks) + " | |"
    groups = passes.partition_by("method", "learning_rate", as_dict=True, maintain_order=True)
    for (method, rate), rows in groups.items():
        found = {row["k"]: row for row in rows.iter_rows(named=True)}
        cells = [_difference(found[k]) for k in ks]
        said = word(found[ks[-1]])
        yield f"| {NAMES.get(str(method), str(method))} | {rate:g} | {' | '.join(cells)} | {said} |"


def _difference(row: Mapping[str, Any]) -> str:
    value, low, high = (round(row[name], 3) + 0.0 for name in ("difference", "low", "high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
