"""The rule as a file that `compare` reads: what survived, its numbers, its range and its error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

import offaxis
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.queue.store import digest
from offaxis.lab.verdict.linear import Rule, told, with_settings
from offaxis.lab.verdict.material import SETTINGS_SET
from offaxis.lab.verdict.rows import CELL, NEITHER
from offaxis.lab.verdict.rule import FEATURES, SETS
from offaxis.lab.verdict.survival import Found, Survival
from offaxis.output import staged_file

if TYPE_CHECKING:
    from offaxis.lab.verdict import VerdictStudy
    from offaxis.lab.verdict.scoring import Interval

__all__ = ["rows_digest", "shipped", "write"]


def shipped(study: VerdictStudy) -> dict[str, Any]:
    """What `offaxis.comparison.method` reads. Every number follows from the two tables of runs.

    `rules` holds what may give labels: none, the rule on weights, and the rule on settings as well
    where it adds. `finding` tells the numbers of the set that is used, or of the best.
    """
    material = study.material
    training, test = material.runs["training"], material.runs["test"]
    rules = []
    if study.chosen is not None:
        rules.append(_rule(study, study.chosen, material.rules[study.chosen]))
    if study.settings_used:
        both = material.runs["both"]
        rules.append(_rule(study, SETTINGS_SET, with_settings(both, SETS["all"])))
    best = study.chosen or study.order[0]
    found = study.found[best]
    return {
        "schema": 1,
        "offaxis": offaxis.__version__,
        "fitted": {"runs": training.height, "rows": rows_digest(training)},
        "tested": {"runs": test.height, "rows": rows_digest(test)},
        "model": _model(training["base"][0]),
        "finding": {
            "set": best,
            "tells": study.survival[best].tells,
            "auc": _ends(found.auc),
            "matched": _ends(found.matched),
            "failed": [words for words, met in study.survival[best].conditions if not met],
        },
        "rules": rules,
        "ranges": {name: _range(material.runs["both"], name) for name in FEATURES},
        "settings": _settings(material.runs["both"]),
        "neither": _neither(study, best),
    }


def rows_digest(points: pl.DataFrame) -> str:
    """SHA-256 of the rows that a rule is fitted to or tested on: run, label and features."""
    text = points.select("run", "rl", *FEATURES).sort("run").write_csv()
    return hashlib.sha256(text.encode()).hexdigest()


def write(study: VerdictStudy, path: str | Path) -> None:
    """The file, whole or not at all."""
    with staged_file(Path(path)) as staged:
        text = json.dumps(shipped(study), indent=1, ensure_ascii=False, allow_nan=False)
        staged.write_text(text + "\n", encoding="utf-8")


def _rule(study: VerdictStudy, name: str, rule: Rule) -> dict[str, Any]:
    found: Found = study.found[name]
    survival: Survival = study.survival[name]
    each = int(study.material.runs["test"]["completions_per_prompt"][0])
    return {
        "name": name,
        "terms": told(rule),
        "intercept": rule.intercept,
        "least": study.bands[name],
        "everywhere": survival.everywhere,
        "cells": [
            {
                "optimizer": _plain(one.cell[0]),
                "dtype": one.cell[1],
                "batch": one.cell[2] * each,
                "steps": one.cell[3],
                "learning_rate": _rates(study, one.cell),
                "auc": _ends(one.auc),
                "wrong": _ends(one.wrong),
                "labels": one.wrong.size,
                "survives": one.cell in survival.cells,
            }
            for one in found.cells
            if one.cell in survival.cells or survival.everywhere
        ],
        "labelled": found.wrong.size,
        "of": study.material.runs["test"].height,
        "wrong": _ends(found.wrong),
    }


def _rates(study: VerdictStudy, cell: tuple[Any, ...]) -> list[float]:
    """The least and the highest of the test runs from which a cell's error was found."""
    same = [pl.col(name) == value for name, value in zip(CELL, cell, strict=True)]
    return _range(study.material.runs["test"].filter(*same), "learning_rate")


def _plain(optimizer: str) -> str:
    """As `compare --run-info` names it."""
    return optimizer.removesuffix("_torch")


def _ends(one: Interval) -> list[float | None]:
    return [one.value, one.low, one.high]


def _range(points: pl.DataFrame, name: str) -> list[float]:
    column = points[name].to_numpy()
    return [float(column.min()), float(column.max())]


def _settings(points: pl.DataFrame) -> list[dict[str, Any]]:
    """Of every optimizer and store: the rates, steps and sequences a step that runs had."""
    points = points.with_columns(
        (pl.col("prompts_per_step") * pl.col("completions_per_prompt")).alias("batch")
    )
    return [
        {"optimizer": _plain(str(optimizer)), "dtype": dtype}
        | {name: _range(own, name) for name in ("learning_rate", "steps", "batch")}
        for (optimizer, dtype), own in points.group_by("optimizer", "dtype", maintain_order=True)
    ]


def _neither(study: VerdictStudy, name: str) -> list[dict[str, Any]]:
    """How runs of methods that have no label are called."""
    own = study.methods.filter(pl.col("method").is_in(NEITHER), set=name).sort("method")
    return own.select("method", "runs", "rl_like", "sft_like", "undetermined").to_dicts()


def _model(base: str) -> dict[str, Any]:
    """Parameters and matrices of the base. InputError where it is not the bundled one."""
    from offaxis.comparison import compare

    if digest(BASE) != base:
        raise InputError(
            f"the rows are from base {base}, and the bundled one is {digest(BASE)}: a rule that "
            "ships is made from runs of the bundled base"
        )
    pair = compare(BASE, BASE, spectra="none").summary()["pairs"][0]
    return {"base": base, "parameters": pair["parameters"], "matrices": pair["matrices"]}
