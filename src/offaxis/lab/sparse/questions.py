"""What the sparse study asks, claim by claim; `offaxis.lab.claims` has the rule that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.lab.claims import Claim, Measured, as_row, columns, compared, verdict
from offaxis.lab.sparse.naming import (
    ALL,
    LIFT,
    LOW,
    NON_PRINCIPAL,
    ONE,
    PRINCIPAL,
    SAFE,
    matched_like,
    random_like,
)
from offaxis.lab.sparse.summary import Rates, Runs, kinds

__all__ = ["COMPARISONS", "QUESTIONS", "Question", "answers", "verdicts"]


@dataclass(frozen=True)
class Question:
    """Claims that are corrected together."""

    name: str
    title: str
    method: str
    claims: tuple[Claim, ...]


_HALF = (random_like(PRINCIPAL), matched_like(PRINCIPAL))
_PAPER = (NON_PRINCIPAL, LOW, SAFE, random_like(SAFE))  # beside the principal one
_OTHERS = (PRINCIPAL, NON_PRINCIPAL, LOW, random_like(SAFE))  # beside the union
_SAFE = (random_like(SAFE), matched_like(SAFE))
_LIFT = (random_like(LIFT), matched_like(LIFT))
_KL, _FAR = "kl_tuned_base", "kl_distance"

QUESTIONS: tuple[Question, ...] = (
    Question(
        "table3", "The Path Not Taken, Table 3: accuracy", "grpo",
        (
            Claim("principal-only is the worst of the paper's masks", PRINCIPAL, -1, _PAPER),
            Claim("principal-only is worse than dense", PRINCIPAL, -1, (ALL,)),
            Claim("principal-only is worse than its controls", PRINCIPAL, -1, _HALF),
            Claim("non-principal is better than its controls", NON_PRINCIPAL, 1,
                  (random_like(PRINCIPAL), matched_like(NON_PRINCIPAL))),
            Claim("small weights are better than random ones", LOW, 1, (random_like(LOW),)),
            Claim("the union is the best of the paper's masks", SAFE, 1, _OTHERS),
            Claim("the union is better than its controls", SAFE, 1, _SAFE),
            Claim("the union is level with dense", SAFE, 0, (ALL,)),
        ),
    ),
    Question(
        "figure7", "The Path Not Taken, Fig. 7: KL over training", "grpo",
        (
            Claim("principal-only moves least of the paper's masks", PRINCIPAL, -1, _PAPER, _KL),
            Claim("principal-only moves less than its controls", PRINCIPAL, -1, _HALF, _KL),
            Claim("the union's curve is the closest to dense's", SAFE, -1, _OTHERS, _FAR),
            Claim("it is closer than its controls'", SAFE, -1, _SAFE, _FAR),
        ),
    ),
    Question(
        "lift_sft", "LIFT under supervised fine-tuning: accuracy", "sft",
        (
            Claim("LIFT is better than dense", LIFT, 1, (ALL,)),
            Claim("LIFT is better than its controls", LIFT, 1, _LIFT),
            Claim("LIFT is better than denser masks", LIFT, 1, (PRINCIPAL, SAFE)),
        ),
    ),
    Question(
        "lift_rl", "LIFT under reinforcement learning: accuracy", "grpo",
        (
            Claim("LIFT is worse than dense", LIFT, -1, (ALL,)),
            Claim("LIFT is worse than its controls", LIFT, -1, _LIFT),
            Claim("LIFT is worse than denser masks", LIFT, -1, (PRINCIPAL, SAFE)),
        ),
    ),
    Question(
        "tickets", "Multiple Tickets: one entry in a hundred, drawn at random", "grpo",
        (Claim("a random 1 % is level with dense", ONE, 0, (ALL,)),),
    ),
)  # fmt: skip
"""Asked at each kind of rate that the method has. Under RL the claims about LIFT are what The Path
Not Taken expects of a mask made for fine-tuning (section 5.1, takeaway 1); under SFT they are
LIFT's own."""

COMPARISONS = columns("mask")
"""Columns of `answers`."""


def answers(runs: Runs) -> pl.DataFrame:
    """Every comparison of every question at both kinds of rate, with the columns `COMPARISONS`."""
    found = []
    for question in QUESTIONS:
        for rates in kinds(question.method):
            found += _asked(runs, question, rates)
    return pl.DataFrame(found, schema=COMPARISONS)


def _asked(runs: Runs, question: Question, rates: Rates) -> list[dict[str, Any]]:
    def measured(measure: str) -> Measured:
        return runs.measured(question.method, rates, measure)

    told = {"question": question.name, "rates": rates, "method": question.method}
    return [told | as_row(one, "mask") for one in compared(question.claims, measured)]


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The word for each claim at each kind of rate: question, claim, rates, word, in order."""
    keys = ("question", "claim", "rates")
    groups = comparisons.partition_by(*keys, as_dict=True, maintain_order=True)
    told = [(*key, verdict(rows["word"])) for key, rows in groups.items()]
    return pl.DataFrame(told, schema=[*keys, "word"], orient="row")
