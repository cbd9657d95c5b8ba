"""From a base and a rule to a mask, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from typing import Any, TypeVar

import numpy as np
import torch

from offaxis.checkpoint import AdapterCheckpoint, Checkpoint, PartPair, align, open_checkpoint
from offaxis.checkpoint.align import cut
from offaxis.errors import InputError
from offaxis.kernels import unpack
from offaxis.kernels.pool import in_order, threads
from offaxis.masks.expression import Given, Node, filled, parse
from offaxis.masks.mask import Bits, Mask, Origin, origin_of, put_flags
from offaxis.masks.side import Elsewhere, Side, plain
from offaxis.masks.sources import Sources

__all__ = ["AnyPath", "Progress", "build", "ground_of", "matrices", "over_parts"]

AnyPath = str | PathLike[str]
Result = TypeVar("Result")

_AT_HAND = ""
"""The name of a mask that comes from no file."""
_WORKING_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Progress:
    """Told to a progress callback after each tensor: `done` of `total` entries, and its name."""

    done: int
    total: int
    tensor: str


def build(
    base: AnyPath | Checkpoint,
    rule: str,
    *,
    scores: Mapping[str, Checkpoint] | None = None,
    like: Mask | str | None = None,
    allow_pickle: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Mask:
    """The mask of a base's matrices that a rule selects.

    rule: an expression of the rules in `RULES` (`principal`, `low_magnitude(threshold='mean') |
    ~principal`, `random(like=safe)`). options: `alpha`, `rank`, `density`, `seed`, ..., for all
    rules in it that take them and do not say otherwise. like: a mask, or a rule, for `random` and
    `magnitude_random`. scores: for `gradient` and `fisher`, tensors under the base's names.
    base: a checkpoint, open or named; a few tensors are read at a time.

    The rule and its options are recorded in `Mask.rule` as an expression that makes the same mask
    again, with the same seed on every machine, whatever the sharding (`principal` and `lift` but
    for entries within 1e-12 of their threshold).
    Raises InputError for a rule that cannot be read and a checkpoint that does not fit,
    CheckpointError for one that cannot be read.
    """
    ground = ground_of(base, allow_pickle=allow_pickle)
    node = filled(parse(rule), options | {"like": _like(like)})
    parts = matrices(ground)
    sources = Sources(ground, parts, scores=scores or {}, allow_pickle=allow_pickle)
    if isinstance(like, Mask):
        sources.give(_AT_HAND, like)
    for call in node.calls():
        sources.provide(call)

    def one(name: str) -> tuple[Bits, Origin]:
        stored = ground[name]
        bits = _tensor(node, stored, parts[name], sources)
        return bits, origin_of(stored, ground.specs[name].dtype)

    found = dict(_over_tensors(one, ground, parts, sources, progress))
    return Mask(
        {name: bits for name, (bits, _) in found.items()},
        {name: ground.specs[name].shape for name in found},
        {name: origin for name, (_, origin) in found.items()},
        str(node),
    )


def ground_of(base: AnyPath | Checkpoint, *, allow_pickle: bool = False) -> Checkpoint:
    """The base, opened. InputError for an adapter, which is none."""
    ground = base if isinstance(base, Checkpoint) else open_checkpoint(
        fspath(base), allow_pickle=allow_pickle
    )  # fmt: skip
    if isinstance(ground, AdapterCheckpoint):
        raise InputError(f"{ground.source} is an adapter; a mask is made from the model it is for")
    return ground


def _like(like: Mask | str | None) -> Node | None:
    if isinstance(like, Mask):
        return Given(_AT_HAND, like.rule)
    return None if like is None else parse(like)


def matrices(ground: Checkpoint) -> dict[str, list[PartPair]]:
    """Stored tensor -> its parts, for tensors all of whose parts are matrices. InputError if none.

    In natural order of the names; parts in the order in which they lie in the tensor.
    """
    found: dict[str, list[PartPair]] = {}
    for pair in align(ground, ground).pairs:
        found.setdefault(pair.base.name, []).append(pair)
    found = {
        name: pairs for name, pairs in found.items() if all(one.part.is_matrix for one in pairs)
    }
    if not found:
        raise InputError(f"{ground.source} has no matrices; a mask selects entries of matrices")
    return found


def _workers(parts: Mapping[str, list[PartPair]]) -> tuple[int, int]:
    """How many tensors are worked on at once, and how many BLAS threads each gets: as `compare`.

    Each holds up to five float64 copies of one matrix; the number at once is cut until they fit
    into 2 GB.
    """
    largest = max(prod(pair.part.shape) for pairs in parts.values() for pair in pairs)
    fit = max(1, _WORKING_BYTES // (5 * 8 * largest))
    workers = max(1, min(threads(), 4, fit))
    return workers, max(1, threads() // workers)


def _over_tensors(
    function: Callable[[str], Result],
    ground: Checkpoint,
    parts: Mapping[str, list[PartPair]],
    sources: Sources,
    progress: Callable[[Progress], None],
) -> Iterator[tuple[str, Result]]:
    """(name, `function(name)`) for every tensor, in order, several at work at once.

    Sharded tensors are read where all processes take part: one after the other, on this thread.
    """
    workers, blas = _workers(parts)
    done, total = 0, sum(ground.specs[name].numel for name in parts)

    def one(name: str) -> Result:
        torch.set_num_threads(blas)  # of the calling thread, and of threads born later
        return function(name)

    before = torch.get_num_threads()
    try:
        results = map(one, parts) if sources.collective else in_order(one, parts, workers)
        for name, result in zip(parts, results, strict=True):
            yield name, result
            done += ground.specs[name].numel
            progress(Progress(done, total, name))
    finally:
        torch.set_num_threads(before)


def over_parts(
    function: Callable[[Side], Result],
    ground: Checkpoint,
    parts: Mapping[str, list[PartPair]],
    *,
    elsewhere: Sources,
    progress: Callable[[Progress], None],
) -> Iterator[Result]:
    """`function` of every matrix of the base, in order."""

    def one(name: str) -> list[Result]:
        stored = ground[name]
        return [function(_side(stored, pair, elsewhere)) for pair in parts[name]]

    for _, results in _over_tensors(one, ground, parts, elsewhere, progress):
        yield from results


def _side(stored: torch.Tensor, pair: PartPair, elsewhere: Elsewhere) -> Side:
    return Side(pair.part, pair.base, plain(cut(stored, pair.base)), elsewhere)


def _tensor(node: Node, stored: torch.Tensor, pairs: list[PartPair], elsewhere: Elsewhere) -> Bits:
    """The packed mask of one stored tensor, put together from its parts."""

    def bits(pair: PartPair) -> Bits:
        return node.bits(_side(stored, pair, elsewhere))

    if pairs[0].base.slices is None:
        return bits(pairs[0])
    out = np.zeros(-(-stored.numel() // 8), np.uint8)
    for start, shape, inside in _blocks(tuple(stored.shape), pairs):
        flags = np.zeros(shape, np.bool_)
        for pair in inside:
            slices = (pair.base.slices or ())[-len(shape) :]
            where = tuple(slice(begin, end) for begin, end in slices)
            flags[where] = unpack(bits(pair), pair.part.shape)
        put_flags(out, start, flags)
    return out


def _blocks(
    shape: tuple[int, ...], pairs: list[PartPair]
) -> Iterator[tuple[int, tuple[int, ...], list[PartPair]]]:
    """(first entry, shape, parts) of each expert of a stack, or of the whole of another tensor."""
    if not pairs[0].base.drop_leading:
        yield 0, shape, pairs
        return
    by_expert: dict[int, list[PartPair]] = {}
    for pair in pairs:
        by_expert.setdefault((pair.base.slices or ())[0][0], []).append(pair)
    for expert, inside in by_expert.items():
        yield expert * prod(shape[1:]), shape[1:], inside
