"""Scenes of two processes, started by `accelerate launch`, under DDP or FSDP2.

`accelerate` asks for FSDP2 on GPUs alone: on a CPU it takes DDP instead, and does not say so. With
`--force`, three of its answers are changed (the kind of processes, their device, their barrier),
and its own code and transformers' then shard the model on a gloo mesh, as they would on NCCL.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from witness import NOT_SAMPLED, play, rank, trained

from offaxis.verifiers import integer_reward

ADAPTIVE = {"leash": "adaptive", "leash_options": {"target": 0.01, "beta": 0.1}, "kl_every": 2,
            "kl_prompts": 4}  # fmt: skip


class Recorder:
    """The integer reward, and what it said in this process, batch by batch."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.said: list[list[float]] = []

    def __call__(self, completions: Any, answer: Any, **_: Any) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        self.said.append([integer_reward(text, int(right)) for text, right in pairs])
        return self.said[-1]


def groups_across(method: str, rows: int) -> Any:
    """Rewards and advantages of each process."""

    def scene(out: Path) -> dict[str, Any]:
        recorder = Recorder()
        told = trained(method, out, reward_funcs=[recorder], per_device_train_batch_size=rows)
        return {**told, "rewards": recorder.said}

    return scene


class OneSided:
    """Differs within every group where `live`, and nowhere else; counts its batches."""

    __name__ = "one_sided"

    def __init__(self, *, by_row: bool) -> None:
        self.by_row = by_row
        self.live: list[list[bool]] = []

    def __call__(self, completions: Any, live: Any, **_: Any) -> list[float]:
        self.live.append([bool(one) for one in live] if self.by_row else [rank() == 0] * len(live))
        return [float(at % 2 and one) for at, one in enumerate(self.live[-1])]


def one_sided(*, by_row: bool) -> Any:
    """DAPO where the second process alone begins with groups without a signal.

    by_row: it depends on the prompt, so further prompts help; otherwise nothing ever does.
    """

    def scene(out: Path) -> dict[str, Any]:
        from offaxis.lab.data import named_data

        # Two prompts a process and step, in order: 0 and 1 for the first, 2 and 3 for the second.
        data = named_data("arithmetic?count=64")
        data = data.add_column("live", [at % 4 < 2 for at in range(64)])
        reward = OneSided(by_row=by_row)
        told = trained("dapo", out, dataset=data, reward_funcs=[reward], shuffle_dataset=False,
                       overlong_cache=0)  # fmt: skip
        return {**told, "live": reward.live}

    return scene


def sampled(out: Path) -> dict[str, Any]:
    """rejection_sft on 100 prompts, of which the last block of samples is a part."""
    from offaxis.train import sampled as module

    drawn, sample = [], module.sample

    def counted(live: Any, prompts: Any, **named: Any) -> Any:
        drawn.append(len(prompts))
        return sample(live, prompts, **named)

    module.sample = counted
    try:
        told = trained(
            "rejection_sft", out, drop=NOT_SAMPLED, data="lab:arithmetic?difficulty=2&count=100",
            max_steps=40, sample_max_new_tokens=24, samples_per_prompt=2, learning_rate=1e-5,
            logging_steps=40,
        )  # fmt: skip
    finally:
        module.sample = sample
    return {**told, "drawn": drawn}


def resumed(out: Path) -> dict[str, Any]:
    """Four steps with a leash and the KL probe, and the last two of them again."""
    whole = trained("grpo", out / "whole", max_steps=4, save_strategy="steps", save_steps=2,
                    **ADAPTIVE)  # fmt: skip
    again = trained("grpo", out / "again", max_steps=4, **ADAPTIVE,
                    resume_from_checkpoint=str(out / "whole/checkpoint-2"))  # fmt: skip
    return {"whole": whole, "again": again}


def elastic(out: Path) -> dict[str, Any]:
    options = {"strength": 50.0, "limit": 5, "max_new_tokens": 16}
    return trained("grpo", out, leash="ewc", leash_options=options, max_steps=3)


