"""From a base and a rule to a mask, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

import torch

from offaxis.checkpoint import (
    AdapterCheckpoint,
    Checkpoint,
    Part,
    PartPair,
    View,
    align,
    bind,
    open_checkpoint,
)
from offaxis.checkpoint.align import cut
from offaxis.errors import InputError
from offaxis.kernels import pack, unpack
from offaxis.masks.expression import Call, Given, Node, filled, parse
from offaxis.masks.mask import Bits, Mask, origin_of
from offaxis.masks.side import Side

__all__ = ["build"]

AnyPath = str | PathLike[str]


def build(
    base: AnyPath | Checkpoint,
    rule: str,
    *,
    scores: Mapping[str, Checkpoint] | None = None,
    like: Mask | str | None = None,
    allow_pickle: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Mask:
    """The mask of a base's matrices that a rule selects.

    rule: an expression of the rules in `RULES` (`principal`, `low_magnitude(threshold='mean') |
    ~principal`, `random(like=safe)`). options: `alpha`, `rank`, `density`, `seed`, ..., for all
    rules in it that take them and do not say otherwise. like: a mask, or a rule, for `random` and
    `magnitude_random`. scores: for `gradient` and `fisher`, tensors under the base's names.
    base: a checkpoint, open or named; tensors are read one at a time. progress: told each name.

    The rule and its options are recorded in `Mask.rule` as an expression that makes the same mask
    again. The same seed gives the same mask on every machine, whatever the sharding.
    Raises InputError for a rule that cannot be read and a checkpoint that does not fit,
    CheckpointError for one that cannot be read.
    """
    ground = base if isinstance(base, Checkpoint) else open_checkpoint(
        fspath(base), allow_pickle=allow_pickle
    )  # fmt: skip
    if isinstance(ground, AdapterCheckpoint):
        raise InputError(f"{ground.source} is an adapter; a mask is made from the model it is for")
    given = _Elsewhere(ground, dict(scores or {}), allow_pickle)
    if isinstance(like, Mask):
        like.check(ground)
        given.masks["like"] = like
    node = filled(parse(rule), options | {"like": _like(like)})
    for call in node.calls():
        given.provide(call)
    parts = _matrices(ground)
    if not parts:
        raise InputError(f"{ground.source} has no matrices; a mask selects entries of matrices")
    bits, shapes, origins = {}, {}, {}
    for name, pairs in parts.items():
        progress(name)
        stored = ground[name]
        spec = ground.specs[name]
        bits[name] = _tensor(node, stored, pairs, given)
        shapes[name], origins[name] = spec.shape, origin_of(stored, spec.dtype)
    return Mask(bits, shapes, origins, str(node))


def _like(like: Mask | str | None) -> Node | None:
    if like is None or not isinstance(like, str):
        return None if like is None else Given("like", like.rule)
    return parse(like)


def _matrices(ground: Checkpoint) -> dict[str, list[PartPair]]:
    """Stored tensor -> its parts, for tensors all of whose parts are matrices."""
    found: dict[str, list[PartPair]] = {}
    for pair in align(ground, ground).pairs:
        found.setdefault(pair.base.name, []).append(pair)
    return {
        name: pairs for name, pairs in found.items() if all(one.part.is_matrix for one in pairs)
    }


def _tensor(node: Node, stored: torch.Tensor, pairs: list[PartPair], elsewhere: _Elsewhere) -> Bits:
    """The packed mask of one stored tensor, put together from its parts."""
    flags = None
    for pair in pairs:
        part, view = pair.part, pair.base
        bits = node.bits(Side(part, view, cut(stored, view), elsewhere))
        if view.slices is None:
            return bits
        flags = torch.zeros(stored.shape, dtype=torch.bool) if flags is None else flags
        into = flags[tuple(slice(start, stop) for start, stop in view.slices)]
        (into[0] if view.drop_leading else into).copy_(torch.from_numpy(unpack(bits, part.shape)))
    assert flags is not None
    return pack(flags)


@dataclass
class _Elsewhere:
    """Other checkpoints, scores and masks, opened once and matched to the base."""

    ground: Checkpoint
    score: dict[str, Checkpoint]
    allow_pickle: bool
    masks: dict[str, Mask] = field(default_factory=dict)
    _tuned: dict[str, tuple[Checkpoint, dict[str, PartPair]]] = field(default_factory=dict)

    def provide(self, call: Call) -> None:
        """Open what a rule needs, so that errors come before work."""
        if call.name == "subnetwork":
            self._open(call.options["tuned"])
        if call.name in ("gradient", "fisher"):
            if call.name not in self.score:
                raise InputError(f"rule {call.name} needs scores: give data to compute them from")
            self._match(call.name, self.score[call.name])
        if call.name == "file":
            self._load(call.options["path"])

    def _open(self, source: str) -> None:
        if source not in self._tuned:
            found = open_checkpoint(source, allow_pickle=self.allow_pickle)
            side = bind(found, self.ground) if isinstance(found, AdapterCheckpoint) else found
            self._match(source, side)

    def _match(self, name: str, side: Checkpoint) -> None:
        pairs = {pair.part.tensor: pair for pair in align(self.ground, side).pairs}
        self._tuned[name] = side, pairs

    def _load(self, path: str) -> None:
        if path not in self.masks:
            from offaxis.masks.file import load

            self.masks[path] = load(path)
        self.masks[path].check(self.ground)

    def tuned(self, source: str, part: Part) -> torch.Tensor:
        side, pairs = self._tuned[source]
        if part.tensor not in pairs:
            raise InputError(
                f"{side.source} has no {part.tensor}, which the base has; give a checkpoint of the "
                "same model"
            )
        view = pairs[part.tensor].tuned
        return cut(side[view.name], view)

    def scores(self, kind: str, part: Part) -> torch.Tensor:
        return self.tuned(kind, part)

    def saved(self, source: str, view: View) -> Bits:
        mask = self.masks[source]
        return mask.bits[view.name] if view.slices is None else pack(cut(mask[view.name], view))
