"""The study as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from offaxis.lab.blocks import SIGNS, comparison_table, decimal, markdown_table, mean_cell
from offaxis.lab.naming import NAMES
from offaxis.lab.paired import difference
from offaxis.lab.predict.candidates import CONTESTANTS, FRACTIONS, REBUILT, STOP, places
from offaxis.lab.predict.pooling import FULL, measured
from offaxis.lab.predict.questions import GROUPS, PREDICTION, QUESTIONS, RANK, SIDES
from offaxis.predict.scale import LADDER

if TYPE_CHECKING:
    from offaxis.lab.predict import PredictStudy

__all__ = ["blocks", "label"]

_LABELS = {
    STOP: "stop here",
    FULL: "the run itself",
    "rank 1": "rank 1, made as long as ΔW",
    "rank 1, as is": "rank 1, as it is",
    "rank 4": "rank 4, made as long as ΔW",
    "all": "all directions",
    **{f"direction {number}": f"direction {number} alone, as long as ΔW" for number in (2, 3, 5)},
    **{
        f"rank 1 × {factor}": f"rank 1, {factor:g} times as long as ΔW"
        for factor in (0.5, 1.5, 2.0)
    },
}
_MATRICES = (
    "AlphaRL and rank 1 leave embeddings, norms and head at the base, AlphaRL's code at the last "
    "checkpoint"
)
Row = Mapping[str, Any]


def label(arm: str) -> str:
    """An arm as a reader knows it."""
    return CONTESTANTS[arm].label if arm in CONTESTANTS else _LABELS[arm]


def blocks(study: PredictStudy) -> dict[str, str]:
    """Name -> caption and table."""
    found = {"state": _state(study), "verdicts": _verdicts(study)}
    for question in (PREDICTION, SIDES, RANK):
        note = "" if question is RANK else f"; {_MATRICES}"
        for group in GROUPS:
            own = study.comparisons.filter(question=question.name, method=group.name)
            kinds = {one: f"at {one}" for one in own["rates"].unique(maintain_order=True)}
            caption = (
                f"**{question.title}: {group.label}** (mean over methods and tasks, paired by seed "
                f"and problem; difference, 95 % interval, Holm's p over the column{note})"
            )
            found[f"{question.name}-{group.name}"] = comparison_table(
                caption, own, arm="predictor", label=label, kinds=kinds
            )
    for method in study.models["method"].unique(maintain_order=True):
        found[f"table1-{method}"] = _table1(study, method)
    found |= {f"reach-{one}": _reach(study, one) for one in _REACHES}
    return found | {"sides": _sides(study), "rank": _rank(study), "errors": _errors(study),
                    "factors": _factors(study), "lines-raw": _lines(study.lines, "raw"),
                    "lines-scaled": _lines(study.lines, "scaled"),
                    "lines-roles": _roles(study.lines)}  # fmt: skip


def _state(study: PredictStudy) -> str:
    runs = study.models.unique("run", maintain_order=True)
    counts = runs.group_by("method", "task", maintain_order=True).len().rows()
    each = ", ".join(f"{NAMES[method]} {task} {count}" for method, task, count in counts)
    scored = study.models.filter(pl.col("refused").is_null())
    made = scored.filter(pl.col("kind").is_in(["predicted", "rebuilt"])).height
    refused = study.models.filter(pl.col("refused").is_not_null()).height
    told = f"{runs.height} runs ({each}); {made} predicted and rebuilt models were scored"
    return f"{told}, {refused} predictions were refused by their method." if refused else f"{told}."


def _verdicts(study: PredictStudy) -> str:
    """Each claim by group, and by the fraction of the run that it is asked at."""
    words = {
        (question, claim, rates, group): word
        for question, claim, rates, group, word in study.verdicts.iter_rows()
    }
    asked = [f"{fraction:.0%}" for fraction in (*FRACTIONS, 1)]
    places = [(group, rates) for group in GROUPS for rates in asked]
    rows = []
    for question in QUESTIONS:
        for number, claim in enumerate(question.claims):
            cells = []
            for group, rates in places:
                word = words.get((question.name, claim.text, rates, group.name))
                cells.append("" if word is None else SIGNS[word])
            rows.append([question.title if not number else "", claim.text, *cells])
    head = [f"{group.label}, {rates}" for group, rates in places]
    return markdown_table(
        "**What holds** (by the rule of `offaxis.lab.claims`, each group and fraction by itself)",
        ["question", "claim", *head],
        rows,
    )


def _cell(row: Row | None) -> str:
    return "—" if row is None else mean_cell(row)


def _found(table: pl.DataFrame) -> Callable[..., Row | None]:
    """A look-up of one row by its columns."""

    def find(**where: Any) -> Row | None:
        own = table.filter(**where)
        return own.row(0, named=True) if own.height else None

    return find


def _table1(study: PredictStudy, method: str) -> str:
    """Table 1's layout: fraction of training x predictor, a column a task, and what is beside."""
    find = _found(study.scores.filter(method=method))
    last = study.last
    tasks = study.models["task"].unique(maintain_order=True).to_list()
    rows = []

    def add(stage: str, origin: int, arm: str) -> None:
        at = {"origin": origin, "target": last, "predictor": arm}
        cells = [_cell(find(**at, measure="accuracy", task=task)) for task in tasks]
        cells += [_over(find(**at, measure="accuracy", task=task)) for task in tasks]
        rows.append([stage, label(arm), *cells])

    for fraction in FRACTIONS:
        origin = round(fraction * last)
        for number, arm in enumerate((STOP, *CONTESTANTS)):
            add(f"{fraction:.0%} of training" if not number else "", origin, arm)
    add("all of it", last, FULL)
    head = ["stage", "model", *tasks, *(f"{task}, over stopping" for task in tasks)]
    caption = (
        f"**{NAMES[method]}** (avg@k on the judging problems, mean over seeds ± half of Student's "
        "t interval; over stopping: paired by seed and problem, 95 %)"
    )
    return markdown_table(caption, head, rows)


