"""Spectra and subspaces in float64, each with an error estimate.

Singular values come from the eigenvalues of the Gram matrix of the shorter side, ten or more times
faster than an SVD. That squares the condition number, so every value carries the error that this
can have cost, and `singular_values` falls back to an SVD where the caller asks for more.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Basis",
    "Spectrum",
    "angle_rank",
    "gram",
    "principal_rank",
    "singular_values",
    "spectrum_and_basis",
    "subspace_angles",
]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Spectrum:
    """Singular values in descending order, with a bound on the absolute error of each."""

    values: Float[Tensor, " r"]
    errors: Float[Tensor, " r"]
    method: str

    def subspace_error(self, rank: int) -> float:
        """How far (radians) rounding may have turned the top-`rank` subspaces, at most π/2.

        arcsin of the error in σ₁² over the gap σ²_k − σ²_{k+1} (Davis and Kahan).
        """
        if rank >= self.values.numel():
            return 0.0
        squares = self.values**2
        rounding = 2 * float(self.values[0]) * float(self.errors[0])
        return _angle_error(rounding, float(squares[rank - 1] - squares[rank]))


@dataclass(frozen=True)
class Basis:
    """Orthonormal bases of the top-k left and right singular subspaces.

    left: (m, k), right: (n, k), columns in descending order of singular value.
    angle_error: how far (radians) rounding may have turned the subspaces: the residual of the
    eigenvectors over the gap behind the k-th eigenvalue (Davis and Kahan), at most π/2.
    """

    left: Float[Tensor, "m k"]
    right: Float[Tensor, "n k"]
    angle_error: float


def angle_rank(rows: int, cols: int) -> int:
    """k of the rotation measures: min(512, max(1, min(m, n) // 8))."""
    return min(512, max(1, min(rows, cols) // 8))


def principal_rank(rows: int, cols: int) -> int:
    """r of the principal mask's reconstruction: min(64, max(1, min(m, n) // 16))."""
    return min(64, max(1, min(rows, cols) // 16))


_GRAM_BLOCK = 256


def gram(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "s s"]:
    """W Wᵀ or WᵀW, whichever is smaller (s = min(m, n)), in the dtype of `matrix`.

    Only blocks on and above the diagonal are multiplied, and mirrored: half the work of W @ W.T.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    size = wide.shape[0]
    square = wide.new_empty(size, size)
    for start in range(0, size, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, size)
        block = wide[start:stop] @ wide[start:].T
        square[start:stop, start:] = block
        square[start:, start:stop] = block.T
    return square


def _value_errors(values: Float[Tensor, " r"], square_error: float) -> Float[Tensor, " r"]:
    """What an error of `square_error` in σ² can do to σ: min(δ / 2σ, √δ)."""
    root = torch.full_like(values, square_error**0.5)
    return torch.minimum(
        root, square_error / (2 * values).clamp_min(torch.finfo(values.dtype).tiny)
    )


def _gram_error(squares: Float[Tensor, " r"], length: int) -> float:
    """Rounding in forming a Gram of rows of `length` and in its eigenvalues, as a bound on σ²."""
    largest = float(squares[0]) if squares.numel() else 0.0
    return 4 * _EPS * (math.sqrt(squares.numel()) + math.sqrt(length)) * largest


def singular_values(matrix: Float[Tensor, "m n"], *, exact: bool = False) -> Spectrum:
    """Singular values of a float64 matrix, descending, shape (min(m, n),).

    exact: use an SVD (LAPACK gesdd); its errors are ε·√(m+n)·σ₁ for every value.
    """
    if exact:
        values = torch.linalg.svdvals(matrix)
        bound = _EPS * (sum(matrix.shape) ** 0.5) * values[:1]
        return Spectrum(values, bound.expand_as(values), "svd")
    squares = torch.linalg.eigvalsh(gram(matrix)).flip(0).clamp_min(0)
    values = squares.sqrt()
    return Spectrum(values, _value_errors(values, _gram_error(squares, max(matrix.shape))), "gram")


def spectrum_and_basis(
    matrix: Float[Tensor, "m n"], *, rank: int, exact: bool = False
) -> tuple[Spectrum, Basis]:
    """All singular values and the top-`rank` singular subspaces of a float64 matrix.

    The shorter side's vectors are eigenvectors of the Gram matrix, the other side's their image,
    orthonormalised. 1 <= rank <= min(m, n), else ValueError.
    """
    rows, cols = matrix.shape
    if not 1 <= rank <= min(rows, cols):
        raise ValueError(f"rank {rank} is outside 1..{min(rows, cols)} for a {rows}x{cols} matrix")
    if exact:
        return _by_svd(matrix, rank)
    square = gram(matrix)
    squares, vectors = torch.linalg.eigh(square)
    squares, near = squares.flip(0), vectors[:, -rank:].flip(1)
    residual = float(torch.linalg.norm(square @ near - near * squares[:rank]))
    rounding = max(_gram_error(squares.clamp_min(0), max(rows, cols)), residual)
    short_left = rows <= cols
    far = torch.linalg.qr((matrix.T if short_left else matrix) @ near).Q
    values = squares.clamp_min(0).sqrt()
    gap = float(squares[rank - 1] - squares[rank]) if rank < squares.numel() else float("inf")
    basis = Basis(
        left=near if short_left else far,
        right=far if short_left else near,
        angle_error=_angle_error(rounding, gap),
    )
    return Spectrum(values, _value_errors(values, rounding), "gram"), basis


def _by_svd(matrix: Float[Tensor, "m n"], rank: int) -> tuple[Spectrum, Basis]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    bound = _EPS * (sum(matrix.shape) ** 0.5) * values[:1]
    gap = float(values[rank - 1] - values[rank]) if rank < values.numel() else float("inf")
    basis = Basis(left[:, :rank], right[:rank].T, _angle_error(float(bound), gap))
    return Spectrum(values, bound.expand_as(values), "svd"), basis


def _angle_error(rounding: float, gap: float) -> float:
    """arcsin of rounding / gap, and π/2 where the gap is lost in rounding."""
    if gap <= rounding:
        return math.pi / 2 if rounding > 0 else 0.0
    return math.asin(rounding / gap)


def subspace_angles(
    first: Float[Tensor, "m k"], second: Float[Tensor, "m k"]
) -> Float[Tensor, " k"]:
    """Principal angles between the spans of two orthonormal bases, radians, ascending, in [0, π/2].

    cos θ are the singular values of AᵀB and sin θ those of B − A(AᵀB); the sine is used where the
    cosine is near one, and the cosine where the sine is (Björck and Golub, 1973).
    """
    overlap = first.T @ second
    cosines = torch.linalg.svdvals(overlap).clamp(0, 1)
    sines = torch.linalg.svdvals(second - first @ overlap).flip(0).clamp(0, 1)
    return torch.where(cosines**2 > 0.5, torch.asin(sines), torch.acos(cosines))
