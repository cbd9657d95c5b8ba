"""The verdict's study as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from offaxis.lab.blocks import decimal, markdown_table
from offaxis.lab.naming import NAMES
from offaxis.lab.verdict.calibration import TOLERATED
from offaxis.lab.verdict.material import SETTINGS_SET, SOURCES
from offaxis.lab.verdict.rows import NEITHER, name_of
from offaxis.lab.verdict.rule import MATCHED, SETS

if TYPE_CHECKING:
    from offaxis.lab.verdict import VerdictStudy

__all__ = ["blocks"]

Row = Mapping[str, Any]

_SET_NAMES = {
    "norm": "norm alone",
    "rank": "norm, rank-1 energy, effective rank",
    "all": "all fifteen",
    SETTINGS_SET: "all fifteen, rate, steps, optimizer",
}
_KINDS = {True: "RL", False: "fine-tuning", None: "neither"}


def blocks(study: VerdictStudy) -> dict[str, str]:
    """Name -> caption and table."""
    best = study.chosen or study.order[0]
    return {
        "state": _state(study),
        "answer": _answer(study),
        "areas": _areas(study),
        "survival": _survival(study),
        "cells": _cells(study, best),
        "folds": _folds(study),
        "calibration": _calibration(study),
        "coverage": _coverage(study, best),
        "methods": _methods(study, best),
        "features": _features(study),
        "steps": _steps(study),
        "settings": _settings(study),
        "confounds": _confounds(study),
    }


def _number(value: float | None, places: int = 2, sign: str = "") -> str:
    return "—" if value is None else decimal(value, places, sign)


def _interval(row: Row, name: str = "value", *, sign: str = "", places: int = 2) -> str:
    head = "" if name == "value" else f"{name}_"
    if row[name] is None:
        return "—"
    ends = [_number(row[f"{head}{end}"], places, sign) for end in ("low", "high")]
    return f"{_number(row[name], places, sign)} [{ends[0]}, {ends[1]}]"


def _percent(row: Row, name: str) -> str:
    if row[name] is None:
        return "—"
    value, low, high = (f"{100 * row[one]:.0f}" for one in (name, f"{name}_low", f"{name}_high"))
    return f"{value} % [{low}, {high}]"


def _state(study: VerdictStudy) -> str:
    material = study.material
    told = []
    for source, words in (("training", "The rule is fitted to"), ("test", "It is tested on")):
        runs, rl = material.runs[source], material.rl(source)  # type: ignore[index, arg-type]
        told.append(f"{words} {runs.height} runs ({rl.sum()} of RL, {(~rl).sum()} of fine-tuning).")
    neither = material.test.filter("last")
    count = int(neither["method"].is_in(list(NEITHER)).sum())
    told.append(f"{count} further runs are of methods that are neither.")
    return " ".join(told)


def _answer(study: VerdictStudy) -> str:
    """One line a set: what survives, what it may label, and how often wrongly."""
    rows = []
    for name, one in study.survival.items():
        found = study.found[name]
        auc, matched = (
            _interval({"value": it.value, "low": it.low, "high": it.high})
            for it in (found.auc, found.matched)
        )
        wrong = found.wrong
        error = {"w": wrong.value, "w_low": wrong.low, "w_high": wrong.high}
        where = "everywhere" if one.everywhere else "; ".join(name_of(cell) for cell in one.cells)
        used = name == study.chosen or (name == SETTINGS_SET and study.settings_used)
        rows.append([_SET_NAMES[name], auc, matched, "**yes**" if one.tells else "no",
                     where or "nowhere", f"{_percent(error, 'w')} of {wrong.size}",
                     "**yes**" if used else "no"])  # fmt: skip
    caption = (
        "**Do weights alone tell RL from fine-tuning?** (test runs; AUC with 95 % intervals over "
        f"runs; equal: one task, norms within {100 * (MATCHED - 1):.0f} %; rate, steps, optimizer: "
        "left-out scores)"
    )
    head = ["features", "AUC", "AUC at equal task and norm", "survives", "labels better than "
            "guesses", "wrong labels", "used by `compare`"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _areas(study: VerdictStudy) -> str:
    rows = []
    for row in study.areas.iter_rows(named=True):
        block = {"value": row["value"], "low": row["block_low"], "high": row["block_high"]}
        rows.append([_SET_NAMES[row["set"]], SOURCES[row["source"]], row["over"],
                     str(row["pairs"]), _interval(row),
                     _interval(block).partition(" ")[2] or "—"])  # fmt: skip
    caption = "**AUC** (95 %: runs resampled; settings: whole settings with all their runs)"
    head = ["features", "runs", "pairs compared", "pairs", "AUC", "settings"]
    return markdown_table(caption, head, rows)


def _survival(study: VerdictStudy) -> str:
    rows = []
    for name, one in study.survival.items():
        last = None
        for words, met in (*one.conditions, ("labels may be given everywhere", one.everywhere)):
            rows.append(["" if last else _SET_NAMES[name], words, "**yes**" if met else "no"])
            last = name
    return markdown_table("**What survives**", ["features", "condition", "met"], rows)


def _cells(study: VerdictStudy, best: str) -> str:
    rows = []
    for row in study.cells.filter(set=best).iter_rows(named=True):
        rows.append([row["cell"], f"{row['rl']} + {row['tuned']}", _interval(row, "auc"),
                     f"{_interval(row, 'matched')} ({row['pairs']})", _percent(row, "right"),
                     _percent(row, "labelled"), f"{_percent(row, 'wrong')} of {row['labels']}",
                     *(_number(row[one]) for one in ("brier", "log_loss", "ece"))])  # fmt: skip
    caption = (
        f"**Test runs by cell, {_SET_NAMES[best]}** (right: at p = ½; labelled, wrong: outside the "
        f"abstention band, p from {_number(1 - (study.bands[best] or 1))} to "
        f"{_number(study.bands[best] or 1)})"
    )
    head = ["cell", "RL + fine-tuning", "AUC", "at equal task and norm (pairs)", "right",
            "labelled", "wrong labels", "Brier", "log loss", "calibration error"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _folds(study: VerdictStudy) -> str:
    rows = []
    for name in SETS:
        own = study.folds.filter(set=name)
        for row in own.head(4).iter_rows(named=True):
            where = f"{row['task']}, {row['learning_rate']:g}, {row['optimizer']}, {row['dtype']}"
            rows.append([_SET_NAMES[name], where, str(row["runs"]), _interval(row)])
        half = int((own["value"] <= 0.5).sum())
        rows.append(["", f"*{half} of {own.height} at or below ½*", "", ""])
    caption = "**The worst of (task, rate, optimizer, store)** (test runs)"
    return markdown_table(caption, ["features", "where", "runs", "AUC"], rows)


def _calibration(study: VerdictStudy) -> str:
    rows = []
    for row in study.reliability.iter_rows(named=True):
        rows.append([_SET_NAMES[row["set"]], _number(row["predicted"]), _number(row["observed"]),
                     str(row["runs"]), *(_number(row[one]) for one in ("brier", "log_loss", "ece"))
                     ])  # fmt: skip
    caption = "**Are the probabilities right?** (test runs, five bins of predicted P(RL))"
    head = ["features", "predicted", "observed", "runs", "Brier, all", "log loss, all",
            "calibration error, all"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _coverage(study: VerdictStudy, best: str) -> str:
    own = study.risks.filter(set=best)
    rows = []
    for wanted in (0.25, 0.5, 0.75, 1.0):
        at = own.filter(own["coverage"] <= wanted + 1e-9)
        if at.height:
            row = at.row(at.height - 1, named=True)
            rows.append([f"{100 * row['coverage']:.0f} %", _number(row["confidence"]),
                         f"{100 * row['risk']:.0f} %"])  # fmt: skip
    band = study.bands[best]
    told = "no band reaches that" if band is None else f"from {_number(band)} on"
    caption = (
        f"**Risk and coverage, {_SET_NAMES[best]}** (test runs, the surest first; the band was set "
        f"on the first study for {100 * TOLERATED:.0f} % of wrong labels: {told})"
    )
    return markdown_table(caption, ["runs", "confidence at least", "wrong"], rows)


def _methods(study: VerdictStudy, best: str) -> str:
    rows = []
    for row in study.methods.filter(set=best).iter_rows(named=True):
        counts = [str(row[one]) for one in ("rl_like", "undetermined", "sft_like")]
        told = [NAMES[row["method"]], _KINDS[row["rl"]], str(row["runs"]), _number(row["p"])]
        rows.append(told + counts)
    caption = f"**What each method's test runs are called, {_SET_NAMES[best]}**"
    head = ["method", "is", "runs", "mean P(RL)", "RL-like", "undetermined", "fine-tuning-like"]
    return markdown_table(caption, head, rows)


def _features(study: VerdictStudy) -> str:
    rows = []
    for row in study.carried.sort("alone_matched", descending=True).iter_rows(named=True):
        rows.append([f"`{row['feature']}`", _number(row["alone"]), _interval(row, "alone_matched"),
                     _number(row["without"]), _interval(row, "lost", sign="+")])  # fmt: skip
    caption = (
        "**Which features carry it** (AUC of test runs by rules fitted to the first study; lost: "
        "matched AUC of all fifteen minus that without)"
    )
    head = ["feature", "alone", "alone, at equal task and norm", "all but it",
            "lost without it, at equal task and norm"]  # fmt: skip
    return markdown_table(caption, head, rows)


def _steps(study: VerdictStudy) -> str:
    rows = []
    sources = {"training": "first study", "test": "test"}
    keys = study.steps.select("source", "steps", "step").unique(maintain_order=True)
    for source, steps, step in keys.sort("source", "steps", "step", descending=[True, False, False]
                                         ).iter_rows():  # fmt: skip
        own = study.steps.filter(source=source, steps=steps, step=step)
        found = {row["set"]: row for row in own.iter_rows(named=True)}
        one = next(iter(found.values()))
        rows.append([sources[source], f"{step} of {steps}", f"{one['rl']} + {one['tuned']}",
                     *(_interval(found[name]) for name in SETS)])  # fmt: skip
    caption = "**How early can it be told?** (AUC by step, by the rule for last steps)"
    head = ["runs", "step", "RL + fine-tuning", *(_SET_NAMES[name] for name in SETS)]
    return markdown_table(caption, head, rows)


def _settings(study: VerdictStudy) -> str:
    rows = [
        [row["over"], str(row["pairs"]), _number(row["without"], 3), _number(row["with"], 3),
         _interval(row, "gain", sign="+", places=3)]
        for row in study.gains.iter_rows(named=True)
    ]  # fmt: skip
    caption = (
        "**What rate, steps and optimizer add to all fifteen** (AUC over all runs, each task, "
        "rate, optimizer and store left out)"
    )
    return markdown_table(caption, ["pairs compared", "pairs", "without", "with", "gain"], rows)


def _confounds(study: VerdictStudy) -> str:
    rows = [
        [row["what"], str(row["runs"]), _number(row["value"]), _number(row["chance"])]
        for row in study.confounds.iter_rows(named=True)
    ]
    caption = (
        "**What else the same features tell** (each method left out in turn; balanced accuracy, "
        "for the rate R²)"
    )
    return markdown_table(caption, ["what", "runs", "value", "chance"], rows)
