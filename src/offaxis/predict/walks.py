"""What drifts without a cause: random walks with a trajectory's step lengths, and their pictures.

Accuracy rises with the step and so does anything that drifts, so a high R² needs a null that drifts
as well. A *norm-matched walk* starts as far from the origin as the trajectory and takes steps as
long as its steps, each in a direction of its own, uniform on the sphere. A walk of many dimensions
has a smooth face: its first principal component is close to half a cosine of the step and holds
about 6/π² of the variance (Antognini and Sohl-Dickstein 2018, "PCA of high dimensional random
walks", arXiv 1806.08805, for steps of equal length).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from offaxis.predict.pls import check_scores, fit, left_out, q2_of, r2, residuals

__all__ = ["WALK_PC1", "Linearity", "linearity", "pc1_share", "principal_path", "walks"]

Floats = NDArray[np.float64]

WALK_PC1 = 6 / np.pi**2
"""The share of variance in the first principal component of a long walk of many dimensions."""

_HELD = 8_000_000
"""Numbers of walks in memory at a time."""


def walks(x: Floats, draws: int, *, seed: int | list[int] = 0) -> Iterator[Floats]:
    """Random walks with the step lengths of x (T, d): batches (n, T, d), `draws` in all.

    ‖x₁‖ and each ‖xₜ₊₁ − xₜ‖ are kept; directions are uniform on the sphere of d dimensions.
    """
    lengths = np.linalg.norm(np.diff(x, axis=0, prepend=np.zeros((1, x.shape[1]))), axis=1)
    rng = np.random.default_rng(seed)
    batch = max(1, _HELD // max(1, x.size))
    for done in range(0, draws, batch):
        steps = rng.standard_normal((min(batch, draws - done), *x.shape))
        steps *= (lengths / np.linalg.norm(steps, axis=-1))[..., None]
        yield np.cumsum(steps, axis=1, out=steps)


def principal_path(x: Floats) -> tuple[Floats, Floats]:
    """x (T, d) along its first two principal components, (T, 2), and their shares of variance.

    Centred, not standardised. A path that does not move gives zeros and NaN.
    """
    centred = x - x.mean(axis=0)
    scale = float(np.abs(centred).max(initial=0.0))
    if scale == 0:
        return np.zeros((len(x), 2)), np.full(2, np.nan)
    left, values, _ = np.linalg.svd(centred / scale, full_matrices=False)
    count = min(2, values.size)
    path, shares = np.zeros((len(x), 2)), np.zeros(2)
    path[:, :count] = left[:, :count] * values[:count] * scale
    shares[:count] = values[:count] ** 2 / (values**2).sum()
    return path, shares


def pc1_share(x: Floats) -> Floats:
    """Share of variance in the first principal component of x (..., T, d), by its T × T Gram."""
    centred = x - x.mean(axis=-2, keepdims=True)
    scale = np.abs(centred).max(axis=(-2, -1), keepdims=True)
    centred = centred / np.where(scale > 0, scale, 1.0)
    squares = np.linalg.eigvalsh(np.einsum("...td,...sd->...ts", centred, centred))
    total = squares.sum(axis=-1)
    known = np.where(total > 0, total, np.nan)
    found: Floats = squares[..., -1] / known
    return found


@dataclass(frozen=True)
class Linearity:
    """One trajectory against accuracy, beside what its nulls do. Shares are in [0, 1].

    r2, q2, rmse: of PLS (see `Fit`). walk_*: of norm-matched walks with the same scores: mean, 95 %
    quantile, and `walk_p` = (1 + walks at least as good) / (1 + walks). residual_r2: of what the
    step leaves of both sides; residual_null, residual_p: of permutations of the residual scores;
    residual_walk: of walks, residualised. permuted_r2: of permuted scores, which tests for drift
    and for nothing else. pc1, walk_pc1: share of variance in the first principal component.
    """

    r2: float
    q2: float
    rmse: float
    walk_r2: float
    walk_r2_q95: float
    walk_p: float
    walk_q2: float
    walk_q2_q95: float
    residual_r2: float
    residual_null: float
    residual_null_q95: float
    residual_p: float
    residual_walk: float
    permuted_r2: float

    def numbers(self) -> dict[str, float]:
        """By name, in the order above."""
        return asdict(self)


def linearity(
    x: Floats, y: Floats, steps: Floats, *, draws: int = 200, seed: int | list[int] = 0
) -> Linearity | None:
    """How well accuracy y (T,) follows from the trajectory x (T, d) at `steps` (T,), with nulls.

    None where the trajectory does not move. draws: walks, and permutations. Raises InputError as
    `check_scores`.
    """
    check_scores(y)
    own = fit(x, y)
    if not np.isfinite(own.r2):
        return None
    left = residuals(y[:, None], steps)[:, 0]
    drawn = [_of_walks(batch, y, left, steps) for batch in walks(x, draws, seed=seed)]
    walk_r2, walk_q2, walk_left = (np.concatenate(part) for part in zip(*drawn, strict=True))
    rng = np.random.default_rng([1, *(seed if isinstance(seed, list) else [seed])])
    orders = rng.permuted(np.tile(np.arange(y.size), (draws, 1)), axis=1)
    straightened = residuals(x, steps)
    residual = float(r2(straightened, left)) if left.any() else np.nan
    null = r2(straightened, left[orders]) if left.any() else np.full(draws, np.nan)
    return Linearity(
        r2=own.r2, q2=own.q2, rmse=own.rmse,
        walk_r2=float(walk_r2.mean()), walk_r2_q95=float(np.quantile(walk_r2, 0.95)),
        walk_p=_p(own.r2, walk_r2),
        walk_q2=float(walk_q2.mean()), walk_q2_q95=float(np.quantile(walk_q2, 0.95)),
        residual_r2=residual, residual_null=float(null.mean()),
        residual_null_q95=float(np.quantile(null, 0.95)), residual_p=_p(residual, null),
        residual_walk=float(walk_left.mean()),
        permuted_r2=float(r2(x, y[orders]).mean()),
    )  # fmt: skip


def _of_walks(batch: Floats, y: Floats, left: Floats, steps: Floats) -> tuple[Floats, ...]:
    """R², Q² and residual R² of each walk."""
    inside = r2(residuals(batch, steps), left) if left.any() else np.full(len(batch), np.nan)
    return r2(batch, y), q2_of(left_out(batch, y), y), inside


def _p(value: float, null: Floats) -> float:
    """(1 + draws at least as large) / (1 + draws); NaN of an undefined value."""
    if not np.isfinite(value):
        return float("nan")
    return float((1 + int((null >= value - 1e-12).sum())) / (1 + null.size))
