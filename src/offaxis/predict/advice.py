"""Extrapolate, train on, or stop: a plain recommendation, and the numbers behind each reason.

The rules, in this order:

1. *Validated.* Where predictions were written and scored on a validation set (`candidates`), one is
   recommended if its gain over the last checkpoint is above zero beyond its 95 % interval, and
   none otherwise.
2. *By the weights.* Without candidates, a method is recommended if on checkpoints that it did not
   see, at horizons target/origin within a factor of 1.25 of the one asked for, it came at least
   10 % closer to the later weights than stopping, in every case and from two origins or more; if
   these gains are not wearing off, so that a least squares line through them over the origins'
   steps, read at the last checkpoint, still reaches 10 %; and if the scores, where there are any,
   still rise beyond their interval.
3. *Flat or falling.* If the curve of the scores leaves less than 0.01 to gain at the upper end of
   its interval, or the last two scores both lie more than 0.05 below the best one: stop.
4. Else train on. Where there was too little to judge by, the advice says that it cannot tell, and
   what would let it.

`scale` and `linear` are the baselines: another method is named only where it beats both, by one
per cent of the way in every case (rule 2) or by the lower end of its interval (rule 1). None of
these numbers was fitted to a result; that gains must not be wearing off was added after the lab's
distillation runs, where they fell from origin to origin below zero while every one seen was good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from offaxis.predict.backtest import Backtest
from offaxis.predict.candidates import Candidate
from offaxis.predict.curve import Curve

__all__ = ["Advice", "Reason", "Verdict", "advise"]

Verdict = Literal["extrapolate", "train on", "stop"]

NEAR = 1.25
"""Horizons within this factor of the one asked for are comparable."""
MARGIN = 0.1
"""By how much closer than stopping a method has to come, in every comparable case."""
ORIGINS = 2
"""Origins that this has to hold for, at least."""
CLEAR = 0.01
"""By how much more of the way a method has to come than a baseline, to be named in its place."""
WORTH = 0.01
"""Accuracy: a gain that is surely smaller is not worth training for."""
FALL = 0.05
"""Accuracy: below the best score by more than this, twice in a row, a run has fallen."""

_BASELINES = ("scale", "linear")
_WEIGHTS_ALONE = (
    "close weights are not yet accurate ones: the errors above say nothing about accuracy; score "
    "the prediction and the last checkpoint on a validation set before relying on it"
)


@dataclass(frozen=True)
class Reason:
    """One sentence, and the numbers in it."""

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """What to do, why, and what would let it be said better.

    method: what to extrapolate with; None unless the verdict is `extrapolate`. certain: False where
    there was too little to judge by (the verdict is then `train on`).
    """

    verdict: Verdict
    method: str | None
    certain: bool
    reasons: tuple[Reason, ...]
    wanted: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The recommendation in one line."""
        if self.verdict == "extrapolate":
            return f"Extrapolate, with {self.method}."
        if self.verdict == "stop":
            return "Stop: the scores no longer rise."
        return "Train on." if self.certain else "Train on: these checkpoints cannot tell."

    def told(self) -> dict[str, Any]:
        """All of it as plain values, for a record."""
        return {
            "verdict": self.verdict,
            "method": self.method,
            "certain": self.certain,
            "headline": self.headline,
            "reasons": [{"text": one.text, "numbers": dict(one.numbers)} for one in self.reasons],
            "wanted": list(self.wanted),
        }


def advise(
    backtest: Backtest,
    curve: Curve,
    *,
    last: float,
    at: float | None,
    candidates: Mapping[str, Candidate] | None = None,
) -> Advice:
    """Recommend by the rules above.

    backtest: errors on checkpoints that were not seen. curve: of the scores; `undefined` where
    there are too few or none. last: step of the last checkpoint. at: the step asked for; None where
    it is not known. candidates: method → validation score of its prediction.
    """
    validated, proven = _validated(candidates or {}, curve, at)
    reasons = list(proven)
    wanted: list[str] = []
    rising, climb = _climb(curve, last, at)
    found, close, lacking = _by_weights(backtest, last, at)
    if validated is not None:
        return Advice("extrapolate", validated, True, (*reasons, *close, *climb), ())
    reasons += [*close, *climb]
    if not candidates and found is not None and rising in ("rises", "unknown"):
        if rising == "unknown":
            wanted.append("scores of the checkpoints (--scores): whether they still rise")
        wanted.append("the prediction's score beside the last checkpoint's, on a validation set")
        return Advice("extrapolate", found, True, (*reasons, Reason(_WEIGHTS_ALONE)), (*wanted,))
    if rising == "flat":
        return Advice("stop", None, True, tuple(reasons), ())
    if found is not None and not candidates:
        reasons.append(Reason(f"for lack of scores seen to rise, {found} is not recommended"))
    wanted += lacking if not candidates else []
    if rising in ("unknown", "unclear"):
        wanted.append(_MORE_SCORES[rising])
    certain = bool(candidates) or not lacking
    return Advice("train on", None, certain, tuple(reasons), tuple(wanted))


