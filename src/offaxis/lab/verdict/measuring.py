"""Whether a score tells RL from fine-tuning: by set, by cell, calibrated, abstaining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from offaxis.lab.verdict.calibration import calibration, coverage, labelled, threshold
from offaxis.lab.verdict.linear import probability
from offaxis.lab.verdict.material import SETTINGS_SET, SOURCES, Material, Source
from offaxis.lab.verdict.rows import CELL, name_of
from offaxis.lab.verdict.rule import SETS
from offaxis.lab.verdict.scoring import Contest, Interval, proportion
from offaxis.lab.verdict.survival import CellFound, Found

__all__ = ["areas", "bands", "cells", "folds", "found", "reliability", "risks", "sources_of"]

_AREAS = ("all pairs", "equal task and norm", "equal task, norm, optimizer and store")


def sources_of(name: str) -> tuple[Source, ...]:
    """Where a set of features, or the rule on settings, is scored."""
    return ("both",) if name == SETTINGS_SET else tuple(SOURCES)


def ends_of(one: Interval, prefix: str = "") -> dict[str, Any]:
    """An interval as columns."""
    head = f"{prefix}_" if prefix else ""
    return {prefix or "value": one.value, f"{head}low": one.low, f"{head}high": one.high}


def areas(material: Material) -> pl.DataFrame:
    """AUC: set, source, over (which pairs), value with its interval over runs, and over settings.

    pairs: how many are compared. low, high: runs resampled. block_low, block_high: whole settings.
    """
    rows = []
    for name in (*SETS, SETTINGS_SET):
        for source in sources_of(name):
            score = material.score(source, name)
            kinds: tuple[Mapping[str, Any], ...] = (
                {},
                {"matched": True},
                {"matched": True, "alike": ("optimizer", "dtype")},
            )
            for over, asked in zip(_AREAS, kinds, strict=True):
                one = material.contest(source, **asked).auc(score)
                block = material.contest(source, **asked, blocks=True).auc(score)
                rows.append(
                    {"set": name, "source": source, "over": over, "pairs": one.size}
                    | ends_of(one)
                    | {"block_low": block.low, "block_high": block.high}
                )
    return pl.DataFrame(rows)


def bands(material: Material) -> dict[str, float | None]:
    """Set -> the least confidence of a label, from runs that the rule was not fitted to.

    Those of the first study; for the rule on settings all runs, since it is scored on no others.
    """
    found = {}
    for name in (*SETS, SETTINGS_SET):
        source = sources_of(name)[0]
        found[name] = threshold(material.p(source, name), material.rl(source))
    return found


def _by_cell(material: Material, source: Source) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame]]:
    """Cell -> its runs, with their places among the source's."""
    runs = material.runs[source].with_row_index("place")
    for cell, own in runs.group_by(CELL, maintain_order=True):
        if own["rl"].n_unique() == 2:
            yield cell, own


def cells(material: Material, name: str, least: float | None) -> pl.DataFrame:
    """One row a cell: AUC, matched AUC, accuracy at p = ½, calibration, labels and wrong ones.

    Of the test runs; for the rule on settings, of the same cells among all runs.
    """
    source = sources_of(name)[-1] if name == SETTINGS_SET else "test"
    wanted = {cell for cell, _ in _by_cell(material, "test")}
    score, rows = material.score(source, name), []
    for cell, own in _by_cell(material, source):
        if cell not in wanted:
            continue
        logit = score[own["place"].to_numpy()]
        p, rl = probability(logit), own["rl"].to_numpy().astype(bool)
        told = calibration(p, rl)
        right = proportion(int(((p > 0.5) == rl).sum()), p.size)
        share, wrong = labelled(p, rl, 2.0 if least is None else least)
        auc = Contest(own, draws=material.draws).auc(logit)
        matched = Contest(own, matched=True, draws=material.draws).auc(logit)
        row = {"set": name, **dict(zip(CELL, cell, strict=True)), "cell": name_of(cell)}
        row |= {"rl": int(rl.sum()), "tuned": int((~rl).sum()), "pairs": matched.size}
        for key, one in (
            ("auc", auc), ("matched", matched), ("right", right), ("labelled", share),
            ("wrong", wrong),
        ):  # fmt: skip
            row |= ends_of(one, key)
        row |= {"labels": wrong.size, "brier": told.brier, "log_loss": told.log_loss,
                "ece": told.ece}  # fmt: skip
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None).sort(CELL)


def found(material: Material, name: str, least: float | None, table: pl.DataFrame) -> Found:
    """What `survival.judged` judges; table: `cells` of the set."""
    source: Source = "both" if name == SETTINGS_SET else "test"
    test = _test_among(material, source)
    score, rl = material.score(source, name)[test], material.rl(source)[test]
    runs = material.runs[source].filter(pl.Series(test))
    _, wrong = labelled(probability(score), rl, 2.0 if least is None else least)
    return Found(
        Contest(runs, draws=material.draws).auc(score),
        Contest(runs, matched=True, draws=material.draws).auc(score),
        wrong,
        tuple(_cell_found(row) for row in table.iter_rows(named=True)),
    )


def _test_among(material: Material, source: Source) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which runs of a source are test runs."""
    test = set(material.runs["test"]["run"].to_list())
    return np.array([run in test for run in material.runs[source]["run"]])


def _cell_found(row: Mapping[str, Any]) -> CellFound:
    def one(name: str, size: int) -> Interval:
        return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], size)

    return CellFound(
        tuple(row[name] for name in CELL),
        min(row["rl"], row["tuned"]),
        one("auc", row["rl"] * row["tuned"]),
        one("matched", row["pairs"]),
        one("wrong", row["labels"]),
    )


def folds(material: Material) -> pl.DataFrame:
    """The test runs' AUC in every (task, rate, optimizer, dtype), by set, the least first."""
    runs = material.runs["test"].with_row_index("place")
    rows = []
    for key, own in runs.group_by("task", "learning_rate", "optimizer", "dtype"):
        if own["rl"].n_unique() < 2:
            continue
        contest = Contest(own, draws=material.draws)
        for name in SETS:
            one = contest.auc(material.score("test", name)[own["place"].to_numpy()])
            told = dict(zip(("task", "learning_rate", "optimizer", "dtype"), key, strict=True))
            rows.append({"set": name, **told, "runs": own.height} | ends_of(one))
    return pl.DataFrame(rows, infer_schema_length=None).sort(
        "set", "value", "optimizer", "dtype", "task", "learning_rate"
    )


def reliability(material: Material) -> pl.DataFrame:
    """Of the test runs, bin by bin: set, mean probability, share of RL, runs; and its summary."""
    rows = []
    for name in SETS:
        told = calibration(material.p("test", name), material.rl("test"))
        rows += [
            {"set": name, "predicted": mean, "observed": share, "runs": size, "brier": told.brier,
             "log_loss": told.log_loss, "ece": told.ece}
            for mean, share, size in told.bins
        ]  # fmt: skip
    return pl.DataFrame(rows)


def risks(material: Material) -> pl.DataFrame:
    """Risk and coverage of the test runs: set, confidence, coverage, risk."""
    rows = [
        {"set": name, "confidence": sure, "coverage": share, "risk": risk}
        for name in SETS
        for sure, share, risk in coverage(material.p("test", name), material.rl("test"))
    ]
    return pl.DataFrame(rows)
