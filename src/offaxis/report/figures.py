"""The page's figures: heading, one sentence on how to read it, and where the plot goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.report.text import escape, join

__all__ = ["across", "consensus", "figure", "fixed", "pick", "profiles", "section", "series"]

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
        "Share of changed entries in each block, each row (right) and each column (top); thin "
        "dotted lines are what the magnitudes of the entries alone predict for a row or column.",
    ),
    "ulp": (
        "How far entries moved",
        "Share of entries by the number of bfloat16 values between old and new, on a log scale: "
        "0 is unchanged, 1 the next value.",
    ),
    "profile": (
        "Profile over the steps",
        "Each line is a checkpoint of the run: where peaks and troughs stay in place while the "
        "lines rise, the pattern was fixed early.",
    ),
    "profile-null": (
        "What magnitudes alone predict",
        "The same, had the changed entries been redrawn among entries of equal magnitude: a peak "
        "that is missing here belongs to its row or column.",
    ),
    "consensus": (
        "Consensus of the runs",
        "Share of runs, each at its last checkpoint, in which the entries of a block changed; "
        "stripes are rows or columns that all runs change.",
    ),
    "consensus-null": (
        "What magnitudes alone predict",
        "The same map, on the same scale, if each run had redrawn its changed entries among "
        "entries of equal magnitude.",
    ),
    "consensus-gap": (
        "Consensus minus prediction",
        "Zero where magnitudes explain the consensus: the stripes that remain here are rows or "
        "columns changed more, or less, than the size of their entries says.",
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


def pick(name: str, words: str) -> str:
    """A labelled choice, filled by the page's script."""
    return f'<label class="pick">{words} <select id="choose-{name}"></select></label>'


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


_FIXED_EARLY = {
    "row_profile_correlation": ("How early the row profile is fixed", "rows"),
    "column_profile_correlation": ("How early the column profile is fixed", "columns"),
}


def series(data: Mapping[str, Any] | None) -> str:
    """A chosen measure over the training steps, and how early the profiles are fixed."""
    if data is None:
        return ""
    how = (
        "Each line is a run and each mark a checkpoint, with the interval of its mean over "
        "matrices shaded; thin dashed lines with hollow marks are the magnitude null."
    )
    body = figure("series", "A measure over the steps", how, pick("series", "Measure"))
    parts = []
    for name in data["profiles"]:
        heading, side = _FIXED_EARLY[name]
        how = (
            f"Correlation of the changed shares of {side} with the last checkpoint's, mean over "
            "matrices, beside what entries of equal magnitude give where those that moved stay "
            f"moved (dashed): the gap between the two is a pattern of {side}."
        )
        parts.append(figure(f"series-{name}", heading, how))
    body += f'<div class="grid level">{"".join(parts)}</div>' if parts else ""
    return section("series", "Over the training steps", body)


def profiles(data: Mapping[str, Any] | None) -> str:
    """The chosen matrix's profiles at several steps of a run, beside their null."""
    if data is None or not data["shown"]:
        return ""
    picks = pick("run", "Run") + pick("along", "Along")
    parts = fixed("profile") + fixed("profile-null")
    told = '<p class="fine" id="persist" aria-live="polite"></p>'
    return f'<div id="profiles">{picks}<div class="grid level">{parts}</div>{told}</div>'


def consensus(found: Sequence[Mapping[str, Any] | None], runs: Sequence[str]) -> str:
    """Consensus map of the chosen matrix; its null and their difference where they are known.

    runs: labels of the checkpoints that the consensus is of.
    """
    known = [one for one in found if one is not None]
    if not known:
        return ""
    parts = fixed("consensus")
    if any("gap" in one for one in known):
        parts += fixed("consensus-null") + fixed("consensus-gap")
    more = [f"{len(runs) - 5} more"] if len(runs) > 6 else []
    names = escape(join([*runs[: 5 if more else 6], *more]), 1000)
    told = f'<p class="fine">Runs in the consensus: {names}.</p>' if runs else ""
    return f'<div class="grid three level" id="agreement">{parts}</div>{told}'
