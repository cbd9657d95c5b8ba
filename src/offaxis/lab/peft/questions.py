"""What the comparison asks, claim by claim; `offaxis.lab.claims` has the rule that answers.

Sources: "Evaluating Parameter-Efficient Methods for RLVR" (the paper); 2602.04998, "tuned rates
bring LoRA's variants within one or two points"; "LoRA Without Regret". Where several adapters stand
in one claim of a source, the question holds where each of them does. `behind` and `plus` were added
when the first twenty test runs were in, the others before any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from offaxis.lab.claims import (
    Claim,
    Compared,
    Direction,
    Measured,
    as_row,
    columns,
    compared,
    verdict,
)
from offaxis.lab.peft.naming import (
    ADALORA,
    DORA,
    FULL,
    GEORA,
    IA3,
    LORA,
    LORA_FA,
    LORA_PLUS,
    MILORA,
    MISS,
    NORMS,
    OFF_PRINCIPAL,
    OFF_RANDOM,
    PISSA,
    RANK1,
    RSLORA,
    VERA,
    label,
    with_rank,
)
from offaxis.lab.peft.planning import METHOD, RANKED, RANKS
from offaxis.lab.peft.summary import RATES, Rates, Runs, last_values

__all__ = ["COMPARISONS", "QUESTIONS", "Question", "answers", "verdicts"]

TWO_POINTS = 0.02


@dataclass(frozen=True)
class Question:
    """Claims that are corrected together."""

    name: str
    title: str
    claims: tuple[Claim, ...]
    whole: str = ""
    """The source's claim, where it takes all of these."""
    rates: tuple[Rates, ...] = RATES


def _each(
    adapters: tuple[str, ...], text: str, direction: Direction, other: str, **more: Any
) -> tuple[Claim, ...]:
    """One claim an adapter; `{}` is its name."""
    return tuple(
        Claim(text.format(label(one)), one, direction, (other,), **more) for one in adapters
    )


_STRUCTURAL = (DORA, ADALORA, MISS)
_SVD = (PISSA, MILORA)
_TINY = (VERA, IA3, NORMS, RANK1)
_VARIANTS = (RSLORA, LORA_PLUS, DORA, PISSA, MILORA)

QUESTIONS: tuple[Question, ...] = (
    Question("structural", "The paper: structural variants beat LoRA",
             _each(_STRUCTURAL, "{} beats LoRA", 1, LORA), "all three do"),
    Question("rival", "The paper: they rival or beat full fine-tuning",
             _each(_STRUCTURAL, "{} is level with full or better", 1, FULL, or_level=True),
             "all three are"),
    Question("behind", "The paper: LoRA falls behind full fine-tuning",
             _each((LORA,), "{} is worse than full", -1, FULL)),
    Question("plus", "The paper, at 7B: LoRA+ beats LoRA",
             _each((LORA_PLUS,), "{} beats LoRA", 1, LORA)),
    Question("svd", "The paper: starts from the SVD fall behind LoRA",
             _each(_SVD, "{} is worse than LoRA", -1, LORA), "both are"),
    Question("floor", "The paper: an expressivity floor",
             _each(_TINY, "{} is worse than LoRA", -1, LORA), "all four are"),
    Question("lora_fa", "The paper: LoRA-FA is about as good as LoRA",
             _each((LORA_FA,), "{} is level with LoRA", 0, LORA)),
    Question("tuned", "2602.04998: tuned rates bring LoRA's variants within two points",
             _each(_VARIANTS, "{} is within 0.02 of LoRA", 0, LORA, margin=TWO_POINTS),
             "all five are"),
    Question("regret", "LoRA Without Regret: one rank is enough for RL",
             (Claim("rank-1 LoRA is level with LoRA or better", RANK1, 1, (LORA,), or_level=True),
              Claim("rank-1 LoRA is level with full or better", RANK1, 1, (FULL,), or_level=True),
              Claim("LoRA is level with full or better", LORA, 1, (FULL,), or_level=True))),
    Question("native", "Adapters made for RLVR: what they buy",
             (Claim("off-principal LoRA beats LoRA", OFF_PRINCIPAL, 1, (LORA,)),
              Claim("off-principal LoRA beats its random control", OFF_PRINCIPAL, 1, (OFF_RANDOM,)),
              Claim("GeoRA beats LoRA", GEORA, 1, (LORA,)),
              Claim("GeoRA beats the other starts from an SVD", GEORA, 1, _SVD))),
    Question("ranks", "The paper: rank 1 is too little, 8 to 32 is needed",
             tuple(Claim(f"{label(one)} at rank 1 is worse than at 8, 16 and 32",
                         with_rank(one, RANKS[0]), -1,
                         (one, *(with_rank(one, rank) for rank in RANKS[1:])))
                   for one in RANKED), "all three are", ("own",)),
)  # fmt: skip
"""Asked at each kind of rate: the adapter's own, and LoRA's for all. Ranks: at the rate that was
chosen for rank 8."""

COMPARISONS = columns("adapter")
"""Columns of `answers`."""


def _at(runs: Runs, rates: Rates) -> Callable[[str], Measured]:
    return lambda measure: runs.measured(rates, measure)


def _by_rank(runs: Runs) -> Callable[[str], Measured]:
    """The adapters whose rank was varied, at every rank, at the rate of rank 8."""

    def measured(measure: str) -> Measured:
        found = {}
        for one in RANKED:
            for adapter in (one, *(with_rank(one, rank) for rank in RANKS)):
                seeds = last_values(runs.tested(adapter, runs.rates.get(one)), measure)
                if seeds:
                    found[adapter] = seeds
        return found

    return measured


def answers(runs: Runs, *, draws: int = 10_000) -> pl.DataFrame:
    """Every comparison of every question at each kind of rate, with the columns `COMPARISONS`.

    Two adapters whose own rates are LoRA's are compared once: one set of runs has one answer.
    """
    found = []
    alike = {one for one in runs.adapters if runs.rate(one, "own") == runs.rate(one, "shared")}
    for question in QUESTIONS:
        known: dict[tuple[str, str], Compared] = {}
        for rates in RATES:
            if rates not in question.rates:
                continue
            measured = _by_rank(runs) if question.name == "ranks" else _at(runs, rates)
            told = {"question": question.name, "rates": rates, "method": METHOD}
            for one in compared(question.claims, measured, draws=draws):
                same = {one.claim.first, one.against} <= alike
                kept = known.get((one.claim.text, one.against), one) if same else one
                known.setdefault((one.claim.text, one.against), kept)
                found.append(told | as_row(kept, "adapter"))
    return pl.DataFrame(found, schema=COMPARISONS)


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The word for each claim at each kind of rate: question, claim, rates, word, in order.

    After a question's claims stands its source's, where that takes all of them.
    """
    keys = ["question", "claim", "rates", "word"]
    told = []
    for question in QUESTIONS:
        for rates in question.rates:
            own = comparisons.filter(question=question.name, rates=rates)
            words = {
                claim.text: verdict(own.filter(claim=claim.text)["word"])
                for claim in question.claims
            }
            told += [(question.name, text, rates, word) for text, word in words.items()]
            if question.whole:
                told.append((question.name, question.whole, rates, verdict(words.values())))
    return pl.DataFrame(told, schema=dict.fromkeys(keys, pl.String()), orient="row")
