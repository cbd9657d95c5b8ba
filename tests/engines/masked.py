"""Scenes of two processes that train under a mask: DDP, FSDP2, and ZeRO-2 where it is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, training_args

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from scenes import forced  # noqa: E402
from witness import digest, play  # noqa: E402

from offaxis.errors import InputError  # noqa: E402
from offaxis.train.sparse import restrict  # noqa: E402
from offaxis.train.sparse.engines import innermost, local, part  # noqa: E402
from sparse_runs import mask, model, run, trainer  # noqa: E402

STEPS = 24
ZERO = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"  # which accelerate refuses for "cpu"


class Plant(TrainerCallback):  # type: ignore[misc]
    """Plants NaNs into the gradients of frozen entries, as each engine hands gradients over."""

    def __init__(self, chosen: Any) -> None:
        self.chosen, self.planted = chosen, 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        model = getattr(model, "module", model)
        for name, flags in self.chosen.items():
            parameter = model.get_parameter(name)
            at = part(~flags, parameter).reshape(-1).nonzero().reshape(-1)[::50]
            if isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(
                    lambda one, at=at: self._put(local(one.grad), at)
                )
            else:
                parameter.register_hook(lambda grad, at=at: self._put(grad.clone(), at))

    def _put(self, gradient: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        self.planted += len(at)
        return gradient.put_(at, torch.full(at.shape, float("nan"), dtype=gradient.dtype))


def whole(one: Any) -> dict[str, torch.Tensor]:
    """Every parameter, gathered."""
    found = {}
    for name, value in one.named_parameters():
        held = value.detach()
        found[name] = (held.full_tensor() if isinstance(held, DTensor) else held).cpu().clone()
    return found


def masked(
    out: Path, *, rule: str = "random(density=0.3, seed=1)", strategy: str = "projected",
    refresh: int = 0, others: str = "frozen", resume: Any = None, plant: bool = True,
    masking: bool = True, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """One run of the tiny model; its weights go to a file, the rest is told."""
    chosen = mask(rule)
    planted = Plant(chosen)
    settings = {"max_steps": STEPS, "use_cpu": not ZERO} | settings
    made = trainer(out, *([planted] if plant else []), of=model(), **settings)
    if masking:
        restrict(made, chosen, strategy=strategy, others=others, refresh_every=refresh)
    seen: dict[str, Any] = {}

    class See(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            parameters = list(made.model.parameters())
            seen["sharded"] = [isinstance(one, DTensor) for one in parameters]
            seen["wrapped"] = type(made.model_wrapped).__name__
            seen["optimizer"] = type(innermost(made.optimizer)).__name__
            seen["pieces"] = [getattr(one, "_hp_mapping", None) is not None for one in parameters]

    made.add_callback(See())
    run(made, **({} if resume is None else {"resume_from_checkpoint": str(resume)}))
    weights = whole(made.model)
    if made.is_world_process_zero():
        torch.save(weights, out / "weights.pt")
    rows = [row for row in made.state.log_history if "loss" in row]
    return {
        **seen,
        "end": digest(made.model),
        "planted": planted.planted,
        "processes": made.accelerator.num_processes,
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "kept": [row["mask/kept"] for row in made.state.log_history if "mask/kept" in row],
    }


def projected(out: Path) -> dict[str, Any]:
    return masked(out)


def compressed(out: Path) -> dict[str, Any]:
    return masked(out, strategy="compressed")


def refreshed(out: Path) -> dict[str, Any]:
    """With a refresh every ten steps, whole, and from its middle again."""
    rule, more = "lift(budget_rank=8)", {"refresh": 6, "plant": False, "optim": "adamw_torch"}
    told = masked(out / "whole", rule=rule, **more, save_strategy="steps", save_steps=STEPS // 2)
    resume = out / f"whole/checkpoint-{STEPS // 2}"
    again = masked(out / "again", rule=rule, **more, resume=resume)
    return {"whole": told, "again": again}


def everything(out: Path) -> dict[str, Any]:
    """The full mask, and no mask at all."""
    some = {"rule": "all", "others": "trained", "plant": False}
    return {"mask": masked(out / "mask", **some), "plain": masked(out / "plain", masking=False,
                                                                 plant=False)}  # fmt: skip


def resumed(out: Path) -> dict[str, Any]:
    """Whole, and from its middle again."""
    told = masked(out / "whole", save_strategy="steps", save_steps=STEPS // 2)
    again = masked(out / "again", resume=out / f"whole/checkpoint-{STEPS // 2}")
    return {"whole": told, "again": again}


def half(out: Path) -> dict[str, Any]:
    """bfloat16 parameters over float32 masters, as configs/zero2.yaml asks for.

    transformers asks for a GPU before it lets DeepSpeed do so; torch's CPU can do as well.
    """
    training_args.is_torch_bf16_gpu_available = lambda: True
    return masked(out, bf16=True)


def unrefreshed(out: Path) -> dict[str, Any]:
    try:
        return masked(out, refresh=6)
    except InputError as error:
        return {"refused": str(error)}


SCENES = {
    "projected": projected,
    "compressed": compressed,
    "refreshed": refreshed,
    "everything": everything,
    "resumed": resumed,
    "half": half,
    "unrefreshed": unrefreshed,
}

if __name__ == "__main__":
    names = sys.argv[2:]
    if "--force" in names:
        names.remove("--force")
        forced()
    play(SCENES, Path(sys.argv[1]), names)
