"""What the study asks, claim by claim, written before its runs were read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.lab.claims import Claim, as_row, columns, compared, verdict
from offaxis.lab.predict.candidates import FRACTIONS, STOP
from offaxis.lab.predict.pooling import FULL, RL, TUNING, Group, measured

__all__ = [
    "COMPARISONS",
    "GROUPS",
    "PREDICTION",
    "QUESTIONS",
    "RANK",
    "SIDES",
    "Question",
    "answers",
    "verdicts",
]

GROUPS: tuple[Group, ...] = (
    Group("rl", "GRPO, DAPO and RLOO", RL),
    Group("tuning", "SFT and distillation", TUNING),
)
"""Both tasks each; accuracies are averaged over methods and tasks."""

_NATS = 0.01  # of a loss of about 0.3 nats a token: nothing to speak of


@dataclass(frozen=True)
class Question:
    """Claims that are corrected together."""

    name: str
    title: str
    claims: tuple[Claim, ...]


PREDICTION = Question(
    "prediction",
    "The last weights from the first checkpoints",
    (
        Claim("AlphaRL is better than stopping", "alpharl", 1, (STOP,)),
        Claim("AlphaRL is better than one factor on ΔW", "alpharl", 1, ("scale", "scale_chosen")),
        Claim("AlphaRL is level with the full run, or better", "alpharl", 1, (FULL,),
              or_level=True),
        Claim("AlphaRL told the final score (y* = 1) is level with the full run, or better",
              "alpharl_oracle", 1, (FULL,), or_level=True),
        Claim("RELEX is better than stopping", "relex", 1, (STOP,)),
        Claim("RELEX is better than ΔW × target/origin", "relex", 1, ("scale",)),
        Claim("RELEX is better than each entry's line", "relex", 1, ("linear",)),
        Claim("RELEX is level with the full run, or better", "relex", 1, (FULL,), or_level=True),
        Claim("with the reach chosen, RELEX is better than one factor on ΔW", "relex_chosen", 1,
              ("scale_chosen",)),
        Claim("a chosen factor on ΔW is better than stopping", "scale_chosen", 1, (STOP,)),
        Claim("a chosen factor on ΔW is level with the full run, or better", "scale_chosen", 1,
              (FULL,), or_level=True),
        Claim("rank 1 of ΔW is level with the whole of it", "rank1", 0, ("scale",)),
    ),
)  # fmt: skip
"""Asked at each fraction of the run and of each group. `or_level` claims are one-sided."""

SIDES = Question(
    "sides",
    "What a prediction does beside its task",
    (
        Claim("a chosen factor's gain carries to harder problems", "scale_chosen", 1, (STOP,),
              "harder", margin=0.03),
        Claim("RELEX's gain carries to harder problems", "relex", 1, (STOP,), "harder",
              margin=0.03),
        Claim("AlphaRL's gain carries to harder problems", "alpharl", 1, (STOP,), "harder",
              margin=0.03),
        Claim("a chosen factor forgets more than the full run", "scale_chosen", 1, (FULL,),
              "elsewhere", margin=_NATS),
        Claim("RELEX forgets more than the full run", "relex", 1, (FULL,), "elsewhere",
              margin=_NATS),
        Claim("AlphaRL forgets more than the full run", "alpharl", 1, (FULL,), "elsewhere",
              margin=_NATS),
    ),
)  # fmt: skip

RANK = Question(
    "rank",
    "Models rebuilt from a few directions of the final update",
    (
        Claim("rank 1, rescaled, is level with all directions, or better", "rank 1", 1, ("all",),
              or_level=True),
        Claim("rank 1, as it is, is level with all directions, or better", "rank 1, as is", 1,
              ("all",), or_level=True),
        Claim("rank 4, rescaled, is level with all directions, or better", "rank 4", 1, ("all",),
              or_level=True),
        Claim("all directions are level with the run, embeddings and norms left out", "all", 1,
              (FULL,), or_level=True),
    ),
)  # fmt: skip
"""Asked of each group at the end of its runs."""

QUESTIONS = (PREDICTION, SIDES, RANK)

COMPARISONS = columns("predictor")
"""Columns of `answers`: `rates` is the fraction of the run, `method` the group."""


def answers(models: pl.DataFrame) -> pl.DataFrame:
    """Every comparison, with the columns `COMPARISONS`. models: `pooling.with_settings`."""
    found: list[dict[str, Any]] = []
    for group in GROUPS:
        own = group.runs(models)
        if own.is_empty():
            continue
        last = int(own["steps"].max())  # type: ignore[arg-type]
        for question, fractions in ((PREDICTION, FRACTIONS), (SIDES, FRACTIONS[-1:])):
            for fraction in fractions:
                place = {"rates": f"{fraction:.0%}", "method": group.name}
                found += _asked(own, question, round(fraction * last), last, place)
        found += _asked(own, RANK, last, last, {"rates": "100%", "method": group.name})
    return pl.DataFrame(found, schema=COMPARISONS)


def _asked(
    models: pl.DataFrame, question: Question, origin: int, target: int, place: dict[str, str]
) -> list[dict[str, Any]]:
    arms = {one for claim in question.claims for one in (claim.first, *claim.against)}
    told = {"question": question.name} | place
    tables = {
        measure: measured(models, measure, origin=origin, target=target, arms=sorted(arms))
        for measure in {claim.measure for claim in question.claims}
    }
    return [
        told | as_row(one, "predictor") for one in compared(question.claims, tables.__getitem__)
    ]


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The word for each claim of each group and fraction: question, claim, rates, method, word."""
    keys = ("question", "claim", "rates", "method")
    groups = comparisons.partition_by(*keys, as_dict=True, maintain_order=True)
    told = [(*key, verdict(rows["word"])) for key, rows in groups.items()]
    return pl.DataFrame(told, schema=[*keys, "word"], orient="row")
