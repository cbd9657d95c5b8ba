"""The leading singular triplet of an update, without its other singular vectors.

Block Lanczos on DᵀD from two vectors, the last checkpoint's v₁ and a random one, each step one pass
over the stored matrices (`kernels.differences`), float64, every new vector made orthogonal to all
before it twice. DᵀD squares the singular values, which costs the small ones their digits and the
largest none, so that one pass does what bidiagonalisation (Golub and Kahan 1965) needs two for. Two
vectors and not one, since the random one finds what a warm start would miss: a direction that has
overtaken the old one, and a second σ equal to the first (Golub and Underwood 1977).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from offaxis.errors import InputError
from offaxis.kernels.differences import Difference, Size, scale_of
from offaxis.linalg import spectrum_and_basis
from offaxis.predict.methods import Floats, Trail

__all__ = ["Matrix", "Triplet", "top_triplet", "triplets", "update_of"]

Matrix = Difference | torch.Tensor | Floats

_DENSE = 48
"""Shorter side up to which an SVD is as fast."""
_WHOLE = 1 << 16
"""Entries up to which the difference is formed, and nothing has to be compiled."""
_PASSES = 64
"""After which the exact path is as fast."""
_OFTEN = 24
"""Vectors up to which convergence is looked at in every step, and beyond them in every fourth."""
_ODDS = 1e-6
"""That a larger σ stays unseen."""
_CONVERGED = 1e-4
"""Residual of a Ritz value, of the largest one, at which it counts as found."""
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Triplet:
    """σ₁, u₁ and v₁ of a matrix D (m, n), D v = σu.

    sigma: σ₁. u: (m,), v: (n,), unit vectors, their common sign arbitrary; zeros where D = 0.
    norm: ‖D‖_F. second: an upper estimate of σ₂. residual: ‖(Dv − σu, Dᵀu − σv)‖ / σ, measured with
    the vectors returned. angle_error: bound (radians) on the angle of u and of v with the true
    ones, arcsin(residual·σ / (σ₁ − σ₂)) (Wedin 1972), at most π/2; it holds where `second` does.
    tied: σ₁ and σ₂ cannot be told apart well enough to fix u and v to the tolerance asked for; the
    pair is then one of many, and as good as any other. method: `lanczos`; `svd` and `gram`, exact
    decompositions; `zero`. passes: how often the matrix was read.
    """

    sigma: float
    u: Floats
    v: Floats
    norm: float
    second: float
    residual: float
    angle_error: float
    tied: bool
    method: Literal["lanczos", "svd", "gram", "zero"]
    passes: int

    @property
    def sigma_error(self) -> float:
        """Bound on |σ − σ₁|: the residual, and its square over the gap where that is less."""
        near = self.residual * self.sigma
        gap = self.sigma - self.second
        rounding = 4 * _EPS * math.sqrt(self.u.size + self.v.size) * self.sigma
        return rounding + (min(near, near**2 / gap) if gap > 0 else near)

    def turned(self) -> Triplet:
        """The triplet of Dᵀ."""
        return replace(self, u=self.v, v=self.u)


@dataclass(frozen=True)
class _Ritz:
    """What a Krylov space says of the scaled matrix: v, and an upper estimate of σ₂²."""

    v: Floats
    second: float
    slack: float
    passes: int


def top_triplet(
    matrix: Matrix, start: Triplet | Floats | None = None, *, tolerance: float = 1e-6, seed: int = 0
) -> Triplet:
    """σ₁, u₁, v₁ of `matrix` (m, n) in float64, with bounds on their errors.

    matrix: a tensor or array of any float dtype, or the `Difference` of two stored ones, which is
    never formed. start: the triplet, or the v (n,), of a matrix close to this one. tolerance: the
    accepted angle error of u and v (radians); the relative error of σ is then its square, or
    rounding. Where 64 passes do not reach it, an exact decomposition decides, and where that cannot
    either, `tied` says so. Memory: at most 128 vectors of n, of which about 20 are touched; the
    exact path a float64 copy of D and its Gram.

    A Krylov method cannot see what its start has no part of. That no larger σ was missed, and
    `second`, rest on the random vector (`seed`): steps go on until it would have shown one but for
    a chance of 10⁻⁶, or until ‖D‖_F² − σ₁² < σ₁², which leaves no room for one.

    Raises InputError for what is no matrix, for entries that are not finite, for a `start` of
    another length.
    """
    operator = _operator(matrix)
    rows, cols = operator.shape
    with _one_thread():
        size = operator.size()
        if not (math.isfinite(size.largest) and math.isfinite(size.norm)):
            raise InputError(
                f"a {rows}x{cols} update has entries that are NaN, infinite or too large; leave "
                "out the checkpoint that holds them, or save it again"
            )
        if size.norm == 0:
            zeros = (np.zeros(rows), np.zeros(cols))
            return Triplet(0.0, *zeros, 0.0, 0.0, 0.0, math.pi / 2, True, "zero", 1)
        first = _first(start, cols)
        if min(rows, cols) <= _DENSE:
            return _exact(operator, size, tolerance, 1, svd=True)
        rng, passes = np.random.default_rng([seed, rows]), _PASSES
        found = _krylov(operator, scale_of(size.norm), size, first, tolerance, rng)
        if found is not None:
            triplet = _checked(operator, size, found.v, found.second, found.passes, tolerance)
            passes = triplet.passes
            if not triplet.tied:
                return triplet
    return _exact(operator, size, tolerance, passes)


def update_of(trail: Trail, t: int) -> Matrix:
    """ΔW_t of a matrix's trail, not formed where the trail hands out both of its stored sides."""
    if isinstance(trail, _Stored):
        return Difference.of(trail.stored(t), trail.ground())
    return trail[t]


