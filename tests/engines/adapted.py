"""Scenes of two processes that train adapters, under DDP or FSDP2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from masked import whole  # noqa: E402
from scenes import ADAPTIVE, forced  # noqa: E402
from witness import digest, play, trained  # noqa: E402

from offaxis.errors import InputError  # noqa: E402
from offaxis.train.adapters import adapt, wire  # noqa: E402
from offaxis.train.adapters.adalora import AdaLoraCallback  # noqa: E402
from sparse_runs import model, run, trainer  # noqa: E402

STEPS, RANKED = 6, "{}?rank=4"
SPECS = {
    name: RANKED.format(name)
    for name in ("lora", "dora", "adalora", "milora", "geora", "pissa", "vera", "lora_plus",
                 "lora_fa")
} | {"off_principal_lora": "off_principal_lora?rank=4&avoid_rank=8"}  # fmt: skip


def wired(out: Path, name: str, **settings: Any) -> Any:
    """A trainer of the tiny model with the adapter `name`."""
    made = trainer(out, of=adapt(model(), SPECS[name], seed=0), max_steps=STEPS, **settings)
    wire(made)
    return made


def pattern(made: Any) -> Any:
    """The ranks that AdaLoRA has kept."""
    callbacks = made.callback_handler.callbacks
    return next((one.pattern for one in callbacks if isinstance(one, AdaLoraCallback)), None)


@torch.no_grad()
def logits(of: Any) -> torch.Tensor:
    found: torch.Tensor = of.eval()(input_ids=torch.arange(24)[None]).logits
    return found


def told(made: Any, out: Path) -> dict[str, Any]:
    # First: a forward pass outside of training leaves the outermost parameters gathered.
    sharded = [isinstance(one, DTensor) for one in made.model.parameters()]
    weights, outputs = whole(made.model), logits(made.model)
    if made.is_world_process_zero():
        torch.save(weights, out / "weights.pt")
        torch.save(outputs, out / "logits.pt")
    rows = [row for row in made.state.log_history if "loss" in row]
    return {
        "processes": made.accelerator.num_processes,
        "wrapped": type(made.model_wrapped).__name__,
        "sharded": sharded,
        "optimizer": type(made.optimizer.optimizer).__name__,
        "pattern": pattern(made),
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "end": digest(made.model),
    }


def twice(name: str, **more: Any) -> Callable[[Path], dict[str, Any]]:
    """A whole run, and its second half again from the checkpoint."""

    def scene(out: Path) -> dict[str, Any]:
        made = wired(out / "whole", name, save_strategy="steps", save_steps=STEPS // 2, **more)
        run(made)
        first = told(made, out / "whole")
        (out / "again").mkdir(exist_ok=True)
        again = wired(out / "again", name, **more)
        run(again, resume_from_checkpoint=str(out / f"whole/checkpoint-{STEPS // 2}"))
        return {"whole": first, "again": told(again, out / "again")}

    return scene


def once(name: str) -> Callable[[Path], dict[str, Any]]:
    """A run without checkpoints."""

    def scene(out: Path) -> dict[str, Any]:
        made = wired(out, name)
        run(made)
        out.mkdir(exist_ok=True)
        return told(made, out)

    return scene


def refused(out: Path) -> dict[str, str]:
    """What is said of adapters that cannot train sharded, and of a base that is sharded already."""
    found = {}
    for name in ("adalora", "off_principal_lora", "vera"):
        try:
            wired(out, name, save_strategy="steps")
        except InputError as error:
            found[name] = str(error)
    wired(out, "vera", save_strategy="steps", save_only_model=True)
    sharded = fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))
    for name in ("lora", "milora"):
        try:
            adapt(sharded, SPECS[name])
        except InputError as error:
            found[f"sharded {name}"] = str(error)
    return found


def grpo(out: Path) -> dict[str, Any]:
    """`offaxis train grpo` with a leash and the KL probe: the reference is the model itself."""
    settings = {"learning_rate": 1e-3, "max_steps": 3, **ADAPTIVE}
    names = ("lora", "pissa")
    return {name: trained("grpo", out / name, adapter=SPECS[name], **settings) for name in names}


SCENES = {name: twice(name) for name in SPECS} | {
    "vera_once": once("vera"),
    "refused": refused,
    "grpo": grpo,
}

if __name__ == "__main__":
    names = sys.argv[2:]
    if "--force" in names:
        names.remove("--force")
        forced()
    play(SCENES, Path(sys.argv[1]), names)
