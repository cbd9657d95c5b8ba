"""Sparse updates of state dicts: exact, validated before the first write, undone when they fail."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, init_device_mesh

from offaxis.checkpoint.dtypes import WIDTHS, torch_dtype
from offaxis.delta import pack, sparse
from offaxis.delta.digest import checksum
from offaxis.delta.sparse import FlatBuffers, SparseTensor, SparseUpdate, apply_, diff
from offaxis.errors import DeltaError, InputError

State = dict[str, Tensor]

LAB = Path(sparse.__file__).parents[1] / "lab" / "base" / "model.safetensors"
DTYPES = [dtype for code in WIDTHS if (dtype := torch_dtype(code)) is not None]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (1, 5), (6, 4), (2, 3, 4), (2, 1, 3, 2)]
LAYOUTS = ("contiguous", "transposed", "sliced", "offset")


def raw(tensor: Tensor) -> np.ndarray:
    """A tensor's bytes, (entries, width), by another way than the module's."""
    width = tensor.element_size()
    plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().reshape(-1, width)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and np.array_equal(raw(one[n]), raw(other[n]))
        for n in one
    )


def clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def from_bytes(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data.copy().reshape(-1)).view(dtype).reshape(shape)


def laid_out(tensor: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same entries in other memory: the tensor, and the whole of that memory."""
    if layout == "transposed":
        turned = tuple(reversed(range(tensor.dim())))
        whole = tensor.permute(turned).clone(memory_format=torch.contiguous_format)
        return whole.permute(turned), whole
    if layout == "sliced" and tensor.dim():
        whole = torch.zeros([2 * size for size in tensor.shape], dtype=tensor.dtype)
        part = whole[tuple(slice(1, None, 2) for _ in tensor.shape)]
    elif layout == "offset" and tensor.dim():  # the second of two fused tensors
        whole = torch.zeros([2 * tensor.shape[0], *tensor.shape[1:]], dtype=tensor.dtype)
        part = whole[tensor.shape[0] :]
    else:
        whole = part = tensor.clone()
    part.copy_(tensor)
    return part, whole


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of random bits, alike in a random share of their entries."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (int(np.prod(shape)), torch.empty(0, dtype=dtype).element_size())
    top = 2 if dtype == torch.bool else 256
    base, drawn = (rng.integers(0, top, size, dtype=np.uint8) for _ in range(2))
    keep = rng.random((size[0], 1)) >= draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return from_bytes(base, dtype, shape), from_bytes(np.where(keep, base, drawn), dtype, shape)


@settings(max_examples=300, deadline=None)
@given(
    pair=pairs(),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    dense_above=st.sampled_from([None, 0, 0.3, 1]),
    checksums=st.booleans(),
    here=st.booleans(),
)
def test_round_trip(
    pair: tuple[Tensor, Tensor],
    layouts: tuple[str, str, str],
    dense_above: float | None,
    checksums: bool,
    here: bool,
) -> None:
    """Any bits, shape, layout: indices as brute force finds them, and apply gives tuned back.

    With `here` false the tensors pretend not to be on the processor, and take the path of a GPU.
    """
    base, tuned = pair
    before, _ = laid_out(base, layouts[0])
    after, _ = laid_out(tuned, layouts[1])
    with mock.patch.object(Tensor, "is_cpu", here):
        update = diff({"w": before}, {"w": after}, dense_above=dense_above, checksums=checksums)
    expected = np.flatnonzero((raw(base) != raw(tuned)).any(axis=1))
    assert update.changed == len(expected)
    assert list(update) == (["w"] if len(expected) else [])
    if len(expected):
        change = update["w"]
        width = base.element_size()
        share = width / (width + 4) if dense_above is None else dense_above
        assert (change.index is None) == (len(expected) > share * base.numel())
        assert (change.shape, change.dtype) == (tuple(base.shape), base.dtype)
        if change.index is not None:
            assert change.index.dtype == torch.int32
            assert change.index.tolist() == expected.tolist()
            assert np.array_equal(raw(change.value), raw(tuned)[expected])
    back = SparseUpdate.from_flat(update.flat(), base=update.base, tuned=update.tuned)
    for found in (update, back):
        target, whole = laid_out(base, layouts[2])
        apply_({"w": target}, found)
        assert np.array_equal(raw(target), raw(tuned))
        around = laid_out(tuned, layouts[2])[1]
        assert np.array_equal(raw(whole), raw(around)), "nothing beside the tensor was written"


