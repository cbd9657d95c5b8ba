"""Two gloo processes: the elastic leash and the probe on DTensors, and a leashed run under DDP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

PREAMBLE = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from transformers import AutoModelForCausalLM, AutoTokenizer
from kl_runs import BUNDLED, Gradients, column, make, prompts
from offaxis.evaluate import sequence_kl
from offaxis.live import LiveModel
from offaxis.lab.session import quiet_libraries
from offaxis.train.divergence import DivergenceCallback, Ends, _Probe, prompt_tokens, undisturbed
from offaxis.train.leash import leash_named
from offaxis.train.leash.ewc import EwcLeash
from offaxis.train.leash.fisher import diagonal_fisher, per_sample_loss
from offaxis.train.reference import Reference

torch.set_num_threads(1)
base, out = sys.argv[1], sys.argv[2]
child = os.fork()                  # after the imports, before any thread
rank = 0 if child else 1
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
               "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3]}
"""

END = """
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    assert os.waitpid(child, 0)[1] == 0, "the other process failed"
    print("both done", flush=True)
os._exit(0)
"""

SHARDED = """
dist.init_process_group("gloo")

def load():
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(one, DTensor) for one in model.parameters())
    return model

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

tokenizer = AutoTokenizer.from_pretrained(base)
ids = prompt_tokens(tokenizer, prompts(3))
samples = [(row, [7, 8, 9, 2][: at + 2]) for at, row in enumerate(ids)]

# The elastic leash: its Fisher information, its penalty and that one's gradient
single, model = load(), shard(load())
expected = diagonal_fisher(single, samples, loss=per_sample_loss)
found = diagonal_fisher(model, samples, loss=per_sample_loss)
one, two = EwcLeash(strength=3.0, scale="mean"), EwcLeash(strength=3.0, scale="mean")
one.take(single, expected)
two.take(model, found)
from offaxis.train.leash.ewc import _part, _whole
for name, parameter in model.named_parameters():
    assert found[name].numel() < parameter.numel()
    torch.testing.assert_close(_whole(found[name], parameter), expected[name], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(_part(expected[name], parameter), found[name], rtol=1e-4, atol=1e-9)
with torch.no_grad():
    for p, q in zip(single.parameters(), model.parameters(), strict=True):
        step = torch.linspace(-1, 1, p.numel()).reshape(p.shape) * 0.01
        p += step
        q._local_tensor += _part(step, q)
values = one.penalty(single), two.penalty(model)
assert not isinstance(values[1], DTensor)
assert values[0] > 0
torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=0)
for leash, net in ((one, single), (two, model)):
    ids0 = torch.tensor([ids[0]])
    loss = leash.penalty(net) + net(input_ids=ids0, labels=ids0).loss
    loss.backward()
for (name, p), q in zip(single.named_parameters(), model.parameters(), strict=True):
    assert isinstance(q.grad, DTensor)
    torch.testing.assert_close(whole(q.grad), p.grad, rtol=1e-3, atol=1e-6)
    p.grad = q.grad = None

# The probe: the same numbers, and the next training step as without it
fresh = shard(load())
sequence_kl(LiveModel(fresh, tokenizer, ""), LiveModel(single, tokenizer, ""), ids, [[7, 2]] * 3)
fresh(input_ids=ids0, labels=ids0).loss.backward()
reference = shard(load()), load()
ends = Ends.of(tokenizer)
numbers = []
for net, other in ((single, reference[1]), (model, reference[0])):
    probe = _Probe(net.train(), Reference("copy", other), ids, ends, 10, 0)
    numbers.append(probe.measure(4))
    assert all(module.training for module in net.modules())
for name, value in numbers[0].items():
    assert abs(numbers[1][name] - value) < 1e-4 * abs(value) + 1e-9, (name, numbers)
assert numbers[0]["kl_tuned_base"] > 1e-4
model(input_ids=ids0, labels=ids0).loss.backward()
single(input_ids=ids0, labels=ids0).loss.backward()
for p, q in zip(single.parameters(), model.parameters(), strict=True):
    assert isinstance(q, DTensor)
    torch.testing.assert_close(whole(q.grad), p.grad, rtol=1e-3, atol=1e-6)
"""

DDP = """
from pathlib import Path
from test_train_observed import PULL, Pull

base = Path(base)
for steps in (1, 2):
    seen = []
    for leash in (None, Pull()):
        gradients = Gradients()
        made = make("SFT", base, Path(out), gradients, leash=leash, rows=4 // steps,
                    gradient_accumulation_steps=steps, ddp_backend="gloo")
        start = {n: p.detach().clone() for n, p in made.model.named_parameters()}
        made.train()
        assert made.accelerator.num_processes == 2
        assert type(made.model_wrapped).__name__ == "DistributedDataParallel"
        seen.append(gradients.found)
    for name, theta in start.items():
        torch.testing.assert_close(seen[1][name] - seen[0][name], PULL * theta, rtol=1e-3,
                                   atol=1e-4 * PULL)

# A leashed and probed run: both processes hold the same weights, and read the same numbers
probe = DivergenceCallback(prompts(3), every=1, max_new_tokens=6)
leash = leash_named("ewc", strength=1.0, limit=3, max_new_tokens=6)
made = make("SFT", base, Path(out), probe, leash=leash, rows=2, max_steps=2, ddp_backend="gloo",
            save_strategy="steps", save_steps=1)
made.train()
told = [column(made, "kl_tuned_base"), column(made, "leash/penalty"),
        sum(float(p.double().sum()) for p in made.model.parameters()),
        sum(float(f.double().sum()) for f in leash._fisher.values())]
box = [told]
dist.broadcast_object_list(box, src=0)
assert box[0] == told, (box, told)
assert told[0][0] == 0.0 and told[0][-1] > 0 and len(told[0]) == 3
assert (Path(out) / "checkpoint-2" / "leash.safetensors").is_file()
alone = diagonal_fisher(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                        leash.samples, loss=per_sample_loss)
total = sum(float(f.double().sum()) for f in alone.values())
assert abs(total - told[3]) < 1e-4 * total
"""


@pytest.mark.slow
@pytest.mark.parametrize("body", [SHARDED, DDP], ids=["sharded", "ddp"])
def test_two_processes(body: str, small_base: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(PREAMBLE + body + END)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": here, "CUDA_VISIBLE_DEVICES": "",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(small_base), str(tmp_path / "run"), port],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=180)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert started.returncode == 0, said
    assert "both done" in said
