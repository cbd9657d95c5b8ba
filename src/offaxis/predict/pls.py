"""One-component PLS of accuracy on a trajectory, its error on a checkpoint left out, and rivals.

X (T, d) holds one row a checkpoint, y (T,) its accuracy. With features standardised and y centred,
w = Xᵀy, t = Xw, ŷ = ȳ + t (tᵀy / tᵀt), R² = (tᵀy)² / (tᵀt · yᵀy): AlphaRL, appendix E, eqs. 7–10.
`fit` asks scikit-learn; `r2` and `left_out` do the same arithmetic for many X at once, which nulls
need, and agree with it. d is in the hundreds or thousands and T about ten: R² is then high for
anything that drifts, and says little by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError

__all__ = [
    "LEAST",
    "Fit",
    "check_scores",
    "fit",
    "left_out",
    "line",
    "q2_of",
    "r2",
    "residuals",
    "rmse_of",
]

Floats = NDArray[np.float64]

LEAST = 4
"""Checkpoints with a score that a fit needs: two of three points lie on a line, and one left out of
three leaves no residual at all."""

_LOST = 1e-9
"""Of a feature's spread: what is left of it after regression on the step counts as rounding."""


@dataclass(frozen=True)
class Fit:
    """How well accuracy follows from a trajectory, or from the step number.

    r2: in-sample, in [0, 1]. q2: 1 − Σ(yᵢ − ŷᵢ)² / Σ(yᵢ − ȳᵢ)², each ŷᵢ and mean ȳᵢ from the other
    checkpoints: at most 1; 0 is what their mean does, below 0 is worse. rmse: of those ŷᵢ, in
    accuracy.
    """

    r2: float
    q2: float
    rmse: float


def check_scores(y: Floats) -> None:
    """Raise InputError where no fit is possible: too few scores, or all the same."""
    if y.ndim != 1 or not np.isfinite(y).all():
        raise InputError("scores hold NaN or are no vector; leave out checkpoints without a score")
    if y.size < LEAST:
        raise InputError(
            f"{y.size} checkpoints have a score, and {LEAST} are needed: fewer points than that "
            "lie on a line by construction; evaluate more checkpoints"
        )
    if float(np.ptp(y)) == 0:
        raise InputError(
            f"all {y.size} scores are {y[0]:g}: nothing to explain; use more problems or samples"
        )