def _between(
    value: float | None, low: float | None, high: float | None, *, digits: int, sign: str = ""
) -> str:
    """`+0.021 [−0.010, +0.052]`; without what is not known."""
    if value is None:
        return "—"
    told = decimal(value, digits, sign)
    if low is None or high is None:
        return told
    return f"{told} [{decimal(low, digits, sign)}, {decimal(high, digits, sign)}]"


def _interval(row: Row | None, name: str, *, digits: int, sign: str = "") -> str:
    """A column of a row with its `_low` and `_high`."""
    ends = (
        (None, None, None) if row is None else (row[name], row[f"{name}_low"], row[f"{name}_high"])
    )
    return _between(*ends, digits=digits, sign=sign)


def _over(row: Row | None) -> str:
    return _interval(row, "over_stop", digits=3, sign="+")


def _reach(study: PredictStudy, measure: str) -> str:
    """How far ahead: by the ratio of target to origin, over all runs of a group."""
    last = study.last
    order = sorted(places(last), key=lambda one: one[1] / one[0])
    arms = (STOP, *(name for name, one in CONTESTANTS.items() if one.goal != "chosen"))
    rows = []
    for group in GROUPS:
        own = group.runs(study.models)
        for arm in arms:
            cells = [_REACHED[measure](own, arm, *place) for place in order]
            rows.append([group.label if arm == STOP else "", label(arm), *cells])
    head = [f"×{target / origin:.2g} ({origin} → {target})" for origin, target in order]
    return markdown_table(_REACHES[measure], ["runs", "model", *head], rows)


_REACHES = {
    "accuracy": "**How far ahead: accuracy of the prediction minus that of the real target** (all "
    "runs of a group, paired by seed and problem, 95 %)",
    "weights": "**How far ahead: weights** (1 − ‖θ̂ − θ‖/‖θ_origin − θ‖: 1 exact, 0 no nearer to "
    "the target than the last checkpoint that was seen; all tensors; median over runs, lowest and "
    f"highest; {_MATRICES})",
}


