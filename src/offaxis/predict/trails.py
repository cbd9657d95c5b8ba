"""One tensor over the checkpoints of a series: read when asked for, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from offaxis.checkpoint import Part, PartPair, View
from offaxis.checkpoint.align import cut
from offaxis.errors import CheckpointError
from offaxis.predict.methods import Floats

if TYPE_CHECKING:
    from offaxis.predict.series import Series

__all__ = ["SeriesTrail", "cut_trails", "whole_trails"]


@dataclass(frozen=True, eq=False)
class SeriesTrail:
    """A stored tensor of the base, or a part of one, over a series (`methods.Trail`).

    Memory: what is asked for, and for an adapter one merged tensor a checkpoint.
    """

    series: Series
    name: str
    shape: tuple[int, ...]
    is_matrix: bool
    part: Part
    """Layer, role and expert; of a stored tensor of several parts: the first part's."""
    view: View
    """Where it lies in the base: a whole tensor, or the slices of a part."""
    couples: tuple[tuple[PartPair, ...], ...]
    """Of each checkpoint, the matched parts that make it up."""

    def __len__(self) -> int:
        return len(self.couples)

    def __getitem__(self, t: int) -> Floats:
        """θ_t − θ_BASE, float64."""
        return self.rows(t, slice(0, prod(self.shape))).reshape(self.shape)

    def rows(self, t: int, part: slice) -> Floats:
        """A stretch of the flattened θ_t − θ_BASE. CheckpointError where it is not finite."""
        ground = self.ground().reshape(-1)[part].double()
        found = (self._stretch(t, part).double() - ground).numpy()
        if not np.isfinite(found).all():
            self._refuse(t)
        return np.asarray(found, dtype=np.float64)

    def base(self) -> Floats:
        """θ_BASE, float64."""
        return np.asarray(self.ground().double().numpy(), dtype=np.float64)

    def ground(self) -> torch.Tensor:
        """θ_BASE as it is stored."""
        return cut(self.series.base[self.view.name], self.view)

    def stored(self, t: int) -> torch.Tensor:
        """θ_t in the base's shape and orientation: as it is stored, or float64 where it is put
        together from several tensors, or merged from an adapter."""
        checkpoint, couples = self.series.points[t].checkpoint, self.couples[t]
        if self._alike(t):
            return checkpoint[couples[0].tuned.name]
        if self.view.slices is not None or len(couples) == 1:
            return cut(checkpoint[couples[0].tuned.name], couples[0].tuned)
        out = torch.empty(self.shape, dtype=torch.float64)
        for one in couples:
            place = out[tuple(slice(*bounds) for bounds in one.base.slices or ())]
            place = place[0] if one.base.drop_leading else place
            place.copy_(cut(checkpoint[one.tuned.name], one.tuned))
        return out

    def _alike(self, t: int) -> bool:
        """A whole tensor in the checkpoint as in the base, however it is cut to be measured."""
        couples = self.couples[t]
        return (
            self.view.slices is None
            and len({one.tuned.name for one in couples}) == 1
            and all(one.base.slices == one.tuned.slices for one in couples)
            and not any(one.tuned.turned for one in couples)
            and self.series.points[t].checkpoint.specs[couples[0].tuned.name].shape == self.shape
        )

    def _stretch(self, t: int, part: slice) -> torch.Tensor:
        """A stretch of θ_t, flattened; of a tensor put together, from the parts in it alone."""
        couples = self.couples[t]
        bounds = [_flat(one.base.slices, self.shape) for one in couples]
        if len(couples) == 1 or self._alike(t) or None in bounds:
            return self.stored(t).reshape(-1)[part]
        start, stop, _ = part.indices(prod(self.shape))
        out = torch.empty(max(0, stop - start), dtype=torch.float64)
        for one, bound in zip(couples, bounds, strict=True):
            assert bound is not None
            first, last = max(start, bound[0]), min(stop, bound[1])
            if first < last:
                values = cut(self.series.points[t].checkpoint[one.tuned.name], one.tuned)
                out[first - start : last - start] = values.reshape(-1)[
                    first - bound[0] : last - bound[0]
                ]
        return out

    def _refuse(self, t: int) -> NoReturn:
        """The error for entries that are NaN or infinite: whose, and how many."""
        sides = ((self.series.points[t].name, self.stored(t)), ("BASE", self.ground()))
        for name, tensor in sides:
            bad = int((~torch.isfinite(tensor.double())).sum())
            if bad:
                raise CheckpointError(
                    f"{name}: {self.name!r} has {bad} of {tensor.numel()} entries that are NaN or "
                    "infinite; leave this checkpoint out, or save it again"
                )
        raise CheckpointError(
            f"{self.series.points[t].name}: {self.name!r} minus BASE overflows; save it again"
        )


def _flat(
    slices: tuple[tuple[int, int], ...] | None, shape: tuple[int, ...]
) -> tuple[int, int] | None:
    """Where a part lies in the flattened tensor; None where it is not in one piece."""
    bounds = slices if slices is not None else tuple((0, extent) for extent in shape)
    start, size = 0, 1
    for (first, last), extent in zip(bounds, shape, strict=True):
        if size > 1 and (first, last) != (0, extent):
            return None
        start = start * extent + first
        size *= last - first
    return start, start + size


def whole_trails(series: Series) -> Iterator[SeriesTrail]:
    """The base's stored parameters, one trail a tensor."""
    grouped = [_grouped(point.aligned.pairs) for point in series.points]
    for name, first in grouped[0].items():
        yield SeriesTrail(
            series=series,
            name=name,
            shape=tuple(series.base.specs[name].shape),
            is_matrix=all(pair.part.is_matrix for pair in first),
            part=first[0].part,
            view=View(name),
            couples=tuple(tuple(one[name]) for one in grouped),
        )


def cut_trails(series: Series) -> Iterator[SeriesTrail]:
    """The base's parameters in parts, one trail a part."""
    labelled = [{pair.part.tensor: pair for pair in p.aligned.pairs} for p in series.points]
    for label, first in labelled[0].items():
        yield SeriesTrail(
            series=series,
            name=label,
            shape=first.part.shape,
            is_matrix=first.part.is_matrix,
            part=first.part,
            view=first.base,
            couples=tuple((one[label],) for one in labelled),
        )


def _grouped(pairs: Sequence[PartPair]) -> dict[str, list[PartPair]]:
    out: dict[str, list[PartPair]] = {}
    for pair in pairs:
        out.setdefault(pair.base.name, []).append(pair)
    return out
