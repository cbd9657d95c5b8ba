"""Contributions of many users as one table, and what they say together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import polars as pl

from offaxis.comparison.contribution.reading import read_contribution
from offaxis.comparison.contribution.shared import SHARED
from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError

__all__ = ["ASKED", "COLUMNS", "MARGIN", "Pool", "pool"]

ASKED = (
    "principal_overlap_excess",
    "principal_overlap_rounding_excess",
    "principal_overlap_top5_excess",
    "principal_not_low_overlap_excess",
    "low_magnitude_overlap_excess",
    "low_magnitude_overlap_rounding_excess",
)
"""Observed minus null: what the pooled answers are about."""

MARGIN = 0.001
"""A mean whose interval lies within this of zero is nothing to speak of: the margin that the first
study of the lab took for overlaps (docs/findings.md)."""

COLUMNS: Mapping[str, type[pl.DataType]] = {
    "checksum": pl.String,
    "pair": pl.Int64,
    "base": pl.String,
    "tuned": pl.String,
    "base_digest": pl.String,
    "tuned_digest": pl.String,
    "run": pl.Int64,
    "step": pl.Int64,
    "method": pl.String,
    "verdict": pl.String,
    "by": pl.String,
    "group": pl.String,
    "measure": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "matrices": pl.Int64,
}
"""`by` is `pair`, `role`, `layer` or `overlap`; `group` the role, the layer, or the other pair's
`tuned`. `low` and `high` are of the interval over matrices, null for a number of all entries."""


@dataclass(frozen=True)
class Pool:
    """All numbers of several contributions in long form, and the pooled answers.

    repeated: pairs left out because the same weights (by digest; by id where there is none, and no
    other file has one for it) were there before, in the same file or another.
    """

    rows: pl.DataFrame
    answers: pl.DataFrame
    files: int
    repeated: int


def pool(paths: Sequence[str | PathLike[str]]) -> Pool:
    """Read contributions into one table.

    `answers` has one row a method (as its author told it, null where not told) and measure of
    `ASKED`: `pairs`, the last checkpoint of each run; `bases`, how many models they start from;
    `mean`, over bases of the mean over their pairs; `low`, `high`, its 95 % interval, Student's t
    over bases, which are the unit since pairs of one base are not independent; `word`: `below the
    null`, `above the null`, `nothing beyond the null` (wholly within ± `MARGIN`) or `cannot tell`
    (also for fewer than two bases).

    Raises InputError for no file, and for one that is no sound contribution.
    """
    if not paths:
        raise InputError("nothing to pool: name at least one file that `contribute` wrote")
    files = [read_contribution(path) for path in paths]
    digests = _digests(files)
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    repeated = 0
    for told in files:
        fresh = set()
        for index, pair in enumerate(told["pairs"]):
            one = (_identity(pair["base"], digests), _identity(pair["tuned"], digests))
            if one in seen:
                repeated += 1
            else:
                fresh.add(index)
                seen.add(one)
        rows += _rows(told, fresh)
    frame = pl.DataFrame(rows, schema=dict(COLUMNS))
    return Pool(frame, _answers(frame, digests), len(paths), repeated)


def _digests(files: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The digest of each id that has one and only one, for those who sent the id alone."""
    known: dict[str, set[str]] = defaultdict(set)
    for told in files:
        for pair in told["pairs"]:
            for model in (pair["base"], pair["tuned"]):
                if model["digest"] is not None:
                    known[model["id"]].add(model["digest"])
    return {name: min(found) for name, found in known.items() if len(found) == 1}


def _identity(model: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    return str(model["digest"] or digests.get(model["id"], model["id"]))


def _rows(told: Mapping[str, Any], fresh: set[int]) -> Iterator[dict[str, Any]]:
    pairs = told["pairs"]
    for index in sorted(fresh):
        pair = pairs[index]
        head = _header(told, index)
        for name, value in pair["numbers"].items():
            yield head | {"by": "pair", "group": "all", "measure": name, "mean": value}
        yield from _grouped(head, "pair", "all", pair["means"])
        for one in pair["roles"]:
            yield from _grouped(head, "role", one["role"], one["means"])
        for one in pair["layers"]:
            group = "none" if one["layer"] is None else str(one["layer"])
            yield from _grouped(head, "layer", group, one["means"])
    for one in told["overlaps"]:
        if {one["first"], one["second"]} & fresh:
            other = pairs[one["second"]]["tuned"]["id"]
            means = {name: one[name] for name in SHARED if name in one}
            yield from _grouped(_header(told, one["first"]), "overlap", other, means)


def _header(told: Mapping[str, Any], index: int) -> dict[str, Any]:
    pair = told["pairs"][index]
    base, tuned = pair["base"], pair["tuned"]
    method = (pair["told"] or {}).get("method")
    return {
        "checksum": told["checksum"],
        "pair": index,
        "base": base["id"],
        "tuned": tuned["id"],
        "base_digest": base["digest"],
        "tuned_digest": tuned["digest"],
        "run": pair["run"],
        "step": pair["step"],
        "method": None if method is None else str(method),
        "verdict": pair["verdict"],
    }


def _grouped(
    head: Mapping[str, Any], by: str, group: str, means: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    for name, (mean, low, high, count) in means.items():
        yield {**head, "by": by, "group": group, "measure": name, "mean": mean, "low": low,
               "high": high, "matrices": count}  # fmt: skip


def _answers(rows: pl.DataFrame, digests: Mapping[str, str]) -> pl.DataFrame:
    """One row a method and measure: the mean over bases."""
    asked = rows.filter(
        pl.col("by") == "pair",
        pl.col("measure").is_in(ASKED),
        pl.col("matrices") > 0,  # of `means`; a number of all entries has none
    )
    last = asked.filter(
        (pl.col("step").fill_null(0) == pl.col("step").fill_null(0).max()).over("checksum", "run")
    )
    found: dict[tuple[str | None, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in last.iter_rows(named=True):
        where = _identity({"digest": row["base_digest"], "id": row["base"]}, digests)
        found[row["method"], row["measure"]][where].append(row["mean"])
    methods = sorted({method for method, _ in found}, key=lambda one: (one is None, one or ""))
    told = [
        {"method": method, "measure": measure} | _answer(found[method, measure])
        for method in methods
        for measure in ASKED
        if (method, measure) in found
    ]
    kinds: dict[str, type[pl.DataType]] = {"method": pl.String, "measure": pl.String}
    kinds |= {"pairs": pl.Int64, "bases": pl.Int64}
    kinds |= {"mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "word": pl.String}
    return pl.DataFrame(told, schema=kinds)


def _answer(by_base: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    means = np.array([float(np.mean(values)) for values in by_base.values()])
    found: dict[str, Any] = {
        "pairs": sum(len(values) for values in by_base.values()),
        "bases": means.size,
        "mean": float(means.mean()),
        "low": None,
        "high": None,
        "word": "cannot tell",
    }
    if means.size > 1:
        half = student_t(means.size - 1) * float(means.std(ddof=1)) / math.sqrt(means.size)
        low, high = found["mean"] - half, found["mean"] + half
        found |= {"low": low, "high": high, "word": _word(low, high)}
    return found


def _word(low: float, high: float) -> str:
    if low >= -MARGIN and high <= MARGIN:
        return "nothing beyond the null"
    if high < 0:
        return "below the null"
    return "above the null" if low > 0 else "cannot tell"