def _apart(models: pl.DataFrame, arm: str, origin: int, target: int) -> str:
    table = measured(models, "accuracy", origin=origin, target=target, arms=(arm, FULL))
    shared = sorted(table[arm].keys() & table[FULL].keys())
    if not shared:
        return "—"
    one, other = (np.stack([table[name][seed] for seed in shared]) for name in (arm, FULL))
    found = difference(one, other, draws=2000)
    return _between(found.value, found.low, found.high, digits=3, sign="+")


def _nearer(models: pl.DataFrame, arm: str, origin: int, target: int) -> str:
    own = models.filter(origin=origin, target=target).select("run", "predictor", "relative_error")
    stopped = own.filter(predictor=STOP).rename({"relative_error": "left"})
    found = own.filter(predictor=arm).join(stopped, on="run")
    return _range(1 - found["relative_error"] / found["left"])


_REACHED = {"accuracy": _apart, "weights": _nearer}


def _sides(study: PredictStudy) -> str:
    """Harder problems and forgetting at the largest fraction."""
    last = study.last
    origin = round(FRACTIONS[-1] * last)
    find = _found(study.scores)
    rows = []
    for method, task in study.models.select("method", "task").unique(maintain_order=True).rows():
        for arm in (STOP, *CONTESTANTS, FULL):
            at = {"method": method, "task": task, "origin": origin, "target": last}
            cells = [
                _cell(find(**at, predictor=arm, measure=one))
                for one in ("accuracy", "harder", "elsewhere")
            ]
            first = arm == STOP
            rows.append([NAMES[method] if first else "", task if first else "", label(arm), *cells])
    caption = (
        f"**Beside the task, from {FRACTIONS[-1]:.0%} of the run** (accuracy; one difficulty up; "
        "loss on the families not trained on, nats a token: more is forgetting)"
    )
    head = ["method", "task", "model", "accuracy", "harder", "loss elsewhere"]
    return markdown_table(caption, head, rows)


