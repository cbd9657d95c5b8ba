"""AlphaRL: each matrix's first singular direction, regressed on accuracy and read off at a target.

As the paper says it (section 4.1, appendix E), for one matrix with updates ΔW_t:

    x_t = α_t σ_t u_t,  α_t = ‖ΔW_t‖_F / σ_t    (T, m), signs of neighbours aligned
    X = (x − x̄) / s    one-component PLS: w = Xᵀỹ / ‖Xᵀỹ‖, t = Xw, p = Xᵀt / tᵀt, q = ỹᵀt / tᵀt
    t* = (y* − ȳ) / q,  x* = x̄ + s ⊙ t*p,  ΔW* = x* v_Tᵀ

with ỹ = y − ȳ, s the standard deviations, and v_T of the last checkpoint. The inversion uses the
loadings p, not the weights w: the model is X = t pᵀ + rest, so t*p is the X that goes with t*, the
nearest to the rows in least squares, where w only says how to find t from an X. Both give the
target back when they are asked for its score, since wᵀp = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from offaxis.errors import InputError
from offaxis.predict.goal import Goal
from offaxis.predict.methods import Floats, Timeline, Trail
from offaxis.predict.solver import Triplet, triplets

__all__ = ["AlphaRL", "Component", "one_component"]

Variant = Literal["paper", "code"]
Others = Literal["base", "last"]

_CODE_TARGET = 1.7
"""y* in the authors' code, of the fully trained model's accuracy."""


@dataclass(frozen=True, eq=False)
class Component:
    """One-component PLS of y (T,) on x (T, m), features standardised.

    mean, spread: x̄ and s, (m,); a feature that does not move has spread 1 and loading 0. weights,
    loadings: w and p, (m,). slope: q, of y in units of t. y_mean: ȳ. latent: t of the rows, (T,).
    r2: 1 − Σ(y − ȳ − qt)² / Σ(y − ȳ)², in [0, 1].
    """

    mean: Floats
    spread: Floats
    weights: Floats
    loadings: Floats
    slope: float
    y_mean: float
    latent: Floats
    r2: float

    def reach(self, target: float) -> float:
        """t* of a target over the largest |t| of the rows: beyond 1 nothing was seen."""
        largest = float(np.abs(self.latent).max())
        return self.inverted(target) / largest if largest > 0 else 0.0

    def inverted(self, target: float) -> float:
        """t* = (y* − ȳ) / q; 0 where no feature follows y."""
        return (target - self.y_mean) / self.slope if self.slope > 0 else 0.0

    def vector(self, target: float) -> Floats:
        """x* (m,) of a target y*."""
        found: Floats = self.mean + self.spread * (self.inverted(target) * self.loadings)
        return found


def one_component(x: Floats, y: Floats) -> Component:
    """Fit one component in closed form: x (T, m), y (T,), T ≥ 2, y not constant.

    The same as scikit-learn's PLSRegression(n_components=1, scale=True), whose sign is this one's
    or the opposite. Appendix E, equations 7 to 10. Raises InputError for fewer rows, for shapes
    that differ, for NaN, and for a constant y.
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"x {x.shape} and y {y.shape}: give finite (T, m) and (T,)")
    if y.size < 2 or float(np.ptp(y)) == 0:
        raise InputError(f"{y.size} scores of {float(np.ptp(y)):g} range: two different are needed")
    mean, moves = x.mean(axis=0), np.ptp(x, axis=0)
    still = moves <= 4 * np.finfo(np.float64).eps * np.abs(x).max(axis=0)
    spread = np.where(still, 1.0, x.std(axis=0, ddof=1))
    wide = np.where(still, 0.0, (x - mean) / spread)
    centred = y - y.mean()
    toward = wide.T @ centred
    length = float(np.linalg.norm(toward))
    if length == 0:
        nothing = np.zeros_like(mean)
        return Component(mean, spread, nothing, nothing, 0.0, float(y.mean()), 0 * y, 0.0)
    weights = toward / length
    latent = wide @ weights
    square = float(latent @ latent)
    slope = float(centred @ latent) / square
    rest = centred - slope * latent
    r2 = 1 - float(rest @ rest) / float(centred @ centred)
    return Component(
        mean, spread, weights, wide.T @ latent / square, slope, float(y.mean()), latent, r2
    )


