"""Applying sparse updates: validated before the first write, undone when anything fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offaxis.checkpoint.digest import checksum
from offaxis.delta import pack, sparse
from offaxis.delta.sparse import SparseUpdate, apply_, diff
from offaxis.errors import DeltaError, InputError
from sparse_states import (
    LAB,
    State,
    Wrapped,
    clone,
    example,
    i32,
    raw,
    same,
)


def spoiled(**fields: Any) -> Callable[[SparseUpdate], SparseUpdate]:
    """The update with fields of its *last* tensor replaced."""

    def spoil(update: SparseUpdate) -> SparseUpdate:
        return replace(update, tensors={**update, "turned": replace(update["turned"], **fields)})

    return spoil


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