@runtime_checkable
class _Stored(Protocol):
    def ground(self) -> torch.Tensor: ...

    def stored(self, t: int) -> torch.Tensor: ...


def triplets(trail: Trail, *, tolerance: float = 1e-6, seed: int = 0) -> Iterator[Triplet]:
    """The leading triplet of every ΔW_t of one matrix, each search begun from the last v₁.

    u is on the side of the model's outputs and v on that of its inputs, also where a trail's `part`
    says that the matrix is stored transposed. One ΔW_t is read at a time, and nothing of it is
    kept. Raises CheckpointError or InputError where an entry is not finite.
    """
    turned = bool(getattr(getattr(trail, "part", None), "transposed", False))
    before: Triplet | None = None
    for t in range(len(trail)):
        try:
            found = top_triplet(update_of(trail, t), before, tolerance=tolerance, seed=seed)
        except InputError as error:
            _ = trail[t]  # which names the checkpoint where an entry is not finite
            raise InputError(f"{trail.name}, checkpoint {t + 1}: {error}") from error
        before = found if found.norm > 0 else before
        yield found.turned() if turned else found


@dataclass(frozen=True, eq=False)
class _Whole:
    """A matrix small enough to be held in float64, with what a `Difference` can do."""

    values: Floats

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.values.shape
        return rows, cols

    def size(self) -> Size:
        largest = float(np.abs(self.values).max())
        if not 0 < largest < math.inf:
            return Size(0.0, 0.0) if largest == 0 else Size(math.inf, math.inf)
        scale = scale_of(largest)
        norm = float(torch.from_numpy(self.values * scale).norm())
        return Size(norm / scale, largest)

    def both(self, x: Floats, *, scale: float = 1.0) -> tuple[Floats, Floats]:
        values = torch.from_numpy(self.values * scale)
        image = torch.from_numpy(x) @ values.T
        return image.numpy(), (image @ values).numpy()

    def dense(self) -> Floats:
        return self.values


