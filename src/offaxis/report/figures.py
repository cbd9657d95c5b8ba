"""The page's figures: heading, one sentence on how to read it, and where the plot goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offaxis.report.text import escape

__all__ = ["across", "figure", "fixed", "section", "series"]

_FIXED = {
    "grid": (
        "Where in the network",
        "Each cell is one role in one layer (a mean where there are several experts); the colour "
        "scale is the same for every checkpoint.",
    ),
    "scatter": (
        "Overlap against its null, matrix by matrix",
        "Each mark is a matrix: on the line it overlaps as weight magnitudes alone predict, below "
        "the line less, above it more; choose one by clicking on it.",
    ),
    "means": (
        "Mean difference from the magnitude null",
        "Each dot is a checkpoint's mean over matrices, with its interval where one was computed; "
        "one that crosses zero is no difference that could be told.",
    ),
    "spectrum": (
        "Singular values",
        "Base and tuned lie on one line where the spectrum is kept; the update's own spectrum "
        "falls steeply if few directions hold it.",
    ),
    "shift": (
        "Change of each singular value",
        "Relative to the base's value of the same rank: zero is no change.",
    ),
    "angles": (
        "Principal angles",
        "Angles between the leading singular subspaces of base and tuned, smallest first: near "
        "zero the subspace has not turned.",
    ),
    "mask": (
        "Where the entries changed",
        "Share of changed entries in each block of the matrix, in rows (right) and in columns "
        "(top): stripes are rows or columns that move as one.",
    ),
    "ulp": (
        "How far entries moved",
        "Share of entries by the number of bfloat16 values between old and new, on a log scale: "
        "0 is unchanged, 1 the next value.",
    ),
    "consensus": (
        "Consensus of the runs",
        "Mean share of runs in which the entries of each block changed: blocks near the top of "
        "the scale are changed by most runs.",
    ),
}


def figure(name: str, heading: str, how: str, before: str = "") -> str:
    """A figure; `heading` and `how` are HTML, `before` stands between them and the plot."""
    return (
        f'<figure id="figure-{name}"><h3>{heading}</h3><p class="how">{how}</p>{before}'
        f'<div class="legend" id="legend-{name}"></div>'
        f'<div class="plot" id="plot-{name}" role="img" aria-label="{heading}. {how}"></div>'
        "</figure>"
    )


def fixed(name: str, before: str = "") -> str:
    """One of the figures that every page has."""
    return figure(name, *_FIXED[name], before)


def section(name: str, heading: str, body: str) -> str:
    """A section with its heading, or nothing where the body is empty."""
    if not body:
        return ""
    return f'<section id="{name}"><h2>{heading}</h2>{body}</section>'


def across(jaccard: Mapping[str, Any] | None) -> str:
    """Jaccard matrix beside its null, and in how many runs an entry changed."""
    if jaccard is None:
        return ""
    means = (
        ("observed", jaccard["mean"]),
        ("magnitude null", jaccard["mean_null"]),
        ("chance at equal density", jaccard["chance"]),
    )
    told = "; ".join(f"{words} {value:.4f}" for words, value in means if value is not None)
    how = "Share of entries changed in both runs among those changed in either; 1 is the same set."
    parts = [figure("jaccard", "Jaccard between runs", how)]
    if jaccard["null"] is not None:
        how = (
            "The same, if each run had chosen independently among weights of equal magnitude: "
            "only what lies above this is agreement."
        )
        parts.append(figure("jaccard-null", "Its magnitude null", how))
        how = "Observed minus null, for each pair of runs: zero is no agreement beyond magnitudes."
        parts.append(figure("jaccard-gap", "Observed minus its null", how))
    if jaccard["in_r_runs"] is not None:
        how = "Share of all entries that changed in no run, in exactly one, in two, and so on."
        parts.append(figure("runs", "In how many runs an entry changed", how))
    mean = f"<p>Mean over pairs of runs: {told}.</p>" if told else ""
    return section("across", "Across the runs", f'{mean}<div class="grid">{"".join(parts)}</div>')


def series(data: Mapping[str, Any] | None) -> str:
    """A small figure for each measure over the training steps."""
    if data is None:
        return ""
    parts = []
    for measure in data["measures"]:
        null = "; thin lines with hollow marks are its magnitude null" if measure["null"] else ""
        heading = escape(measure["title"])
        parts.append(
            figure(
                f"series-{measure['name']}",
                heading,
                f"Each line is a run, each mark a checkpoint{null}.",
            )
        )
    legend = '<div class="legend" id="legend-series"></div>'
    body = f'{legend}<div class="grid three">{"".join(parts)}</div>'
    return section("series", "Over the training steps", body)
