"""Sparse updates between state dicts, in memory: which entries changed, and what they are now.

For sending weights from a trainer to rollout workers. An update is in *checkpoint coordinates*: a
tensor's name, full shape and dtype, flat row-major int32 indices of the entries that changed and
their new values, or the whole tensor where that is smaller: what vLLM's checkpoint patches and
verl's `delta_sharded` carry. Bits are compared and moved, never values. A sender keeps a snapshot,
sends `diff(snapshot, model.state_dict())`, and advances it by `apply_(snapshot, update)` once every
receiver has acknowledged, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32, Shaped
from torch import Tensor
from torch.nn.parameter import is_lazy

from offaxis.checkpoint.digest import checksum
from offaxis.checkpoint.dtypes import code_of
from offaxis.errors import DeltaError, InputError
from offaxis.kernels.pool import for_each

__all__ = ["FlatBuffers", "SparseTensor", "SparseUpdate", "apply_", "diff"]

State = Mapping[str, Tensor]
Sums = Mapping[str, str]
Device = str | torch.device

_INDEXABLE = 2**31 - 1  # entries; the indices of a larger tensor do not fit int32
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """What changed in one tensor.

    index: int32, (k,), row-major indices, strictly increasing; None where the tensor is *dense*.
    value: the new values in the tensor's dtype, (k,), or all of it in its shape where dense.
    changed: how many entries differ; k unless dense.
    """

    index: Int32[Tensor, " k"] | None
    value: Shaped[Tensor, "*k"]
    shape: tuple[int, ...]
    changed: int

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype


@dataclass(frozen=True, eq=False)
class FlatBuffers:
    """All changes of one dtype in two buffers, for two broadcasts.

    names, shapes, changed, dense: one of each a tensor, as in `SparseTensor`.
    index: int32, the indices of the sparse tensors end to end, each within its own tensor.
    value: all values end to end. Send `value.view(torch.uint8)` where a backend does not know its
    dtype (gloo: 16-bit integers, fp8).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    changed: tuple[int, ...]
    dense: tuple[bool, ...]
    index: Int32[Tensor, " i"]
    value: Shaped[Tensor, " v"]

    def like(self, device: Device) -> FlatBuffers:
        """The record with unfilled buffers on `device`: "meta" for a header to pickle and send
        ahead, and the receiver's `like("cuda")` of that for buffers to receive into.
        """
        index = torch.empty_like(self.index, device=device)
        return replace(self, index=index, value=torch.empty_like(self.value, device=device))


