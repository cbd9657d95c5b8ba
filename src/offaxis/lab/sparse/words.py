"""The study's answers as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.naming import NAMES
from offaxis.lab.sparse.naming import ALL, label
from offaxis.lab.sparse.questions import LOGARITHMIC, QUESTIONS
from offaxis.lab.sparse.recovery import LEVELS
from offaxis.lab.sparse.summary import RATES, kinds

if TYPE_CHECKING:
    from offaxis.lab.sparse import SparseStudy

__all__ = ["blocks", "markdown", "refreshed"]

_SIGNS = {"holds": "**holds**", "does not": "does not", "cannot tell": "?"}
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


_MARK = re.compile(r"<!-- block: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def refreshed(text: str, study: SparseStudy, *, where: str = "the text") -> str:
    """A Markdown text with what lies between `<!-- block: NAME -->` and `<!-- end -->` made new.

    InputError where a name is not known.
    """
    known = blocks(study)
    unknown = [name for name in _MARK.findall(text) if name not in known]
    if unknown:
        raise InputError(f"{where}: no block {', '.join(unknown)}; there are {', '.join(known)}")
    return _MARK.sub(
        lambda found: f"<!-- block: {found[1]} -->\n{known[found[1]]}\n<!-- end -->", text
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return f"{caption}\n\n*No runs yet.*"
    lines = [caption, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


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
    return _table(caption, ["method", "mask", *(f"{rate:g}" for rate in tried)], rows)


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
            + [_cell(found.get(name)) for name in measures]
        )
    head = ["mask", "density", "rate", "seeds", *(_HEADINGS[name] for name in measures)]
    return _table(caption, head, rows)


def _cell(row: Mapping[str, Any] | None) -> str:
    """`0.612 ± 0.034`: two digits of the half width; three of a mean without a width."""
    if row is None or row["value"] is None:
        return "—"
    half = 0.0 if row["low"] is None else (row["high"] - row["low"]) / 2
    if half <= 1e-9 * abs(row["value"]):  # one seed, or seeds that are all the same
        return _number(row["value"], _places(abs(row["value"]), digits=3))
    places = _places(half, digits=2)
    return f"{_number(row['value'], places)} ± {half:.{places}f}"


def _places(scale: float, *, digits: int) -> int:
    """Decimals that show so many digits of a number."""
    return min(7, max(0, digits - 1 - math.floor(math.log10(scale)))) if scale > 0 else 3


def _number(value: float, places: int, sign: str = "") -> str:
    return f"{round(value, places) + 0.0:{sign}.{places}f}".replace("-", "−")  # no negative zero


def _verdicts(study: SparseStudy) -> str:
    caption = "**What holds** (by the rule of `offaxis.lab.sparse.questions`)"
    rows = []
    words = {(q, claim, rates): word for q, claim, rates, word in study.verdicts.iter_rows()}
    for question in QUESTIONS:
        for number, claim in enumerate(question.claims):
            cells = [
                _SIGNS.get(words.get((question.name, claim.text, rates), ""), "—")
                for rates in RATES
            ]
            rows.append([question.title if not number else "", claim.text, *cells])
    return _table(caption, ["question", "claim", "own rate", "shared rate"], rows)


def _question(comparisons: pl.DataFrame, name: str) -> str:
    """Mask minus each other at both kinds of rate."""
    own = comparisons.filter(question=name)
    rows: list[list[str]] = []
    title = next(one.title for one in QUESTIONS if one.name == name)
    caption = f"**{title}** (difference, 95 % interval, Holm's p)"
    keys = ("claim", "measure", "mask", "against")
    for claim, measure, mask, other in own.select(keys).unique(maintain_order=True).iter_rows():
        both = own.filter(claim=claim, measure=measure, mask=mask, against=other)
        found = {row["rates"]: row for row in both.iter_rows(named=True)}
        last = rows[-1][0] if rows else None
        same = last == claim or (last == "" and _claim_of(rows) == claim)
        cells = [_difference(found[rates]) if rates in found else "—" for rates in RATES]
        rows.append(["" if same else claim, f"{label(mask)} − {label(other)}", *cells])
    return _table(caption, ["claim", "difference", "own rate", "shared rate"], rows)


def _claim_of(rows: Sequence[Sequence[str]]) -> str:
    """The claim that stands above the last rows."""
    return next((row[0] for row in reversed(rows) if row[0]), "")


def _difference(row: Mapping[str, Any]) -> str:
    """`+0.021 [−0.010, +0.052], p 0.3: ?`; KL as a change in percent."""
    if row["value"] is None:
        return "—"
    ratio = row["measure"] in LOGARITHMIC
    numbers = [
        None if row[name] is None else 100 * math.expm1(row[name]) if ratio else row[name]
        for name in ("value", "low", "high")
    ]
    value, low, high = ("" if n is None else _number(n, 0 if ratio else 3, "+") for n in numbers)
    interval = f"[{low}, {high}]" if low else "(one seed)"
    p = "" if row["p_holm"] is None else f", p {_p(row['p_holm'])}"
    return f"{value}{' %' if ratio else ''} {interval}{p}: {_SIGNS[row['word']]}"


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.1 else f"{value:.2f}"


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
        cells = [_cell(found.get(measure)) for measure in _AGREEING]
        seeds, density = str(first["seeds"]), f"{first['density']:.3g}"
        rows.append([NAMES[method], f"{rate:g}", name, density, seeds, *cells])
    return _table(
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
            [NAMES[method], f"{rate:g}", *(_SIGNS[words[one]] for one in (*LEVELS, "all three"))]
        )
    return _table(caption, ["method", "rate", *(f"its {one}" for one in LEVELS), "all"], rows)


def _ranking(study: SparseStudy) -> str:
    caption = (
        "**Does the choice of the rate change how masks compare?** (own rates against dense's, "
        "selection seed; pairs of masks, Holm over pairs)"
    )
    rows = [
        [NAMES[one["method"]], "—" if one["tau"] is None else _number(one["tau"], 2)]
        + [str(one[key]) for key in ("pairs", "ordered_shared", "ordered_own")]
        + [str(one["changed"]), str(one["reversed"]), _SIGNS[one["word"]]]
        for one in study.ranking
        if one["tau"] is not None
    ]
    head = [
        "method", "Kendall's τ", "pairs", "ordered at the shared rate", "at own rates",
        "difference changes", "order reversed", "the rate matters",
    ]  # fmt: skip
    return _table(caption, head, rows)


def _curve(leaves: pl.DataFrame) -> str:
    caption = (
        "**Accuracy above the curve that other masks share** (beside the ends of other masks; "
        "“holds”: the mask leaves the curve)"
    )
    rows = [list(row) for row in _curve_rows(leaves)]
    head = ["method", "mask"]
    for scale in ("KL", "‖ΔW‖"):
        head += [f"at equal {scale}, {rates} rate" for rates in RATES]
    return _table(caption, head, rows)


def _curve_rows(leaves: pl.DataFrame) -> Iterator[Sequence[str]]:
    for method, mask in leaves.select("method", "mask").unique(maintain_order=True).iter_rows():
        own = leaves.filter(method=method, mask=mask)
        found = {(row["scale"], row["rates"]): row for row in own.iter_rows(named=True)}
        cells = []
        for scale in ("kl_tuned_base", "relative_update_norm"):
            for rates in RATES:
                row = found.get((scale, rates))
                cells.append(_difference(row | {"measure": ""}) if row else "—")
        yield [NAMES[method], label(mask), *cells]
