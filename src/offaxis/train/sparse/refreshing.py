"""A mask computed again from the weights as they are, by the rule that made it (LIFT's refresh)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError, OffaxisError
from offaxis.kernels import pack
from offaxis.masks import Mask, build, load
from offaxis.masks.expression import Call, Join, Node, Not, filled, parse
from offaxis.masks.fitting import fitted
from offaxis.masks.mask import Bits

__all__ = ["check_rule", "packed_for", "renewed"]

_JOINED: Mapping[str, Callable[[Mask, Mask], Mask]] = {
    "|": lambda a, b: a | b,
    "&": lambda a, b: a & b,
    "-": lambda a, b: a - b,
    "^": lambda a, b: a ^ b,
}


def check_rule(rule: str) -> Node:
    """The rule, with its options set. InputError where it cannot be computed during a run."""
    node = filled(parse(rule), {})
    for call in node.calls():
        if call.name in ("gradient", "fisher"):
            raise InputError(
                f"refresh by the rule {rule}: {call.name} needs scores of data, which a run does "
                "not compute again; leave refresh_every out, or give another refresh_rule"
            )
    return node


def packed_for(mask: Mask, model: MemoryCheckpoint) -> dict[str, Bits]:
    """The mask under the model's own names and shapes, a bit an entry."""
    return {name: pack(flags) for name, flags in fitted(mask, model)}


def renewed(rule: str, trainer: Any, *, refreshes: int) -> dict[str, Bits]:
    """The rule's mask of the trainer's present weights, under the model's names, in every process.

    Rules with a seed (random, magnitude_random) take seed + refreshes. Saved masks stay as they
    are. Weights that are sharded are gathered, one tensor at a time, into the first process, which
    computes the mask for all of them.
    """
    from accelerate.utils import broadcast_object_list

    first = bool(trainer.accelerator.is_main_process)
    model = _gathered(trainer.model, keep=first)
    box: list[Any] = [None]
    if first:
        try:
            mask = _Evaluation(model, refreshes).mask(check_rule(rule))
            box = [packed_for(mask, model)]
        except OffaxisError as error:  # told by all, or the others would wait
            box = [error]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(box)
    if isinstance(box[0], OffaxisError):
        raise box[0]
    found: dict[str, Bits] = box[0]
    return found


def _gathered(model: Any, *, keep: bool) -> MemoryCheckpoint:
    tensors = {}
    for name, parameter in model.named_parameters():
        held = parameter.detach()
        if hasattr(held, "full_tensor"):
            held = held.full_tensor()
            held = held.cpu() if keep else held[:0]
        tensors[name] = held
    config = model.config.to_dict() if hasattr(model, "config") else {}
    return MemoryCheckpoint(tensors, source="the model as it is trained", config=config)


class _Evaluation:
    """Masks of one set of weights. Rules are built; saved masks are taken over as they are."""

    def __init__(self, model: MemoryCheckpoint, refreshes: int) -> None:
        self.model, self.refreshes = model, refreshes

    @cached_property
    def _none(self) -> Mask:
        return build(self.model, "none")

    def mask(self, node: Node) -> Mask:
        if isinstance(node, Not):
            return ~self.mask(node.of)
        if isinstance(node, Join):
            return _JOINED[node.symbol](self.mask(node.left), self.mask(node.right))
        assert isinstance(node, Call)
        options = {key: value for key, value in node.options.items() if value is not None}
        if node.name == "file":
            return self._kept(load(options["path"]))
        if "seed" in options:
            options["seed"] = options["seed"] + self.refreshes
        like = options.pop("like", None)
        if isinstance(like, Node):
            options["like"] = self.mask(like)
        return build(self.model, node.name, **options)

    def _kept(self, mask: Mask) -> Mask:
        """A mask of the base, as one of the present weights."""
        bits = packed_for(mask, self.model)
        return replace(self._none, bits={name: bits[name] for name in self._none}, rule=mask.rule)
