"""What the sparse study asks, and the rule by which rows answer.

A claim says that one mask lies above, below or level with others in a measure. A comparison is one
mask against one other, paired (`paired.difference`), with Holm's correction over all comparisons of
a question at one kind of rate. Its word:

- `does not`: the 95 % interval lies wholly within ± the margin (nothing to speak of; of a claim of
  being level, this holds), or Holm's p < 0.05 with the sign against the claim;
- `holds`: Holm's p < 0.05, the sign is the claimed one and every seed has it;
- `cannot tell`: otherwise, and wherever fewer than two seeds are there.

A claim holds where all its comparisons do, and does not where one of them does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

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
from offaxis.lab.sparse.paired import Difference, difference, holm, plain_interval, spread
from offaxis.lab.sparse.summary import Measured, Rates, Runs, kinds

__all__ = [
    "COMPARISONS",
    "MARGINS",
    "QUESTIONS",
    "Claim",
    "Compared",
    "Question",
    "Word",
    "answers",
    "compared",
    "judge",
    "verdict",
    "verdicts",
]

Word = Literal["holds", "does not", "cannot tell"]
Direction = Literal[1, -1, 0]

SIGNIFICANT = 0.05

MARGINS: Mapping[str, float] = {
    "accuracy": 0.03,
    "kl_tuned_base": math.log(1.1),
    "kl_distance": 0.1,
    "twin_cosine": 0.02,
    "twin_same_changed": 0.02,
    "twin_same": 0.02,
    "twin_distance": 0.02,
}
"""Measure -> a difference that is nothing to speak of. Accuracy: three points. KL: ten percent of
it (it is compared by its logarithm); a curve's distance: ten percent more or less."""

LOGARITHMIC = ("kl_tuned_base",)


@dataclass(frozen=True)
class Claim:
    """One mask against others in one measure."""

    text: str
    mask: str
    direction: Direction
    """The sign of mask minus other that the claim says; 0: level with it."""
    against: tuple[str, ...]
    measure: str = "accuracy"


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

COMPARISONS: dict[str, Any] = {
    "question": pl.String(),
    "rates": pl.String(),
    "claim": pl.String(),
    "method": pl.String(),
    "measure": pl.String(),
    "mask": pl.String(),
    "against": pl.String(),
    "direction": pl.Int64(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "p": pl.Float64(),
    "p_holm": pl.Float64(),
    "seeds": pl.Int64(),
    "word": pl.String(),
    "plain_low": pl.Float64(),
    "plain_high": pl.Float64(),
}
"""Columns of `answers`. value: mask minus other; of KL, ln of mask over other. low, high: 95 %.
p_holm: Holm's over the question. plain_*: `paired.plain_interval`, judged by nothing."""


@dataclass(frozen=True)
class Compared:
    """One mask against one other."""

    claim: Claim
    against: str
    found: Difference | None
    """None where runs are missing."""
    p_holm: float | None
    word: Word
    plain: tuple[float, float] | None


def judge(
    direction: Direction, margin: float, found: Difference | None, p_holm: float | None
) -> Word:
    """The word for one comparison, by the rule of the module's text."""
    if found is None or p_holm is None or found.low is None or found.high is None:
        return "cannot tell"
    if -margin <= found.low and found.high <= margin:
        return "does not" if direction else "holds"
    if p_holm >= SIGNIFICANT:
        return "cannot tell"
    if not direction or found.value * direction < 0:
        return "does not"
    return "holds" if found.agree else "cannot tell"


def verdict(words: Iterable[str]) -> Word:
    """Of a claim, from those of its comparisons."""
    told = set(words)
    if "does not" in told:
        return "does not"
    return "holds" if told == {"holds"} else "cannot tell"


def compared(
    claims: Sequence[Claim], measured: Callable[[str], Measured], *, draws: int = 10_000
) -> list[Compared]:
    """Every comparison of claims that are corrected together, each difference once.

    measured: a measure -> mask -> seed -> its numbers, one a problem or a single one.
    """
    tables = {measure: _scaled(measure, measured(measure)) for measure in _measures(claims)}
    pools = {
        measure: spread({mask: _means(seeds) for mask, seeds in table.items()})
        for measure, table in tables.items()
    }
    found: dict[_Pair, Difference | None] = {}
    plain: dict[_Pair, tuple[float, float] | None] = {}
    for claim in claims:
        for other in claim.against:
            pair = _pair(claim, other)
            if pair not in found:
                both = _shared(tables[pair[0]], *pair[1:])
                found[pair] = both and difference(*both, pooled=pools[pair[0]], draws=draws)
                plain[pair] = both and plain_interval(*both, draws=draws)
    adjusted = dict(
        zip(found, holm([one.p if one else None for one in found.values()]), strict=True)
    )
    told = []
    for claim in claims:
        for other in claim.against:
            pair = _pair(claim, other)
            own, bounds = found[pair], plain[pair]
            if pair[1] != claim.mask:
                own, bounds = own and own.reversed(), bounds and (-bounds[1], -bounds[0])
            word = judge(claim.direction, MARGINS[claim.measure], own, adjusted[pair])
            told.append(Compared(claim, other, own, adjusted[pair], word, bounds))
    return told


_Pair = tuple[str, str, str]  # a measure and two masks


def _pair(claim: Claim, other: str) -> _Pair:
    """The same for mask minus other and other minus mask, which are one comparison."""
    first, second = sorted((claim.mask, other))
    return claim.measure, first, second


def _measures(claims: Sequence[Claim]) -> list[str]:
    return list(dict.fromkeys(claim.measure for claim in claims))


def _means(seeds: Mapping[int, Any]) -> dict[int, float]:
    return {seed: float(one.mean()) for seed, one in seeds.items()}


def _scaled(measure: str, table: Measured) -> Measured:
    if measure not in LOGARITHMIC:
        return table
    return {mask: {seed: np.log(one) for seed, one in row.items()} for mask, row in table.items()}


def _shared(table: Measured, mask: str, other: str) -> tuple[Any, Any] | None:
    """Both masks' numbers, (seeds, problems), over the seeds that both have."""
    first, second = table.get(mask, {}), table.get(other, {})
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return np.stack([first[s] for s in seeds]), np.stack([second[s] for s in seeds])


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
    return [told | as_row(one) for one in compared(question.claims, measured)]


def as_row(one: Compared) -> dict[str, Any]:
    """A comparison's columns of `COMPARISONS`, but for question, rates and method."""
    found, claim = one.found, one.claim
    low, high = one.plain if one.plain else (None, None)
    return {
        "claim": claim.text,
        "measure": claim.measure,
        "mask": claim.mask,
        "against": one.against,
        "direction": claim.direction,
        "value": found.value if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "p": found.p if found else None,
        "p_holm": one.p_holm,
        "seeds": found.seeds if found else 0,
        "word": one.word,
        "plain_low": low,
        "plain_high": high,
    }


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The word for each claim at each kind of rate: question, claim, rates, word, in order."""
    keys = ("question", "claim", "rates")
    groups = comparisons.partition_by(*keys, as_dict=True, maintain_order=True)
    told = [(*key, verdict(rows["word"])) for key, rows in groups.items()]
    return pl.DataFrame(told, schema=[*keys, "word"], orient="row")
