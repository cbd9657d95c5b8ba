"""Sparse updates of state dicts, exact to the bit: what differs, and what cannot be compared."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import DTensor, init_device_mesh

from offaxis.delta import sparse
from offaxis.delta.sparse import SparseUpdate, apply_, diff
from offaxis.errors import InputError
from sparse_states import (
    LAYOUTS,
    State,
    Wrapped,
    f32,
    laid_out,
    pairs,
    raw,
)


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
