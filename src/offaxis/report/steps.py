"""What the page shows over the training steps: each measure of each run, and whose profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.report.curves import rounded, spread
from offaxis.report.glossary import title
from offaxis.report.text import clean, is_number, short_labels

__all__ = ["series"]

_MEASURES = (
    "unchanged_bf16",
    "relative_update_norm",
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "principal_overlap",
    "principal_overlap_excess",
    "low_magnitude_overlap",
    "low_magnitude_overlap_excess",
    "rank1_energy",
    "effective_rank",
)
_PROFILES = ("row_profile_correlation", "column_profile_correlation")
_POINTS = 240

Row = Mapping[str, Any]


def series(
    across: Row, pairs: Sequence[Row], names: Mapping[str, str], tuned: Sequence[str]
) -> dict[str, Any] | None:
    """Each measure against the training step, a list of points a run.

    names: each checkpoint's label. tuned: the checkpoints whose curves are on the page. A point's
    `v` holds, for each measure, its value, its null, and the ends of its interval.
    """
    rows = [row for row in across.get("series") or [] if is_number(row.get("step"))]
    if len({row["step"] for row in rows}) < 2:
        return None
    extra = {str(pair["tuned"]): pair for pair in pairs}
    by_run: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        by_run.setdefault(str(row.get("run") or "run"), []).append(row)
    most = max(2, _POINTS // len(by_run))
    points = [
        [_point(mine[i], extra, names) for i in spread(len(mine), most)] for mine in by_run.values()
    ]
    shown = [
        name
        for name in (*_MEASURES, *_PROFILES)
        if any(name in point["v"] for run in points for point in run)
    ]
    return {
        "runs": short_labels(list(by_run)),
        "points": points,
        "measures": [
            {"name": name, "title": title(name)} for name in shown if name not in _PROFILES
        ],
        "profiles": [name for name in shown if name in _PROFILES],
        "shown": _shown(by_run, tuned),
    }


def _point(row: Row, extra: Mapping[str, Row], names: Mapping[str, str]) -> dict[str, Any]:
    pair = extra.get(str(row.get("tuned")), {})
    both = {**pair, **row}
    bounds = {**(pair.get("intervals") or {}), **(row.get("intervals") or {})}
    values = {}
    for name in (*_MEASURES, *_PROFILES):
        if is_number(both.get(name)):
            null = both.get(f"{name}_magnitude_null")
            ends = bounds.get(name) or (None, None)
            numbers = (both[name], null, *ends)
            values[name] = [rounded(one) if is_number(one) else None for one in numbers]
    label = names.get(str(row.get("tuned")), clean(row.get("tuned")))
    return {"step": row["step"], "label": label, "v": values}


def _shown(by_run: Mapping[str, Sequence[Row]], tuned: Sequence[str]) -> list[dict[str, Any]]:
    """For each run with two checkpoints or more on the page: their places there, in step order."""
    place = {name: i for i, name in enumerate(tuned)}
    labels = short_labels(list(by_run))
    found = []
    for label, rows in zip(labels, by_run.values(), strict=True):
        at = [
            [place[str(row.get("tuned"))], row["step"]]
            for row in rows
            if str(row.get("tuned")) in place
        ]
        if len(at) > 1:
            found.append({"run": label, "at": at})
    return found
