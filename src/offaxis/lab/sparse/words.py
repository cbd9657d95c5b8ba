"""The study's answers as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl

from offaxis.lab.blocks import (
    SIGNS,
    comparison_table,
    decimal,
    difference_cell,
    markdown_table,
    mean_cell,
)
from offaxis.lab.naming import NAMES
from offaxis.lab.sparse.naming import ALL, label
from offaxis.lab.sparse.questions import QUESTIONS
from offaxis.lab.sparse.recovery import LEVELS
from offaxis.lab.sparse.summary import RATES, kinds

if TYPE_CHECKING:
    from offaxis.lab.sparse import SparseStudy

__all__ = ["blocks", "markdown"]

_HEADINGS = {
    "accuracy": "accuracy",
    "gain": "gain",
    "kl_tuned_base": "KL(tuned ‖ base)",
    "kl_base_tuned": "KL(base ‖ tuned)",
    "kl_distance": "curve to dense's",
    "reward": "reward",
    "forgetting": "forgetting",
    "relative_update_norm": "‖ΔW‖/‖W₀‖",
    "unchanged_bf16": "unchanged",
}
_AT = {"own": "at each mask's own rate", "shared": "at dense's rate"}
_AGREEING = {
    "accuracy": "accuracy",
    "twin_cosine": "cosine",
    "twin_same_changed": "equal, of the changed",
    "twin_same": "equal, of all",
    "twin_distance": "distance",
}


def markdown(study: SparseStudy) -> str:
    """All blocks, in order."""
    return "\n\n".join(blocks(study).values()) + "\n"


def blocks(study: SparseStudy) -> dict[str, str]:
    """Name -> caption and table. A block whose runs are still missing says so."""
    found = {"state": _state(study), "rates": _rates(study.by_rate)}
    for method in study.runs.methods:
        for rates in kinds(method):
            found[f"masks-{method}-{rates}"] = _masks(study.summary, method, rates)
    found["verdicts"] = _verdicts(study)
    for question in QUESTIONS:
        found[question.name] = _question(study.comparisons, question.name)
    found["subnetworks"] = _subnetworks(study)
    found["recovery"] = _recovery(study)
    found["ranking"] = _ranking(study)
    found["curve"] = _curve(study.leaves)
    return found


def _state(study: SparseStudy) -> str:
    points, rates = study.runs.points, study.runs.open_rates
    counts = dict(points.filter("last").group_by("stage").len().iter_rows())
    told = (
        f"{counts.get('selection', 0)} runs to choose rates, {counts.get('test', 0)} test runs, "
        f"{counts.get('twin', 0)} runs beside a twin. The base scores "
        f"{study.runs.base['avg']:.3f} ({study.runs.base['problems']} problems × "
        f"{study.runs.base['samples']} samples)."
    )
    if not rates:
        return told
    names = ", ".join(f"{label(mask)} ({NAMES[method]})" for method, mask in rates)
    return f"{told}\n\nRates not settled: {names}."


def _rates(table: pl.DataFrame) -> str:
    caption = "**Accuracy by learning rate, selection seed** (bold: the rate by the rule)"
    tried = table["learning_rate"].unique().sort().to_list()
    rows = []
    for method, mask in table.select("method", "mask").unique(maintain_order=True).iter_rows():
        own = table.filter(method=method, mask=mask)
        cells = {
            row["learning_rate"]: f"**{row['accuracy']:.3f}**{' (open)' if row['open'] else ''}"
            if row["chosen"]
            else f"{row['accuracy']:.3f}"
            for row in own.iter_rows(named=True)
        }
        rows.append([NAMES[method], label(mask), *(cells.get(rate, "—") for rate in tried)])
    return markdown_table(caption, ["method", "mask", *(f"{rate:g}" for rate in tried)], rows)


def _masks(summary: pl.DataFrame, method: str, rates: str) -> str:
    caption = (
        f"**{NAMES[method]}, {_AT[rates]}** (mean over seeds ± half of Student's t interval, 95 %)"
    )
    own = summary.filter(method=method, rates=rates)
    measures = [name for name in _HEADINGS if name in set(own["measure"])]
    rows = []
    for mask in own["mask"].unique(maintain_order=True):
        found = {row["measure"]: row for row in own.filter(mask=mask).iter_rows(named=True)}
        first = next(iter(found.values()))
        density = "—" if first["density"] is None else f"{first['density']:.3g}"
        seeds = max(row["seeds"] for name, row in found.items() if "distance" not in name)
        rows.append(
            [label(mask), density, f"{first['learning_rate']:g}", str(seeds)]
            + [mean_cell(found.get(name)) for name in measures]
        )
    head = ["mask", "density", "rate", "seeds", *(_HEADINGS[name] for name in measures)]
    return markdown_table(caption, head, rows)


def _verdicts(study: SparseStudy) -> str:
    caption = "**What holds** (by the rule of `offaxis.lab.claims`)"
    rows = []
    words = {(q, claim, rates): word for q, claim, rates, word in study.verdicts.iter_rows()}
    for question in QUESTIONS:
        for number, claim in enumerate(question.claims):
            cells = [
                SIGNS.get(words.get((question.name, claim.text, rates), ""), "—") for rates in RATES
            ]
            rows.append([question.title if not number else "", claim.text, *cells])
    return markdown_table(caption, ["question", "claim", "own rate", "shared rate"], rows)


def _question(comparisons: pl.DataFrame, name: str) -> str:
    """Mask minus each other at both kinds of rate."""
    own = comparisons.filter(question=name)
    title = next(one.title for one in QUESTIONS if one.name == name)
    caption = f"**{title}** (difference, 95 % interval, Holm's p)"
    kinds = {"own": "own rate", "shared": "shared rate"}
    return comparison_table(caption, own, arm="mask", label=label, kinds=kinds)


def _subnetworks(study: SparseStudy) -> str:
    caption = (
        "**Re-training the subnetwork, held against the full run** (mean over seeds ± half of "
        "Student's t interval; the full run against itself: cosine 1, shares 1, distance 0)"
    )
    rows = []
    keys = ("method", "learning_rate", "mask")
    for method, rate, mask in study.agreements.select(keys).unique(maintain_order=True).iter_rows():
        own = study.agreements.filter(method=method, learning_rate=rate, mask=mask)
        found = {row["measure"]: row for row in own.iter_rows(named=True)}
        first = next(iter(found.values()))
        name = "a full run of another seed" if mask == ALL else label(mask)
        cells = [mean_cell(found.get(measure)) for measure in _AGREEING]
        seeds, density = str(first["seeds"]), f"{first['density']:.3g}"
        rows.append([NAMES[method], f"{rate:g}", name, density, seeds, *cells])
    return markdown_table(
        caption, ["method", "rate", "trained", "density", "seeds", *_AGREEING.values()], rows
    )


def _recovery(study: SparseStudy) -> str:
    caption = "**Does the subnetwork recover the full run?** (levels as `recovery` states them)"
    rows = []
    table = study.recovered
    for method, rate in (
        table.select("method", "learning_rate").unique(maintain_order=True).iter_rows()
    ):
        words = dict(
            table.filter(method=method, learning_rate=rate).select("level", "word").iter_rows()
        )
        rows.append(
            [NAMES[method], f"{rate:g}", *(SIGNS[words[one]] for one in (*LEVELS, "all three"))]
        )
    return markdown_table(
        caption, ["method", "rate", *(f"its {one}" for one in LEVELS), "all"], rows
    )


def _ranking(study: SparseStudy) -> str:
    caption = (
        "**Does the choice of the rate change how masks compare?** (own rates against dense's, "
        "selection seed; pairs of masks, Holm over pairs)"
    )
    rows = [
        [NAMES[one["method"]], "—" if one["tau"] is None else decimal(one["tau"], 2)]
        + [str(one[key]) for key in ("pairs", "ordered_shared", "ordered_own")]
        + [str(one["changed"]), str(one["reversed"]), SIGNS[one["word"]]]
        for one in study.ranking
        if one["tau"] is not None
    ]
    head = [
        "method", "Kendall's τ", "pairs", "ordered at the shared rate", "at own rates",
        "difference changes", "order reversed", "the rate matters",
    ]  # fmt: skip
    return markdown_table(caption, head, rows)


def _curve(leaves: pl.DataFrame) -> str:
    caption = (
        "**Accuracy above the curve that other masks share** (beside the ends of other masks; "
        "“holds”: the mask leaves the curve)"
    )
    rows = [list(row) for row in _curve_rows(leaves)]
    head = ["method", "mask"]
    for scale in ("KL", "‖ΔW‖"):
        head += [f"at equal {scale}, {rates} rate" for rates in RATES]
    return markdown_table(caption, head, rows)


def _curve_rows(leaves: pl.DataFrame) -> Iterator[Sequence[str]]:
    for method, mask in leaves.select("method", "mask").unique(maintain_order=True).iter_rows():
        own = leaves.filter(method=method, mask=mask)
        found = {(row["scale"], row["rates"]): row for row in own.iter_rows(named=True)}
        cells = []
        for scale in ("kl_tuned_base", "relative_update_norm"):
            for rates in RATES:
                row = found.get((scale, rates))
                cells.append(difference_cell(row | {"measure": ""}) if row else "—")
        yield [NAMES[method], label(mask), *cells]
