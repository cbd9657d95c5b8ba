"""The tables of the page of a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offaxis.report.text import (
    DASH,
    count,
    escape,
    is_number,
    percent,
    plain,
    short_labels,
    small,
)

__all__ = ["asked_horizon", "band_words", "error_tables", "facts_table", "series_table"]

Told = Mapping[str, Any]

_FACTS = {
    "relative_update_norm": "‖prediction − base‖ / ‖base‖",
    "over_last": "its distance from the base, over the last checkpoint's",
    "moved_on": "its distance from the last checkpoint, over the last checkpoint's from the base",
    "rounding": "lost by rounding to the stored dtype, over the predicted update",
    "stayed": "tensors that stay at the base",
}
_PARTS = (("all", ""), ("matrices", "Matrices alone"), ("rest", "Everything but matrices"))


def asked_horizon(told: Told) -> float | None:
    """How far ahead the prediction reaches, step over the last checkpoint's; None if unknown."""
    at = (told.get("advice") or {}).get("at", told.get("at"))
    last = told["checkpoints"][-1].get("step") if told["checkpoints"] else None
    return at / last if is_number(at) and is_number(last) and last > 0 else None


def band_words(row: Told) -> str:
    """A band of horizons in words."""
    if not is_number(row.get("upto")):
        return f"beyond {row['above']:g}×"
    return f"{row['above']:g} – {row['upto']:g}×"


def _in_band(row: Told, horizon: float | None) -> bool:
    if horizon is None or horizon <= row["above"]:
        return False
    return not is_number(row.get("upto")) or horizon <= row["upto"]


def error_tables(told: Told) -> str:
    """Errors by horizon and method: of all parameters, and folded away of matrices and the rest."""
    found = told["backtest"]["summary"]
    out = ""
    for part, words in _PARTS:
        rows = [row for row in found if row.get("part", "all") == part]
        if not rows:
            continue
        table = _error_table(rows, asked_horizon(told), words or "All parameters")
        out += f"<details><summary>{words}</summary>{table}</details>" if words else table
    return out


def _error_table(rows: Sequence[Told], asked: float | None, caption: str) -> str:
    heads = ("Horizon", "Method", "Cases", "Relative error", "Gain over stopping", "Cosine")
    body, shown = "", None
    for row in rows:
        mark = ' class="asked"' if _in_band(row, asked) else ""
        band = band_words(row) if row["above"] != shown else ""
        shown = row["above"]
        body += (
            f'<tr{mark}><th scope="row">{escape(band)}'
            f"{'' if band else _unseen(band_words(row))}</th>"
            f'<td class="words">{escape(row["method"])}</td>'
            f"<td>{count(row['cases'])}<small>{_origins(row)}</small></td>"
            + "".join(
                f"<td>{_spread(row, name, show)}</td>"
                for name, show in (
                    ("relative_error", lambda value: plain(value, 3)),
                    ("gain_over_stop", percent),
                    ("cosine", lambda value: plain(value, 3)),
                )
            )
            + "</tr>"
        )
    note = "Median, and least to greatest; shaded rows reach as far ahead as was asked for."
    return _table(caption, heads, body) + f'<p class="fine">{note}</p>'


def _unseen(words: str) -> str:
    return f'<span class="unseen">{escape(words)}</span>'


def _origins(row: Told) -> str:
    return f"{row['origins']} origin{'' if row['origins'] == 1 else 's'}"


def _spread(row: Told, name: str, show: Any) -> str:
    if not is_number(row.get(name)):
        return DASH
    low, high = row.get(f"{name}_least"), row.get(f"{name}_greatest")
    beneath = f"<small>{show(low)} – {show(high)}</small>" if low != high else "<small></small>"
    return f"{show(row[name])}{beneath}"


def _table(caption: str, heads: Iterable[str], body: str) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    return (
        f'<div class="scroller" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def facts_table(told: Told) -> str:
    """Facts of the written model: known ones in words, the fits' means under their own names."""
    facts = told.get("facts") or {}
    rows = [(words, facts[name]) for name, words in _FACTS.items() if name in facts]
    fits = [(name, value) for name, value in facts.items() if name not in _FACTS]
    body = "".join(
        f'<tr><th scope="row">{escape(words)}</th><td>{small(value)}</td></tr>'
        for words, value in rows
    )
    body += "".join(
        f'<tr><th scope="row">{escape(name.removesuffix("_mean"))}, mean over tensors</th>'
        f"<td>{small(value)}</td></tr>"
        for name, value in fits
    )
    stored = told.get("dtypes") or {}
    body += "".join(
        f'<tr><th scope="row">entries stored in {escape(code)}</th><td>{count(entries)}</td></tr>'
        for code, entries in stored.items()
    )
    return _table(f"By {told['method']['name']}", ("Fact", "Value"), body)


def series_table(told: Told) -> str:
    """One row a checkpoint: step, score, how far from the base and from the one before."""
    points = told["checkpoints"]
    labels = short_labels([str(one["name"]) for one in points])
    moved = (told.get("norms") or {}).get("step_norms") or [None] * len(points)
    size = (told.get("norms") or {}).get("base_norm")
    body = _row("base", str(told["base"]), 0, told.get("base_score"), None, None)
    for one, label, norm in zip(points, labels, moved, strict=True):
        share = norm / size if is_number(norm) and is_number(size) and size > 0 else None
        update = one.get("relative_update_norm")
        body += _row(label, str(one["name"]), one.get("step"), one.get("score"), update, share)
    heads = ("Checkpoint", "Step", "Score", "‖θ − base‖ / ‖base‖", "From the one before / ‖base‖")
    return _table("Base and checkpoints", heads, body)


def _row(label: str, full: str, step: Any, score: Any, update: Any, moved: Any) -> str:
    at = f"{step:g}" if is_number(step) else DASH
    return (
        f'<tr><th scope="row" title="{escape(full, 500)}">{escape(label)}</th><td>{at}</td>'
        f"<td>{plain(score, 3)}</td><td>{small(update)}</td><td>{small(moved)}</td></tr>"
    )
