"""Gate II beside its nulls: the same checks for updates of the same norm that know nothing.

A bound holds for every update, so a small ratio says little by itself. The checks are repeated for
a Gaussian update of the same Frobenius norm (`random`), for the same entries at other places
(`permuted`), and for the same singular values in other directions (`turned`). The first two spread
the update over all directions and so have a smaller ‖ΔW‖₂; the last keeps it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offaxis.errors import InputError
from offaxis.gates.matrix import Check, Ground, as_matrix, ranks_of

__all__ = ["KINDS", "SAME", "Interval", "Judged", "Null", "geometry_with_nulls", "null_update"]

KINDS = ("random", "permuted", "turned")
SAME = 1e-9  # relative: what a null keeps by construction differs by rounding alone


@dataclass(frozen=True)
class Interval:
    """Mean, smallest and largest of the draws of one number.

    An update exchangeable with `draws` draws lies below all of them with probability
    1 / (draws + 1), and above all with the same.
    """

    mean: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class Null:
    """One kind of draw: the measured side and the ratio. None where no draw had the number."""

    kind: str
    measured: Interval | None
    ratio: Interval | None


@dataclass(frozen=True)
class Judged:
    """A check of the update beside the same check of its nulls."""

    check: Check
    nulls: tuple[Null, ...]

    def below(self, kind: str) -> bool | None:
        """Whether the measured side is below every draw of `kind`; None without draws."""
        null = next((one for one in self.nulls if one.kind == kind), None)
        if null is None or null.measured is None or self.check.measured is None:
            return None
        return self.check.measured < null.measured.low * (1 - SAME)


def null_update(update: Tensor, kind: str, *, generator: torch.Generator) -> Tensor:
    """An update (m, n) of the same Frobenius norm, of one of `KINDS`."""
    if kind not in KINDS:
        raise InputError(f"no null named {kind!r}: choose {', '.join(KINDS)}")
    if kind == "permuted":
        order = torch.randperm(update.numel(), generator=generator)
        moved: Tensor = update.reshape(-1)[order].reshape(update.shape)
        return moved
    if kind == "turned":
        values = torch.linalg.svdvals(update)
        left, right = (_frame(n, values.numel(), generator) for n in update.shape)
        turned: Tensor = (left * values) @ right.T
        return turned
    drawn = torch.randn(update.shape, dtype=update.dtype, generator=generator)
    scaled: Tensor = drawn * (torch.linalg.norm(update) / torch.linalg.norm(drawn))
    return scaled


def _frame(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniformly at random (a QR whose R has a positive diagonal)."""
    drawn = torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    basis, upper = torch.linalg.qr(drawn)
    frame: Tensor = basis * torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return frame


def geometry_with_nulls(
    base: Tensor,
    tuned: Tensor,
    *,
    draws: int = 8,
    seed: int = 0,
    name: str = "",
    rank: int | None = None,
    every_rank: bool = False,
) -> tuple[Judged, ...]:
    """`geometry` of one pair of matrices, each check beside `draws` draws of each null.

    seed, name: the draws depend on both, so that the matrices of a model are drawn apart. Costs
    1 + 3·draws decompositions of the matrix. Raises InputError as `geometry` does.
    """
    if draws < 0:
        raise InputError(f"{draws} draws: choose 0 or more")
    before, after = as_matrix(base, "base"), as_matrix(tuned, "tuned")
    if before.shape != after.shape:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"base and tuned have shapes {shapes}: give one matrix before and after")
    update = after - before
    moved = bool(update.any())
    step = math.inf
    if moved:  # a Gaussian of the same norm has the smallest ‖ΔW‖₂ that will be checked
        step = float(torch.linalg.norm(update)) / math.sqrt(min(update.shape))
    ranks = ranks_of(before.shape[0], before.shape[1], rank=rank, every_rank=every_rank)
    ground = Ground.of(before, ranks=ranks, step=step)
    checks = ground.checks(update)
    if not moved or not draws:
        return tuple(Judged(check, ()) for check in checks)
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    drawn = {
        kind: [ground.checks(null_update(update, kind, generator=generator)) for _ in range(draws)]
        for kind in KINDS
    }
    return tuple(
        Judged(check, tuple(_null(kind, [one[i] for one in drawn[kind]]) for kind in KINDS))
        for i, check in enumerate(checks)
    )


def _null(kind: str, drawn: Sequence[Check]) -> Null:
    return Null(
        kind,
        _interval([one.measured for one in drawn]),
        _interval([one.ratio for one in drawn]),
    )


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Interval(math.fsum(known) / len(known), min(known), max(known), len(known))