@dataclass(frozen=True)
class AlphaRL:
    """The method of the paper, and of its code, which is another (caiyuchen-ustc/Alpha-RL).

    variant `paper`: as above. ΔW* replaces the update of every matrix (attention and MLP weights);
    other tensors stay at the base.
    variant `code`: x_t = σ_t u_t, so that the predicted update is shorter than ΔW_t by its share
    outside rank 1 (α omitted); signs are walked from the last checkpoint to the first and turned
    where cos(x_t, x_t+1) < 0; x* v_Tᵀ is *added* to the last checkpoint's model, whose own rank-1
    part stays, so that it counts twice; y* is 1.7 of the target accuracy and not 1. Each of these
    is in the facts of every matrix. Where the code leaves an evaluation out, scores and checkpoints
    no longer belong together; that is not repeated here. What is known of the code is silent on
    standardisation and on loadings or weights; this does as the paper's variant does. On steps
    (`Goal("step")`, which the code does not have) y* is the step itself.

    target: what is extrapolated to (`goal.Goal`). others: what tensors that are no matrices become,
    `base` or `last` (the last checkpoint's); None: `base` for the paper, `last` for the code.
    tolerance, seed: of the singular vectors (`solver.top_triplet`).

    Facts of a matrix: `r2` in-sample, which is near 1 for anything that drifts; `rows` in the
    regression and `dropped` for want of a score; `sigma` and `share` (σ²/‖ΔW‖²) at the last
    checkpoint; `cosine_u_min`, `cosine_u_mean` and `cosine_v_min` of neighbours; `tied`, updates
    whose first direction is one of many; `target` y* with `target_low` and `target_high` where the
    goal has an interval, `target_leaks` 1 for the oracle; `reach`, t* over the largest |t| seen.
    For the code also `alpha_omitted`, `own_rank1_kept` (σ_T / ‖x*‖) and `target_factor`.

    Source: arXiv 2510.00553, section 4.1 and appendix E.
    """

    variant: Variant = "paper"
    target: Goal = field(default_factory=Goal)
    others: Others | None = None
    tolerance: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise InputError(f"variant {self.variant!r}: choose paper or code")
        if self.others not in (None, *get_args(Others)):
            raise InputError(f"others {self.others!r}: choose base or last")

    @property
    def name(self) -> str:
        return "alpharl" if self.variant == "paper" else "alpharl-code"

    @property
    def needs(self) -> frozenset[str]:
        return self.target.needs

    @property
    def least(self) -> int:
        return 2

    @property
    def cuts(self) -> bool:
        return True

    def fit(self, trail: Trail, timeline: Timeline) -> _Fit | _Kept:
        """One tensor's fit; a matrix is read once, one checkpoint at a time.

        InputError where fewer than two checkpoints have a score or all scores are equal.
        """
        y = self._response(timeline, len(trail))
        if not trail.is_matrix:
            last = self.others == "last" or (self.others is None and self.variant == "code")
            return _Kept(trail if last else None)
        found = _Track.of(trail, tolerance=self.tolerance, seed=self.seed, code=self._is_code)
        if found.right is None:
            return _Kept(None)
        known = ~np.isnan(y)
        component = one_component(found.rows(scaled=not self._is_code)[known], y[known])
        facts = {"r2": component.r2, "rows": float(known.sum()), "dropped": float((~known).sum())}
        return _Fit(self, trail, timeline, component, found, facts)

    @property
    def _is_code(self) -> bool:
        return self.variant == "code"

    @property
    def factor(self) -> float:
        """On y*."""
        return _CODE_TARGET if self._is_code and self.target.kind != "step" else 1.0

    def _response(self, timeline: Timeline, count: int) -> Floats:
        """y with NaN where there is none, checked."""
        y = self.target.response(timeline)
        if y.size != count:
            raise InputError(f"{y.size} scores or steps for {count} checkpoints: give one for each")
        known = y[~np.isnan(y)]
        if known.size < 2:
            raise InputError(
                f"{known.size} of {count} checkpoints has a score, and AlphaRL needs two: evaluate "
                "more of them, or regress on the step number with --against step"
            )
        if float(np.ptp(known)) == 0:
            raise InputError(
                f"all {known.size} scores are {known[0]:g}: nothing to regress on; use more "
                "problems or samples, or regress on the step number with --against step"
            )
        return y