_MORE_SCORES = {
    "unknown": "three scores or more (--scores), the base's among them",
    "unclear": "more scores, or scores of more problems and samples: the curve's interval holds "
    "both a gain and none",
}


# ----------------------------------------------------------------------------------------- by score


def _validated(
    candidates: Mapping[str, Candidate], curve: Curve, at: float | None
) -> tuple[str | None, list[Reason]]:
    """The candidate to recommend, if any, and what all of them scored."""
    reasons = [_scored(name, one) for name, one in candidates.items()]
    if len(candidates) > 1:
        reasons.append(
            Reason(
                f"the best of {len(candidates)} candidates scores too well by chance: score it "
                "again on problems that did not choose it",
                {"candidates": float(len(candidates))},
            )
        )
    able = {name: one for name, one in candidates.items() if one.low > 0}
    if not able:
        return None, reasons
    plain = [one.gain for name, one in candidates.items() if name in _BASELINES]
    fancy = {
        name: one
        for name, one in able.items()
        if name in _BASELINES or one.low > max(plain, default=0.0)
    }
    if not fancy:
        reasons.append(Reason("no prediction beats both the last checkpoint and the baselines"))
        return None, reasons
    best = max(fancy, key=lambda name: (fancy[name].gain, name in _BASELINES))
    value, low, high = (None, None, None) if at is None else curve.at(at)
    if value is not None and low is not None and high is not None:
        reasons.append(
            Reason(
                f"training on to step {at:g} is expected to score {value:.3f} "
                f"[{low:.3f}, {high:.3f}], beside {fancy[best].score:.3f} of this prediction",
                {"expected": value, "low": low, "high": high, "prediction": fancy[best].score},
            )
        )
    return best, reasons


def _scored(name: str, one: Candidate) -> Reason:
    how = "paired over" if one.paired else "not paired,"
    reading = "beyond" if one.low > 0 else "worse, beyond" if one.high < 0 else "within"
    return Reason(
        f"with {name}, the prediction scores {one.score:.3f} on the validation set, "
        f"{one.gain:+.3f} against the last checkpoint, {reading} its interval "
        f"[{one.low:+.3f}, {one.high:+.3f}] ({how} {one.n} problems)",
        {"score": one.score, "gain": one.gain, "low": one.low, "high": one.high},
    )


def _climb(curve: Curve, last: float, at: float | None) -> tuple[str, list[Reason]]:
    """`rises`, `flat` (or falls), `unclear` or `unknown`, with the gain that the curve leaves."""
    best = max(curve.scores, default=0.0)
    if len(curve.scores) > 2 and best - max(curve.scores[-2:]) > FALL:
        where = curve.steps[curve.scores.index(best)]
        text = (
            f"the scores have fallen from {best:.3f} at step {where:g} to {curve.scores[-1]:.3f} "
            f"at step {curve.steps[-1]:g}: go back to the better one, and look for the cause"
        )
        return "flat", [Reason(text, {"best": best, "last": curve.scores[-1], "step": where})]
    if curve.kind == "undefined":
        return "unknown", [Reason(f"no curve of accuracy: {'; '.join(curve.notes)}")]
    if at is None or at <= last:
        return "unknown", []
    value, low, high = curve.gain(last, at)
    assert value is not None
    assert low is not None
    assert high is not None
    numbers = {"gain": value, "low": low, "high": high}
    span = f"{value:+.3f} [{low:+.3f}, {high:+.3f}] from step {last:g} to {at:g}"
    if high < WORTH:
        return "flat", [Reason(f"the scores leave less than {WORTH:g} to gain: {span}", numbers)]
    if low > 0:
        return "rises", [Reason(f"the scores still rise: {span}", numbers)]
    return "unclear", [Reason(f"whether the scores still rise is not clear: {span}", numbers)]


# --------------------------------------------------------------------------------------- by weights


