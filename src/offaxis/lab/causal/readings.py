"""What the test says: falls of likeness, each with its word, and the reading that they make.

The rule was written before any run of the study `causal` had been made. Pairs of runs of other
seeds; *reference*: the level of a measure between runs from the base. A fall is the level between
a run from the base and one from the edited base, minus the reference, with a jackknife over seeds
(`jackknife`). It `holds` where its interval lies below zero and not within a tenth of the
reference, `does not` where it lies within that tenth or above zero; `cannot tell` otherwise, and
wherever the reference itself is not clearly above zero: then there is nothing to fall from.

Readings (docs/intervene.md, "Reading the causal test"), from the first that applies:

1. the mask's excess overlap falls in tensors that were not edited: `runs differ by more`;
2. it does not fall in the edited tensors: `it stays`;
3. PERMUTE, it falls there: `relabelling` where it does not fall once updates are pulled back,
   `another path` where it falls then too;
4. ROTATE, it falls there: `coordinates of the optimizer` where the subspaces of the pulled-back
   updates do not come apart, `another path` where they do.

Whatever stands on a `cannot tell` is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.lab.causal.jackknife import Estimate, estimate
from offaxis.lab.causal.levels import ONE_SEED, SCOPES, Cell
from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.study.questions import Question, judge

__all__ = ["FALLS", "MARGIN", "ONE", "QUESTIONS", "falls", "one_seed", "reading", "readings"]

MARGIN = 0.1
"""Of the reference: a smaller difference is nothing to speak of."""

QUESTIONS: Mapping[str, tuple[str, str]] = {
    "mask": ("edited", "excess"),
    "mask, alike": ("alike", "excess"),
    "mask, rest": ("rest", "excess"),
    "mask, pulled back": ("edited", "back_excess"),
    "update, pulled back": ("edited", "back_cosine"),
    "subspaces": ("edited", "span"),
}
"""Name -> the scope and the measure that may fall."""

FALLS: dict[str, Any] = {
    "method": pl.String(),
    "optimizer": pl.String(),
    "learning_rate": pl.Float64(),
    "edit": pl.String(),
    "step": pl.Int64(),
    "question": pl.String(),
    "reference": pl.Float64(),
    "reference_low": pl.Float64(),
    "level": pl.Float64(),
    "level_low": pl.Float64(),
    "level_high": pl.Float64(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "seeds": pl.Int64(),
    "word": pl.String(),
}
"""Columns of `falls`: level − reference = value."""

ONE: dict[str, Any] = {
    **{name: FALLS[name] for name in ("method", "optimizer", "learning_rate", "edit", "step")},
    **{
        f"{name}{end}": pl.Float64()
        for name in ("edited", "raw", "alike", "difference")
        for end in ("", "_low", "_high")
    },
    "other_seed": pl.Float64(),
    "seeds": pl.Int64(),
}
"""Columns of `one_seed`: cosine of the updates of the base's run and the edited one's of the same
seed. edited: in the edited tensors, pulled back; raw: not pulled back; alike: in tensors of the
same roles that were not edited; difference: edited − alike; other_seed: of two of the base's runs
in the edited tensors."""

Place = tuple[str, str, float, str, int]


def _by_place(found: Sequence[Cell]) -> dict[Place, dict[str, Cell]]:
    places: dict[Place, dict[str, Cell]] = {}
    for one in found:
        place = (one.method, one.optimizer, one.learning_rate, one.edit, one.step)
        places.setdefault(place, {})[one.scope] = one
    return places


def falls(found: Sequence[Cell]) -> pl.DataFrame:
    """Every question of every arm, edit and step: columns `FALLS`."""
    rows = []
    for place, scopes in _by_place(found).items():
        for name, (scope, measure) in QUESTIONS.items():
            if scope in scopes:
                told = dict(zip(FALLS, (*place, name), strict=False))
                rows.append(told | _fall(scopes[scope], measure))
    frame = pl.DataFrame(rows, schema=FALLS)
    return frame.with_columns(pl.col("value", "level", "reference").fill_nan(None))


def _fall(cell: Cell, measure: str) -> dict[str, Any]:
    groups = {kind: cell.of(measure, kind) for kind in KINDS[:2]}
    reference = estimate({KINDS[0]: groups[KINDS[0]]}, lambda means: means[KINDS[0]])
    level = estimate({KINDS[1]: groups[KINDS[1]]}, lambda means: means[KINDS[1]])
    fall = estimate(groups, lambda means: means[KINDS[1]] - means[KINDS[0]])
    return {
        "reference": reference.value,
        "reference_low": reference.low,
        "level": level.value,
        "level_low": level.low,
        "level_high": level.high,
        "value": fall.value,
        "low": fall.low,
        "high": fall.high,
        "seeds": fall.seeds,
        "word": _word(measure, reference, fall),
    }


def _word(measure: str, reference: Estimate, fall: Estimate) -> str:
    if fall.half is None or reference.low is None or reference.low <= 0:
        return "cannot tell"
    question = Question("falls", measure, -1, "difference", MARGIN * reference.value)
    return judge(question, fall.value, fall.half, fall.seeds).word


def reading(edit: str, words: Mapping[str, str]) -> str:
    """The reading of one arm, edit and step from the words of its `QUESTIONS`."""
    if "holds" in (words.get("mask, alike"), words.get("mask, rest")):
        return "runs differ by more"
    if words["mask"] == "does not":
        return "it stays"
    permuted = edit.startswith("permute")
    decides = words["mask, pulled back" if permuted else "subspaces"]
    if "cannot tell" in (words["mask"], decides):
        return "cannot tell"
    if decides == "holds":
        return "another path"
    return "relabelling" if permuted else "coordinates of the optimizer"


def readings(found: pl.DataFrame) -> pl.DataFrame:
    """From `falls`: arm, edit, step, the word of each question, `reading`."""
    keys = list(FALLS)[:5]
    rows = []
    for key, own in found.group_by(keys, maintain_order=True):
        words = dict(own.select("question", "word").iter_rows())
        told = dict(zip(keys, key, strict=True))
        rows.append(told | words | {"reading": reading(str(told["edit"]), words)})
    schema = {name: FALLS[name] for name in keys}
    schema |= dict.fromkeys((*QUESTIONS, "reading"), pl.String())
    return pl.DataFrame(rows, schema=schema)


def one_seed(found: Sequence[Cell]) -> pl.DataFrame:
    """The sharpest comparison, of runs that see the same data: columns `ONE`."""
    return pl.DataFrame(list(_one_seed(found)), schema=ONE).fill_nan(None)


def _one_seed(found: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    for place, scopes in _by_place(found).items():
        edited, alike = (scopes[name] for name in SCOPES[:2])
        groups = {
            "edited": edited.of("back_cosine", ONE_SEED),
            "raw": edited.of("cosine", ONE_SEED),
            "alike": alike.of("cosine", ONE_SEED),
        }
        if not all(groups.values()):
            continue
        told: dict[str, Any] = dict(zip(ONE, place, strict=False))
        for name, values in groups.items():
            told |= _ends(name, estimate({"all": values}, lambda means: means["all"]))
        apart = estimate(groups, lambda means: means["edited"] - means["alike"])
        other = edited.of("cosine", KINDS[0])
        told |= _ends("difference", apart) | {"seeds": apart.seeds}
        yield told | {"other_seed": sum(other.values()) / len(other) if other else None}


def _ends(name: str, told: Estimate) -> dict[str, float | None]:
    return {name: told.value, f"{name}_low": told.low, f"{name}_high": told.high}
