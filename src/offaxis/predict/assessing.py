"""Why anyone should believe a prediction: errors on unseen checkpoints, the curve, the advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import polars as pl

from offaxis.errors import CheckpointError, InputError
from offaxis.masks import Progress
from offaxis.predict.advice import Advice, advise
from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.backtest import COLUMNS, Backtest, backtest, default_methods
from offaxis.predict.candidates import Candidate
from offaxis.predict.curve import Curve, fit_curve
from offaxis.predict.goal import Goal
from offaxis.predict.methods import Predictor
from offaxis.predict.series import Series

__all__ = ["Assessment", "assess"]

_CHEAP = 50_000_000
"""Entries that a method reads at all origins together, up to which AlphaRL is always tried."""
_DRAWN = 61
"""Points at which the curve is told for a picture."""


@dataclass(frozen=True, eq=False)
class Assessment:
    """What a series says about predicting it.

    at: the step asked for; None where it is not known. last: the last checkpoint's step, None where
    the series has no steps. candidates: validation scores of written predictions.
    """

    backtest: Backtest
    curve: Curve
    advice: Advice
    at: float | None
    last: float | None
    candidates: Mapping[str, Candidate]

    def told(self) -> dict[str, Any]:
        """Plain values under `backtest`, `curve` and `advice`, as `predict.json` and the page hold.

        curve.drawn: (step, value, low, high) from the first score to the step asked for;
        curve.expected: the reading there.
        """
        candidates = {
            name: {
                "score": one.score,
                "gain": one.gain,
                "low": one.low,
                "high": one.high,
                "n": one.n,
                "paired": one.paired,
            }
            for name, one in self.candidates.items()
        }
        return {
            "backtest": self.backtest.told(),
            "curve": {**self.curve.told(), "drawn": self._drawn(), "expected": self._expected()},
            "advice": {**self.advice.told(), "at": self.at, "candidates": candidates},
        }

    def _drawn(self) -> list[list[float | None]]:
        if self.curve.kind == "undefined":
            return []
        first, last = self.curve.steps[0], self.curve.steps[-1]
        until = max(last, self.at or 0.0)
        return [[float(s), *self.curve.at(float(s))] for s in np.linspace(first, until, _DRAWN)]

    def _expected(self) -> list[float | None]:
        return [None, None, None] if self.at is None else list(self.curve.at(self.at))


def assess(
    series: Series,
    *,
    at: float | None,
    method: Predictor | None = None,
    candidates: Mapping[str, Candidate] | None = None,
    trials: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Assessment:
    """Backtest the series, fit the curve of its scores, and recommend.

    at: the step asked for; None where a method has none (a target score). method: tried besides
    `default_methods`, in place of the one of its name; AlphaRL on the step is tried besides where
    that is cheap (5e7 entries over all origins). candidates: validation scores of written
    predictions. trials: answers behind each score (`fit_curve`). Where the series has no steps
    nothing can be tried on it, and the advice says so. CheckpointError for a checkpoint that cannot
    be read.
    """
    known = candidates or {}
    try:
        timeline = series.timeline()
    except CheckpointError:
        raise
    except InputError as error:
        return _blind(str(error), known)
    last = float(timeline.steps[-1])
    errors = backtest(series, methods=_tried(series, method), progress=progress)
    scores = [np.nan] * len(series) if timeline.scores is None else list(timeline.scores)
    curve = fit_curve(list(timeline.steps), scores, base=timeline.base_score, trials=trials)
    advice = advise(errors, curve, last=last, at=at, candidates=known)
    return Assessment(errors, curve, advice, at, last, known)


def _tried(series: Series, method: Predictor | None) -> tuple[Predictor, ...]:
    """The methods to try: the defaults, AlphaRL where it is cheap, and the one that is asked for.

    A `scale` whose factor is given would answer every step with it, and AlphaRL with a stated
    target every step with that: in their place stand `scale` by step, and AlphaRL on the step.
    """
    read = sum(prod(trail.shape) for trail in series.trails()) * len(series) ** 2 // 2
    methods = {one.name: one for one in default_methods()}
    if read <= _CHEAP:
        methods["alpharl"] = AlphaRL(target=Goal("step"))
    if isinstance(method, AlphaRL) and method.target.kind in ("given", "oracle"):
        method = replace(method, target=Goal("step"))
    if method is not None and method.name not in ("stop", "scale"):
        methods[method.name] = method
    return tuple(methods.values())


def _blind(reason: str, candidates: Mapping[str, Candidate]) -> Assessment:
    """Of a series without steps."""
    empty = Backtest(pl.DataFrame(schema=COLUMNS), (), (reason,))
    curve = Curve("undefined", (), (), (reason,), {}, 0)
    advice = advise(empty, curve, last=1.0, at=None, candidates=candidates)
    return Assessment(empty, curve, advice, None, None, candidates)
