"""Sparse updates as flat buffers: for broadcasts, pickles, other processes and devices."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offaxis.delta.sparse import FlatBuffers, SparseTensor, SparseUpdate, apply_, diff
from offaxis.errors import InputError
from sparse_states import (
    clone,
    example,
    i32,
    same,
)


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