def f32(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def test_signs_of_zero_and_nan_payloads_are_changes() -> None:
    base = f32(0x00000000, 0x7FC00000, 0x7FC00001, 0x7F800001, 0x3F800000)
    tuned = f32(0x80000000, 0x7FC00000, 0x7FC00002, 0x7F800002, 0x3F800000)
    update = diff({"w": base}, {"w": tuned}, dense_above=1)
    assert update["w"].index is not None
    assert update["w"].index.tolist() == [0, 2, 3]
    apply_({"w": base}, update)
    assert np.array_equal(raw(base), raw(tuned))


@pytest.mark.parametrize(
    ("dtype", "most"),  # of 120 entries: the break-even of values alone with indices and values
    [(torch.int8, 24), (torch.bfloat16, 40), (torch.float32, 60), (torch.float64, 80)],
)
def test_a_tensor_is_sent_whole_where_that_is_smaller(dtype: torch.dtype, most: int) -> None:
    base = torch.zeros(120, dtype=dtype)
    for count, dense in ((most, False), (most + 1, True)):
        tuned = base.clone()
        tuned[:count] = 1
        update = diff({"w": base}, {"w": tuned})
        assert (update["w"].index is None) == dense
        assert update["w"].changed == update.changed == count
        assert update.nbytes == (120 * dtype.itemsize if dense else count * (4 + dtype.itemsize))
        assert update.nbytes <= tuned.nbytes


def test_more_entries_than_int32_can_index_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.iinfo(torch.int32).max >= sparse._INDEXABLE
    monkeypatch.setattr(sparse, "_INDEXABLE", 10)
    base, tuned = torch.zeros(10), torch.zeros(11)
    update = diff(
        {"small": base, "large": tuned.clone(), "still": torch.zeros(11)},
        {"small": base + torch.eye(10)[0], "large": tuned + torch.eye(11)[0],
         "still": torch.zeros(11)},
        dense_above=1,
    )  # fmt: skip
    assert update["small"].index is not None
    assert update["large"].index is None
    assert set(update) == {"small", "large"}


def test_the_update_does_not_follow_the_model() -> None:
    for dense_above in (0, 1):
        base, tuned = {"w": torch.zeros(4)}, {"w": torch.tensor([0.0, 1, 0, 0])}
        update = diff(base, tuned, dense_above=dense_above)
        tuned["w"].fill_(7)
        apply_(base, update)
        assert base["w"].tolist() == [0, 1, 0, 0]


class Wrapped(Tensor):
    """A tensor whose own memory says nothing of its entries, as a DTensor's."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("no operation may reach it")


W = torch.zeros(2, 3)
WRAPPED = torch.Tensor._make_subclass(Wrapped, torch.zeros(2, 3))
LAZY = torch.nn.LazyLinear(3).weight


@pytest.mark.parametrize(
    ("base", "tuned", "words"),
    [
        ({"w": W}, {}, "1 tensors are in base alone: 'w'"),
        (
            {},
            {f"w{i}": W for i in range(5)},
            "5 tensors are in tuned alone: 'w0', 'w1', 'w2' and 2",
        ),
        ({"w": W}, {"w": W.T.clone()}, r"'w', .*\(2, 3\) and torch.float32 \(3, 2\).*delta.pack"),
        ({"w": W}, {"w": W.bfloat16()}, "torch.float32.* and torch.bfloat16"),
        ({"w": W}, {"w": WRAPPED}, "'w' of tuned is a Wrapped.*full_tensor"),
        ({"w": WRAPPED}, {"w": W}, "'w' of base is a Wrapped"),
        ({"w": LAZY}, {"w": W}, "'w' of base.*without entries"),
        ({"w": W}, {"w": W.to("meta")}, "without entries in memory"),
        ({"w": W}, {"w": W.to_sparse()}, "without entries in memory"),
        ({"w": W}, {"w": W.to(torch.complex64).conj()}, "conjugate"),
        ({"w": W}, {"w": W.to(torch.complex64).conj().imag}, "conjugate"),
        ({"w": W.to(torch.complex128)}, {"w": W.to(torch.complex128)}, "torch.complex128"),
        ({"w": W}, {"w": [1, 2]}, "is a list; leave it out"),
        ({"w": W}, {"w": W}, "the same memory.*clone"),
        ({"w": W}, {"w": W.detach()}, "the same memory"),
    ],
)
def test_pairs_that_cannot_be_compared(base: State, tuned: State, words: str) -> None:
    with pytest.raises(InputError, match=words):
        diff(base, tuned)


def test_a_dtensor_is_refused() -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        shard = DTensor.from_local(W.clone(), init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match=r"'w' of tuned is a DTensor.*full_tensor\(\)"):
            diff({"w": W}, {"w": shard})
        with pytest.raises(InputError, match=r"'w' of the state is a DTensor.*to_local\(\)"):
            apply_({"w": shard}, diff({"w": W}, {"w": W + 1}))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        diff({"w": W}, {"w": W + 1}, dense_above=share)


def test_tensors_may_be_shared_while_others_are_not() -> None:
    update = diff({"w": W, "v": W}, {"w": W, "v": W + 1})
    assert list(update) == ["v"]
    assert len(diff({}, {})) == len(diff({"w": torch.empty(0)}, {"w": torch.empty(0)})) == 0


# Applying


def example() -> tuple[State, State]:
    """A state and its successor: sparse, dense, unchanged, narrow, scalar, transposed tensors."""
    drawn = torch.Generator().manual_seed(3)
    base = {
        "sparse": torch.randn(8, 9, generator=drawn).bfloat16(),
        "dense": torch.randn(5, generator=drawn),
        "still": torch.randn(4, generator=drawn),
        "bool": torch.zeros(30, dtype=torch.bool),
        "scalar": torch.tensor(3),
        "count": torch.arange(9, dtype=torch.int32),
        "turned": torch.randn(6, 7, generator=drawn).T,
    }
    tuned = clone(base)
    tuned["sparse"][[1, 7], [0, 8]] += 1
    tuned["dense"] += 1
    tuned["bool"][29] = True
    tuned["scalar"] += 1
    tuned["count"][4] = -1
    tuned["turned"][2, :3] = -0.0
    return base, tuned


def spoiled(**fields: Any) -> Callable[[SparseUpdate], SparseUpdate]:
    """The update with fields of its *last* tensor replaced."""

    def spoil(update: SparseUpdate) -> SparseUpdate:
        return replace(update, tensors={**update, "turned": replace(update["turned"], **fields)})

    return spoil


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def with_sums(which: str, name: str) -> Callable[[SparseUpdate], SparseUpdate]:
    return lambda update: replace(update, **{which: {**getattr(update, which), name: "0" * 32}})


BAD_UPDATES: dict[str, tuple[Callable[[SparseUpdate], SparseUpdate], str]] = {
    "name": (lambda u: SparseUpdate({**u, "no": u["turned"]}), "1 tensors .* not in the state"),
    "shape": (spoiled(shape=(6, 7)), r"'turned'.*\(7, 6\).*\(6, 7\)"),
    "dtype": (spoiled(value=torch.zeros(3, dtype=torch.float64)), "torch.float64"),
    "index dtype": (spoiled(index=torch.tensor([0, 1, 2])), "torch.int64 indices"),
    "index 2-D": (spoiled(index=i32(0, 1, 2)[None]), r"indices \(1, 3\)"),
    "values 2-D": (spoiled(value=torch.zeros(3, 1)), r"values \(3, 1\)"),
    "falling": (spoiled(index=i32(0, 3, 2)), "do not increase"),
    "twice": (spoiled(index=i32(0, 2, 2)), "do not increase"),
    "negative": (spoiled(index=i32(-1, 1, 2)), "indices from -1 to 2"),
    "beyond": (spoiled(index=i32(0, 1, 42)), r"'turned', shape \(7, 6\).*indices from 0 to 42"),
    "few values": (spoiled(value=torch.zeros(2)), r"values \(2,\)"),
    "few indices": (spoiled(index=i32(0, 1)), r"indices \(2,\)"),
    "count": (spoiled(changed=2), "2 changed"),
    "dense shape": (spoiled(index=None, value=torch.zeros(6, 7)), r"dense values \(6, 7\)"),
    "dense count": (spoiled(index=None, value=torch.zeros(7, 6), changed=43), "43 changed"),
    "base": (with_sums("base", "turned"), "another base; 1 tensors.*'turned'.*full weights"),
    "base of a still one": (with_sums("base", "still"), "another base; 1 tensors.*'still'"),
    "tuned": (with_sums("tuned", "turned"), "undone.*'turned'"),
    "tuned of a still one": (with_sums("tuned", "still"), "undone.*'still'"),
}


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_changes_nothing(kind: str) -> None:
    spoil, words = BAD_UPDATES[kind]
    base, tuned = example()
    state = clone(base)
    sound = diff(base, tuned, checksums=True)
    assert list(sound)[-1] == "turned", "all others would have been written before it"
    with pytest.raises(InputError, match=words) as caught:
        apply_(state, spoil(sound))
    fits = kind in ("name", "shape", "dtype")
    assert isinstance(caught.value, DeltaError) != fits
    assert same(state, base)
    apply_(state, sound)
    assert same(state, tuned), "and the sound update still applies"


def test_the_same_spoiled_tuned_checksum_goes_unseen_without_check() -> None:
    base, tuned = example()
    apply_(base, with_sums("tuned", "turned")(diff(base, tuned, checksums=True)), check=False)
    assert same(base, tuned)


BAD_STATES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "expanded": (lambda t: t[:1].expand(7, 6), "overlaps itself"),
    "unfolded": (lambda t: torch.zeros(12).unfold(0, 6, 1), r"strides \(1, 1\), overlaps itself"),
    "reshaped": (lambda t: t.reshape(6, 7), r"\(6, 7\)"),
    "cast": (lambda t: t.double(), "torch.float64"),
    "wrapped": (lambda t: torch.Tensor._make_subclass(Wrapped, t.clone()), "Wrapped"),
    "no tensor": (lambda t: t.tolist(), "list"),
    "meta": (lambda t: t.to("meta"), "without entries"),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_that_does_not_fit_is_not_changed(kind: str) -> None:
    make, words = BAD_STATES[kind]
    base, tuned = example()
    update = diff(base, tuned)
    state: dict[str, Any] = clone(base)
    state["turned"] = make(base["turned"])
    with pytest.raises(InputError, match=words):
        apply_(state, update)
    state["turned"] = base["turned"]
    assert same(state, base)


@pytest.mark.parametrize("stop", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_write_that_fails_midway_is_undone(stop: BaseException) -> None:
    base, tuned = example()
    state, update = clone(base), diff(base, tuned)
    write, todo = sparse._write, [*range(3)]

    def failing(tensor: Tensor, index: Any, value: Tensor) -> None:
        write(tensor, index, value)
        if todo and todo.pop() == 0:
            assert not same(state, base)
            raise stop

    with (
        mock.patch.object(sparse, "_write", failing),
        pytest.raises(type(stop)),
    ):
        apply_(state, update)
    assert not todo
    assert same(state, base)


@pytest.mark.parametrize("checksums", [False, True])
def test_a_chain_of_updates(checksums: bool) -> None:
    first, second = example()
    third = clone(second)
    third["sparse"][0] = 0
    third["still"][1] += 1
    state = clone(first)
    updates = [diff(first, second, checksums=checksums), diff(second, third, checksums=checksums)]
    apply_(state, updates[0])
    assert same(state, second)
    apply_(state, updates[1])
    assert same(state, third)


def test_the_wrong_base_is_refused_only_with_checksums() -> None:
    base, tuned = example()
    drifted = clone(base)
    drifted["still"][0] += 1  # not even among what changes
    kept = clone(drifted)
    with pytest.raises(DeltaError, match="another base; 1 tensors have other bytes, 'still'"):
        apply_(drifted, diff(base, tuned, checksums=True))
    assert same(drifted, kept)
    apply_(drifted, diff(base, tuned, checksums=True), check=False)
    assert not same(drifted, tuned)
    apply_(kept, diff(base, tuned))
    assert same(kept, drifted)


def test_a_state_may_hold_more_or_less_than_the_checksums_name() -> None:
    base, tuned = example()
    update = diff(base, tuned, checksums=True)
    assert set(update.base) == set(update.tuned) == set(base)
    state = {**clone(base), "more": torch.ones(1)}
    del state["still"]
    apply_(state, update)
    assert same({n: state[n] for n in update}, {n: tuned[n] for n in update})


# Memory that is shared


def fused(scale: float) -> State:
    """Tied embeddings, and a fused projection beside its first part, as transposed views."""
    embed, qkv = torch.arange(12.0).reshape(4, 3), torch.arange(12.0).reshape(2, 6).T
    embed[1, 2] *= scale
    qkv[1] *= scale
    return {"embed": embed, "head": embed, "qkv": qkv, "q": qkv[:2]}


@pytest.mark.parametrize("dense_above", [0, None, 1])
@pytest.mark.parametrize("checksums", [False, True])
def test_tied_tensors_end_right(dense_above: float | None, checksums: bool) -> None:
    state, tuned = fused(1), fused(2)
    update = diff(state, tuned, dense_above=dense_above, checksums=checksums)
    assert set(update) == set(state)
    apply_(state, update)
    assert same(state, tuned)
    assert state["embed"] is state["head"]
    del update.tensors["head"]  # type: ignore[attr-defined]
    back = fused(1)
    apply_(back, replace(update, base={}, tuned={}))
    assert same(back, tuned), "one name moves both, as where the sender left the other out"


@pytest.mark.parametrize("checksums", [False, True])
def test_tied_tensors_that_want_different_values(checksums: bool) -> None:
    apart, tuned = clone(fused(1)), clone(fused(2))
    tuned["head"][1, 2] = 99
    update = diff(apart, tuned, checksums=checksums)
    state = fused(1)
    with pytest.raises(DeltaError, match=r"undone.*share memory.*'embed'"):
        apply_(state, update)
    assert same(state, fused(1))
    apply_(apart, update)
    assert same(apart, tuned)


def test_a_tied_tensor_that_should_stay_needs_checksums() -> None:
    apart, tuned = clone(fused(1)), clone(fused(1))
    tuned["embed"][0] = 99
    state = fused(1)
    with pytest.raises(DeltaError, match=r"undone.*'head'"):
        apply_(state, diff(apart, tuned, checksums=True))
    assert same(state, fused(1))


# Live models


def test_a_live_model_takes_the_update() -> None:
    torch.manual_seed(0)
    model, twin = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
                   for _ in range(2))  # fmt: skip
    twin.load_state_dict(model.state_dict())
    snapshot = clone(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    update = diff(snapshot, model.state_dict(), checksums=True)
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked"} <= set(update)
    apply_(twin.state_dict(), update)
    assert same(twin.state_dict(), model.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    twin(x).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_parameters_are_written_and_autograd_notices() -> None:
    layer = torch.nn.Linear(3, 3, bias=False)
    state = dict(layer.named_parameters())
    tuned = {"weight": layer.weight.detach() + 1}
    loss = layer(torch.randn(2, 3, requires_grad=True)).sum()
    apply_(state, diff(clone(state), tuned))
    assert same(clone(state), tuned)
    assert layer.weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_are_written() -> None:
    with torch.inference_mode():
        state = {"w": torch.zeros(3, 2).T, "v": torch.zeros(2), "s": torch.zeros(9)}
    tuned = {"w": torch.eye(2, 3), "v": torch.ones(2), "s": torch.eye(9)[4]}
    for within in (True, False):
        with torch.inference_mode(within):
            update = diff(state, tuned, checksums=True)
            apply_(state, update)
            assert same(state, tuned)
        tuned = {name: tensor + 1 for name, tensor in tuned.items()}


def test_two_checkpoints_of_the_lab(tmp_path: Path) -> None:
    """The packed file and the update count the same changes, and carry the same checksums."""
    base = load_file(LAB)
    tuned = clone(base)
    drawn = torch.Generator().manual_seed(5)
    for tensor in tuned.values():
        moved = torch.rand(tensor.shape, generator=drawn) < 0.02
        tensor.view(torch.int16)[moved] += 1  # one ULP
    save_file(tuned, tmp_path / "tuned.safetensors")
    update = diff(base, tuned, checksums=True)
    packed = pack(LAB, tmp_path / "tuned.safetensors", out=tmp_path / "delta", codec="fast")
    assert 0.015 < update.changed / sum(t.numel() for t in base.values()) < 0.025
    assert update.changed == packed["changed"]
    assert update.nbytes == 6 * update.changed
    assert update.tuned == {n: checksum(raw(t).tobytes()) for n, t in tuned.items()}
    assert same(load_file(LAB), base), "diff leaves its arguments alone"
    apply_(base, update)
    assert same(base, load_file(tmp_path / "tuned.safetensors"))


# Flat buffers


def test_flat_buffers_are_one_record_a_dtype() -> None:
    base, tuned = example()
    update = diff(base, tuned)
    records = update.flat()
    assert [record.value.dtype for record in records] == [
        torch.bfloat16, torch.float32, torch.bool, torch.int64, torch.int32]  # fmt: skip
    floats = records[1]
    assert floats.names == ("dense", "turned")
    assert floats.shapes == ((5,), (7, 6))
    assert floats.changed == (5, 3)
    assert floats.dense == (True, False)
    assert floats.index.tolist() == [12, 13, 14]
    assert floats.value.tolist() == [*tuned["dense"].tolist(), 0, 0, 0]
    assert sum(r.index.nbytes + r.value.nbytes for r in records) == update.nbytes
    assert SparseUpdate({}).flat() == ()
    assert len(SparseUpdate.from_flat(())) == 0


def test_updates_and_buffers_survive_pickling() -> None:
    base, tuned = example()
    update = diff(base, tuned, checksums=True)
    again = pickle.loads(pickle.dumps(update))
    assert (again.base, again.tuned, again.changed) == (update.base, update.tuned, update.changed)
    records = pickle.loads(pickle.dumps(update.flat()))
    back = SparseUpdate.from_flat(records, base=update.base, tuned=update.tuned)
    for found in (again, back):
        state = clone(base)
        apply_(state, found)
        assert same(state, tuned)


def test_a_header_is_small_and_makes_buffers_to_receive_into() -> None:
    update = diff({"w": torch.zeros(10**6)}, {"w": torch.ones(10**6)})
    (sent,) = update.flat()
    header = pickle.dumps(sent.like("meta"))
    assert len(header) < 2000
    received = pickle.loads(header).like("cpu")
    assert received.names == sent.names
    assert (received.value.dtype, received.value.shape) == (sent.value.dtype, sent.value.shape)
    assert (received.index.dtype, received.index.shape) == (torch.int32, sent.index.shape)


RECORD = FlatBuffers(("a", "b"), ((2, 2), (9,)), (4, 2), (True, False), i32(3, 8), torch.zeros(6))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"names": ("a", "a")}, "'a' is twice"),
        ({"names": ("a",)}, "1 tensors do not fit their header.*longer"),
        ({"shapes": ((2, 2),)}, "do not fit their header"),
        ({"shapes": ((2, 3), (9,))}, "do not fit their header.*6"),
        ({"shapes": ((-2, -2), (9,))}, "do not fit their header|dense values"),
        ({"shapes": ((2, 2), (8,))}, "'b', shape .8,.*from 3 to 8"),
        ({"changed": (5, 2)}, "'a', shape .2, 2., 5 changed"),
        ({"changed": (4, 3)}, "do not fit their header"),
        ({"changed": (4, -2)}, "do not fit their header"),
        ({"changed": (4, "2")}, "do not fit their header"),
        ({"dense": (False, False)}, "do not fit their header"),
        ({"index": torch.tensor([3, 8])}, "torch.int64 indices"),
        ({"index": i32(3, 8, 8)}, "do not fit their header"),
        ({"index": i32(8, 3)}, "do not increase"),
        ({"value": torch.zeros(6, 1)}, "dense values|values .2, 1|do not fit"),
        ({"value": torch.zeros(5)}, "do not fit their header"),
        ({"value": torch.zeros(6, device="meta")}, "without entries"),
    ],
)
def test_buffers_that_do_not_fit_their_header(fields: dict[str, Any], words: str) -> None:
    assert list(SparseUpdate.from_flat([RECORD])) == ["a", "b"]
    with pytest.raises(InputError, match=re.compile(words, re.DOTALL)):
        SparseUpdate.from_flat([replace(RECORD, **fields)])


def test_extents_of_one_may_have_any_stride() -> None:
    state = {"w": torch.zeros(()).expand(1)}
    apply_(state, diff({"w": torch.zeros(1)}, {"w": torch.ones(1)}))
    assert state["w"].tolist() == [1]


def test_hand_made_updates_apply() -> None:
    """As one builds them from what another framework sends."""
    patch = SparseTensor(i32(1, 5), torch.tensor([7.0, 8.0]), (2, 3), 2)
    state = {"w": torch.zeros(3, 2).T}
    apply_(state, SparseUpdate({"w": patch}))
    assert state["w"].tolist() == [[0, 7, 0], [0, 0, 8]]


WORKER = """
import os, sys
import torch
import torch.distributed as dist
from offaxis.delta.sparse import SparseUpdate, apply_, diff

torch.set_num_threads(1)
child = os.fork()                  # after the imports, before any thread
rank = 0 if child else 1
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)