def _operator(matrix: Matrix) -> Difference | _Whole:
    if not isinstance(matrix, Difference):
        given = torch.from_numpy(matrix) if isinstance(matrix, np.ndarray) else matrix
        if given.ndim != 2 or given.numel() == 0 or not given.is_floating_point():
            what = f"an update of shape {tuple(given.shape)} and {given.dtype}"
            raise InputError(f"{what}: give a matrix of floats")
        matrix = Difference.of(given)
    small = math.prod(matrix.shape) <= _WHOLE or min(matrix.shape) <= _DENSE
    return _Whole(matrix.dense()) if small else matrix


def _first(start: Triplet | Floats | None, cols: int) -> Floats | None:
    """The vector to begin with, or None."""
    vector = start.v if isinstance(start, Triplet) else start
    if vector is None:
        return None
    if vector.shape != (cols,):
        raise InputError(f"start has shape {vector.shape}: give the v of a matrix, ({cols},)")
    length = float(np.linalg.norm(vector))
    return vector / length if 0 < length < math.inf else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread: the products with the matrix have threads of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _krylov(
    operator: Difference | _Whole,
    scale: float,
    size: Size,
    first: Floats | None,
    tolerance: float,
    rng: np.random.Generator,
) -> _Ritz | None:
    """Block Lanczos on the matrix scaled to a norm near 1; None where it does not converge."""
    cols = operator.shape[1]
    space = _Space(cols, (size.norm * scale) ** 2)
    drawn = rng.standard_normal((2, cols))
    drawn = drawn if first is None else np.stack([first, drawn[0]])
    block = space.fresh(torch.from_numpy(drawn))
    for passes in range(2, _PASSES + 1):
        image = operator.both(block.numpy(), scale=scale)[1]
        rest = space.add(block, torch.from_numpy(image))
        block = space.fresh(rest)
        done = not block.any()
        if done or space.size <= _OFTEN or passes % 4 == 0:
            ritz = space.ritz(rest, passes, done=done)
            if done or ritz.slack <= tolerance / 2:
                return ritz
    return None


