"""The move Δ from a base to a tuned model, in the base's live parameters, cut into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from offaxis.checkpoint import (
    AdapterCheckpoint,
    Aligned,
    Checkpoint,
    MemoryCheckpoint,
    Part,
    View,
    align,
    bind,
    open_checkpoint,
    read_pair,
)
from offaxis.checkpoint.align import cut
from offaxis.errors import AlignmentError, CheckpointError
from offaxis.live import LiveModel, load_live

__all__ = ["Move", "Unit", "load_move", "move_of"]


@dataclass(frozen=True)
class Unit:
    """One part of the model: a parameter, or one projection or expert of a fused one."""

    part: Part
    view: View
    """Where it lies among the live parameters."""

    @property
    def name(self) -> str:
        return self.part.tensor

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The part's values in the named tensors: contiguous."""
        return cut(parameters[self.view.name], self.view)

    def placed(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """(D, ...) values of the part inside zeros of a whole parameter, (D, *shape)."""
        if self.view.slices is None and not self.view.turned:
            return values
        whole = values.new_zeros((values.shape[0], *shape))
        into = whole
        if self.view.slices is not None:
            into = into[(slice(None), *(slice(*span) for span in self.view.slices))]
        if self.view.drop_leading:
            into = into[:, 0]
        into.copy_(values.mT if self.view.turned else values)
        return whole


@dataclass(frozen=True, eq=False)
class Move:
    """A base that runs in float64, and where a tuned model lies from it.

    Tied weights are one parameter and move once.
    """

    base: LiveModel
    tuned: LiveModel
    """A copy of the base's module whose weights can be set (`place`)."""
    origin: Mapping[str, Tensor]
    """W₀ by live name: float64."""
    units: tuple[Unit, ...]
    delta: tuple[Tensor, ...]
    """ΔW of each unit: float64, in the unit's shape."""

    def place(self, step: float) -> None:
        """Set `tuned` to W₀ + step·Δ."""
        parameters = dict(self.tuned.model.named_parameters())
        with torch.no_grad():
            for name, value in self.origin.items():
                parameters[name].copy_(value)
            for unit, delta in zip(self.units, self.delta, strict=True):
                parameter = parameters[unit.view.name]
                whole = unit.placed(delta[None], parameter.shape)[0]
                parameter.add_(whole, alpha=step)


def load_move(
    base: str | Path, tuned: str | Path, *, device: str | None = None, allow_pickle: bool = False
) -> Move:
    """Load `base` to run, and read the weights of `tuned` (a checkpoint, or an adapter over it).

    `tuned` needs weights alone: configuration and tokenizer are the base's. Two float64 copies of
    the model and Δ are held, 24 bytes a parameter. Raises AlignmentError where a tensor has no
    counterpart of its shape, CheckpointError for what cannot be read or is not finite.
    """
    checkpoint = open_checkpoint(tuned, allow_pickle=allow_pickle)
    if isinstance(checkpoint, AdapterCheckpoint):
        checkpoint = bind(checkpoint, open_checkpoint(base, allow_pickle=allow_pickle))
    return move_of(load_live(base, device=device), checkpoint)


def move_of(base: LiveModel, tuned: Checkpoint) -> Move:
    """As `load_move`, for a base in memory (made float64 in place) and an open checkpoint."""
    import copy

    model = base.model.double().requires_grad_(False)
    origin = {name: one.detach() for name, one in model.named_parameters()}
    ground = MemoryCheckpoint(origin, source=base.source, config=model.config.to_dict())
    aligned = align(ground, tuned)
    _check_whole(aligned, ground, tuned)
    units, delta = [], []
    for pair in aligned.pairs:
        both = read_pair(ground, tuned, pair)
        change = both.tuned.double() - both.base.double()
        if not bool(torch.isfinite(change).all()):
            raise CheckpointError(
                f"{tuned.source}: {pair.part.tensor} holds NaN or infinite entries; repair the "
                "checkpoint, or give another"
            )
        units.append(Unit(pair.part, pair.base))
        delta.append(change.to(model.device))
    moved = LiveModel(copy.deepcopy(model), base.tokenizer, tuned.source)
    return Move(base, moved, origin, tuple(units), tuple(delta))


def _check_whole(aligned: Aligned, base: Checkpoint, tuned: Checkpoint) -> None:
    for row in aligned.mismatches:
        if row.status in ("missing", "extra", "reshaped"):
            raise AlignmentError(
                f"{row.tensor}: {row.detail}; {tuned.source} is not a tuned {base.source}: give "
                "models of one architecture"
            )