def model(step):
    drawn = torch.Generator().manual_seed(1)
    state = {
        "w": torch.randn(64, 32, generator=drawn).bfloat16(),
        "q": torch.randn(16, 8, generator=drawn).to(torch.float8_e4m3fn).T,
        "b": torch.randn(9, generator=drawn),
        "n": torch.tensor(4, dtype=torch.int16),
        "same": torch.ones(3),
    }
    for _ in range(step):
        state["w"].view(torch.int16)[::5, ::7] += 1
        state["q"].view(torch.int8)[3, 4] ^= 1
        state["b"] += 1
        state["n"] += 1
    return state

state = model(0)                   # the trainer's snapshot, or the worker's weights
for step in (1, 2):
    update = diff(state, model(step), checksums=True) if rank == 0 else None
    records = update.flat() if rank == 0 else ()
    sent = [[record.like("meta") for record in records], update and (update.base, update.tuned)]
    dist.broadcast_object_list(sent, src=0)
    if rank:
        records = [header.like("cpu") for header in sent[0]]
    for record in records:
        dist.broadcast(record.index, src=0)
        dist.broadcast(record.value.view(torch.uint8), src=0)
    if rank:
        update = SparseUpdate.from_flat(records, base=sent[1][0], tuned=sent[1][1])
        apply_(state, update)
    dist.barrier()                 # the acknowledgement
    if rank == 0:
        apply_(state, update)