@dataclass(frozen=True, eq=False)
class _Track:
    """σ_t, ‖ΔW_t‖ and u_t of one matrix, signs aligned, and the v that is used again.

    right: v of the last checkpoint that moved, with its sign; None where none did. cosines: of u
    and of v with the ones before, of checkpoints that moved.
    """

    sigma: Floats
    norms: Floats
    left: Floats
    right: Floats | None
    cosines: tuple[tuple[float, float], ...]
    tied: int
    turned: bool

    @staticmethod
    def of(trail: Trail, *, tolerance: float, seed: int, code: bool) -> _Track:
        sigma, norms, left = [], [], []
        cosines: list[tuple[float, float]] = []
        moved: list[int] = []
        before: Triplet | None = None
        tied = 0
        for t, found in enumerate(triplets(trail, tolerance=tolerance, seed=seed)):
            sigma.append(found.sigma)
            norms.append(found.norm)
            left.append(found.u)
            if found.norm == 0:
                continue
            tied += found.tied
            if before is not None:
                cosines.append((float(found.u @ before.u), float(found.v @ before.v)))
            moved.append(t)
            before = found
        rows = np.array(left)
        rows[moved] *= _signs(cosines, code=code)[-len(moved) :, None] if moved else 1.0
        turned = bool(getattr(getattr(trail, "part", None), "transposed", False))
        right = None if before is None else before.v
        return _Track(np.array(sigma), np.array(norms), rows, right, tuple(cosines), tied, turned)

    def rows(self, *, scaled: bool) -> Floats:
        """x_t (T, m): ‖ΔW_t‖_F u_t where scaled, else σ_t u_t; zero where nothing moved."""
        found: Floats = self.left * (self.norms if scaled else self.sigma)[:, None]
        return found

    def facts(self) -> dict[str, float]:
        sigma, norm = float(self.sigma[-1]), float(self.norms[-1])
        out = {"sigma": sigma, "tied": float(self.tied)}
        if norm > 0:
            out["share"] = (sigma / norm) ** 2
        if self.cosines:
            u, v = (np.abs([one[side] for one in self.cosines]) for side in (0, 1))
            out |= {
                "cosine_u_min": float(u.min()),
                "cosine_u_mean": float(u.mean()),
                "cosine_v_min": float(v.min()),
            }
        return out


def _signs(cosines: list[tuple[float, float]], *, code: bool) -> Floats:
    """A sign for each u, the last one's +1, walked from the last to the first.

    A pair (u, v) is turned where it points against the next one. The code looks at u alone. The
    paper does not say; here the larger of the two cosines decides, since u and v turn together and
    the sign of a cosine near 0 is chance.
    """
    pull = np.array([u if code else u + v for u, v in cosines])
    steps = np.where(pull < 0, -1.0, 1.0)
    return np.append(np.cumprod(steps[::-1])[::-1], 1.0)


@dataclass(frozen=True, eq=False)
class _Fit:
    """One matrix. `update` costs an outer product, and for the code a read of the last ΔW."""

    method: AlphaRL
    trail: Trail
    timeline: Timeline
    component: Component
    track: _Track
    fitted: Mapping[str, float]

    @property
    def facts(self) -> Mapping[str, float]:
        """Of the fit, and of the target where the timeline's is known."""
        out = {**self.fitted, **self.track.facts()}
        if "at" in self.method.needs and self.timeline.at is None:
            return out
        aim = self.method.target.target(self.timeline)
        target = self.method.factor * aim.value
        out |= {"target": target, "reach": self.component.reach(target)}
        ends = {"target_low": aim.low, "target_high": aim.high}
        out |= {name: self.method.factor * end for name, end in ends.items() if end is not None}
        out["target_leaks"] = float(aim.leaks)
        if self.method.variant == "code":
            sigma, norm = float(self.track.sigma[-1]), float(self.track.norms[-1])
            length = float(np.linalg.norm(self.component.vector(target)))
            out["target_factor"] = self.method.factor
            if sigma > 0:
                out["alpha_omitted"] = norm / sigma
            if length > 0:
                out["own_rank1_kept"] = sigma / length
        return out

    def _target(self, at: float | None) -> float:
        return self.method.factor * self.method.target.target(self.timeline, at).value

    def update(self, at: float | None = None) -> Floats:
        """θ̂ − θ_BASE, float64. InputError where the target needs a step and there is none."""
        right = self.track.right
        assert right is not None
        vector = self.component.vector(self._target(at))
        if not math.isfinite(float(vector @ vector)):
            raise InputError(
                f"{self.trail.name}: the target is too far from the scores seen; predict a nearer "
                "step"
            )
        found: Floats = np.outer(right, vector) if self.track.turned else np.outer(vector, right)
        if self.method.variant == "code":
            found += self.trail[len(self.trail) - 1]
        return found


@dataclass(frozen=True, eq=False)
class _Kept:
    """A tensor that is not predicted: the base's, or the last checkpoint's."""

    trail: Trail | None

    @property
    def facts(self) -> Mapping[str, float]:
        return {}

    def update(self, at: float | None = None) -> Floats | None:
        """None: as in the base; else the last ΔW."""
        return None if self.trail is None else self.trail[len(self.trail) - 1]
