"""The page's tables: each a list of rows that becomes cards where the screen is narrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.report.glossary import reason, title
from offaxis.report.headline import VERDICTS, digits, excess, state
from offaxis.report.text import (
    DASH,
    clean,
    count,
    decimals,
    escape,
    interval,
    is_number,
    percent,
    plain,
    signed,
    small,
)

__all__ = [
    "MISMATCH",
    "contrasts_table",
    "mismatches",
    "overlap_table",
    "reasons",
    "run_block",
    "scores_table",
    "step_table",
    "verdicts",
]

MISMATCH = ("missing", "extra", "reshaped", "tied", "not_float", "buffer")
"""Statuses of tensors that could not be compared."""

_MARKS = {"below": "▼", "above": "▲", "same": "○", "unknown": "?", "undefined": DASH}
_STATES = {
    "below": "less than null",
    "above": "more than null",
    "same": "not told apart",
    "unknown": "no interval",
    "undefined": "not defined",
}
_LONGEST_RUN = 20_000
_MISMATCHES = 100

Reasons = Mapping[tuple[str, str], str]


def reasons(measurements: pl.DataFrame) -> dict[tuple[str, str], str]:
    """For each checkpoint and measure without a value, the reason that most rows give."""
    bad = measurements.filter(pl.col("value").is_null() & (pl.col("status") != "ok"))
    counted = bad.group_by("tuned", "measure", "status").len().sort("len", "status")
    return {
        (tuned, measure): reason(status)
        for tuned, measure, status in counted.select("tuned", "measure", "status").iter_rows()
    }


class _Notes:
    """Reasons for dashes, numbered in order of first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def dash(self, text: str | None) -> str:
        if text is None:
            return f'<span class="none">{DASH}</span>'
        if text not in self.texts:
            self.texts.append(text)
        number = self.texts.index(text) + 1
        return f'<span class="none">{DASH}<sup title="{escape(text)}">{number}</sup></span>'

    def html(self) -> str:
        if not self.texts:
            return ""
        items = "".join(f"<li>{escape(text)}</li>" for text in self.texts)
        lead = f"{DASH} marks a number that is not defined, because:"
        return f'<p class="fine">{lead}</p><ol class="fine">{items}</ol>'


def _cell(label: str, content: str, kind: str = "number") -> str:
    return f'<td role="cell" class="{kind}" data-label="{escape(label)}"><div>{content}</div></td>'


def _table(caption: str, heads: Sequence[str], groups: Sequence[str], kind: str = "") -> str:
    head = "".join(f'<th role="columnheader" scope="col">{escape(text)}</th>' for text in heads)
    hidden = ' class="unseen"' if kind in ("scores", "contrasts", "mismatches") else ""
    bodies = "".join(f'<tbody role="rowgroup">{group}</tbody>' for group in groups)
    return (
        f'<table role="table" class="cards {kind}"><caption{hidden}>{escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>{bodies}</table>'
    )


def _name(label: str, full: str, *, span: int = 0) -> str:
    across = f' colspan="{span}" scope="rowgroup" class="group"' if span else ' scope="row"'
    tip = f' title="{escape(full)}"' if clean(full) != label else ""
    return f'<th role="rowheader"{across}{tip}>{escape(label)}</th>'


def _bar(value: float | None, low: float | None, high: float | None, reach: float) -> str:
    """A dot and its interval on an axis from −reach to +reach, with a rule at zero."""
    if value is None or reach <= 0:
        return ""

    def at(number: float) -> float:
        return round(60 + 54 * max(-1.0, min(1.0, number / reach)), 1)

    whisker = ""
    if low is not None and high is not None:
        whisker = f'<line class="whisker" x1="{at(low)}" x2="{at(high)}" y1="9" y2="9"/>'
    return (
        '<svg class="bar" viewBox="0 0 120 18" aria-hidden="true">'
        '<line class="zero" x1="60" x2="60" y1="0" y2="18"/>'
        f'{whisker}<circle cx="{at(value)}" cy="9" r="3.5"/></svg>'
    )


