"""`wire`: what an adapter needs of its trainer, in one line of any TRL script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.train.adapters.adalora import AdaLoraCallback, add_penalty
from offaxis.train.adapters.methods import AdapterSpec
from offaxis.train.adapters.optimizers import LoraFaFactory, LoraPlusFactory

__all__ = ["STATE", "wire"]

STATE = "adapter_state.pt"
"""Of a checkpoint: what the adapter trains on from, beyond what PEFT saves."""


def wire(trainer: Any, spec: AdapterSpec | None = None) -> None:
    """Give `trainer` what its model's adapter needs. Call it before `.train()`.

    trainer: any `transformers.Trainer` with a PEFT model (else nothing is done). spec: the adapter;
    by default the one that `adapt` put on the model.

    LoRA+ and LoRA-FA get their optimizers, with the trainer's rate, betas, eps and decay. AdaLoRA
    gets `AdaLoraCallback` and its penalty in the loss. Where a checkpoint of PEFT's would not
    resume exactly (AdaLoRA's importance scores, factors under a projection), `adapter_state.pt`
    lies beside it.

    A trainer that is wired already is left as it is. Raises InputError where the trainer's own
    optimizer stands in the way.
    """
    model = trainer.model
    if not hasattr(model, "peft_config") or getattr(trainer, "_offaxis_wired", False):
        return
    trainer._offaxis_wired = True
    spec = spec or getattr(model, "offaxis_adapter", None)
    if spec is not None and spec.about.optimizer:
        _give_optimizer(trainer, spec)
    callback = _give_adalora(trainer, spec)
    if callback is not None or _projections(model):
        _keep_state(trainer, callback)


def _give_optimizer(trainer: Any, spec: AdapterSpec) -> None:
    name = spec.method
    if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
        raise InputError(
            f"{name} is its optimizer, and the trainer was given one; leave optimizers out"
        )
    made, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    told = {**options, "weight_decay": trainer.args.weight_decay}
    if name == "lora_plus":
        if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
            raise InputError(
                f"lora_plus: optim {trainer.args.optim.value} has no groups of parameters"
            )
        ratio = spec.option("ratio")
        if not ratio >= 1:
            raise InputError(f"ratio {ratio}: B's rate over A's is at least 1")
        trainer.optimizer_cls_and_kwargs = (LoraPlusFactory, {"made": made, "ratio": ratio, **told})
    else:
        if made is not torch.optim.AdamW:
            raise InputError(f"lora_fa needs AdamW, and optim is {trainer.args.optim.value}")
        trainer.optimizer_cls_and_kwargs = (LoraFaFactory, told)


def _give_adalora(trainer: Any, spec: AdapterSpec | None) -> AdaLoraCallback | None:
    from peft import AdaLoraModel

    if not isinstance(trainer.model.base_model, AdaLoraModel):
        return None
    shares = None
    if spec is not None and spec.method == "adalora":
        shares = (float(spec.option("warmup")), float(spec.option("cooldown")))
    callback = AdaLoraCallback(trainer.model, shares)
    trainer.add_callback(callback)
    add_penalty(trainer)
    return callback


def _projections(model: Any) -> dict[str, torch.Tensor]:
    """The free weights under projections, by name."""
    from offaxis.train.adapters.layers import ProjectedLinear

    return {
        f"{name}.weight": one.weight
        for name, one in model.named_modules()
        if isinstance(one, ProjectedLinear)
    }


def _keep_state(trainer: Any, callback: AdaLoraCallback | None) -> None:
    """Have the state saved and loaded with the optimizer's, on this trainer alone."""
    load, save = trainer._load_optimizer_and_scheduler, trainer._save_optimizer_and_scheduler

    def load_too(checkpoint: str | None) -> None:
        if checkpoint is not None:
            _load(Path(checkpoint) / STATE, trainer.model, callback)
        load(checkpoint)

    def save_too(output_dir: str) -> None:
        save(output_dir)
        if trainer.args.should_save:
            free = {name: one.detach() for name, one in _projections(trainer.model).items()}
            told = {"free": free, "adalora": callback and callback.state_dict()}
            torch.save(told, Path(output_dir) / STATE)

    trainer._load_optimizer_and_scheduler = load_too
    trainer._save_optimizer_and_scheduler = save_too


def _load(path: Path, model: Any, callback: AdaLoraCallback | None) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not there, so the run cannot go on exactly; resume from a checkpoint that a "
            "wired trainer saved with its optimizer"
        )
    told = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, one in _projections(model).items():
            one.copy_(told["free"][name])
    if callback is not None:
        callback.load_state_dict(told["adalora"])