def _rank(study: PredictStudy) -> str:
    """Both ways to tell how much of the run a rebuilt model has."""
    find = _found(study.shares)
    rows = []
    for method, task in study.models.select("method", "task").unique(maintain_order=True).rows():
        norms = study.norms.filter(method=method, task=task)
        for number, arm in enumerate(REBUILT):
            row = find(method=method, task=task, predictor=arm)
            told = [_interval(row, one, digits=2) for one in ("relative_accuracy", "share_of_gain")]
            own = norms.row(0, named=True) if norms.height and not number else None
            beside = ["", ""] if own is None else [
                f"{own['relative_update_norm']:.4f}", f"{own['rank1_norm_share']:.2f}"
            ]  # fmt: skip
            place = ["", ""] if number else [NAMES[method], task]
            rows.append([*place, label(arm), *told, *beside])
    caption = (
        "**The final update's matrices rebuilt** (embeddings, norms and head at the base; 95 % "
        "over problems and seeds; ‖ΔW‖/‖W₀‖ of all parameters, mean rank-1 norm share of matrices)"
    )
    head = ["method", "task", "kept", "relative accuracy", "share of the gain", "‖ΔW‖/‖W₀‖",
            "σ₁/‖ΔW‖"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _errors(study: PredictStudy) -> str:
    """How far predicted weights are from the real ones, by predictor and fraction."""
    rows = []
    last = study.last
    for group in GROUPS:
        own = group.runs(study.models).filter(target=last)
        for arm in CONTESTANTS:
            cells: list[str] = []
            for fraction in FRACTIONS:
                found = own.filter(predictor=arm, origin=round(fraction * last))
                cells += [_range(found[name]) for name in ("relative_error", "cosine")]
            rows.append([group.label if arm == next(iter(CONTESTANTS)) else "", label(arm), *cells])
    head = ["runs", "predictor"]
    for fraction in FRACTIONS:
        head += [f"error at {fraction:.0%}", f"cosine at {fraction:.0%}"]
    caption = (
        "**Predicted against real final weights** (‖θ̂ − θ‖/‖θ − θ_base‖ and the cosine of the two "
        f"updates, all tensors; median over runs, lowest and highest; {_MATRICES})"
    )
    return markdown_table(caption, head, rows)


def _range(values: pl.Series) -> str:
    values = values.filter(values.is_finite())
    if values.is_empty():
        return "—"
    found: Sequence[float] = [values.median(), values.min(), values.max()]  # type: ignore[list-item]
    middle, low, high = (decimal(one, 2) for one in found)
    return f"{middle} ({low} to {high})"


def _factors(study: PredictStudy) -> str:
    """Reaches that the validation problems chose."""
    rows = []
    for method, task in study.models.select("method", "task").unique(maintain_order=True).rows():
        own = study.models.filter(method=method, task=task).sort("seed")
        for arm, one in CONTESTANTS.items():
            if one.goal != "chosen":
                continue
            cells = []
            for fraction in FRACTIONS:
                chosen = own.filter(predictor=arm, origin=round(fraction * study.last))["factor"]
                cells.append(", ".join("—" if one is None else f"{one:g}" for one in chosen))
            rows.append([NAMES[method], task, one.label, *cells])
    caption = (
        "**Factors chosen on the validation problems, seed by seed** (of at most "
        f"{LADDER[-1]:g}; the step that is predicted would be "
        f"{', '.join(f'{1 / fraction:g}' for fraction in FRACTIONS)})"
    )
    head = ["method", "task", "predictor", *(f"at {fraction:.0%}" for fraction in FRACTIONS)]
    return markdown_table(caption, head, rows)


_LINES = {
    "r2": "R² (paper)", "walk_r2": "walks' R²", "q2": "left out", "walk_q2": "walks', left out",
    "step_q2": "step alone, left out", "above_walks": "share above 95 % of walks",
    "residual_r2": "R² without the step", "residual_walk": "walks' without the step",
    "residual_null": "permuted",
}  # fmt: skip


def _lines(lines: pl.DataFrame, kind: str) -> str:
    """Means over a run's matrices, then over seeds."""
    rows = []
    own = lines.filter(pl.col("role").is_null(), kind=kind)
    for method, task in own.select("method", "task").unique(maintain_order=True).rows():
        find = _found(own.filter(method=method, task=task))
        cells = [_cell(find(measure=one)) for one in _LINES]
        rows.append([NAMES[method], task, *cells, _cell(find(measure="embedding_shift"))])
    title = {"raw": "u₁", "scaled": "‖ΔW‖·u₁"}[kind]
    caption = (
        f"**Accuracy against {title} of each matrix, one PLS component** (mean over matrices, then "
        "over seeds ± half of Student's t interval; left out: Q², each checkpoint predicted from "
        "the others; walks: random walks of the same step lengths; permuted: scores without the "
        "step, in another order)"
    )
    head = ["method", "task", *_LINES.values(), "embedding shift"]
    return markdown_table(caption, head, rows)


def _roles(lines: pl.DataFrame) -> str:
    """R² by role, beside what walks of that role's size and steps give."""
    rows = []
    own = lines.filter(pl.col("role").is_not_null(), kind="raw")
    for method, task in own.select("method", "task").unique(maintain_order=True).rows():
        part = own.filter(method=method, task=task)
        find = _found(part)
        cells = []
        for role in part["role"].unique().sort():
            seen, null = (find(role=role, measure=one) for one in ("r2", "walk_r2"))
            cells.append("—" if seen is None or null is None else
                         f"{decimal(seen['value'], 3)} ({decimal(null['value'], 3)})")  # fmt: skip
        rows.append([NAMES[method], task, *cells])
    roles = own["role"].unique().sort().to_list()
    caption = (
        "**R² of u₁ by role, in brackets walks of the same steps** (means over layers and seeds)"
    )
    return markdown_table(caption, ["method", "task", *roles], rows)