def overlap_table(pairs: Sequence[Mapping[str, Any]], labels: Sequence[str], why: Reasons) -> str:
    """Observed overlap, its nulls, and the difference with its interval, for each checkpoint."""
    notes, kinds = (
        _Notes(),
        {"principal_overlap": "principal", "low_magnitude_overlap": "low magnitude"},
    )
    ends = [
        end for pair in pairs for kind in kinds for end in excess(pair, kind) if end is not None
    ]
    reach = max((abs(end) for end in ends), default=0.0)
    groups, places = [], digits(pairs)
    for pair, label in zip(pairs, labels, strict=True):
        rows = f'<tr role="row">{_name(label, str(pair.get("tuned")), span=7)}</tr>'
        for kind, words in kinds.items():
            rows += _overlap_row(
                pair, kind, words, notes=notes, why=why, reach=reach, places=places
            )
        groups.append(rows)
    heads = (
        "Overlap with",
        "Observed",
        "Magnitude null",
        "Rounding null",
        "Observed − magnitude null",
        f"±\u00a0{plain(reach, places)}" if reach else "Drawn",
        "Reading",
    )
    return (
        _table("Where the update landed, beside its nulls", heads, groups, "overlaps")
        + notes.html()
    )


def _overlap_row(
    pair: Mapping[str, Any],
    kind: str,
    words: str,
    *,
    notes: _Notes,
    why: Reasons,
    reach: float,
    places: int,
) -> str:
    tuned = str(pair.get("tuned"))

    def shown(measure: str) -> str:
        value = pair.get(measure)
        return plain(value) if is_number(value) else notes.dash(why.get((tuned, measure)))

    value, low, high = excess(pair, kind)
    verdict = state(pair, kind) if value is not None else "undefined"
    difference = f"{signed(value, places)} <small>{interval([low, high], places)}</small>"
    if value is None:
        difference = notes.dash(why.get((tuned, kind)))
    reading = f'<span aria-hidden="true">{_MARKS[verdict]}</span> {_STATES[verdict]}'
    return (
        f'<tr role="row"><th role="rowheader" scope="row" class="sub">{words}</th>'
        + _cell("Observed", shown(kind))
        + _cell("Magnitude null", shown(f"{kind}_magnitude_null"))
        + _cell("Rounding null", shown(f"{kind}_rounding_null"))
        + _cell("Observed − magnitude null", difference)
        + _cell("Difference drawn", _bar(value, low, high, reach), "drawn")
        + _cell("Reading", reading, f"reading {verdict}")
        + "</tr>"
    )


_STEP = (
    ("unchanged_bf16", "Unchanged in bf16", percent),
    ("unchanged_stored", "Unchanged as stored", percent),
    ("relative_update_norm", "‖ΔW‖ / ‖W₀‖", small),
    ("nss", "Spectral shift", small),
    ("rotation_left_deg", "Rotation left,\u00a0°", small),
    ("rotation_right_deg", "Rotation right,\u00a0°", small),
    ("rank1_energy", "Rank-1 energy", small),
    ("rank1_norm_share", "Rank-1 norm share", small),
    ("effective_rank", "Effective rank", small),
)


def step_table(pairs: Sequence[Mapping[str, Any]], labels: Sequence[str], why: Reasons) -> str:
    """Sizes of each step, with the interval of each mean over matrices beneath it."""
    notes, rows = _Notes(), []
    for pair, label in zip(pairs, labels, strict=True):
        tuned = str(pair.get("tuned"))
        verdict = str((pair.get("verdict") or {}).get("label", "undetermined"))
        cells = _cell("Verdict", escape(VERDICTS.get(verdict, verdict)), "verdict")
        for measure, head, show in _STEP:
            value = pair.get(measure)
            text = show(value) if is_number(value) else notes.dash(why.get((tuned, measure)))
            bounds = (pair.get("intervals") or {}).get(measure)
            ends = [show(end) for end in bounds or [] if is_number(end)]
            text += f"<small>{ends[0]} – {ends[1]}</small>" if len(ends) == 2 else ""
            cells += _cell(head, text)
        rows.append(f'<tr role="row">{_name(label, tuned)}{cells}</tr>')
    heads = ("Checkpoint", "Verdict", *(head for _, head, _ in _STEP))
    return _table("How large the step is", heads, ["".join(rows)], "steps") + notes.html()