def fit(x: Floats, y: Floats) -> Fit:
    """One-component PLS of y (T,) on x (T, d) by scikit-learn, in-sample and leaving out each row.

    NaN where no feature moves. Raises InputError where scikit-learn is not installed, or as
    `check_scores`.
    """
    check_scores(y)
    kept = x[:, np.ptp(x, axis=0) > 0]
    if kept.shape[1] == 0:
        return Fit(math.nan, math.nan, math.nan)
    guess = _regression(kept, y).predict(kept).ravel()
    out = np.array([_leaving(kept, y, row) for row in range(y.size)])
    return Fit(1 - float(((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
               float(q2_of(out, y)), float(rmse_of(out, y)))  # fmt: skip


def _regression(x: Floats, y: Floats) -> Any:
    try:
        from sklearn.cross_decomposition import PLSRegression
    except ModuleNotFoundError as error:
        raise InputError(
            "partial least squares needs scikit-learn: install it with pip install 'offaxis[train]'"
        ) from error
    return PLSRegression(n_components=1, scale=True).fit(x, y)


def _leaving(x: Floats, y: Floats, row: int) -> float:
    """The prediction of one row from all others."""
    rest = np.arange(y.size) != row
    moving = np.ptp(x[rest], axis=0) > 0
    if not moving.any() or float(np.ptp(y[rest])) == 0:
        return float(y[rest].mean())
    found = _regression(x[rest][:, moving], y[rest]).predict(x[row : row + 1, moving])
    return float(found.ravel()[0])


def _standardised(x: Floats, by: Floats) -> Floats:
    """x (..., T', d) in units of the spread of `by` (..., T, d); a feature without any is 0."""
    mean = by.mean(axis=-2, keepdims=True)
    still = np.ptp(by, axis=-2, keepdims=True) == 0
    spread = np.where(still, 1.0, by.std(axis=-2, ddof=1, keepdims=True))
    found: Floats = np.where(still, 0.0, (x - mean) / spread)
    return found


def _scores(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Standardised x, w and centred y of a batch: x (..., T, d), y (..., T) -> w (..., d), t."""
    centred = y - y.mean(axis=-1, keepdims=True)
    weights = np.einsum("...td,...t->...d", x, centred)
    return weights, np.einsum("...td,...d->...t", x, weights)


def r2(x: Floats, y: Floats) -> Floats:
    """In-sample R² of one-component PLS: x (..., T, d), y (..., T), leading axes broadcast.

    NaN where no feature moves or y does not.
    """
    centred = y - y.mean(axis=-1, keepdims=True)
    _, score = _scores(_standardised(x, x), y)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (score * centred).sum(axis=-1) ** 2 / (
            (score**2).sum(axis=-1) * (centred**2).sum(axis=-1)
        )
    return found


def left_out(x: Floats, y: Floats) -> Floats:
    """Each row's prediction from all others: x (..., T, d), y (T,) -> (..., T)."""
    found = np.empty(x.shape[:-1])
    for row in range(y.size):
        rest = np.arange(y.size) != row
        known, scores = x[..., rest, :], y[rest]
        weights, score = _scores(_standardised(known, known), scores)
        new = _standardised(x[..., row : row + 1, :], known)
        size = (score**2).sum(axis=-1)
        slope = np.divide((score * (scores - scores.mean())).sum(axis=-1), size,
                          out=np.zeros_like(size), where=size > 0)  # fmt: skip
        at = np.einsum("...td,...d->...t", new, weights)[..., 0]
        found[..., row] = scores.mean() + slope * at
    return found


def rmse_of(predicted: Floats, y: Floats) -> Floats:
    """Root mean square of y − ŷ over the last axis."""
    found: Floats = np.sqrt(((y - predicted) ** 2).mean(axis=-1))
    return found


def q2_of(predicted: Floats, y: Floats) -> Floats:
    """1 − Σ(yᵢ − ŷᵢ)² / Σ(yᵢ − ȳᵢ)² over the last axis, ȳᵢ the mean of the others."""
    others = (y.sum() - y) / (y.size - 1)
    found: Floats = 1 - ((y - predicted) ** 2).sum(axis=-1) / ((y - others) ** 2).sum()
    return found


def line(steps: Floats, y: Floats) -> Fit:
    """The rival without any weights: y on 1 and the step, in-sample and with each left out."""
    check_scores(y)
    inside = y - residuals(y[:, None], steps)[:, 0]
    out = np.empty_like(y)
    for row in range(y.size):
        rest = np.arange(y.size) != row
        mean, known = steps[rest].mean(), steps[rest] - steps[rest].mean()
        slope = float(known @ y[rest]) / float(known @ known)
        out[row] = y[rest].mean() + slope * (steps[row] - mean)
    share = 1 - float(((y - inside) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return Fit(share, float(q2_of(out, y)), float(rmse_of(out, y)))


def residuals(x: Floats, steps: Floats) -> Floats:
    """What of x (..., T, d) is left after regression of each feature on 1 and the step.

    A feature of which nothing but rounding is left (1e-9 of its spread) becomes exactly 0.
    """
    centred = steps - steps.mean()
    mean = x.mean(axis=-2, keepdims=True)
    slope = np.einsum("...td,t->...d", x - mean, centred)[..., None, :] / float(centred @ centred)
    left = x - mean - slope * centred[:, None]
    spread = np.abs(x - mean).max(axis=-2, keepdims=True)
    floor = np.maximum(_LOST * spread, 8 * np.finfo(np.float64).eps * np.abs(mean))
    lost = np.abs(left).max(axis=-2, keepdims=True) <= floor
    found: Floats = np.where(lost, 0.0, left)
    return found
