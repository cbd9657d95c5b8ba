"""`wire`: what an adapter needs of its trainer, in one line of any TRL script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.train.adapters.adalora import AdaLoraCallback, add_penalty
from offaxis.train.adapters.layers import ProjectedLinear, freeze
from offaxis.train.adapters.methods import AdapterSpec
from offaxis.train.adapters.optimizers import LoraFaFactory, LoraPlusFactory

__all__ = ["STATE", "wire"]

STATE = "adapter_state.pt"
"""Of a checkpoint: what the adapter trains on from, beyond what PEFT saves."""


def wire(trainer: Any, spec: AdapterSpec | str | None = None) -> None:
    """Give `trainer` what its model's adapter needs. Call it before `.train()`.

    trainer: any `transformers.Trainer` with a PEFT model (else nothing is done). spec: the adapter;
    by default the one that `adapt` put on the model. Name it for a model that `adapt` has not made
    (`load_adapted`, `peft_config=`): its files and configuration say LoRA for LoRA+ and LoRA-FA.

    LoRA+ and LoRA-FA get their optimizers, with the trainer's rate, betas, eps and decay. AdaLoRA
    gets `AdaLoraCallback` and its penalty in the loss. Where a checkpoint of PEFT's would not
    resume exactly (AdaLoRA's importance scores, factors under a projection), `adapter_state.pt`
    lies beside it.

    A trainer that is wired already is left as it is. Raises InputError where the trainer's own
    optimizer stands in the way, and for an engine that the adapter does not train under.
    """
    model = trainer.model
    if not hasattr(model, "peft_config") or getattr(trainer, "_offaxis_wired", False):
        return
    put = getattr(model, "offaxis_adapter", None)
    spec = AdapterSpec.parse(spec) if isinstance(spec, str) else spec or put
    _check_engine(trainer, spec)
    if spec is not None and spec.about.optimizer:
        _give_optimizer(trainer, spec)
    if spec is not None and put is None:
        freeze(model, spec.about.frozen)
    trainer._offaxis_wired = True
    callback = _give_adalora(trainer, spec)
    if callback is not None or _projections(model):
        _keep_state(trainer, callback)


def _check_engine(trainer: Any, spec: AdapterSpec | None) -> None:
    """InputError for what would train wrongly, or fail at its first step, save or resumption."""
    model = trainer.model
    name = spec.method if spec is not None else ""
    if _adalora(model):
        name = "adalora"
    elif _projections(model):
        name = "off_principal_lora"
    if trainer.is_deepspeed_enabled and name in _WHOLE:
        raise InputError(
            f"{name} under DeepSpeed: {_WHOLE[name]}, and DeepSpeed trains partitions of its own; "
            "use DDP"
        )
    if not trainer.is_fsdp_enabled:
        return
    if name and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 2) == 1:
        raise InputError(f"{name}: FSDP 1 lays parameters end to end; set fsdp_version: 2, or DDP")
    if name in ("adalora", "off_principal_lora"):
        raise InputError(
            f"{name} under FSDP: {_WHOLE[name]}, and they are sharded; use DDP (configs/ddp.yaml)"
        )
    saves = trainer.args.save_strategy != "no" and not trainer.args.save_only_model
    if name == "vera" and saves:
        raise InputError(
            "vera under FSDP: no run resumes from its checkpoints, since torch does not restore "
            "the buffers that its layers share; set save_only_model: true, or use DDP"
        )


_WHOLE = {
    "adalora": "ranks are allocated over whole tensors",
    "lora_fa": "its optimizer projects the gradients of whole rows of lora_B",
    "off_principal_lora": "its projection is of whole factors",
}


def _adalora(model: Any) -> bool:
    from peft import AdaLoraModel

    return isinstance(model.base_model, AdaLoraModel)


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
        options = {"made": made, "ratio": spec.option("ratio"), **told}
        trainer.optimizer_cls_and_kwargs = (LoraPlusFactory, options)
    else:
        if made is not torch.optim.AdamW:
            raise InputError(f"lora_fa needs AdamW, and optim is {trainer.args.optim.value}")
        trainer.optimizer_cls_and_kwargs = (LoraFaFactory, told)


def _give_adalora(trainer: Any, spec: AdapterSpec | None) -> AdaLoraCallback | None:
    if not _adalora(trainer.model):
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
