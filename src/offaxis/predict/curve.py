"""The curve of accuracy over training steps: what the scores so far say about later ones.

- `saturating`: y(s) = y∞ − (y∞ − y₁)·exp(−(s − s₁)/τ), y∞ in [0, 1], y₁ the level at the first
  score. Where τ is short it is flat, where τ is long a straight line that cannot pass 1.
- `line`: least squares, told no further than 0 and 1.
- `flat`: no more gain; later scores equal the last one.

The saturating curve is told from four scores on: within [0, 1] it holds the others as limits, so
its interval covers theirs. (Choosing among the three by their errors instead covered the true gain
in 55 to 83 % of simulated runs of 4 to 12 scores, where 95 % was claimed.) What all three would
have done is told beside it: each is fitted to the first k ≥ 3 scores and asked for all later ones.
With three scores the line is told. Pure functions; no file is opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.predict.saturating import Saturating, saturating_fit

__all__ = ["Curve", "Kind", "Reading", "fit_curve"]

Floats = NDArray[np.float64]
Kind = Literal["saturating", "line", "undefined"]
Reading = tuple[float | None, float | None, float | None]
"""A value and the ends of its 95 % interval; all None where the curve is undefined."""

_LEAST = 3
_RIVALS = ("saturating", "line", "flat")


@dataclass(frozen=True)
class _Line:
    """Least squares of y on s, with the residual variance on n − 2 degrees of freedom."""

    steps: Floats
    slope: float
    level: float
    variance: float

    def at(self, step: float) -> tuple[float, float, float]:
        across = step - float(self.steps.mean())
        value = self.level + self.slope * across
        half = self._reach(1 / self.steps.size, across)
        return value, value - half, value + half

    def gain(self, start: float, stop: float) -> tuple[float, float, float]:
        value = _share(self.at(stop)[0]) - _share(self.at(start)[0])
        half = self._reach(0.0, stop - start)
        return value, max(-1.0, value - half), min(1.0, value + half)

    def _reach(self, level: float, across: float) -> float:
        centred = self.steps - self.steps.mean()
        inside = level + across**2 / float(centred @ centred)
        return student_t(self.steps.size - 2) * math.sqrt(self.variance * inside)


@dataclass(frozen=True)
class Curve:
    """A fitted curve of accuracy.

    kind: what is told; `undefined` with fewer than three scores. steps, scores: what was fitted,
    the base (step 0) included where it was given. unseen: root mean square error of `saturating`,
    `line` and `flat` on `judged` scores that they did not see; None with three scores. notes: what
    a reader has to know, in words.
    """

    kind: Kind
    steps: tuple[float, ...]
    scores: tuple[float, ...]
    notes: tuple[str, ...]
    unseen: Mapping[str, float | None]
    judged: int
    _fit: Saturating | _Line | None = field(repr=False, default=None)
    _noise: float = field(repr=False, default=0.0)

    @property
    def ceiling(self) -> float | None:
        """y∞ of the saturating curve, in [0, 1]; None for any other."""
        return self._fit.ceiling if isinstance(self._fit, Saturating) else None

    def at(self, step: float) -> Reading:
        """The score that a validation at `step` would show, with its 95 % prediction interval.

        The interval joins the uncertainty of the curve and the noise of one more score, and is cut
        to [0, 1]. (None, None, None) where the curve is undefined. InputError for a step that is
        negative or not finite.
        """
        _check_step(step)
        if self._fit is None:
            return None, None, None
        value, low, high = self._fit.at(step)
        # in quadrature: the errors of the curve and of a new score are independent
        low = value - math.hypot(value - low, self._noise)
        high = value + math.hypot(high - value, self._noise)
        return _share(value), _share(low), _share(high)

    def gain(self, start: float, stop: float) -> Reading:
        """y(stop) − y(start) of the curve itself, without the noise of a score; 95 % interval.

        (None, None, None) where the curve is undefined. InputError as for `at`.
        """
        _check_step(start)
        _check_step(stop)
        if self._fit is None:
            return None, None, None
        value, low, high = self._fit.gain(start, stop)
        return float(value), float(low), float(high)

    def told(self) -> dict[str, object]:
        """All of it as plain values, for a record."""
        return {
            "kind": self.kind,
            "steps": list(self.steps),
            "scores": list(self.scores),
            "ceiling": self.ceiling,
            "unseen": dict(self.unseen),
            "judged": self.judged,
            "notes": list(self.notes),
        }


def fit_curve(
    steps: Sequence[float],
    scores: Sequence[float | None],
    *,
    base: float | None = None,
    trials: float | None = None,
) -> Curve:
    """The curve of `scores` (accuracies in [0, 1]; None or NaN where none was measured) at `steps`.

    base: the base's score, taken as step 0. trials: answers marked behind each score; the noise is
    then held to be at least that of so many draws, √(y(1 − y)/trials), since residuals of a few
    points can be small by luck. Intervals are at 95 %. With two scores or one the curve is
    `undefined`: its readings are None and its notes say why. InputError for steps that do not
    increase or are not positive, for scores outside [0, 1], for counts that differ, and for trials
    below 1.
    """
    if trials is not None and not trials >= 1:
        raise InputError(f"trials are {trials}: give the number of answers behind each score")
    at, seen = _checked(steps, scores, base)
    missing = sum(score is None or math.isnan(score) for score in scores)
    some = 0 < missing < len(scores)
    notes = [f"{missing} of {len(scores)} checkpoints have no score"] if some else []
    points = tuple(map(float, at)), tuple(map(float, seen))
    if at.size < _LEAST:
        known = "1 known score" if at.size == 1 else f"{at.size or 'no'} known scores"
        why = f"{known}, and a curve with an interval needs {_LEAST}"
        return Curve("undefined", *points, (*notes, why), {}, 0)
    floor = 0.0 if trials is None else float((seen * (1 - seen)).mean()) / trials
    unseen, judged = _unseen(at, seen)
    kind: Kind = "line" if at.size == _LEAST else "saturating"
    fit = _fit(kind, at, seen, floor)
    free = max(1, at.size - (2 if kind == "line" else 3))
    noise = student_t(free) * math.sqrt(fit.variance)
    return Curve(kind, *points, (*notes, *_words(unseen, judged)), unseen, judged, fit, noise)


def _checked(
    steps: Sequence[float], scores: Sequence[float | None], base: float | None
) -> tuple[Floats, Floats]:
    """Steps and scores that are known, the base's in front; or InputError."""
    if len(steps) != len(scores):
        raise InputError(f"{len(scores)} scores for {len(steps)} steps: give one a step")
    at = np.asarray(steps, dtype=np.float64)
    seen = np.array([math.nan if one is None else float(one) for one in scores], dtype=np.float64)
    if not np.isfinite(at).all() or (at <= 0).any() or (np.diff(at) <= 0).any():
        raise InputError(f"steps are {list(steps)}: they have to be above 0 and to increase")
    if base is not None:
        at, seen = np.concatenate([[0.0], at]), np.concatenate([[float(base)], seen])
    bad = [float(one) for one in seen if not math.isnan(one) and not 0 <= one <= 1]
    if bad:
        raise InputError(f"score {bad[0]:g} is outside [0, 1]: give shares, 0.613 for 61.3 %")
    known = ~np.isnan(seen)
    return at[known], seen[known]


