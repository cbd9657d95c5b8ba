"""The comparison's answers as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.lab.blocks import (
    SIGNS,
    comparison_table,
    decimal,
    difference_cell,
    markdown_table,
    mean_cell,
    probability,
)
from offaxis.lab.claims import MARGINS, SIGNIFICANT
from offaxis.lab.naming import NAMES
from offaxis.lab.peft.naming import LORA, label
from offaxis.lab.peft.planning import (
    ALGORITHMS,
    BATCH_ADAPTERS,
    BATCHES,
    METHOD,
    RANKED,
    RANKS,
    TEST_SEEDS,
)
from offaxis.lab.peft.questions import QUESTIONS
from offaxis.lab.peft.summary import RATES

if TYPE_CHECKING:
    from offaxis.lab.peft import PeftStudy

__all__ = ["blocks", "markdown"]

_KINDS = {"own": "own rate", "shared": "LoRA's rate"}
_AT = {"own": "each adapter at its own rate", "shared": "all at LoRA's rate"}

_SETTINGS = {
    "rank": len(RANKED) * (1 + len(RANKS)),
    "batch": len(BATCH_ADAPTERS) * (1 + len(BATCHES)),
}

Row = Mapping[str, Any]


def markdown(study: PeftStudy) -> str:
    """All blocks, in order."""
    return "\n\n".join(blocks(study).values()) + "\n"


def blocks(study: PeftStudy) -> dict[str, str]:
    """Name -> caption and table. A block whose runs are still missing says so."""
    found = {
        "state": _state(study),
        "rates": _rates(study.by_rate),
        "verdicts": _verdicts(study),
        "power": _power(study.power),
        "answer": _answer(study),
    }
    for method in ALGORITHMS:
        for rates in RATES if method == METHOD else RATES[:1]:
            found[f"ranking-{method}-{rates}"] = _ranking(study.ranking, method, rates)
    for question in QUESTIONS:
        kinds = {str(one): _KINDS[one] for one in question.rates}
        found[question.name] = comparison_table(
            f"**{question.title}** (difference in accuracy, 95 % interval, Holm's p)",
            study.comparisons.filter(question=question.name),
            arm="adapter", label=label, kinds=kinds,
        )  # fmt: skip
    found["ratio"] = _ratio(study.rate_ratio)
    found["sensitivity"] = _sensitivity(study.sensitivity)
    found["collapses"] = _collapses(study)
    found["agreement"] = _agreement(study.agreement)
    found["variants-rank"] = _variants(study.variants, "rank")
    found["variants-batch"] = _variants(study.variants, "batch")
    return found | study.others


def _state(study: PeftStudy) -> str:
    runs = study.runs
    last = runs.points.filter("last")
    counts = dict(last.group_by("stage").len().iter_rows())
    told = (
        f"{counts.get('selection', 0)} runs to choose rates, {counts.get('test', 0)} test runs. "
        f"The base scores {runs.base['avg']:.3f} ({runs.base['problems']} problems × "
        f"{runs.base['samples']} samples)."
    )
    parts = []
    none = [one for one in runs.adapters if one not in runs.rates]
    if none:
        parts.append(f"No rate yet: {', '.join(map(label, none))}.")
    if runs.open_rates:
        parts.append(f"Rates not settled: {', '.join(map(label, runs.open_rates))}.")
    parts += [f"Not run yet: {one}." for one in _missing(study)]
    return "\n\n".join([told, " ".join(parts)] if parts else [told])


def _missing(study: PeftStudy) -> Iterator[str]:
    """Which parts of the test stage lack runs of which adapters."""
    runs, seeds = study.runs, set(TEST_SEEDS)
    for method in ALGORITHMS:
        for rates in RATES if method == METHOD else RATES[:1]:
            table = runs.measured(rates, "accuracy", method=method)
            absent = [label(one) for one in runs.adapters if not seeds <= table.get(one, {}).keys()]
            if absent:
                which = "all" if len(absent) == len(runs.adapters) else ", ".join(absent)
                yield f"{NAMES[method]}, {_KINDS[rates]} ({which})"
    for study_of, wanted in _SETTINGS.items():
        own = study.variants.filter(study=study_of)
        done = own.filter(pl.col("seeds") >= len(seeds)).height
        if done < wanted:
            yield f"{study_of} study ({wanted - done} of {wanted} settings)"


def _rates(table: pl.DataFrame) -> str:
    caption = (
        "**Accuracy by learning rate, DAPO, mean over the selection seeds** (bold: the rate by "
        "the rule; †: a run collapsed)"
    )
    tried = table["learning_rate"].unique().sort().to_list()
    rows = []
    for adapter in table["adapter"].unique(maintain_order=True):
        cells = {row["learning_rate"]: _rate_cell(row) for row in _rows(table, adapter=adapter)}
        rows.append([label(adapter), *(cells.get(rate, "—") for rate in tried)])
    return markdown_table(caption, ["adapter", *(f"{rate:g}" for rate in tried)], rows)


def _rows(table: pl.DataFrame, **where: object) -> list[dict[str, Any]]:
    return list(table.filter(**where).iter_rows(named=True))


def _rate_cell(row: Row) -> str:
    told = f"{row['accuracy']:.3f}"
    if row["chosen"]:
        told = f"**{told}**" + (" (open)" if row["open"] else "")
    return told + ("†" if row["collapsed"] else "")


def _verdicts(study: PeftStudy) -> str:
    caption = "**What holds** (by the rule of `offaxis.lab.claims`)"
    rows = []
    titles = {one.name: one.title for one in QUESTIONS}
    words = {(q, claim, rates): word for q, claim, rates, word in study.verdicts.iter_rows()}
    last = None
    asked = study.verdicts.select("question", "claim").unique(maintain_order=True)
    for name, claim in asked.iter_rows():
        cells = [SIGNS[words[name, claim, one]] if (name, claim, one) in words else "—"
                 for one in RATES]  # fmt: skip
        rows.append(["" if name == last else titles[name], claim, *cells])
        last = name
    for ratio in _rows(study.rate_ratio):
        title = "LoRA Without Regret: LoRA's rate is ten times full's"
        rows.append([title, "from 3 to 33 times", SIGNS[ratio["word"]], "—"])
    for place, row in enumerate(_rows(study.agreement)):
        title = "The paper: the ranking holds across algorithms" if not place else ""
        pair = f"{NAMES[row['method']]} ranks as {NAMES[row['against']]}"
        rows.append([title, pair, SIGNS[row["word"]], "—"])
    return markdown_table(caption, ["question", "claim", *_KINDS.values()], rows)


def _power(table: pl.DataFrame) -> str:
    caption = (
        "**What three seeds could have told** (differences to LoRA in accuracy; found: four times "
        "out of five)"
    )
    rows = [
        [_KINDS[row["rates"]], str(row["comparisons"])]
        + [decimal(row[name], 3) for name in
           ("run_sd", "half_width", "found_alone", "found_among_all")]
        for row in _rows(table)
    ]  # fmt: skip
    head = ["rates", "comparisons", "one run's standard deviation", "half an interval",
            "found, as the only comparison", "found among all"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _ranking(table: pl.DataFrame, method: str, rates: str) -> str:
    caption = (
        f"**{NAMES[method]}, {_AT[rates]}** (mean over seeds ± half of Student's t interval, 95 %; "
        "differences paired, Holm's p over all; places: 95 % range)"
    )
    rows = []
    for row in _rows(table, method=method, rates=rates):
        rows.append(
            [
                _place(row),
                label(row["adapter"]),
                f"{row['learning_rate']:g}",
                str(row["seeds"]),
                _mean(row, "accuracy", "low", "high"),
                _to_lora(row),
                _mean(row, "kl_tuned_base", "kl_low", "kl_high"),
                _plain(row["trainable"], ",.0f"),
            ]
        )
    head = ["place", "adapter", "rate", "seeds", "accuracy", "minus LoRA", "KL(tuned ‖ base)",
            "trained"]  # fmt: skip
    return markdown_table(caption, head, rows)


_GROUPS = (
    ("better than LoRA", 1), ("level with LoRA", 0), ("not told apart", None), ("worse", -1),
)  # fmt: skip


def _answer(study: PeftStudy) -> str:
    """Every adapter beside LoRA, by what can be said of it."""
    lora = _rows(study.ranking, method=METHOD, rates="own", adapter=LORA)
    first = {row["adapter"]: row["first_over_best"] for row in _rows(study.collapses)}
    steps = {row["adapter"]: (row["below"], row["above"]) for row in _rows(study.sensitivity)}
    found: dict[int | None, list[list[str]]] = {sign: [] for _, sign in _GROUPS}
    for row in _rows(study.ranking, method=METHOD, rates="own"):
        if row["adapter"] == LORA or row["difference"] is None:
            continue
        against = lora[0]
        found[_side(row)].append(
            [
                label(row["adapter"]),
                f"{row['learning_rate']:g}",
                _to_lora(row),
                f"{row['trainable'] / against['trainable']:.2g}" if row["trainable"] else "—",
                *(_plain(one, "+.3f") for one in steps.get(row["adapter"], (None, None))),
                _plain(first.get(row["adapter"]), ".2g"),
            ]
        )
    rows = []
    for title, sign in _GROUPS:
        for place, cells in enumerate(found[sign]):
            rows.append(["" if place else f"*{title}*", *cells])
    caption = (
        "**Every adapter beside LoRA** (DAPO, each at its own rate, three test seeds; worse, "
        f"better: Holm's p < {SIGNIFICANT:g} over all; level: the interval lies within "
        f"±{MARGINS['accuracy']:g}; half a decade: accuracy lost that far off the best rate)"
    )
    head = ["", "adapter", "rate", "accuracy minus LoRA's", "trained, of LoRA's",
            "half a decade down", "half a decade up", "first collapse, of its rate"]  # fmt: skip
    return markdown_table(caption, head, rows).replace("-0.", "−0.")


def _side(row: Row) -> int | None:
    """1, −1: above or below LoRA beyond doubt; 0: level with it; None: cannot be told."""
    low, high, p = row["difference_low"], row["difference_high"], row["p_holm"]
    if low is None or p is None:
        return None
    if p < SIGNIFICANT:
        return 1 if row["difference"] > 0 else -1
    margin = MARGINS["accuracy"]
    return 0 if -margin <= low and high <= margin else None


def _place(row: Row) -> str:
    """`3 (1–7)`."""
    if row["rank_low"] is None:
        return f"{row['rank']:.0f}"
    return f"{row['rank']:.0f} ({row['rank_low']:.0f}–{row['rank_high']:.0f})"


def _mean(row: Row, value: str, low: str, high: str) -> str:
    return mean_cell({"value": row[value], "low": row[low], "high": row[high]})


def _plain(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _to_lora(row: Row) -> str:
    """`+0.021 [−0.010, +0.052], p 0.3`, without a word: nothing is claimed here."""
    names = {"value": "difference", "low": "difference_low", "high": "difference_high"}
    told = {key: row[name] for key, name in names.items()}
    cell = difference_cell(told | {"measure": "", "p_holm": row["p_holm"], "word": "cannot tell"})
    return cell.removesuffix(": ?")


def _ratio(table: pl.DataFrame) -> str:
    caption = "**LoRA's best rate over full fine-tuning's** (95 % range of draws)"
    rows = [
        [
            *(f"{row[name]:.2g}" for name in ("lora", "full", "ratio")),
            f"{row['low']:.2g} to {row['high']:.2g}",
            decimal(row["near_ten"], 2),
            SIGNS[row["word"]],
        ]
        for row in _rows(table)
    ]
    head = ["LoRA", "full", "ratio", "range", "draws from 3 to 33", "about ten times"]
    return markdown_table(caption, head, rows)


def _sensitivity(table: pl.DataFrame) -> str:
    caption = (
        "**What the rate costs** (selection seeds, accuracy minus that at the best rate; each a "
        "little too low, for the best was chosen as the highest)"
    )
    rows = [
        [label(row["adapter"]), f"{row['best']:g}", decimal(row["accuracy"], 3)]
        + ["—" if row[one] is None else decimal(row[one], 3, "+") for one in ("below", "above")]
        for row in _rows(table)
    ]
    head = ["adapter", "best rate", "accuracy", "half a decade down", "half a decade up"]
    return markdown_table(caption, head, rows)


def _collapses(study: PeftStudy) -> str:
    low = study.runs.base.get("avg_low")
    below = study.runs.base["avg"] if low is None else low
    caption = (
        f"**Runs that collapsed** (accuracy below {below:.3f}, the lower end of the base's 95 % "
        "interval; of all selection runs, of those at rates that every adapter was tried at, of "
        "test runs; from: the lowest rate)"
    )
    rows = []
    for row in _rows(study.collapses):
        cells = [f"{row[f'{one}collapsed']} of {row[f'{one}runs']}"
                 for one in ("", "common_", "own_", "shared_")]  # fmt: skip
        first = [_plain(row[one], ".2g") for one in ("first", "first_over_best")]
        rows.append([label(row["adapter"]), *cells[:2], *first, *cells[2:]])
    head = ["adapter", "of all rates", "of the common rates", "from", "over the best rate",
            "at its own rate", "at LoRA's rate"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _agreement(table: pl.DataFrame) -> str:
    caption = (
        "**Is the ranking the same under another algorithm?** (every adapter at its own rate; "
        "range: basic bootstrap; repeated: two sets of seeds of the second algorithm; p: of "
        "adapters differing by algorithm no more than runs vary)"
    )
    rows = []
    for row in _rows(table):
        if row["tau"] is None:
            continue
        numbers = [decimal(row[one], 2) if row[one] is not None else "—"
                   for one in ("tau", "low", "high", "repeat")]  # fmt: skip
        pair = f"{NAMES[row['method']]} and {NAMES[row['against']]}"
        tau, low, high, repeat = numbers
        p = "—" if row["p"] is None else probability(row["p"])
        told = [tau, f"[{low}, {high}]", repeat, p, SIGNS[row["word"]]]
        rows.append([pair, str(row["adapters"]), *told])
    head = ["algorithms", "adapters", "Kendall's τ", "range", "repeated", "p", "at least 0.5"]
    return markdown_table(caption, head, rows)


def _variants(table: pl.DataFrame, study: str) -> str:
    what = {"rank": "rank", "batch": "problems a step"}[study]
    caption = f"**Accuracy by {what}, DAPO, at the rate of rank 8 and 8 problems**"
    rows = [
        [
            label(row["adapter"]),
            str(row["setting"]),
            f"{row['learning_rate']:g}",
            str(row["seeds"]),
            _mean(row, "accuracy", "low", "high"),
            _plain(row["kl_tuned_base"], ".2g"),
            _plain(row["trainable"], ".0f"),
        ]
        for row in _rows(table, study=study)
    ]
    head = ["adapter", what, "rate", "seeds", "accuracy", "KL(tuned ‖ base)", "trained"]
    return markdown_table(caption, head, rows)
