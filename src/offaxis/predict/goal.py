"""What AlphaRL extrapolates to: a score that is known or foreseen, or a step number.

A regression of the weights on accuracy needs a target accuracy y*. The paper takes the accuracy
that the fully trained model will have (section 4.1, y* = 1 relative to it), which is known only
after the training that the prediction is to save. Here that is one kind of four, and it is
labelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from offaxis.errors import InputError
from offaxis.predict.curve import Curve, fit_curve
from offaxis.predict.methods import Floats, Timeline

__all__ = ["Goal", "Target"]

Kind = Literal["extrapolated", "given", "oracle", "step"]


@dataclass(frozen=True)
class Target:
    """y*, in the units of `Goal.response`.

    low, high: its 95 % interval; None where there is none. leaks: True where it was taken from a
    model that does not exist yet when the prediction is made. note: how it came about, in words.
    """

    value: float
    low: float | None
    high: float | None
    leaks: bool
    note: str


@dataclass(frozen=True)
class Goal:
    """Which y the weights are regressed on, and to which y* the regression is then inverted.

    kind:
    `extrapolated`: y is the score on a validation set, y* what the curve of those scores
        (`curve.fit_curve`) says of step `at`. With two scores, the line through them, no interval.
    `given`: y is the score, y* the number `value` in [0, 1] that the user states.
    `oracle`: y is the score over `value`, the final model's, and y* is 1: the paper's relative
        accuracy. That score is known from the training that the prediction is to save, and in the
        paper from the test set: an upper bound for the method and no forecast.
    `step`: y is the step number and y* is `at`. No score is needed; what scores add to the
        prediction is what it beats this by.

    Raises InputError for another kind, and for a `value` that is missing, out of (0, 1], or too
    much.
    """

    kind: Kind = "extrapolated"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"target {self.kind!r}: choose one of {', '.join(get_args(Kind))}")
        wants = self.kind in ("given", "oracle")
        if wants and (self.value is None or not 0 < self.value <= 1):
            raise InputError(
                f"target {self.kind} with the score {self.value}: give one in (0, 1], 0.9 for 90 %"
            )
        if not wants and self.value is not None:
            raise InputError(f"target {self.kind} takes no score, and {self.value:g} was given")

    @staticmethod
    def read(target: str = "extrapolated", *, against: str = "score") -> Goal:
        """From the command line's words.

        against: `score` or `step`. target, against scores: `extrapolated`, a number in (0, 1], or
        `oracle:SCORE` with the final model's score. InputError for other words.
        """
        if against not in ("score", "step"):
            raise InputError(f"--against {against}: choose score or step")
        if against == "step":
            if target != "extrapolated":
                raise InputError(
                    f"--target {target} with --against step: the target is the step --at; leave "
                    "--target away, or regress --against score"
                )
            return Goal("step")
        kind, _, text = target.partition(":")
        if target == "extrapolated":
            return Goal()
        try:
            if kind == "oracle":
                return Goal("oracle", float(text))
            return Goal("given", float(target))
        except ValueError:
            raise InputError(
                f"--target {target}: give extrapolated, a score such as 0.9, or oracle:SCORE with "
                "the final model's score"
            ) from None

    @property
    def needs(self) -> frozenset[str]:
        """Of `steps`, `at` and `scores`, what the goal cannot do without."""
        return {
            "extrapolated": frozenset({"steps", "at", "scores"}),
            "given": frozenset({"scores"}),
            "oracle": frozenset({"scores"}),
            "step": frozenset({"steps", "at"}),
        }[self.kind]

    def response(self, timeline: Timeline) -> Floats:
        """y, (T,): NaN where a checkpoint has no score. InputError without any score."""
        if self.kind == "step":
            return np.array(timeline.steps, dtype=np.float64)
        if timeline.scores is None or np.isnan(timeline.scores).all():
            raise InputError(
                "AlphaRL regresses the weights on scores and there is none; pass --scores FILE, or "
                "regress on the step number with --against step"
            )
        scores = np.array(timeline.scores, dtype=np.float64)
        return scores / self.value if self.kind == "oracle" and self.value else scores

    def target(self, timeline: Timeline, at: float | None = None) -> Target:
        """y* for step `at` (None: the timeline's). InputError where a step is needed and unknown.

        Of scores that are used, those of the timeline alone.
        """
        when = timeline.at if at is None else at
        if self.kind == "given":
            assert self.value is not None
            return Target(self.value, None, None, False, f"the stated score {self.value:g}")
        if self.kind == "oracle":
            note = f"the final model's score {self.value:g}, which no forecast can know: leakage"
            return Target(1.0, None, None, True, note)
        if when is None or not 0 < when < math.inf:
            raise InputError(f"a target for step {when} is unknown; pass the step with --at")
        if self.kind == "step":
            return Target(float(when), None, None, False, f"step {when:g}")
        return _extrapolated(timeline, float(when))


def _extrapolated(timeline: Timeline, at: float) -> Target:
    """What the curve of the scores says of step `at`."""
    assert timeline.scores is not None
    known = ~np.isnan(timeline.scores)
    steps, scores = timeline.steps[known], timeline.scores[known]
    curve = _curve(tuple(map(float, steps)), tuple(map(float, scores)), timeline.base_score)
    value, low, high = curve.at(at)
    if value is not None:
        return Target(value, low, high, False, f"{curve.kind} curve of {known.sum()} scores")
    if steps.size < 2:
        raise InputError(
            f"{steps.size} of {known.size} checkpoints has a score: a curve to step {at:g} needs "
            "two, and three for an interval; evaluate more, state the target (--target 0.9), or "
            "regress on the step number with --against step"
        )
    slope = float((scores[-1] - scores[-2]) / (steps[-1] - steps[-2]))
    reached = min(1.0, max(0.0, float(scores[-1]) + slope * (at - float(steps[-1]))))
    return Target(reached, None, None, False, "the line through two scores, no interval")


@lru_cache(maxsize=64)
def _curve(steps: tuple[float, ...], scores: tuple[float, ...], base: float | None) -> Curve:
    """One fit serves every tensor of a model."""
    return fit_curve(steps, scores, base=base)