class _Space:
    """An orthonormal basis of a Krylov space, as rows, and DᵀD within it.

    torch's arithmetic, not numpy's: its threads can be held to one, and several that share such
    short products wait for each other.
    """

    def __init__(self, cols: int, total: float) -> None:
        self.rows = torch.empty(2 * _PASSES, cols, dtype=torch.float64)
        self.small = torch.zeros(2 * _PASSES, 2 * _PASSES, dtype=torch.float64)
        self.total = total
        self.size = 0
        self.next = 0
        self.last = 0

    def fresh(self, vectors: torch.Tensor) -> torch.Tensor:
        """`vectors` (2, n) made orthogonal to the basis and to each other; zero where none is left.

        What is left below 1e-14 of ‖D‖² is rounding, and the space is exhausted in that direction.
        """
        basis = self.rows[: self.size]
        out = torch.zeros_like(vectors)
        self.next = 0
        for vector in vectors:
            floor = 1e-14 * max(self.total if self.size else 0.0, float(vector.norm()))
            left = vector.clone()
            for _ in range(2):
                left -= (basis @ left) @ basis
                left -= (out @ left) @ out
            length = float(left.norm())
            if length > floor:
                out[self.next] = left / length
                self.next += 1
        return out

    def add(self, block: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Take `block` into the basis; what of its image DᵀD·block lies outside, (2, n)."""
        self.last = self.next
        old, new = self.size, self.size + self.last
        self.rows[old:new] = block[: self.last]
        basis = self.rows[:new]
        inner = basis @ image.T
        self.small[:new, old:new] = inner[:, : self.last]
        self.small[old:new, :new] = inner[:, : self.last].T
        self.size = new
        rest = image - inner.T @ basis
        return rest - (rest @ basis.T) @ basis

    def ritz(self, rest: torch.Tensor, passes: int, *, done: bool) -> _Ritz:
        """The leading Ritz vector, a bound on σ₂², and the angle error that they give."""
        small = self.small[: self.size, : self.size]
        squares, vectors = torch.linalg.eigh((small + small.T) / 2)
        squares, ends = squares.flip(0), vectors[-self.last :, :].flip(1)
        left = (rest[: self.last].T @ ends).norm(dim=0).numpy()
        missed = 0.0 if done else _missed(passes - 1, rest.shape[1])
        second = min(_second(squares.numpy(), left, missed), self.total - float(squares[0]))
        second = max(0.0, second) + 16 * _EPS * self.total
        slack = _angle(float(left[0]), float(squares[0]), second)
        vector = vectors[:, -1] @ self.rows[: self.size]
        return _Ritz(vector.numpy(), second, slack, passes)


def _missed(steps: int, size: int) -> float:
    """ε: a random start of `size` entries leaves, after so many steps, the largest eigenvalue more
    than this share above the largest Ritz value with a probability of 10⁻⁶ at most.

    1.648 √n exp(−√ε (2k − 1)) = 10⁻⁶ (Kuczyński and Woźniakowski 1992), at most 1.
    """
    return min(1.0, (math.log(1.648 * math.sqrt(size) / _ODDS) / (2 * steps - 1)) ** 2)


def _second(squares: Floats, left: Floats, missed: float) -> float:
    """σ₂² at most, from Ritz values in descending order and their residuals.

    What is orthogonal to the Ritz vectors that have converged has no eigenvalue above the next Ritz
    value over 1 − ε, copies of converged ones apart.
    """
    known = 1
    while known < squares.size and left[known] <= _CONVERGED * squares[0]:
        known += 1
    seen = float(squares[1] + left[1]) if squares.size > 1 else 0.0
    if missed == 0 or known == squares.size:
        return seen
    beyond = float(squares[known]) / (1 - missed) if missed < 1 else math.inf
    return max(seen, beyond) if known > 1 else beyond


def _angle(left: float, top: float, second: float) -> float:
    """arcsin of ‖DᵀDv − θv‖ / (σ₁ (σ₁ − σ₂)), which is that of Wedin's bound for (u, v)."""
    sigma = math.sqrt(max(0.0, top))
    gap = sigma * (sigma - math.sqrt(second))
    return math.asin(left / gap) if left < gap else math.pi / 2


def _checked(
    operator: Difference | _Whole,
    size: Size,
    v: Floats,
    second: float,
    passes: int,
    tolerance: float,
    method: Literal["lanczos", "svd", "gram"] = "lanczos",
) -> Triplet:
    """The triplet of v, its residual measured by a pass of its own. second: σ₂² of the scaled D."""
    scale = scale_of(size.norm)
    v = v / np.linalg.norm(v)
    image, back = operator.both(np.stack([v, np.zeros_like(v)]), scale=scale)
    sigma = float(np.linalg.norm(image[0]))
    u = image[0] / sigma
    off_left = float(np.linalg.norm(image[0] - sigma * u))
    off_right = float(np.linalg.norm(back[0] / sigma - sigma * v))
    residual = math.hypot(off_left, off_right)
    rounding = _EPS * math.sqrt(sum(operator.shape)) * sigma
    gap = sigma - math.sqrt(second)
    worst = residual + rounding
    angle = math.asin(worst / gap) if worst < gap else math.pi / 2
    return Triplet(
        sigma / scale, u, v, size.norm, math.sqrt(second) / scale, residual / sigma, angle,
        angle > tolerance, method, passes + 1,
    )  # fmt: skip


def _exact(
    operator: Difference | _Whole, size: Size, tolerance: float, passes: int, *, svd: bool = False
) -> Triplet:
    """By LAPACK: an SVD, or the Gram matrix of the shorter side."""
    dense = torch.from_numpy(operator.dense() * scale_of(size.norm))
    spectrum, basis = spectrum_and_basis(dense, rank=1, exact=svd)
    del dense
    second = 0.0
    if spectrum.values.numel() > 1:
        second = float(spectrum.values[1] + spectrum.errors[1]) ** 2
    v = basis.right[:, 0].numpy()
    return _checked(operator, size, v, second, passes + 1, tolerance, "svd" if svd else "gram")