def verdicts(pairs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """For each checkpoint the evidence for its verdict, and what else was counted."""
    parts = []
    for pair, label in zip(pairs, labels, strict=True):
        evidence = (pair.get("verdict") or {}).get("evidence") or []
        items = "".join(f"<li>{escape(text, 500)}</li>" for text in evidence)
        sizes = [
            f"{count(pair[key])} {key}"
            for key in ("parameters", "tensors", "matrices")
            if is_number(pair.get(key))
        ]
        parts.append(
            f"<dt>{escape(label)}</dt><dd><code>{escape(pair.get('tuned'))}</code>"
            f"<br>{' · '.join(sizes)}<ul>{items}</ul></dd>"
        )
    return f'<dl class="verdicts">{"".join(parts)}</dl>'


def scores_table(scores: pl.DataFrame, labels: Mapping[str, str]) -> str:
    """One row a checkpoint and step, one column a metric, each with interval and n."""
    metrics = list(dict.fromkeys(scores["metric"].to_list()))
    rows: dict[tuple[str, Any], dict[str, Mapping[str, Any]]] = {}
    for row in scores.iter_rows(named=True):
        rows.setdefault((str(row["tuned"]), row["step"]), {})[row["metric"]] = row
    lines = []
    for (tuned, step), cells in rows.items():
        line = _name(labels.get(tuned, clean(tuned)), tuned)
        line += _cell("Step", count(step))
        for metric in metrics:
            line += _cell(clean(metric), _score(cells.get(metric)))
        lines.append(f'<tr role="row">{line}</tr>')
    heads = ("Checkpoint", "Step", *(clean(metric) for metric in metrics))
    return _table("Scores, with intervals", heads, ["".join(lines)], "scores")


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None or not is_number(row["value"]):
        return f'<span class="none">{DASH}</span>'
    detail = ""
    if is_number(row["low"]) and is_number(row["high"]):
        detail = f"{plain(row['low'], 3)} – {plain(row['high'], 3)}"
    if is_number(row["n"]):
        detail += f"{', ' if detail else ''}n = {count(row['n'])}"
    return f"{plain(row['value'], 3)}<small>{detail}</small>"


def contrasts_table(contrasts: pl.DataFrame, labels: Mapping[str, str]) -> str:
    """Each contrast of two runs: what was held equal, both values, the difference."""
    reaches: dict[str, float] = {}
    rows = list(contrasts.iter_rows(named=True))
    for row in rows:
        ends = [abs(row[key]) for key in ("difference", "low", "high") if is_number(row[key])]
        reaches[row["measure"]] = max([reaches.get(row["measure"], 0.0), *ends])
    groups: dict[str, str] = {}
    for row in rows:
        measure = row["measure"]
        head = f'<tr role="row">{_name(title(measure), measure, span=7)}</tr>'
        groups[measure] = groups.get(measure, head) + _contrast_row(row, reaches[measure], labels)
    heads = ("Held equal", "At", "First", "Second", "First − second", "Drawn", "Reading")
    return _table("Contrasts of two runs", heads, list(groups.values()), "contrasts")


def _contrast_row(row: Mapping[str, Any], reach: float, labels: Mapping[str, str]) -> str:
    show = _one_scale(row)

    def side(key: str) -> str:
        name = str(row[key])
        shown = escape(labels.get(name, clean(name)))
        return f"{show(row[f'{key}_value'])}<small>{shown}</small>"

    at = small(row["at"]) if is_number(row["at"]) else escape(row["at"] or DASH)
    value, low, high = (
        row[key] if is_number(row[key]) else None for key in ("difference", "low", "high")
    )
    detail = [f"[{show(low)}, {show(high)}]"] if low is not None and high is not None else []
    detail += [f"n = {count(row['n'])}"] if is_number(row["n"]) else []
    sign = "+" if value is not None and value > 0 else ""
    differs = row["verdict"] == "differ"
    reading = f'<span aria-hidden="true">{"●" if differs else "○"}</span> {escape(row["verdict"])}'
    matched = {"step": "steps", "norm": "update norm", "accuracy": "accuracy"}
    held = escape(matched.get(row["matched_by"], row["matched_by"]))
    return (
        f'<tr role="row"><th role="rowheader" scope="row" class="sub">{held}</th>'
        + _cell("At", at)
        + _cell("First", side("a"))
        + _cell("Second", side("b"))
        + _cell("First − second", f"{sign}{show(value)}<small>{', '.join(detail)}</small>")
        + _cell("Drawn", _bar(value, low, high, reach), "drawn")
        + _cell("Reading", reading, f"reading {'above' if differs else 'same'}")
        + "</tr>"
    )


def _one_scale(row: Mapping[str, Any]) -> Callable[[float | None], str]:
    """Both values and their difference with the same decimals, unless all of them are small."""
    sides = [abs(row[key]) for key in ("a_value", "b_value") if is_number(row[key])]
    if max(sides, default=0.0) < 0.01:
        return small
    ends = [abs(row[key]) for key in ("difference", "low", "high") if is_number(row[key])]
    places = decimals(max(ends, default=0.0) / 10, 1)
    return lambda value: plain(value, places)


def mismatches(measurements: pl.DataFrame, labels: Mapping[str, str]) -> str:
    """Tensors that could not be compared, with the reason; empty where there are none."""
    words = pl.col("status").str.extract(r"^(\w+)", 1)
    rows = (
        measurements.filter(words.is_in(MISMATCH))
        .select("tuned", "tensor", "rows", "cols", "status")
        .unique(maintain_order=True)
    )
    if rows.is_empty():
        return "<p>Every tensor was matched and compared.</p>"
    lines = []
    for tuned, tensor, height, width, status in rows.head(_MISMATCHES).iter_rows():
        shape = f"{count(height)} × {count(width)}" if height and width else DASH
        lines.append(
            f'<tr role="row">{_name(clean(tensor), tensor)}'
            + _cell("Checkpoint", escape(labels.get(tuned, clean(tuned))), "words")
            + _cell("Shape", shape)
            + _cell("Status", escape(status), "words")
            + "</tr>"
        )
    more = ""
    if rows.height > _MISMATCHES:
        more = (
            f"<p class='fine'>{count(rows.height - _MISMATCHES)} more in measurements.parquet.</p>"
        )
    heads = ("Tensor", "Checkpoint", "Shape", "Status")
    return _table("Tensors not compared", heads, ["".join(lines)], "mismatches") + more


def run_block(run: Mapping[str, Any]) -> str:
    """Versions, seeds, renamings, settings and command, as they were recorded."""
    parts = []
    for key, value in run.items():
        if isinstance(value, Mapping | list | tuple):
            text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
            lines = "\n".join(escape(line, 2000) for line in text[:_LONGEST_RUN].split("\n"))
            cut = "\n… (the rest is in summary.json)" if len(text) > _LONGEST_RUN else ""
            parts.append(f"<dt>{escape(key)}</dt><dd><pre>{lines}{cut}</pre></dd>")
        else:
            shown = DASH if value is None else escape(value, 2000)
            parts.append(f"<dt>{escape(key)}</dt><dd><code>{shown}</code></dd>")
    return f'<dl class="run">{"".join(parts)}</dl>' if parts else "<p>Nothing was recorded.</p>"
