"""Tables in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

import polars as pl

from offaxis.report import tables
from offaxis.report.data import page_data
from offaxis.report.document import asset, plotly, policy
from offaxis.report.figures import (
    across,
    consensus,
    figure,
    fixed,
    pick,
    profiles,
    section,
    series,
)
from offaxis.report.glossary import glossary, title
from offaxis.report.headline import Headline, headline
from offaxis.report.text import count, escape, join, json_block, short_labels

__all__ = ["render"]

_SCRIPTS = ("figures.js", "steps.js", "matrix.js", "app.js")


def render(
    measurements: pl.DataFrame,
    curves: pl.DataFrame,
    summary: Mapping[str, Any],
    *,
    scores: pl.DataFrame | None = None,
    contrasts: pl.DataFrame | None = None,
) -> str:
    """The report of a comparison as one HTML document that needs nothing else, network included.

    `measurements` and `curves` have the columns of `offaxis.table`; `summary` is what
    `summary.json` holds. `scores` has the columns tuned, step, metric, value, low, high, n;
    `contrasts` measure, matched_by, at, a, b, a_value, b_value, difference, low, high, n,
    verdict. Nothing is computed beyond means and thinning for display. Names are untrusted
    and escaped; a content security policy forbids every script that is not the page's own.
    """
    pairs = summary.get("pairs") or []
    labels = short_labels([str(pair["tuned"]) for pair in pairs])
    data = page_data(measurements, curves, summary, labels, contrasts)
    library = plotly()
    script = "\n".join(asset(name) for name in _SCRIPTS)
    why = tables.reasons(measurements)
    names = {str(pair["tuned"]): label for pair, label in zip(pairs, labels, strict=True)}
    return Template(asset("page.html")).substitute(
        policy=policy(library, script),
        style=asset("style.css"),
        base=escape(summary.get("base", "")),
        headline=_headline(headline(summary, labels), _differ(contrasts)),
        scores=section("scores", "Scores", _scores(scores, names)),
        contrasts=section("contrasts", "Do the runs differ?", _contrasts(contrasts, names)),
        overlaps=tables.overlap_table(pairs, labels, why),
        steps=tables.step_table(pairs, labels, why),
        verdicts=tables.verdicts(pairs, labels),
        kept=_kept(data),
        across=across(data["jaccard"]),
        series=series(data["series"]),
        **{name: fixed(name) for name in ("means", "spectrum", "shift", "angles", "mask", "ulp")},
        profiles=profiles(data["series"]),
        consensus=consensus(data["matrices"]["consensus"], data["consensus"]),
        grid=fixed("grid", pick("grid", "Measure")),
        scatter=fixed("scatter", pick("overlap", "Overlap with") + pick("view", "Show")),
        mismatches=tables.mismatches(measurements, names),
        glossary=glossary(),
        run=tables.run_block(summary.get("run") or {}),
        data=json_block(data),
        plotly=library,
        script=script,
    )


def _headline(words: Headline, differ: str) -> str:
    step = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in words.step
    )
    nulls = "".join(f"<li>{escape(text, 1000)}</li>" for text in words.nulls)
    change = "".join(f"<li>{escape(text, 1000)}</li>" for text in words.change)
    return (
        f'<h1>{escape(words.title, 400)}</h1><p class="lede">'
        f"{escape(words.lede, 1000)} {escape(differ, 1000)}</p>"
        f'<div class="judgement"><section><h2>The step</h2>'
        f"<dl>{step}</dl></section>"
        f"<section><h2>What the nulls say</h2><ul>{nulls}</ul></section>"
        f"<section><h2>What would change this</h2><ul>{change}</ul></section></div>"
    )


def _scores(scores: pl.DataFrame | None, names: Mapping[str, str]) -> str:
    return "" if scores is None or scores.is_empty() else tables.scores_table(scores, names)


def _contrasts(contrasts: pl.DataFrame | None, names: Mapping[str, str]) -> str:
    if contrasts is None or contrasts.is_empty():
        return ""
    how = (
        "Each dot is a difference, first run minus second, with its interval; one that crosses "
        "the zero line cannot be told from none."
    )
    drawn = figure("contrast", "The differences drawn", how, pick("contrast", "Measure"))
    return tables.contrasts_table(contrasts, names) + drawn


_HELD = {"norm": "update norm", "accuracy": "accuracy", "step": "steps"}
"""What two runs were matched by, the fairest first."""


def _differ(contrasts: pl.DataFrame | None) -> str:
    """In which measures the runs differ, in a sentence; empty where nothing was contrasted."""
    if contrasts is None or contrasts.is_empty():
        return ""
    matched = [one for one in _HELD if one in set(contrasts["matched_by"])]
    matched += sorted(set(contrasts["matched_by"]) - set(_HELD))
    found = {}
    for one in matched:
        rows = contrasts.filter(pl.col("matched_by") == one)
        found[one] = (rows.filter(pl.col("verdict") == "differ")["measure"].to_list(), rows.height)
    first, *others = matched
    measures, total = found[first]
    words = join([title(name).lower().replace(",", "") for name in measures])
    which = f" ({words})" if words else ""
    more = [f"in {len(found[one][0])} at equal {_HELD.get(one, one)}" for one in others]
    return (
        f"At equal {_HELD.get(first, first)} the runs differ beyond their interval in "
        f"{len(measures)} of {total} measures{which}{'; ' if more else ''}{join(more)}."
    )


def _kept(data: Mapping[str, Any]) -> str:
    """What the page leaves out, in words; empty where it leaves out nothing."""
    notes = []
    listed, total = len(data["matrices"]["list"]), data["matrices"]["total"]
    if listed < total:
        notes.append(
            f"To keep the page small, curves and pictures are here for {count(listed)} of "
            f"{count(total)} matrices, chosen evenly over role and depth."
        )
    shown, points = len(data["points"]["names"]), data["points"]["total"]
    if shown < points:
        notes.append(f"The scatter shows {count(shown)} of {count(points)} matrices.")
    if len(data["checkpoints"]) < data["total"]:
        notes.append(
            f"The plots hold {len(data['checkpoints'])} of {data['total']} checkpoints, evenly "
            "spaced; the tables hold all."
        )
    if not notes:
        return ""
    rest = "The parquet files beside this page hold everything."
    return f'<p class="fine" id="kept">{" ".join([*notes, rest])}</p>'