def supervised(out: Path) -> dict[str, Any]:
    return trained("sft", out, drop=NOT_SAMPLED, per_device_train_batch_size=4, max_steps=3)


def the_rest(out: Path) -> dict[str, Any]:
    """Every method that has no scene of its own; RLOO's model is the others' teacher."""
    found = {name: trained(name, out / name) for name in ("rloo", "dr_grpo", "gspo")}
    teacher, sampling = {"teacher": str(out / "rloo")}, {"sample_max_new_tokens": 24}
    found["distill"] = trained("distill", out / "distill", drop=NOT_SAMPLED, **teacher, **sampling)
    found["dpo"] = trained("dpo", out / "dpo", drop=NOT_SAMPLED, **sampling)
    found["distill_on_policy"] = trained(
        "distill_on_policy", out / "distill_on_policy", drop=("num_generations",), **teacher
    )
    return found


def sharded_at_load(out: Path) -> dict[str, Any]:
    """FSDP2 by transformers itself, on a bfloat16 base, with DAPO, a leash and the probe."""
    shard = {"model_init_kwargs": {"distributed_config": {"fsdp_size": 2}}}
    settings = {"dtype": "bfloat16", **ADAPTIVE}
    return {
        name: trained("dapo", out / name, **copy.deepcopy({**settings, **more}))
        for name, more in {"whole": {}, "sharded": shard}.items()
    }


def by_hand(out: Path) -> dict[str, Any]:
    """A bfloat16 base sharded on a mesh, given masters, trained beside an unsharded one.

    Every process sees the whole batch, so that averaged gradients are those of one process.
    """
    from transformers import AutoModelForCausalLM

    from offaxis.lab import BASE
    from offaxis.train.precision import give_masters, lost_share

    mesh = init_device_mesh("cpu", (2,))
    whole = AutoModelForCausalLM.from_pretrained(str(BASE), dtype=torch.bfloat16)
    model = copy.deepcopy(whole)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    models, rows = (whole, model), torch.arange(4, 40)[None]
    shares = [lost_share(one, 1e-6) for one in models]
    told = [give_masters(one, learning_rate=1e-6, insist=False) for one in models]
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True) for one in models]
    seen: list[list[float]] = []
    for _ in range(3):
        for one, optimizer in zip(models, optimizers, strict=True):
            loss = one(input_ids=rows, labels=rows).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            seen.append([loss.item(), norm.item()])
    apart = [
        float((a - b.full_tensor()).detach().abs().max())
        for a, b in zip(whole.parameters(), model.parameters(), strict=True)
    ]
    return {
        "sharded": [isinstance(one, DTensor) for one in model.parameters()],
        "placed": sorted({str(one.placements) for one in model.parameters()}),
        "dtypes": sorted({str(one.dtype) for one in model.parameters()}),
        "shares": shares, "told": told, "whole": seen[::2], "parts": seen[1::2],
        "apart": max(apart),
    }  # fmt: skip


def mixed(out: Path) -> dict[str, Any]:
    """A bfloat16 base in mixed precision, at a learning rate that bfloat16 weights would lose."""
    return trained("grpo", out, dtype="bfloat16", bf16=True, learning_rate=1e-6)


def forced() -> None:
    """Make accelerate take two CPU processes for the kind that it shards models on."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    torch.distributed.init_process_group("gloo")
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.wait_for_everyone = lambda self: torch.distributed.barrier()


SCENES = {
    "grpo": groups_across("grpo", 6),
    "reinforce_pp": groups_across("reinforce_pp", 8),
    "dapo": one_sided(by_row=True),
    "dapo_hopeless": one_sided(by_row=False),
    "sampled": sampled,
    "resumed": resumed,
    "elastic": elastic,
    "supervised": supervised,
    "the_rest": the_rest,
    "sharded_at_load": sharded_at_load,
    "by_hand": by_hand,
    "mixed": mixed,
}

if __name__ == "__main__":
    names = sys.argv[2:]
    if "--force" in names:
        names.remove("--force")
        forced()
    play(SCENES, Path(sys.argv[1]), names)
