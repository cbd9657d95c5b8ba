"""The rows of a tensor in another view: turned into few coordinates, or the first few alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from offaxis.predict.fitting import stretches
from offaxis.predict.methods import Floats, Trail

__all__ = ["Prefix", "Turned", "turned"]


@dataclass(frozen=True, eq=False)
class Turned:
    """A trail's rows in an orthonormal basis of their span: the same lengths and angles.

    coordinates: (T, r), one row a checkpoint.
    """

    name: str
    is_matrix: bool
    coordinates: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.coordinates.shape[1],)

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, t: int) -> Floats:
        return np.asarray(self.coordinates[t], dtype=np.float64)

    def rows(self, t: int, part: slice) -> Floats:
        return self.coordinates[t, part]


def turned(trail: Trail) -> Turned:
    """The rows of a tensor as T coordinates each, by QR of one stretch after another.

    D (T, entries), each row less the one before, is RᵀQᵀ; the running sums of the rows of Rᵀ are
    the coordinates. Unlike a Gram matrix this does not square the condition, and checkpoints with
    the same values keep the same coordinates.
    """
    count = len(trail)
    seen = torch.zeros(0, count, dtype=torch.float64)
    for part in stretches(prod(trail.shape), count):
        rows = np.stack([trail.rows(t, part) for t in range(count)], axis=1)
        rows[:, 1:] -= rows[:, :-1].copy()
        seen = torch.linalg.qr(torch.cat([seen, torch.from_numpy(rows)]), mode="r").R
    found = seen.T.cumsum(dim=0).contiguous().numpy()
    return Turned(trail.name, trail.is_matrix, np.asarray(found, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `length` checkpoints of a trail; there is no way to the later ones."""

    trail: Trail
    length: int

    @property
    def name(self) -> str:
        return self.trail.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.trail.shape

    @property
    def is_matrix(self) -> bool:
        return self.trail.is_matrix

    @property
    def part(self) -> Any:
        """Layer, role and orientation, of a trail that knows them; else None."""
        return getattr(self.trail, "part", None)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, t: int) -> Floats:
        return self.trail[self._known(t)]

    def rows(self, t: int, part: slice) -> Floats:
        return self.trail.rows(self._known(t), part)

    def _known(self, t: int) -> int:
        place = t + self.length if t < 0 else t
        if not 0 <= place < self.length:
            raise IndexError(f"checkpoint {t} of {self.length}")
        return place
