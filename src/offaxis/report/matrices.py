"""The plots of one matrix: which matrices the page keeps, how finely, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from offaxis.report.curves import (
    LEVELS,
    Detail,
    Values,
    consensus_curves,
    log_indices,
    matrix_curves,
    rounded,
    spread,
    stratified,
)
from offaxis.report.glossary import title
from offaxis.report.text import clean, json_block

__all__ = ["by_depth", "matrices"]

_FACTS = 40


def by_depth(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a tensor, in order of layer, then of first appearance."""
    keys = ["tensor", "layer", "role", "expert", "rows", "cols"]
    return (
        frame.select(keys)
        .unique("tensor", maintain_order=True)
        .sort("layer", maintain_order=True, nulls_last=True)
    )


def matrices(
    valid: pl.DataFrame,
    curves: pl.DataFrame,
    tuned: Sequence[str],
    *,
    heads: object,
    room: int,
) -> dict[str, Any]:
    """Curves, pictures and numbers of as many matrices as fit into `room` bytes.

    All of them at the finest detail that holds all; at the coarsest, a choice over role and
    depth, matrices with spectra first. heads: how attention heads lie, as the run recorded it.
    """
    valid = valid.filter(pl.col("tuned").is_in(tuned))
    candidates = _candidates(valid, curves, tuned)
    facts = _fact_names(valid, candidates)
    total, pages = candidates.height, max(1, len(tuned))
    agreed = curves.filter(pl.col("curve") == "consensus_picture").height > 0
    each = [
        pages * (level.size + 8 * len(facts)) + 500 + agreed * level.consensus for level in LEVELS
    ]
    fits = [level for level, size in zip(LEVELS, each, strict=True) if size * total <= room]
    detail = fits[0] if fits else LEVELS[-1]
    limit = total if fits else max(1, min(total, room // each[-1]))

    def build(limit: int) -> tuple[dict[str, Any], int]:
        chosen = _choose(candidates, limit)
        block = _block(chosen, valid, curves, tuned=tuned, detail=detail, facts=facts)
        block |= {"total": total, "list": _listed(chosen, heads)}
        return block, len(json_block(block).encode())

    block, size = build(limit)
    while size > room and limit > 1:
        limit = max(1, min(limit - 1, limit * room // size))
        block, size = build(limit)
    more = min(total, limit * room // max(1, size))  # sizes are guessed on the safe side
    if more > limit:
        larger, size = build(more)
        block = larger if size <= room else block
    return block


def _candidates(valid: pl.DataFrame, curves: pl.DataFrame, tuned: Sequence[str]) -> pl.DataFrame:
    """Matrices that have curves, in order of depth, with the column `spectral`.

    What is no matrix has a ULP histogram at most, and would only crowd the choice.
    """
    mine = curves.filter(pl.col("tuned").is_in(tuned) & (pl.col("curve") != "ulp_histogram"))
    spectral = pl.col("curve").str.starts_with("singular_values").any().alias("spectral")
    known = mine.group_by("tensor").agg(spectral)
    return by_depth(valid).join(known, on="tensor", how="inner", maintain_order="left")


def _choose(candidates: pl.DataFrame, limit: int) -> pl.DataFrame:
    parts = []
    for spectral in (True, False):
        rows = candidates.filter(pl.col("spectral") == spectral)
        part = rows[stratified(rows["role"].to_list(), limit)]
        limit -= part.height
        parts.append(part)
    return by_depth(pl.concat(parts))


def _fact_names(valid: pl.DataFrame, candidates: pl.DataFrame) -> list[str]:
    names = valid.filter(pl.col("tensor").is_in(candidates["tensor"].implode()))["measure"]
    return names.unique(maintain_order=True).to_list()[:_FACTS]


def _block(
    chosen: pl.DataFrame,
    valid: pl.DataFrame,
    curves: pl.DataFrame,
    *,
    tuned: Sequence[str],
    detail: Detail,
    facts: Sequence[str],
) -> dict[str, Any]:
    order = {name: i for i, name in enumerate(chosen["tensor"].to_list())}
    place = {name: i for i, name in enumerate(tuned)}
    found: list[list[dict[str, Values]]] = [[{} for _ in order] for _ in tuned]
    agreed: list[dict[str, Values]] = [{} for _ in order]
    for key, tensor, curve, values in _read(curves, list(order)):
        if key in place:
            found[place[key]][order[tensor]][curve] = values
        elif key == "":
            agreed[order[tensor]][curve] = values
    spectra = [_spectrum([one[i] for one in found], detail) for i in range(len(order))]
    drawn = [[matrix_curves(one, detail) for one in rows] for rows in found]
    updates = [[one.get("update") for one in rows] for rows in drawn]
    angles = [[one.get(side) for one in rows] for rows in drawn for side in ("left", "right")]
    return {
        "spectra": spectra,
        "curves": drawn,
        "ranks": _ranks(_lengths([spectra, *updates]), log_indices, detail.points),
        "angleRanks": _ranks(_lengths(angles), spread, detail.points),
        "consensus": [consensus_curves(one, detail) for one in agreed],
        "facts": _facts(valid, order, place, facts),
        "factNames": list(facts),
        "factTitles": [title(name) for name in facts],
    }


_HEADS = {
    "q_proj": ("rows", "query"),
    "k_proj": ("rows", "key_value"),
    "v_proj": ("rows", "key_value"),
    "o_proj": ("cols", "query"),
}
"""Role → the side along which its heads lie, and which heads they are."""


def _listed(chosen: pl.DataFrame, heads: object) -> list[dict[str, Any]]:
    """Name, place and shape of each kept matrix, and its attention heads where it has them."""
    return [
        {
            "name": clean(row["tensor"]),
            "role": clean(row["role"], 40),
            "layer": row["layer"],
            "shape": [row["rows"], row["cols"]],
            "heads": _heads(row, heads),
        }
        for row in chosen.iter_rows(named=True)
    ]


def _heads(row: Mapping[str, Any], heads: object) -> dict[str, Any] | None:
    """The side and number of a projection's heads; None where its shape does not agree."""
    if row["role"] not in _HEADS or not isinstance(heads, Mapping):
        return None
    side, which = _HEADS[row["role"]]
    count, dim = heads.get(which), heads.get("dim")
    if not isinstance(count, int) or not isinstance(dim, int) or count < 1:
        return None
    if count * dim != row[side]:
        return None
    return {"side": side, "count": count}


def _lengths(rows: Sequence[Sequence[Mapping[str, Any] | None]]) -> Iterable[int]:
    return (one["n"] for row in rows for one in row if one is not None)


def _ranks(lengths: Iterable[int], choose: Callable[[int, int], list[int]], points: int) -> Any:
    """For each length of a curve, the ranks from 1 that were kept of it."""
    return {n: [index + 1 for index in choose(n, points)] for n in sorted(set(lengths))}


def _read(curves: pl.DataFrame, tensors: Sequence[str]) -> list[tuple[str, str, str, Values]]:
    """The chosen tensors' curves as arrays of their shape; a shape that lies is flattened."""
    out = []
    mine = curves.filter(pl.col("tensor").is_in(tensors))
    for key, tensor, curve, shape, values in mine.select(
        "tuned", "tensor", "curve", "shape", "values"
    ).iter_rows():
        array: Values = np.asarray(values, dtype=np.float64)
        if array.size and int(np.prod(shape)) == array.size:
            array = array.reshape(shape)
        if array.size:
            out.append((key, tensor, curve, array))
    return out


def _spectrum(found: Sequence[Mapping[str, Values]], detail: Detail) -> dict[str, Any] | None:
    """The base's singular values, the same for every checkpoint."""
    for one in found:
        values = one.get("singular_values_base")
        if values is not None:
            chosen = log_indices(len(values), detail.points)
            return {"n": len(values), "y": [rounded(float(values[i])) for i in chosen]}
    return None


def _facts(
    valid: pl.DataFrame, order: Mapping[str, int], place: Mapping[str, int], facts: Sequence[str]
) -> list[list[list[float | None]]]:
    """Each measure of each kept matrix and checkpoint."""
    index = {name: i for i, name in enumerate(facts)}
    out: list[list[list[float | None]]] = [[[None] * len(facts) for _ in order] for _ in place]
    rows = valid.filter(pl.col("tensor").is_in(list(order)) & pl.col("measure").is_in(facts))
    for key, tensor, measure, value in rows.select(
        "tuned", "tensor", "measure", "value"
    ).iter_rows():
        if key in place:
            out[place[key]][order[tensor]][index[measure]] = rounded(value)
    return out
