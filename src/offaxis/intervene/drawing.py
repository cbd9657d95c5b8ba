"""Random rotations and orders of heads, from a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offaxis.checkpoint.digest import checksum
from offaxis.errors import InputError
from offaxis.intervene.blocks import Heads

__all__ = ["KINDS", "Order", "draw_order", "draw_rotations", "haar", "hadamard"]

Matrix = npt.NDArray[np.float64]
Order = tuple[tuple[int, ...], tuple[int, ...]]
"""Query heads and KV heads: place i gets what was in place order[i]."""

KINDS = ("haar", "hadamard")


def generator(seed: int, what: str) -> np.random.Generator:
    """numpy's PCG64, seeded by the XXH3-128 of `seed` and `what`.

    What a layer gets does not depend on which other layers are edited.
    """
    return np.random.Generator(np.random.PCG64(int(checksum(f"{seed}\n{what}".encode()), 16)))


def haar(dim: int, rng: np.random.Generator) -> Matrix:
    """A matrix of the Haar measure on O(dim): Q of a Gaussian matrix's QR, R's diagonal positive.

    Without the signs Q is not Haar (Mezzadri, Notices of the AMS 54, 2007, section 5).
    """
    basis, upper = np.linalg.qr(rng.standard_normal((dim, dim)))
    return np.asarray(basis * np.where(np.diagonal(upper) < 0, -1.0, 1.0), dtype=np.float64)


def hadamard(dim: int, rng: np.random.Generator) -> Matrix:
    """diag(s) H / √dim: Sylvester's matrix, and signs that Rᵀ applies before it. dim = 2^k."""
    if dim < 1 or dim & (dim - 1):
        raise InputError(
            f"a Hadamard matrix of Sylvester's kind has a power of two for its width, not {dim} "
            "(a head's values); choose haar"
        )
    out = np.ones((1, 1))
    while len(out) < dim:
        out = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), out)
    signs = 1.0 - 2.0 * rng.integers(0, 2, size=(dim, 1))
    return np.asarray(signs * out / np.sqrt(dim), dtype=np.float64)


def draw_rotations(heads: Heads, *, kind: str, seed: int, per_head: bool) -> Matrix:
    """(n, D, D) orthogonal matrices for a layer, D its value width: n = 1, or one a KV head.

    The same seed gives the same matrices up to the last bits of LAPACK's QR.
    """
    rng = generator(seed, f"rotate {kind} {heads.layer}")
    count = heads.key_value if per_head else 1
    make = haar if kind == "haar" else hadamard
    return np.stack([make(heads.value_dim, rng) for _ in range(count)])


def draw_order(heads: Heads, *, seed: int, within_groups: bool) -> Order:
    """An order of the heads that is not the identity, uniform among those allowed.

    KV heads move with the query heads that read them, and not all of them stay. `within_groups`,
    and always where there is one KV head, the query heads of a group change places as well.
    InputError where there is one head in all.
    """
    if heads.query == 1:
        raise InputError(f"layer {heads.layer}: one head has no other order; choose another layer")
    rng = generator(seed, f"permute {heads.layer}")
    each = heads.query // heads.key_value
    inner = within_groups or heads.key_value == 1
    while True:
        shared = rng.permutation(heads.key_value)
        query = np.concatenate(
            [each * one + (rng.permutation(each) if inner else np.arange(each)) for one in shared]
        )
        moved = shared if heads.key_value > 1 else query
        if not np.array_equal(moved, np.arange(len(moved))):
            return tuple(map(int, query)), tuple(map(int, shared))
