"""From a checkpoint and layers to heads: everything is found and checked in headers alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from offaxis.checkpoint import Checkpoint
from offaxis.errors import InputError
from offaxis.intervene.blocks import Block, Config, Family, Heads, Taken, number
from offaxis.intervene.families import family_of
from offaxis.intervene.selecting import Layer
from offaxis.names import place, unwrap

__all__ = ["plan_heads"]

_LANGUAGE = re.compile(
    r"((?:(?:model|language_model|text_model|transformer|gpt_neox|decoder)\.)*(?:layers|h|blocks))"
    r"\.(\d{1,6})\.(.+)",
    re.ASCII,
)
"""A layer of the language model. What predicts further tokens (`mtp.layers.0`) is none."""
_SEEN = re.compile(r"(.+?\.(?:layers|blocks))\.(\d{1,6})\.(.+)", re.ASCII)
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")

_Shapes = Mapping[str, tuple[int, ...]]
_Layers = dict[int, dict[str, dict[str, str]]]
"""Layer -> path of its list -> name within the layer -> stored name."""


def plan_heads(checkpoint: Checkpoint, layers: Sequence[Layer]) -> tuple[Heads, ...]:
    """The heads of each layer, in the order given.

    InputError, naming the layer and what is missing, where there is no such layer, it has no
    softmax attention, its family is not known, its tensors and its configuration disagree, or its
    keys and values are shared with another layer.
    """
    out: list[Heads] = []
    for tower in dict.fromkeys(layer.tower for layer in layers):
        family, config = family_of(checkpoint.config, tower, source=checkpoint.source)
        found = _layers(checkpoint, tower, config)
        for layer in layers:
            if layer.tower == tower:
                out.append(_heads(checkpoint, layer, family, config, found))
    return tuple(out)


def _layers(checkpoint: Checkpoint, tower: str, config: Config) -> _Layers:
    """The tower's layers, buffers left out; those past the configured number are no layers."""
    count = number(config, _COUNTS)
    found: _Layers = {}
    for name, spec in checkpoint.specs.items():
        match = (_SEEN if tower else _LANGUAGE).fullmatch(unwrap(name))
        where = place(name, spec.shape)
        if match is None or where.tower != tower or where.buffer:
            continue
        path, layer, rest = match[1], int(match[2]), match[3]
        if count is None or layer < count:
            found.setdefault(layer, {}).setdefault(path, {})[rest] = name
    return found


def _heads(
    checkpoint: Checkpoint, layer: Layer, family: Family, config: Config, found: _Layers
) -> Heads:
    source = checkpoint.source
    if layer.number not in found:
        tower = f"{layer.tower} tower" if layer.tower else "language model"
        raise InputError(f"{source}: no layer {layer}; its {tower} has {_run(found)}")
    paths = found[layer.number]
    if len(paths) > 1:
        raise InputError(
            f"{source}: layer {layer} could be in {' or '.join(sorted(paths))}; give a checkpoint "
            "with one language model"
        )
    ((path, inside),) = paths.items()
    own = {
        rest.removeprefix(f"{family.module}."): name
        for rest, name in inside.items()
        if rest.startswith(f"{family.module}.")
    }
    if not own:
        has = ", ".join(sorted({rest.partition(".")[0] for rest in inside}))
        raise InputError(
            f"{source}: layer {layer} has no softmax attention ({path}.{layer.number} has {has}); "
            "choose a layer that has"
        )
    _check_sharing(source, layer, config)
    tensors = {rest: Taken(name, checkpoint.specs[name].shape) for rest, name in own.items()}
    return family.layout(Block(source, layer, family, config, tensors))


def _check_sharing(source: str, layer: Layer, config: Config) -> None:
    """Refuse a layer that takes its keys and values from another, or gives them to one (Gemma 3n).

    The last `num_kv_shared_layers` take them from the last layer before them of their own type.
    """
    shared = number(config, ("num_kv_shared_layers",))
    if shared is None or layer.tower:
        return
    count, types = number(config, _COUNTS), config.get("layer_types")
    if count is None or not isinstance(types, list) or len(types) != count:
        raise InputError(
            f"{source}: {shared} layers take their keys and values from others, and config.json "
            "does not say which (layer_types); add it"
        )
    first = count - shared
    own = [at for at in range(max(0, first)) if types[at] == types[layer.number]]
    if layer.number >= first:
        raise InputError(
            f"{source}: layer {layer} takes its keys and values from layer {max(own, default='?')}"
            f", so it cannot be edited by itself; choose one before layer {first}"
        )
    if layer.number == max(own):
        raise InputError(
            f"{source}: layers from {first} on take their keys and values from layer {layer}, so "
            "it cannot be edited by itself; choose another"
        )


def _run(numbers: Iterable[int]) -> str:
    """`layers 0-3`, `layers 0, 2`, or `none`."""
    found = sorted(numbers)
    if not found:
        return "none that offaxis finds by name"
    if found == list(range(found[0], found[-1] + 1)):
        return f"layers {found[0]}-{found[-1]}" if len(found) > 1 else f"layer {found[0]}"
    return "layers " + ", ".join(map(str, found))