@dataclass(frozen=True, eq=False)
class SparseUpdate(Mapping[str, SparseTensor]):
    """What turns one state dict into another: the changed tensors, by name.

    base, tuned: XXH3-128 of every tensor's bytes before and after, unchanged ones included, as in
    a delta file; empty where no checksums were asked for.
    """

    tensors: Mapping[str, SparseTensor]
    base: Sums = field(default_factory=dict)
    tuned: Sums = field(default_factory=dict)

    def __getitem__(self, name: str) -> SparseTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def changed(self) -> int:
        """How many entries differ, over all tensors."""
        return sum(change.changed for change in self.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all index and value buffers."""
        buffers = (buffer for change in self.values() for buffer in (change.index, change.value))
        return sum(0 if buffer is None else buffer.nbytes for buffer in buffers)

    def flat(self, *, device: Device | None = None) -> tuple[FlatBuffers, ...]:
        """The changes as one record a dtype, on `device` or where its first tensor lies.

        The checksums are not in them: send `base` and `tuned` beside, if they are wanted.
        """
        kinds: dict[torch.dtype, dict[str, SparseTensor]] = {}
        for name, change in self.items():
            kinds.setdefault(change.dtype, {})[name] = change
        return tuple(_joined(changes, device) for changes in kinds.values())

    @classmethod
    def from_flat(
        cls, records: Iterable[FlatBuffers], *, base: Sums | None = None, tuned: Sums | None = None
    ) -> SparseUpdate:
        """The update that `flat` gave, its tensors in the order of the records.

        They are views of the buffers: apply the update before receiving into those again. Raises
        DeltaError where names, counts or indices do not fit together.
        """
        tensors: dict[str, SparseTensor] = {}
        for name, change in (part for record in records for part in _cut(record)):
            if name in tensors:
                raise DeltaError(f"tensor {name!r} is twice in the flat buffers; send it once")
            tensors[name] = change
        return cls(tensors, dict(base or {}), dict(tuned or {}))


def diff(
    base: State, tuned: State, *, dense_above: float | None = None, checksums: bool = False
) -> SparseUpdate:
    """What turns `base` into `tuned`, exact to the bit (NaN payloads, ±0), in the order of `tuned`.

    base, tuned: the same names, shapes and dtypes (any that safetensors and torch both have), any
    strides and devices. The update lies on the devices of `tuned`, in memory of its own.
    dense_above: the share of changed entries, in [0, 1], above which a tensor is sent whole; 0 for
    always, 1 for never (verl and vLLM take no mixture). By default where that is fewer bytes:
    above w / (w + 4) for entries of w bytes, a third for bfloat16. (No int32 indices reach into a
    tensor of 2³¹ entries: it is sent whole.)
    checksums: also digest all of `base` and what changed, so that `apply_` can tell a wrong base.

    Raises InputError where a tensor was added, removed, reshaped or cast (`offaxis.delta.pack`
    takes such pairs), is a DTensor or another wrapper, or where `base` is the memory of `tuned`.
    """
    if dense_above is not None and not 0 <= dense_above <= 1:
        raise InputError(f"dense_above {dense_above}: give a share of entries between 0 and 1")
    _check_pair(base, tuned)
    found = _map(lambda name: _change(base[name], tuned[name], dense_above), tuned, tuned)
    changes = {name: change for name, change in found.items() if change is not None}
    before = _map(lambda name: _checksum(base[name]), tuned if checksums else (), base)
    after = _map(lambda name: _checksum(tuned[name]), changes if checksums else (), tuned)
    return SparseUpdate(changes, before, before | after)


def apply_(state: State, update: SparseUpdate, *, check: bool = True) -> None:
    """Turn `state` into what `update` was made of, in place: wholly, or not at all.

    state: plain tensors, at least those that change, on any device: parameters, transposed or
    sliced views, tied ones; none may overlap itself.
    check: compare the base's checksums (of tensors that `state` has) before writing, and after it
    the result's, or else the values. Without, of two names that share memory the last one wins.

    All is validated before the first write, and a write that fails or comes out wrong is undone,
    for which the old values are kept: as much memory again as the update's values, beside them.
    Raises InputError where the update does not fit `state`, DeltaError where it is malformed, was
    made against another base, or does not give what it promises.
    """
    _check_fit(state, update)
    if check:
        _refuse(_unlike(state, update.base), "the update was made against another base")
    undo: list[tuple[Tensor, Tensor | None, Tensor]] = []
    try:
        for name, change in update.items():
            old = _read(state[name], change.index).to(change.value.device)
            undo.append((state[name], change.index, old))
            _write(state[name], change.index, _flat(change.value))
        if check:
            wrong = _unlike(state, update.tuned) + _unwritten(state, update)
            _refuse(wrong, "undone: the update is damaged, or tensors share memory here alone")
    except BaseException:
        for tensor, index, old in reversed(undo):
            _write(tensor, index, old)
        raise


def _flat(tensor: Shaped[Tensor, "*s"]) -> Int[Tensor, " n"]:
    """A tensor's bits as integers of its width, in row-major order; a copy only if need be."""
    return tensor.detach().view(_WORDS[tensor.itemsize]).reshape(-1).contiguous()


def _checksum(tensor: Tensor) -> str:
    return checksum(_flat(tensor).cpu().numpy().data)


def _map(one: Callable[[str], Any], names: Iterable[str], state: State) -> dict[str, Any]:
    """`one` of each name, over the pool's threads where all tensors are on the processor."""
    todo = list(names)
    each = for_each if all(state[name].is_cpu for name in todo) else map
    return dict(zip(todo, each(one, todo), strict=True))


def _change(base: Tensor, tuned: Tensor, dense_above: float | None) -> SparseTensor | None:
    before, after, shape, width = _flat(base), _flat(tuned), tuple(tuned.shape), tuned.itemsize
    here = before.is_cpu and after.is_cpu  # where numpy is 2 to 4 times as fast as torch, on a core
    mask: Any = before.numpy() != after.numpy() if here else before.to(after.device) != after
    count = int(np.count_nonzero(mask) if here else mask.count_nonzero())
    if not count:
        return None
    share = width / (width + 4) if dense_above is None else dense_above
    if count > share * after.numel() or after.numel() > _INDEXABLE:
        return SparseTensor(None, after.clone().view(tuned.dtype).view(shape), shape, count)
    index = torch.from_numpy(np.flatnonzero(mask)) if here else mask.nonzero().view(-1)
    value = after.index_select(0, index).view(tuned.dtype)
    return SparseTensor(index.to(torch.int32), value, shape, count)


def _joined(changes: Mapping[str, SparseTensor], device: Device | None) -> FlatBuffers:
    found = list(changes.values())
    at = found[0].value.device if device is None else device
    none = torch.empty(0, dtype=torch.int32, device=at)
    shapes, counts = tuple(one.shape for one in found), tuple(one.changed for one in found)
    dense = tuple(one.index is None for one in found)
    index = torch.cat([none, *(one.index.to(at) for one in found if one.index is not None)])
    value = torch.cat([_flat(one.value).to(at) for one in found]).view(found[0].dtype)
    return FlatBuffers(tuple(changes), shapes, counts, dense, index, value)


def _cut(record: FlatBuffers) -> list[tuple[str, SparseTensor]]:
    """The changes of a record, as views. Raises DeltaError where it contradicts itself."""
    found = []
    try:
        rows = list(zip(record.names, record.shapes, record.changed, record.dense, strict=True))
        listed = [0 if dense else changed for _, _, changed, dense in rows]
        sizes = [prod(shape) if dense else changed for _, shape, changed, dense in rows]
        parts = record.index.split_with_sizes(listed), record.value.split_with_sizes(sizes)
        for (name, shape, changed, dense), index, value in zip(rows, *parts, strict=True):
            whole = value.view(shape) if dense else value
            change = SparseTensor(None if dense else index, whole, tuple(shape), changed)
            _check_sound(name, change)
            found.append((name, change))
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeltaError(
            f"flat buffers of {len(record.names)} tensors do not fit their header: {error!s:.200}; "
            "send each header with its own buffers"
        ) from None
    return found


def _entries(tensor: Tensor, index: Tensor | None) -> tuple[Tensor, Any]:
    """A tensor's memory as integers, and the key of its entries at row-major `index`, or of all."""
    words = tensor.detach().view(_WORDS[tensor.itemsize])
    words = words.view(-1) if words.is_contiguous() else words
    if index is None:
        return words, ...
    wide = index.to(words.device, torch.int64)
    return words, wide if words.dim() == 1 else torch.unravel_index(wide, words.shape)


def _read(tensor: Tensor, index: Int32[Tensor, " k"] | None) -> Int[Tensor, " k"]:
    words, key = _entries(tensor, index)
    return words[key].clone(memory_format=torch.contiguous_format).view(-1)


def _write(tensor: Tensor, index: Int32[Tensor, " k"] | None, value: Int[Tensor, " k"]) -> None:
    words, key = _entries(tensor, index)
    words[key] = value.view(words.shape if index is None else -1).to(words.device)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")


def _check_plain(name: str, tensor: Any, where: str) -> None:
    if not isinstance(tensor, Tensor):
        problem = "; leave it out"
    elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        problem = ", which wraps others; of a DTensor give full_tensor() or to_local()"
    elif is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
        problem = " without entries in memory (lazy, meta or sparse); give a plain tensor"
    elif code_of(tensor.dtype) is None or tensor.is_conj() or tensor.is_neg():
        problem = f" of {tensor.dtype}, or a conjugate, not as safetensors holds them; convert it"
    else:
        return
    raise InputError(f"tensor {name!r} of {where} is a {type(tensor).__name__}{problem}")


def _check_alike(name: str, one: Tensor, other: Tensor | SparseTensor, sides: str) -> None:
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
        raise InputError(
            f"tensor {name!r}, {sides}: {one.dtype} {tuple(one.shape)} and {other.dtype} "
            f"{tuple(other.shape)}; both must be alike (offaxis.delta.pack takes any pair)"
        )


def _check_pair(base: State, tuned: State) -> None:
    for one, other, where in ((base, tuned, "base"), (tuned, base, "tuned")):
        if lone := [name for name in one if name not in other]:
            raise InputError(
                f"{len(lone)} tensors are in {where} alone: {_some(lone)}; give the same names on "
                "both sides (offaxis.delta.pack takes any pair)"
            )
    for name, new in tuned.items():
        _check_plain(name, base[name], "base")
        _check_plain(name, new, "tuned")
        _check_alike(name, base[name], new, "base and tuned")
    full = [name for name, new in tuned.items() if new.numel()]
    if full and all(base[name].data_ptr() == tuned[name].data_ptr() for name in full):
        raise InputError(
            "base and tuned are the same memory: a state dict follows its model; take the snapshot "
            "as {name: tensor.clone() for name, tensor in model.state_dict().items()}"
        )


def _check_sound(name: str, change: SparseTensor) -> None:
    """DeltaError where a change contradicts itself. Reads its indices once."""
    _check_plain(name, change.value, "the update")
    index, value, shape, count = change.index, change.value, tuple(change.shape), change.changed
    problem = ""
    if index is None:
        if tuple(value.shape) != shape or not 0 <= count <= value.numel():
            problem = f"dense values {tuple(value.shape)}"
    elif index.dtype != torch.int32 or not index.shape == value.shape == (count,):
        problem = f"{index.dtype} indices {tuple(index.shape)}, values {tuple(value.shape)}"
    elif not bool((index[1:] > index[:-1]).all()):
        problem = "indices that do not increase"
    elif count and (int(index[0]) < 0 or int(index[-1]) >= prod(shape)):
        problem = f"indices from {int(index[0])} to {int(index[-1])}"
    if problem:
        raise DeltaError(
            f"the update of tensor {name!r}, shape {shape}, {count} changed, has {problem}; "
            "int32 indices must increase within the tensor, with as many values: build it with diff"
        )


def _check_fit(state: State, update: SparseUpdate) -> None:
    if lost := [name for name in update if name not in state]:
        raise InputError(
            f"{len(lost)} tensors of the update are not in the state: {_some(lost)}; rename them, "
            "or apply the update to the model that it was made for"
        )
    for name in (name for name in (*update, *update.base, *update.tuned) if name in state):
        _check_plain(name, state[name], "the state")
    for name, change in update.items():
        _check_sound(name, change)
        _check_alike(name, state[name], change, "state and update")
        if _overlaps_itself(state[name]):
            raise InputError(
                f"tensor {name!r} of the state, shape {tuple(change.shape)}, strides "
                f"{state[name].stride()}, overlaps itself (expanded?); give a clone of it"
            )


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two entries may be one: expanded, or strided oddly; slices and transposes never."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _unlike(state: State, expected: Sums) -> list[str]:
    """The tensors of `state` that have other checksums."""
    known = [name for name in expected if name in state]
    found = _map(lambda name: _checksum(state[name]), known, state)
    return [name for name in known if found[name] != expected[name]]


def _unwritten(state: State, update: SparseUpdate) -> list[str]:
    """The tensors, of those without checksums, that do not hold the new values."""
    return [
        name
        for name, new in update.items()
        if name not in update.tuned
        and not torch.equal(_read(state[name], new.index).to(new.value.device), _flat(new.value))
    ]


def _refuse(wrong: list[str], problem: str) -> None:
    if wrong:
        raise DeltaError(
            f"{problem}; {len(wrong)} tensors have other bytes, {_some(wrong)}: load the sender's "
            "full weights, then go on with updates"
        )
