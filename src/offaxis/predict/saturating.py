"""A saturating curve through scores, fitted and bounded exactly: no starting values, no sampling.

y(s) = y∞ + (y₁ − y∞)·e(s), e(s) = exp(−(s − s₁)/τ). For a fixed τ the curve is linear in y₁ and
y∞, so the fit is a search over τ alone (variable projection: Golub and Pereyra 1973). All (y₁, y∞)
whose squared error stays below a limit are an ellipse, cut by 0 ≤ y∞ ≤ 1; the greatest and the
least value of the curve over it are known in closed form, and over all τ they are the likelihood
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offaxis.comparison.sampling import student_t

__all__ = ["Saturating", "saturating_fit"]

Floats = NDArray[np.float64]

_GRID = 240
_POLISH = 50
_GOLDEN = (math.sqrt(5) - 1) / 2
_SHORTEST, _LONGEST = 0.05, 50.0  # τ in gaps between scores, and in spans of all of them


@dataclass(frozen=True)
class _Plane:
    """The fit at one τ: (y₁, y∞) within and without bounds, squared errors, the normal matrix."""

    tau: float
    best: Floats
    error: float
    free: Floats
    free_error: float
    normal: Floats
    inverse: Floats

    def ends(self, direction: Floats, limit: float) -> tuple[float, float] | None:
        """Least and greatest direction·(y₁, y∞) with squared error ≤ limit and 0 ≤ y∞ ≤ 1."""
        if self.error > limit:
            return None
        found = [float(direction @ self.best)]
        room = max(0.0, limit - self.free_error)
        toward = self.inverse @ direction
        length = math.sqrt(max(0.0, float(direction @ toward)))
        if length > 0:
            for sign in (-1.0, 1.0):
                point = self.free + sign * math.sqrt(room) / length * toward
                if 0 <= point[1] <= 1:
                    found.append(float(direction @ point))
        for edge in (0.0, 1.0):
            found += [float(direction @ point) for point in self._on_edge(edge, room)]
        return min(found), max(found)

    def _on_edge(self, edge: float, room: float) -> list[Floats]:
        """Where the ellipse meets the line y∞ = edge: two points, or none."""
        away = edge - float(self.free[1])
        a, b, c = self.normal[0, 0], self.normal[0, 1], self.normal[1, 1]
        # a·x² + 2b·away·x + c·away² = room, x = y₁ − its free value
        inside = (b * away) ** 2 - a * (c * away**2 - room)
        if inside < 0 or a <= 0:
            return []
        roots = [(-b * away + sign * math.sqrt(inside)) / a for sign in (-1.0, 1.0)]
        return [np.array([float(self.free[0]) + x, edge]) for x in roots]


@dataclass(frozen=True)
class Saturating:
    """The best fit and all that come close to it.

    start: s₁. variance: of one score around the curve, on n − 3 degrees of freedom.
    """

    start: float
    best: _Plane
    near: tuple[_Plane, ...]
    limit: float
    variance: float

    @property
    def ceiling(self) -> float:
        """y∞ of the best fit, in [0, 1]."""
        return float(self.best.best[1])

    @property
    def tau(self) -> float:
        """Steps in which the distance to the ceiling falls to 1/e."""
        return self.best.tau

    def at(self, step: float) -> tuple[float, float, float]:
        """The curve's value at `step` and its 95 % interval."""
        return self._over(lambda tau: self._row(step, tau))

    def gain(self, start: float, stop: float) -> tuple[float, float, float]:
        """The curve's value at `stop` less that at `start`, and its 95 % interval."""
        return self._over(lambda tau: self._row(stop, tau) - self._row(start, tau))

    def _row(self, step: float, tau: float) -> Floats:
        # before the first score the curve is kept from running off
        left = math.exp(-max(0.0, step - self.start) / tau)
        return np.array([left, 1 - left])

    def _over(self, row: Callable[[float], Floats]) -> tuple[float, float, float]:
        value = float(row(self.best.tau) @ self.best.best)
        found = [plane.ends(row(plane.tau), self.limit) for plane in (self.best, *self.near)]
        known = [ends for ends in found if ends is not None]
        low = min((low for low, _ in known), default=value)
        high = max((high for _, high in known), default=value)
        return value, min(value, low), max(value, high)


def saturating_fit(steps: Floats, scores: Floats, *, floor: float = 0.0) -> Saturating:
    """Least squares of the saturating curve; `steps` increase, at least two.

    floor: the least variance that one score is held to have. The limit of the interval is
    SSE + t²·variance with t Student's 97.5 % quantile at n − 3 degrees of freedom (at least 1).
    """
    gap, span = float(np.diff(steps).min()), float(steps[-1] - steps[0])
    taus = np.geomspace(_SHORTEST * gap, _LONGEST * span, _GRID)
    planes = [_plane(steps, scores, float(tau)) for tau in taus]
    place = int(np.argmin([plane.error for plane in planes]))
    low, high = taus[max(0, place - 1)], taus[min(_GRID - 1, place + 1)]
    polished = _polish(steps, scores, float(low), float(high))
    best = min(planes[place], polished, key=lambda plane: plane.error)
    free = max(1, steps.size - 3)
    variance = max(floor, best.error / free)
    limit = best.error + student_t(free) ** 2 * variance
    return Saturating(float(steps[0]), best, tuple(planes), limit, variance)


def _plane(steps: Floats, scores: Floats, tau: float) -> _Plane:
    left = np.exp(-(steps - steps[0]) / tau)
    rows = np.stack([left, 1 - left], axis=1)
    free = np.linalg.lstsq(rows, scores, rcond=None)[0]
    best = free
    if not 0 <= free[1] <= 1:
        edge = min(1.0, max(0.0, float(free[1])))
        rest = scores - rows[:, 1] * edge
        best = np.array([float(left @ rest / (left @ left)), edge])
    free_error, error = (float(((rows @ one - scores) ** 2).sum()) for one in (free, best))
    normal = rows.T @ rows
    return _Plane(tau, best, error, free, free_error, normal, np.linalg.pinv(normal))


def _polish(steps: Floats, scores: Floats, low: float, high: float) -> _Plane:
    """Golden section between two neighbours of the best τ of the grid."""
    for _ in range(_POLISH):
        width = _GOLDEN * (high - low)
        left, right = high - width, low + width
        if _plane(steps, scores, left).error <= _plane(steps, scores, right).error:
            high = right
        else:
            low = left
    return _plane(steps, scores, (low + high) / 2)