for name, tensor in model(2).items():
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]
    assert torch.equal(state[name].view(bits), tensor.view(bits)), name
dist.destroy_process_group()
if rank == 0:
    assert os.waitpid(child, 0)[1] == 0, "the worker failed"
    print("both done", flush=True)
os._exit(0)                        # the interpreter's own end takes a second
"""


def test_two_processes_broadcast_an_update(tmp_path: Path) -> None:
    """A trainer and a worker over gloo, two steps: fp8, bf16, int16, sparse, dense and turned."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "store")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert started.returncode == 0, said
    assert said.splitlines()[-1] == "both done"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("devices", [("cuda", "cuda", "cuda"), ("cpu", "cuda", "cpu"),
                                     ("cuda", "cpu", "cuda")])  # fmt: skip
def test_devices_may_differ(devices: tuple[str, str, str]) -> None:
    base, tuned = example()
    sides = zip(devices, (base, tuned, base), strict=True)
    one, other, state = ({n: t.to(device) for n, t in side.items()} for device, side in sides)
    update = diff(one, other, checksums=True)
    assert all(change.value.device.type == devices[1] for change in update.values())
    back = SparseUpdate.from_flat(update.flat(), base=update.base, tuned=update.tuned)
    apply_(state, back)
    assert same(state, tuned)
