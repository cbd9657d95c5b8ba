"""`restrict`: train only a mask's entries, in one line of any TRL or transformers script."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.masks import Mask, load
from offaxis.masks.fitting import check_base
from offaxis.train.sparse.callback import Flags, MaskCallback, Plan, check_refreshed
from offaxis.train.sparse.refreshing import check_rule, packed_for

__all__ = ["OTHERS", "STRATEGIES", "restrict"]

STRATEGIES, OTHERS = ("projected", "compressed"), ("frozen", "trained")


def restrict(
    trainer: Any,
    mask: Mask | str | PathLike[str],
    *,
    strategy: str = "projected",
    others: str = "frozen",
    check: bool = True,
    refresh_every: int = 0,
    refresh_rule: str | None = None,
) -> None:
    """Let `trainer` train only the entries that `mask` selects. Call it before `.train()`.

    trainer: any `transformers.Trainer` (TRL's are), whose model holds the base's weights.
    mask: a `Mask`, or a file of one. strategy: "projected" masks the gradients of whatever
    optimizer the trainer makes; "compressed" makes a `SparseAdamW` with the trainer's learning
    rate, betas, eps and weight decay, which keeps state for the trained entries alone.
    others: what becomes of parameters that a mask does not cover (embeddings, head, norms, biases).
    check: refuse a model that is not the mask's base. refresh_every: optimizer steps after which
    the mask is made again from the weights as they are then, by `refresh_rule` or the mask's own
    rule; 0: never.

    Frozen entries stay as they are, to the bit. Gradients are masked before they are clipped, so
    `max_grad_norm` bounds, and `grad_norm` tells, the gradient of what is trained. Raises
    InputError, and leaves the trainer as it is, where it cannot be restricted so.
    """
    chosen = mask if isinstance(mask, Mask) else load(mask)
    rule = refresh_rule or chosen.rule
    _check_words(strategy, others, refresh_every, refresh_rule=refresh_rule, rule=rule)
    _check_trainer(trainer)
    named = dict(trainer.model.named_parameters())
    _check_model(trainer.model, named)
    model = MemoryCheckpoint(named)
    if check:
        check_base(chosen, model)
    bits = packed_for(chosen, model)
    making = _making(trainer, strategy, bool(refresh_every))
    trained = {name for name, one in bits.items() if refresh_every or bool(one.any())}
    trained |= set(named) - set(bits) if others == "trained" else set()
    if not trained:
        raise InputError(f"the mask {chosen.rule} selects nothing: nothing is left to train; "
                         "choose another mask, or others='trained'")  # fmt: skip
    if strategy == "compressed":
        masked = [(name, named[name]) for name in bits if name in trained]
        trainer.optimizer_cls_and_kwargs = _sparse_adamw(making, Flags(bits, masked))
    for name, parameter in named.items():
        parameter.requires_grad_(name in trained)
    callback = MaskCallback(trainer, Plan(chosen, strategy, others, refresh_every, rule))
    trainer.add_callback(callback)
    _keep_in_checkpoints(trainer, callback)


def _check_words(
    strategy: str, others: str, refresh_every: int, *, refresh_rule: str | None, rule: str
) -> None:
    for name, value, known in (
        ("strategy", strategy, STRATEGIES),
        ("others", others, OTHERS),
    ):
        if value not in known:
            raise InputError(f"{name} {value!r}: choose {' or '.join(known)}")
    if isinstance(refresh_every, bool) or not isinstance(refresh_every, int) or refresh_every < 0:
        raise InputError(f"refresh_every {refresh_every!r}: a number of steps is needed, 0 or more")
    if refresh_rule is not None and not refresh_every:
        raise InputError("refresh_rule without refresh_every: say after how many steps")
    if refresh_every:
        check_rule(rule)


def _check_trainer(trainer: Any) -> None:
    """InputError unless it is a trainer that has not begun, and that no mask restricts yet."""
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise InputError(
            f"{type(trainer).__name__}: give a transformers.Trainer, such as TRL's trainers"
        )
    if trainer.model_init is not None:
        raise InputError("the trainer makes its model in train() (model_init); give it the model")
    if any(isinstance(one, MaskCallback) for one in trainer.callback_handler.callbacks):
        raise InputError(
            "the trainer is restricted already: make one mask of both (a & b, a | b), and call "
            "restrict once"
        )
    if trainer.state.max_steps > 0:
        raise InputError("training has begun: call restrict before train()")
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 2) == 1:
        raise InputError("FSDP 1 lays parameters end to end; set fsdp_version: 2")


def _check_model(model: Any, named: dict[str, torch.nn.Parameter]) -> None:
    """InputError for weights that a mask of the base does not describe, or that are not there."""
    if hasattr(model, "peft_config"):
        raise InputError(
            "the model has a PEFT adapter, whose base is not trained; merge it first, or train "
            "without a mask"
        )
    if getattr(model, "is_quantized", False):
        raise InputError("the model is quantised: its weights cannot be trained; load it in bf16")
    if any(hasattr(one, "ds_id") for one in named.values()):
        raise InputError("DeepSpeed ZeRO-3 hides the parameters; use FSDP2, ZeRO-2 or DDP")
    if absent := [name for name, one in named.items() if one.is_meta]:
        raise InputError(
            f"{absent[0]} is on the meta device in this process; load the weights in every process "
            "(fsdp_cpu_ram_efficient_loading: false)"
        )


def _making(trainer: Any, strategy: str, refreshed: bool) -> dict[str, Any]:
    """lr, betas, eps and fused of the AdamW that the trainer would make.

    InputError where the strategy, or a refresh, cannot do with the trainer's optimizer or engine.
    """
    compressed = strategy == "compressed"
    if compressed and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise InputError(
            f"strategy compressed under {'FSDP' if trainer.is_fsdp_enabled else 'DeepSpeed'}: its "
            "optimizer needs whole parameters; use strategy projected"
        )
    if refreshed and trainer.is_deepspeed_enabled:
        check_refreshed(None, flat=True)
    if compressed and any(isinstance(one, DTensor) for one in trainer.model.parameters()):
        raise InputError("strategy compressed: parameters are sharded; use strategy projected")
    if trainer.optimizer is not None:
        if compressed:
            raise InputError(
                "strategy compressed makes its own optimizer, and the trainer was given one; leave "
                "optimizers out, or use strategy projected"
            )
        if refreshed:
            check_refreshed(trainer.optimizer)
        return {}
    if not (compressed or refreshed):
        return {}
    made, options = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(
        trainer.args, trainer.model
    )
    known = {"lr", "betas", "eps", "fused"}
    if made is not torch.optim.AdamW or not set(options) <= known:
        more = f" with {', '.join(sorted(set(options) - known))}" if set(options) - known else ""
        what = "strategy compressed" if compressed else "refresh_every"
        raise InputError(
            f"{what} needs AdamW, and optim {getattr(trainer.args.optim, 'value', made)} is "
            f"{getattr(made, '__name__', made)}{more}; set optim to adamw_torch"
        )
    return {"fused": False, **options}


def _sparse_adamw(making: dict[str, Any], flags: Flags) -> tuple[Any, dict[str, Any]]:
    """What `Trainer.create_optimizer` is to make, with its own groups of decayed parameters."""
    from offaxis.train.sparse.optimizer import SparseAdamW

    return SparseAdamW, {**making, "masks": flags}


def _keep_in_checkpoints(trainer: Any, callback: MaskCallback) -> None:
    """Have the mask saved and loaded with the optimizer's state.

    The two methods are wrapped on this trainer alone. Trainer tells its callbacks that a run is
    resumed, not from where, and that a checkpoint was saved when others may be reading it already.
    """
    load, save = trainer._load_optimizer_and_scheduler, trainer._save_optimizer_and_scheduler

    def load_mask_too(checkpoint: str | None) -> None:
        if checkpoint is not None:
            callback.resume(Path(checkpoint))
        load(checkpoint)

    def save_mask_too(output_dir: str) -> None:
        save(output_dir)
        callback.save(Path(output_dir))

    trainer._load_optimizer_and_scheduler = load_mask_too
    trainer._save_optimizer_and_scheduler = save_mask_too
