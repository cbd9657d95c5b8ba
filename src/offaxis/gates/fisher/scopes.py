"""What a number is about: the model, its matrices, a layer, a role, or one part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from offaxis.gates.fisher.move import Unit

__all__ = ["Scope", "scopes_of"]


@dataclass(frozen=True)
class Scope:
    """A set of units."""

    kind: str
    """model, matrices, layer, role or tensor."""
    name: str
    units: tuple[int, ...]
    entries: int


def scopes_of(units: Sequence[Unit]) -> tuple[Scope, ...]:
    """The model, its matrices, every layer, every role and every unit, in that order.

    Layers and roles hold all their parts, norms and biases too.
    """
    every = range(len(units))
    found = [_scope("model", "model", units, list(every))]
    matrices = [at for at in every if units[at].part.is_matrix]
    if matrices:
        found.append(_scope("matrices", "matrices", units, matrices))
    for layer in sorted({one.part.layer for one in units if one.part.layer is not None}):
        inside = [at for at in every if units[at].part.layer == layer]
        found.append(_scope("layer", str(layer), units, inside))
    for role in sorted({one.part.role for one in units}):
        inside = [at for at in every if units[at].part.role == role]
        found.append(_scope("role", role, units, inside))
    found += [_scope("tensor", units[at].name, units, [at]) for at in every]
    return tuple(found)


def _scope(kind: str, name: str, units: Sequence[Unit], inside: Sequence[int]) -> Scope:
    entries = sum(prod(units[at].part.shape) for at in inside)
    return Scope(kind, name, tuple(inside), entries)
