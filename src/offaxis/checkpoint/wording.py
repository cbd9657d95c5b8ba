"""Checks of an alignment, and the words in which it is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from offaxis.checkpoint.types import Checkpoint
from offaxis.errors import AlignmentError
from offaxis.names import Piece, Rule, unwrap

__all__ = ["check_alike", "check_unique", "check_whole", "words"]

Couple = tuple[Piece, Piece]

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_FACTOR = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.|$)")
_REMEDY = "give the base that the tuned checkpoint was trained from"


def check_whole(checkpoint: Checkpoint) -> None:
    """Refuse loose adapter factors: a weight with its adapter beside it is not the tuned weight."""
    for name in checkpoint.specs:
        if _FACTOR.search(name):
            raise AlignmentError(
                f"{checkpoint.source}: holds the adapter tensor {name!r}, not merged weights; "
                "give the adapter directory together with its base (bind), or merge the adapter "
                "with PEFT (merge_and_unload)"
            )


def check_unique(checkpoint: Checkpoint, parts: Sequence[Piece]) -> None:
    """Two stored tensors must not be the same parameter (`a` and `_orig_mod.a`)."""
    seen: dict[str, Piece] = {}
    for piece in parts:
        twin = seen.setdefault(piece.key, piece)
        if twin is not piece:
            raise AlignmentError(
                f"{checkpoint.source}: {twin.label!r} and {piece.label!r} are the same parameter; "
                "save the model once, unwrapped"
            )


def check_alike(
    base: Checkpoint, tuned: Checkpoint, couples: Sequence[tuple[Piece, Piece | None]]
) -> None:
    """Refuse pairs that share no tensor, or that are different architectures."""
    named = [(one, other) for one, other in couples if other is not None]
    equal = sum(one.shape == other.shape for one, other in named)
    if not named:
        raise AlignmentError(
            f"{tuned.source} and {base.source} have no tensor in common: base has "
            f"{_example(base)}, tuned has {_example(tuned)}; {_REMEDY}"
        )
    unlike = [(one, other) for one, other in named if one.shape != other.shape]
    if len(unlike) > equal:
        raise AlignmentError(
            f"{tuned.source} is no tuned version of {base.source}: {len(unlike)} of {len(named)} "
            f"common tensors have different shapes, {_shapes(base, tuned, unlike[0])}; {_REMEDY}"
        )
    types = (base.config.get("model_type"), tuned.config.get("model_type"))
    if None in types or types[0] == types[1]:
        return
    total = sum(prod(one.shape) for one, _ in couples)
    shared = sum(prod(one.shape) for one, other in named if one.shape == other.shape)
    if 2 * shared < total:
        example = _shapes(base, tuned, (unlike or named)[0])
        raise AlignmentError(
            f"{tuned.source} ({types[1]}) and {base.source} ({types[0]}) are different "
            f"architectures: {shared} of the base's {total} parameters match, {example}; {_REMEDY}"
        )


def _example(checkpoint: Checkpoint) -> str:
    """One tensor with its shape and file, a matrix where there is one."""
    spec = max(checkpoint.specs.values(), key=lambda spec: len(spec.shape) == 2)
    return f"{spec.name!r} {spec.shape} in {spec.shard}"


def _shapes(base: Checkpoint, tuned: Checkpoint, couple: Couple) -> str:
    one, other = couple
    return (
        f"for example {one.label!r}: base {one.shape} in {base.specs[one.name].shard}, "
        f"tuned {other.shape} in {tuned.specs[other.name].shard}"
    )


def words(rules: Sequence[Rule], matched: Sequence[Couple]) -> str:
    """The renaming in words: `identity`, or what was done, joined by semicolons."""
    said = [*_wrappers(matched), *map(str, rules), *_layouts(matched)]
    return "; ".join(said) or "identity"


def _wrappers(matched: Sequence[Couple]) -> list[str]:
    said: dict[str, None] = {}
    for one, other in matched:
        if one.name == other.name or (unwrap(one.name), unwrap(other.name)) == (
            one.name,
            other.name,
        ):
            continue
        for token in _WRAPPERS:
            here, there = one.name.count(token), other.name.count(token)
            if here != there:
                said[f"{'strip' if there > here else 'add'} {token}"] = None
    return list(said)


def _layouts(matched: Sequence[Couple]) -> list[str]:
    said: dict[str, None] = {}
    names: Mapping[bool, str] = {True: "stacked", False: "single"}
    for one, other in matched:
        if one.place.expert is not None and one.drop_leading != other.drop_leading:
            said[f"{names[other.drop_leading]} -> {names[one.drop_leading]} experts"] = None
        elif (one.slices is None) != (other.slices is None):
            kinds = ("fused", "split") if other.slices is not None else ("split", "fused")
            said[f"{kinds[0]} -> {kinds[1]} projections"] = None
    return list(said)
