"""The last checkpoint's whole update times one factor, and how to choose the factor."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from offaxis.errors import InputError
from offaxis.predict.fitting import Combination
from offaxis.predict.methods import Floats, Timeline, Trail

__all__ = ["LADDER", "Ladder", "Scale", "Trial", "climb"]

LADDER = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Factors to try: from the checkpoint as it is to eight times its update."""


@dataclass(frozen=True)
class Scale:
    """θ̂ − θ_BASE = f (θ_T − θ_BASE), θ_T the last checkpoint, every tensor.

    factor: f; None: at/step_T, the line through the base and the last checkpoint.
    Facts: `factor`, where it is given.
    """

    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and not isfinite(self.factor):
            raise InputError(f"factor {self.factor}: give a finite number")

    @property
    def name(self) -> str:
        return "scale"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "at"}) if self.factor is None else frozenset()

    @property
    def least(self) -> int:
        return 1

    @property
    def cuts(self) -> bool:
        return False

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        """The factor on the last checkpoint; with a factor given, the same at every step."""

        def weigh(at: float | None) -> Floats:
            out = np.zeros(len(trail))
            out[-1] = self._factor(at, timeline)
            return out

        facts = {} if self.factor is None else {"factor": self.factor}
        return Combination(trail, timeline, weigh, facts=facts)

    def _factor(self, at: float | None, timeline: Timeline) -> float:
        if self.factor is not None:
            return self.factor
        if at is None:
            raise InputError("scale needs a factor, or the step to predict; pass --factor or --at")
        return at / float(timeline.steps[-1])


@dataclass(frozen=True)
class Trial:
    """One factor that was tried, and the score of its model."""

    factor: float
    score: float


@dataclass(frozen=True)
class Ladder:
    """The factors that were tried in order, the best of them, and why no more were tried."""

    trials: tuple[Trial, ...]
    best: Trial
    untried: tuple[float, ...] = ()
    """Larger factors, left out since two in a row were worse than the best before them."""

    def told(self) -> dict[str, object]:
        """For a record: every score, not the best alone."""
        return {
            "factor": self.best.factor,
            "score": self.best.score,
            "tried": [{"factor": one.factor, "score": one.score} for one in self.trials],
            "untried": list(self.untried),
        }


def climb(
    write: Callable[[float, Path], None],
    score: Callable[[Path], float],
    *,
    factors: Sequence[float] = LADDER,
    patience: int | None = 2,
    scratch: Path | None = None,
) -> Ladder:
    """Try factors from the smallest up: write each candidate, score it, keep the best.

    write: (factor, directory) → None, a model. score: the directory → its score, on a *validation*
    set: the best of several scores on a test set is too good. Each candidate lies in a scratch
    directory and is removed once it is scored. Of equal scores the smaller factor wins. patience:
    stop after so many in a row that are worse than the best (equal ones are not worse); None: try
    all. scratch: where the directories lie; None: the system's place for temporary files.
    InputError for factors that are not positive and different, or a score that is not finite.
    """
    ladder = sorted(factors)
    if not ladder or len(set(ladder)) < len(ladder) or not all(0 < f < np.inf for f in ladder):
        raise InputError(f"factors {list(factors)}: give different numbers greater than 0")
    trials: list[Trial] = []
    best: Trial | None = None
    worse = 0
    for factor in ladder:
        with tempfile.TemporaryDirectory(prefix="candidate-", dir=scratch) as place:
            candidate = Path(place) / f"scale-{factor:g}"
            write(factor, candidate)
            found = Trial(factor, float(score(candidate)))
        if not isfinite(found.score):
            raise InputError(f"factor {factor:g}: its score is {found.score}; give finite scores")
        trials.append(found)
        if best is None or found.score > best.score:
            best, worse = found, 0
        elif found.score < best.score:
            worse += 1
        else:
            worse = 0
        if patience is not None and worse >= patience:
            break
    assert best is not None  # the ladder is not empty
    return Ladder(tuple(trials), best, tuple(ladder[len(trials) :]))
