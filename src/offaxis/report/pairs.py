"""The page of many (base, tuned) pairs: one sortable table, its groups, one scatter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import polars as pl

from offaxis.report import tables
from offaxis.report.document import asset, plotly, policy
from offaxis.report.figures import figure, pick, section
from offaxis.report.glossary import glossary, title
from offaxis.report.headline import state
from offaxis.report.pairs_columns import Own, own_columns
from offaxis.report.pairs_tables import group_tables, pair_table
from offaxis.report.text import clean, escape, is_number, join, json_block

__all__ = ["render_pairs"]

_SCRIPTS = ("figures.js", "pairs.js")
_AXES = (
    "relative_update_norm",
    "unchanged_bf16",
    "unchanged_stored",
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "principal_overlap",
    "principal_overlap_magnitude_null",
    "principal_overlap_rounding_null",
    "principal_overlap_excess",
    "low_magnitude_overlap",
    "low_magnitude_overlap_magnitude_null",
    "low_magnitude_overlap_rounding_null",
    "low_magnitude_overlap_excess",
    "rank1_energy",
    "rank1_norm_share",
    "effective_rank",
)
_SHARES = ("unchanged_bf16", "unchanged_stored")
_STEPS = {
    "small_step": ("small step", "small steps"),
    "large_step": ("large step", "large steps"),
    "identical": ("identical to its base", "identical to their bases"),
    "implausible_base": ("not plausibly from its base", "not plausibly from their bases"),
    "undetermined": ("step of undetermined size", "steps of undetermined size"),
}


def render_pairs(own: pl.DataFrame, measurements: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """The report over a manifest as one HTML document that needs nothing else.

    own: the manifest's columns, `name`, `base` and `tuned` among them, one row a pair of
    `summary["pairs"]`. measurements: the columns of `offaxis.table`, the pair's name as `tuned`;
    reasons for undefined numbers and mismatches are taken from it. Nothing is computed beyond the
    mean, least and greatest of each group. All text is untrusted and escaped; a content security
    policy forbids every script that is not the page's own.
    """
    pairs = summary["pairs"]
    columns = own_columns(own)
    names = dict(zip(own["name"].to_list(), [cell or "" for cell in columns[0].cells], strict=True))
    labels = list(names.values())
    library, script = plotly(), "\n".join(asset(name) for name in _SCRIPTS)
    groups = group_tables(pairs, columns)
    return Template(asset("pairs.html")).substitute(
        policy=policy(library, script),
        style=asset("style.css"),
        manifest=escape(summary["base"]),
        headline=_headline(pairs),
        table=pair_table(pairs, columns, tables.reasons(measurements)),
        groups=section("groups", "By group", _groups(groups)) if groups else "",
        scatter=_scatter(),
        verdicts=tables.verdicts(pairs, labels),
        mismatches=tables.mismatches(measurements, names),
        glossary=glossary(),
        run=tables.run_block(summary.get("run") or {}),
        data=json_block(_data(pairs, columns)),
        plotly=library,
        script=script,
    )


def _headline(pairs: Sequence[Mapping[str, Any]]) -> str:
    bases = len({pair["base"] for pair in pairs})
    tally = Counter(str(pair["verdict"]["label"]) for pair in pairs).most_common()
    steps = [f"{n} {_STEPS.get(label, (label, label))[n != 1]}" for label, n in tally]
    first = f"{_some(len(pairs), 'pair')} over {_some(bases, 'base')}: {join(steps)}."
    lede = "".join(
        f"<li>{escape(_against(pairs, overlap, words), 1000)}</li>"
        for overlap, words in (
            ("principal_overlap", "principal weights"),
            ("low_magnitude_overlap", "low-magnitude weights"),
        )
    )
    return f'<h1>{escape(first, 400)}</h1><ul class="lede">{lede}</ul>'


def _some(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _against(pairs: Sequence[Mapping[str, Any]], overlap: str, words: str) -> str:
    """How many pairs overlap less, more, or as the magnitudes predict."""
    tally = Counter(state(pair, overlap) for pair in pairs)
    undefined = sum(pair.get(f"{overlap}_excess") is None for pair in pairs)
    parts = [
        f"less in {_count(tally['below'])}",
        f"more in {_count(tally['above'])}",
        f"not told apart in {_count(tally['same'])}",
    ]
    alone = tally["unknown"] - undefined
    parts += [f"without an interval in {alone}"] if alone else []
    parts += [f"not defined in {undefined}"] if undefined else []
    known = f"Overlap with {words} against what weight magnitudes alone predict"
    return f"{known}: {join(parts)} of {_some(len(pairs), 'pair')}."


def _count(number: int) -> str:
    return str(number) if number else "none"


def _groups(found: Sequence[tuple[str, str]]) -> str:
    options = "".join(
        f'<option value="{place}">{escape(key)}</option>' for place, (key, _) in enumerate(found)
    )
    return (
        '<p class="how">Mean over the pairs of a group, the least and the greatest beneath. The '
        "pairs of a group also differ in model, data and size of step, so a gap between two groups "
        "is not yet an effect of what they are grouped by.</p>"
        f'<label class="pick">Group by <select id="choose-group">{options}</select></label>'
        + "".join(table for _, table in found)
    )


def _scatter() -> str:
    """One figure, its axes and colours to choose."""
    how = (
        "Each mark is a pair; bars are 95 % intervals over its matrices. With the update norm "
        "across, marks that part at one place differ by more than the size of their step."
    )
    picks = (("x", "Across"), ("y", "Up"), ("colour", "Colour by"))
    before = "".join(pick(name, words) for name, words in picks)
    left_out = '<p class="fine" id="left-out" role="status"></p>'
    return figure("pairs", "One measure against another", how, before) + left_out


def _data(pairs: Sequence[Mapping[str, Any]], columns: Sequence[Own]) -> dict[str, Any]:
    """What the scatter is drawn from: axes, colours, names."""
    axes = []
    for key in _AXES:
        values = [_finite(pair.get(key)) for pair in pairs]
        if any(value is not None for value in values):
            bounds = [(pair.get("intervals") or {}).get(key) or (None, None) for pair in pairs]
            ends = [[_finite(pair[side]) for pair in bounds] for side in (0, 1)]
            shape = {"share": key in _SHARES, "low": ends[0], "high": ends[1]}
            axes.append({"key": key, "title": title(key), "values": values, **shape})
    for column in columns:
        if column.numbers is not None:
            none = [None] * len(pairs)
            own = {"key": f"own {clean(column.key)}", "title": clean(column.key)}
            axes.append(
                own | {"values": list(column.numbers), "share": False, "low": none, "high": none}
            )
    colours = [
        {"key": clean(column.key), "values": list(column.cells), "order": column.values}
        for column in sorted(columns, key=lambda column: column.key in ("base", "tuned"))
        if column.key != "name" and column.few and (column.numbers is None or column.groups)
    ]
    return {"names": list(columns[0].cells), "axes": axes, "colours": colours}


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None
