"""Claims about arms, and the rule by which runs answer them.

A claim says that one arm lies above, below or level with others in a measure. A comparison is one
arm against one other, paired (`paired.difference`), with Holm's correction over all comparisons
that are asked together. Its word:

- `does not`: the 95 % interval lies wholly within ± the margin (nothing to speak of; of a claim of
  being level, this holds), or Holm's p < 0.05 with the sign against the claim;
- `holds`: Holm's p < 0.05, the sign is the claimed one and every seed has it;
- `cannot tell`: otherwise, and wherever fewer than two seeds are there.

A claim of being level *or better* holds where the interval lies above minus the margin, and does
not where Holm's p < 0.05 with the sign against it. A claim holds where all its comparisons do, and
does not where one of them does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.paired import Difference, difference, holm, plain_interval, spread

__all__ = [
    "LOGARITHMIC",
    "MARGINS",
    "SIGNIFICANT",
    "Claim",
    "Compared",
    "Direction",
    "Measured",
    "Word",
    "as_row",
    "columns",
    "compared",
    "judge",
    "verdict",
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


Measured = Mapping[str, Mapping[int, npt.NDArray[np.float64]]]
"""Arm -> seed -> a measure: one number a problem (accuracy), or a single one."""


@dataclass(frozen=True)
class Claim:
    """One arm against others in one measure."""

    text: str
    first: str
    direction: Direction
    """The sign of first minus other that the claim says; 0: level with it."""
    against: tuple[str, ...]
    measure: str = "accuracy"
    or_level: bool = False
    """Is being level as good? Then `direction` says which way is better."""
    margin: float | None = None
    """A difference that is nothing to speak of, where it is not that of `MARGINS`."""

    def __post_init__(self) -> None:
        if self.or_level and not self.direction:
            raise ValueError(f"{self.text}: level or better needs to say which way is better")

    @property
    def slack(self) -> float:
        return MARGINS[self.measure] if self.margin is None else self.margin


@dataclass(frozen=True)
class Compared:
    """One arm against one other."""

    claim: Claim
    against: str
    found: Difference | None
    """None where runs are missing."""
    p_holm: float | None
    word: Word
    plain: tuple[float, float] | None


def judge(
    direction: Direction,
    margin: float,
    found: Difference | None,
    p_holm: float | None,
    *,
    or_level: bool = False,
) -> Word:
    """The word for one comparison, by the rule of the module's text."""
    if found is None or p_holm is None or found.low is None or found.high is None:
        return "cannot tell"
    if or_level and (found.low if direction > 0 else -found.high) >= -margin:
        return "holds"
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

    measured: a measure -> arm -> seed -> its numbers, one a problem or a single one.
    """
    tables = {measure: _scaled(measure, measured(measure)) for measure in _measures(claims)}
    pools = {
        measure: spread({arm: _means(seeds) for arm, seeds in table.items()})
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
            if pair[1] != claim.first:
                own, bounds = own and own.reversed(), bounds and (-bounds[1], -bounds[0])
            word = judge(claim.direction, claim.slack, own, adjusted[pair], or_level=claim.or_level)
            told.append(Compared(claim, other, own, adjusted[pair], word, bounds))
    return told


_Pair = tuple[str, str, str]  # a measure and two arms


def _pair(claim: Claim, other: str) -> _Pair:
    """The same for first minus other and other minus first, which are one comparison."""
    first, second = sorted((claim.first, other))
    return claim.measure, first, second


def _measures(claims: Sequence[Claim]) -> list[str]:
    return list(dict.fromkeys(claim.measure for claim in claims))


def _means(seeds: Mapping[int, Any]) -> dict[int, float]:
    return {seed: float(one.mean()) for seed, one in seeds.items()}


def _scaled(measure: str, table: Measured) -> Measured:
    if measure not in LOGARITHMIC:
        return table
    return {arm: {seed: np.log(one) for seed, one in row.items()} for arm, row in table.items()}


def _shared(table: Measured, arm: str, other: str) -> tuple[Any, Any] | None:
    """Both arms' numbers, (seeds, problems), over the seeds that both have."""
    first, second = table.get(arm, {}), table.get(other, {})
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return np.stack([first[s] for s in seeds]), np.stack([second[s] for s in seeds])


def columns(arm: str) -> dict[str, Any]:
    """The columns of a table of comparisons; `arm`: the name of the column of first arms.

    value: first minus other; of KL, ln of first over other. low, high: 95 %. p_holm: Holm's over
    what is asked together. plain_*: `paired.plain_interval`, judged by nothing.
    """
    texts, numbers = pl.String(), pl.Float64()
    return {
        "question": texts,
        "rates": texts,
        "claim": texts,
        "method": texts,
        "measure": texts,
        arm: texts,
        "against": texts,
        "direction": pl.Int64(),
        "value": numbers,
        "low": numbers,
        "high": numbers,
        "p": numbers,
        "p_holm": numbers,
        "seeds": pl.Int64(),
        "word": texts,
        "plain_low": numbers,
        "plain_high": numbers,
    }


def as_row(one: Compared, arm: str) -> dict[str, Any]:
    """A comparison's `columns`, but for question, rates and method."""
    found, claim = one.found, one.claim
    low, high = one.plain if one.plain else (None, None)
    return {
        "claim": claim.text,
        "measure": claim.measure,
        arm: claim.first,
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
