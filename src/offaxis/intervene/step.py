"""One edit of a model: what was drawn for each layer, and what became of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offaxis.errors import InputError
from offaxis.intervene.blocks import Heads, Slot
from offaxis.intervene.drawing import Order
from offaxis.intervene.edits import Edit, gathers, turns
from offaxis.intervene.selecting import Layer, parse_layers

__all__ = ["Edited", "Step", "Verb", "step_from", "step_record"]

Verb = Literal["rotate", "permute"]


@dataclass(frozen=True)
class Edited:
    """One tensor that was edited. Checksums are XXH3-128 of the stored bytes."""

    shape: tuple[int, ...]
    dtype: str
    before: str
    after: str
    rounding: float
    """‖stored − exact‖_F / ‖exact‖_F of the edited values; 0 for PERMUTE."""


@dataclass(frozen=True, eq=False)
class Step:
    """One call of `rotate` or `permute`. rotations and orders have one entry a layer."""

    verb: Verb
    seed: int
    settings: Mapping[str, Any]
    heads: tuple[Heads, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors that are edited."""
    rotations: tuple[npt.NDArray[np.float64], ...] = ()
    orders: tuple[Order, ...] = ()
    tensors: Mapping[str, Edited] | None = None
    """None while the edit is only planned."""

    @cached_property
    def edits(self) -> Mapping[str, Edit]:
        """Tensor -> what this step does to it."""
        out: dict[str, Edit] = {}
        drawn: tuple[Any, ...] = self.rotations if self.verb == "rotate" else self.orders
        for heads, one in zip(self.heads, drawn, strict=True):
            made = turns if self.verb == "rotate" else gathers
            out |= made(heads, one, self.shapes)
        return out


def step_record(step: Step, digests: Mapping[str, str]) -> dict[str, Any]:
    """The step as JSON holds it. digests: of each layer's rotations."""
    layers = []
    for at, heads in enumerate(step.heads):
        row: dict[str, Any] = {
            "layer": str(heads.layer),
            "query_heads": heads.query,
            "key_value_heads": heads.key_value,
            "value_dim": heads.value_dim,
        }
        if step.verb == "rotate":
            row["rotations"] = len(step.rotations[at])
            row["rotations_xxh3_128"] = digests[str(heads.layer)]
        else:
            row["query_order"], row["key_value_order"] = map(list, step.orders[at])
        layers.append(row | {"slots": [asdict(slot) for slot in heads.slots]})
    tensors = {name: asdict(one) for name, one in (step.tensors or {}).items()}
    return {
        "edit": step.verb,
        "seed": step.seed,
        **step.settings,
        "layers": layers,
        "tensors": tensors,
    }


def step_from(record: Mapping[str, Any], rotations: Mapping[str, Any]) -> Step:
    """The step that `step_record` wrote. KeyError, TypeError or ValueError where it is not one."""
    tensors = {name: _edited(one) for name, one in record["tensors"].items()}
    heads, turned, orders = [], [], []
    for row in record["layers"]:
        one = _heads_from(row)
        heads.append(one)
        if record["edit"] == "rotate":
            turned.append(rotations[str(one.layer)])
            _check_rotations(one, turned[-1], row["rotations"])
        else:
            order = (tuple(row["query_order"]), tuple(row["key_value_order"]))
            _check_order(one, order)
            orders.append(order)
    step = Step(
        verb=_verb(record["edit"]),
        seed=int(record["seed"]),
        settings={
            key: record[key] for key in ("kind", "per_head", "within_groups") if key in record
        },
        heads=tuple(heads),
        shapes={name: one.shape for name, one in tensors.items()},
        rotations=tuple(turned),
        orders=tuple(orders),
        tensors=tensors,
    )
    _check_slots(step)
    return step


def _verb(value: object) -> Verb:
    if value == "rotate":
        return "rotate"
    if value == "permute":
        return "permute"
    raise ValueError(f"the edit {value!r} is neither rotate nor permute")


def _edited(row: Mapping[str, Any]) -> Edited:
    shape = tuple(map(int, row["shape"]))
    words = [str(row[key]) for key in ("dtype", "before", "after")]
    return Edited(shape, words[0], words[1], words[2], float(row["rounding"]))


def _heads_from(row: Mapping[str, Any]) -> Heads:
    (layer,) = _layer(row["layer"])
    slots = tuple(
        Slot(
            str(one["name"]),
            int(one["axis"]),
            "query" if one["per"] == "query" else "key_value",
            tuple(map(int, one["starts"])),
            int(one["size"]),
            bool(one["turns"]),
        )
        for one in row["slots"]
    )
    counts = (int(row["query_heads"]), int(row["key_value_heads"]), int(row["value_dim"]))
    return Heads(layer, *counts, slots)


def _layer(word: object) -> tuple[Layer, ...]:
    try:
        return parse_layers(str(word))
    except InputError as error:
        raise ValueError(str(error)) from error


def _check_rotations(heads: Heads, found: Any, count: int) -> None:
    dim = heads.value_dim
    if found.shape != (count, dim, dim) or count not in (1, heads.key_value):
        raise ValueError(f"layer {heads.layer}: rotations of the shape {tuple(found.shape)}")


def _check_order(heads: Heads, order: Order) -> None:
    for found, count in zip(order, (heads.query, heads.key_value), strict=True):
        if sorted(found) != list(range(count)):
            raise ValueError(f"layer {heads.layer}: {list(found)} is no order of {count} heads")


def _check_slots(step: Step) -> None:
    """Each slot inside its tensor, apart from the others; the edits are those of all tensors."""
    spans: dict[str, list[tuple[int, int]]] = {}
    axes: dict[str, int] = {}
    for heads in step.heads:
        for slot in heads.slots:
            count = heads.query if slot.per == "query" else heads.key_value
            whole = not slot.turns or step.verb == "permute" or slot.size == heads.value_dim
            same = axes.setdefault(slot.name, slot.axis) == slot.axis >= 0
            if len(slot.starts) != count or slot.size < 1 or not (whole and same):
                raise ValueError(f"layer {heads.layer}: {slot.name} does not hold its heads")
            spans.setdefault(slot.name, []).extend((at, at + slot.size) for at in slot.starts)
    for name, found in spans.items():
        edge = 0
        for start, stop in sorted(found):
            if start < edge:
                raise ValueError(f"{name}: two heads share channels")
            edge = stop
        if edge > step.shapes[name][axes[name]]:
            raise ValueError(f"{name}: its heads end at channel {edge}, beyond its shape")
    if set(step.edits) != set(step.shapes):
        raise ValueError("the tensors and the heads are not of one edit")