def _check_step(step: float) -> None:
    if not math.isfinite(step) or step < 0:
        raise InputError(f"step {step} cannot be read off a curve: give one of at least 0")


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))


def _fit(kind: str, at: Floats, seen: Floats, floor: float) -> Saturating | _Line:
    if kind == "saturating":
        return saturating_fit(at, seen, floor=floor)
    centred = at - at.mean()
    slope = float(centred @ seen / (centred @ centred))
    left = seen - seen.mean() - slope * centred
    variance = max(floor, float(left @ left) / max(1, at.size - 2))
    return _Line(at, slope, float(seen.mean()), variance)


def _unseen(at: Floats, seen: Floats) -> tuple[dict[str, float | None], int]:
    """Root mean square error of each rival on scores later than those that it was fitted to."""
    squares: dict[str, list[float]] = {name: [] for name in _RIVALS}
    for known in range(_LEAST, at.size):
        for name in _RIVALS:
            fit = None if name == "flat" else _fit(name, at[:known], seen[:known], 0.0)
            for step, score in zip(at[known:], seen[known:], strict=True):
                value = seen[known - 1] if fit is None else _share(fit.at(float(step))[0])
                squares[name].append(float(value - score) ** 2)
    judged = len(squares["flat"])
    errors = {name: math.sqrt(sum(found) / judged) for name, found in squares.items() if judged}
    return {name: errors.get(name) for name in _RIVALS}, judged


def _words(unseen: Mapping[str, float | None], judged: int) -> list[str]:
    """What the rivals did on scores that they did not see."""
    if not judged:
        return ["3 scores: a straight line with a wide interval, and nothing to check it against"]
    errors = {name: error for name, error in unseen.items() if error is not None}
    shown = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
    least = min(errors, key=lambda name: errors[name])  # the first of equals
    notes = [f"error on {judged} scores not seen: {shown}"]
    if least != "saturating":
        notes.append(
            f"{least} erred less than the saturating curve, which is told all the same: it holds "
            "the others as limits, and its interval theirs"
        )
    return notes
