"""The data block that the page's plots are drawn from, kept under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.report.curves import rounded, spread, stratified
from offaxis.report.glossary import KINDS, title
from offaxis.report.headline import excess
from offaxis.report.matrices import by_depth, matrices
from offaxis.report.steps import series
from offaxis.report.tables import MISMATCH
from offaxis.report.text import clean, is_number, json_block

__all__ = ["BUDGET", "page_data"]

BUDGET = 950_000
"""Bytes that the data block may take."""

_CHECKPOINTS = 24
_POINTS = 400
_TABLES = 400_000
_GRID = (
    "unchanged_bf16",
    "relative_update_norm",
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "principal_overlap_excess",
    "low_magnitude_overlap_excess",
    "rank1_energy",
    "effective_rank",
)
_FLOW = (
    "q_a_proj",
    "q_b_proj",
    "q_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)
_NULLS = ("", "_magnitude_null", "_rounding_null")


def page_data(
    measurements: pl.DataFrame,
    curves: pl.DataFrame,
    summary: Mapping[str, Any],
    labels: Sequence[str],
    contrasts: pl.DataFrame | None,
) -> dict[str, Any]:
    """Everything the plots need, as plain lists; under `BUDGET` bytes once written as JSON."""
    pairs = summary.get("pairs") or []
    valid = measurements.filter(
        ~pl.col("status").str.extract(r"^(\w+)", 1).fill_null("").is_in(MISMATCH)
    )
    shown = spread(len(pairs), min(len(pairs), _most_checkpoints(valid)))
    tuned = [str(pairs[i]["tuned"]) for i in shown]
    across = summary.get("across") or {}
    names = {str(pair["tuned"]): label for pair, label in zip(pairs, labels, strict=True)}
    data: dict[str, Any] = {
        "checkpoints": [{"label": labels[i], "name": clean(pairs[i]["tuned"])} for i in shown],
        "total": len(pairs),
        "grid": _grid(valid, tuned),
        "points": _points(valid, tuned),
        "means": _means(pairs, labels, valid),
        "jaccard": _jaccard(across, labels),
        "series": series(across, pairs, names, tuned),
        "consensus": [names.get(str(one), clean(one)) for one in across.get("consensus_of") or []],
        "contrasts": _contrasts(contrasts, names),
    }
    room = BUDGET - len(json_block(data).encode())
    heads = (summary.get("run") or {}).get("heads")
    data["matrices"] = matrices(valid, curves, tuned, heads=heads, room=room)
    return data


def _most_checkpoints(valid: pl.DataFrame) -> int:
    """How many checkpoints the grid and the scatter can hold within their share."""
    cells = valid.select("layer", "role").unique().height
    points = min(_POINTS, valid.select("tensor").unique().height)
    each = 8 * (len(_GRID) * cells + len(_NULLS) * len(KINDS) * points)
    return max(1, min(_CHECKPOINTS, _TABLES // max(1, each)))


def _wide(valid: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """One row a checkpoint and tensor, one column a measure; absent measures are null."""
    keys = ["tuned", "tensor", "layer", "role", "expert", "rows", "cols"]
    wide = valid.filter(pl.col("measure").is_in(measures)).pivot(
        "measure", index=keys, values="value", aggregate_function="first"
    )
    absent = [name for name in measures if name not in wide.columns]
    return wide.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in absent)


def _grid(valid: pl.DataFrame, tuned: Sequence[str]) -> dict[str, Any]:
    """Means over the tensors (experts) of each layer and role, for each measure."""
    plain = [name for name in _GRID if not name.endswith("_excess")]
    overlaps = [name.removesuffix("_excess") for name in _GRID if name.endswith("_excess")]
    wide = _wide(valid, [*plain, *(o + n for o in overlaps for n in _NULLS[:2])]).with_columns(
        (pl.col(o) - pl.col(f"{o}_magnitude_null")).alias(f"{o}_excess") for o in overlaps
    )
    means = wide.group_by("tuned", "layer", "role").agg(
        *(pl.col(name).mean() for name in _GRID), pl.len().alias("n")
    )
    layers = sorted(wide["layer"].unique().to_list(), key=lambda x: (x is None, x or 0))
    roles = _roles(wide)
    at = {(layer, role): i for i, (layer, role) in enumerate((y, x) for y in layers for x in roles)}
    empty: list[float | None] = [None] * len(at)
    values = {name: [list(empty) for _ in tuned] for name in _GRID}
    sizes = [0] * len(at)
    order = {name: i for i, name in enumerate(tuned)}
    for row in means.iter_rows(named=True):
        cell = at[row["layer"], row["role"]]
        sizes[cell] = max(sizes[cell], row["n"])
        if row["tuned"] in order:
            for name in _GRID:
                values[name][order[row["tuned"]]][cell] = rounded(row[name])
    kept = {name: lists for name, lists in values.items() if _some(lists)}
    return {
        "layers": layers,
        "roles": [clean(role, 40) for role in roles],
        "sizes": sizes,
        "values": kept,
        "titles": {name: title(name) for name in kept},
    }


def _some(lists: Sequence[Sequence[Any]]) -> bool:
    return any(value is not None for values in lists for value in values)


def _roles(wide: pl.DataFrame) -> list[str]:
    """Roles: known matrices of a layer as the data flows, other matrices, then the rest."""
    matrix = pl.col("layer").is_not_null() & (pl.min_horizontal("rows", "cols") > 1)
    rest = wide.group_by("role", maintain_order=True).agg((~matrix.fill_null(False)).all())
    order = {role: place for place, role in enumerate(_FLOW)}
    rows = sorted(rest.iter_rows(), key=lambda row: (row[1], order.get(row[0], len(order))))
    return [role for role, _ in rows]


def _points(valid: pl.DataFrame, tuned: Sequence[str]) -> dict[str, Any]:
    """Observed overlap and nulls of each matrix, at most `_POINTS` of them."""
    measures = [overlap + null for overlap, _ in KINDS.values() for null in _NULLS]
    wide = _wide(valid, measures).filter(
        pl.any_horizontal(pl.col(overlap).is_not_null() for overlap, _ in KINDS.values())
    )
    tensors = by_depth(wide)
    chosen = tensors[stratified(tensors["role"].to_list(), _POINTS)]
    order = {name: i for i, name in enumerate(chosen["tensor"].to_list())}
    empty: list[float | None] = [None] * len(order)
    values: dict[str, list[list[list[float | None]]]] = {}
    for key, (overlap, _) in KINDS.items():
        lists = [[list(empty) for _ in _NULLS] for _ in tuned]
        for i, name in enumerate(tuned):
            for row in wide.filter(pl.col("tuned") == name).iter_rows(named=True):
                place = order.get(row["tensor"])
                if place is not None:
                    for j, null in enumerate(_NULLS):
                        lists[i][j][place] = rounded(row[overlap + null])
        if any(_some(three) for three in lists):
            values[key] = lists
    return {
        "names": [clean(name) for name in order],
        "roles": [clean(role, 40) for role in chosen["role"].to_list()],
        "total": tensors.height,
        "values": values,
        "titles": {key: KINDS[key][1] for key in values},
    }


def _means(
    pairs: Sequence[Mapping[str, Any]], labels: Sequence[str], valid: pl.DataFrame
) -> dict[str, list[dict[str, Any]]]:
    """Mean excess over matrices: from the summary with its interval, else from the table."""
    out: dict[str, list[dict[str, Any]]] = {}
    for key, (overlap, _) in KINDS.items():
        wide = _wide(valid, [overlap, f"{overlap}_magnitude_null"])
        gap = (pl.col(overlap) - pl.col(f"{overlap}_magnitude_null")).mean()
        table = dict(
            wide.group_by("tuned").agg(gap.alias("gap")).select("tuned", "gap").iter_rows()
        )
        rows = []
        for pair, label in zip(pairs, labels, strict=True):
            value, low, high = excess(pair, overlap)
            if value is None:
                value = rounded(table.get(str(pair["tuned"])))
            if value is not None:
                rows.append({"label": label, "value": value, "low": low, "high": high})
        out[key] = rows
    return out


def _finite(value: Any) -> Any:
    """Lists of numbers, each to four digits, anything else None."""
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return rounded(float(value)) if is_number(value) else None


def _jaccard(across: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any] | None:
    observed = across.get("jaccard")
    if not observed:
        return None
    fits = len(observed) == len(labels)
    names = list(labels) if fits else [f"run {i + 1}" for i in range(len(observed))]
    return {
        "labels": names,
        "observed": _finite(observed),
        "null": _finite(across.get("jaccard_null")),
        "mean": _finite(across.get("jaccard_mean")),
        "chance": _finite(across.get("jaccard_chance")),
        "mean_null": _finite(across.get("jaccard_magnitude_null")),
        "in_r_runs": _finite(across.get("changed_in_r_runs")),
    }


def _contrasts(contrasts: pl.DataFrame | None, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if contrasts is None:
        return []
    rows = []
    for row in contrasts.iter_rows(named=True):
        numbers = {key: _finite(row[key]) for key in ("difference", "low", "high")}
        at = str(_finite(row["at"])) if is_number(row["at"]) else clean(row["at"] or "")
        words = {key: names.get(str(row[key]), clean(row[key])) for key in ("a", "b")}
        matched = {"matched": clean(row["matched_by"], 40), "differs": row["verdict"] == "differ"}
        rows.append({"title": title(str(row["measure"])), "at": at, **numbers, **words, **matched})
    return rows