def _by_weights(
    backtest: Backtest, last: float, at: float | None
) -> tuple[str | None, list[Reason], list[str]]:
    """The method that the weights recommend, the reasons, and what is lacking to judge."""
    if at is None:
        return None, [], ["the step to predict (--at): errors depend on how far ahead it is"]
    if at <= last:
        text = f"step {at:g} is not beyond the last checkpoint, at {last:g}"
        return None, [Reason(text, {"at": at, "last": last})], ["a step beyond it (--at)"]
    asked = at / last
    near = (pl.col("horizon") / asked).log().abs() <= math.log(NEAR) + 1e-12
    rows = backtest.table.filter((pl.col("part") == "all") & near)
    cases = _cases(rows.filter(pl.col("method") != "stop"))
    enough = {name: one for name, one in cases.items() if one.origins >= ORIGINS}
    if not enough:
        seen = max((one.origins for one in cases.values()), default=0)
        text = (
            f"{seen or 'no'} origin{'' if seen == 1 else 's'} among these checkpoints with a later "
            f"one at {asked:.2f} times its step (within a factor of {NEAR:g}), and {ORIGINS} are "
            "needed to judge a prediction that far ahead"
        )
        more = (
            f"more checkpoints, {ORIGINS} or more of them with a later one at {asked:.2f} times "
            "their step; or a nearer step (--at)"
        )
        return None, [Reason(text, {"horizon": asked, "origins": float(seen)})], [more]
    reasons = [one.reason(name, asked, last) for name, one in enough.items()]
    return _choose(enough, reasons, last), reasons, []


@dataclass(frozen=True)
class _Cases:
    """Gains over stopping of one method, by (origin, target), at comparable horizons."""

    gains: Mapping[tuple[float, float], float]

    @property
    def origins(self) -> int:
        return len({origin for origin, _ in self.gains})

    @property
    def least(self) -> float:
        return min(self.gains.values())

    def ahead(self, last: float) -> float:
        """The gain to expect from the last checkpoint: the line through the gains, read there."""
        steps = np.array([origin for origin, _ in self.gains])
        gains = np.array(list(self.gains.values()))
        away = steps - steps.mean()
        slope = float(away @ gains) / float(away @ away)
        return float(gains.mean()) + slope * (last - float(steps.mean()))

    def holds(self, last: float) -> bool:
        """Enough in every case, and not wearing off."""
        return self.least >= MARGIN and self.ahead(last) >= MARGIN

    def reason(self, name: str, asked: float, last: float) -> Reason:
        greatest, ahead = max(self.gains.values()), self.ahead(last)
        held = f"at least {100 * MARGIN:.0f} % closer in every case"
        if self.least < MARGIN:
            held = "which is not enough"
        elif not self.holds(last):
            held += f", but ever less: {_percent(ahead)} % is to be expected from step {last:g}"
        return Reason(
            f"with {name}, predictions came {_closer(self.least, greatest)} later weights than "
            f"stopping, {held} ({len(self.gains)} cases from {self.origins} origins, about "
            f"{asked:.2f} times ahead)",
            {
                "least": self.least,
                "greatest": greatest,
                "ahead": ahead,
                "cases": float(len(self.gains)),
                "origins": float(self.origins),
            },
        )

    def beats(self, other: _Cases) -> bool:
        """Clearly better in every case that both have."""
        both = self.gains.keys() & other.gains.keys()
        return bool(both) and all(self.gains[one] >= other.gains[one] + CLEAR for one in both)


def _percent(share: float) -> str:
    return f"{round(100 * share)}".replace("-", "−")


def _closer(least: float, greatest: float) -> str:
    """A range of gains in words; below zero is farther."""
    low, high = (f"{abs(100 * one):.0f}" for one in (least, greatest))
    if least >= 0:
        return f"{low} to {high} % closer to"
    if greatest <= 0:
        return f"{high} to {low} % farther from"
    return f"between {low} % farther from and {high} % closer to"


def _cases(rows: pl.DataFrame) -> dict[str, _Cases]:
    found: dict[str, dict[tuple[float, float], float]] = {}
    wanted = rows.select("method", "origin_step", "target_step", "gain_over_stop")
    for method, origin, target, gain in wanted.drop_nulls().iter_rows():
        found.setdefault(method, {})[origin, target] = gain
    return {name: _Cases(gains) for name, gains in found.items()}


def _choose(cases: Mapping[str, _Cases], reasons: list[Reason], last: float) -> str | None:
    """The method with the largest least gain; a baseline unless another beats both of them.

    Of methods that cannot be told apart the plainer one.
    """
    able = [name for name, one in cases.items() if one.holds(last)]
    baselines = [cases[name] for name in _BASELINES if name in cases]
    named: Sequence[str] = [
        name
        for name in able
        if name in _BASELINES or all(cases[name].beats(other) for other in baselines)
    ]
    both = " and ".join(_BASELINES)
    reasons += [
        Reason(f"in some case {name} does not beat {both}") for name in able if name not in named
    ]
    best = max((cases[name].least for name in named), default=0.0)
    near = [name for name in named if cases[name].least >= best - CLEAR]
    return min(near, key=(*_BASELINES, *near).index, default=None)
