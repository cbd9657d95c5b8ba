"""`restrict`: train only a mask's entries, in one line of any TRL or transformers script."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.masks import Mask, load
from offaxis.masks.fitting import check_base, fitted
from offaxis.train.sparse.projected import Projection

__all__ = ["restrict"]

Strategy = Literal["projected", "compressed"]


def restrict(
    trainer: Any,
    mask: Mask | str | PathLike[str],
    *,
    strategy: Strategy = "projected",
    others: Literal["frozen", "trained"] = "frozen",
    check: bool = True,
) -> None:
    """Let `trainer` train only the entries that `mask` selects. Call it before `.train()`.

    trainer: any `transformers.Trainer` (TRL's are), whose model holds the base's weights.
    strategy: "projected" masks the gradients of whatever optimizer the trainer makes;
    "compressed" makes a `SparseAdamW`, which keeps state for the trainable entries alone.
    others: what becomes of parameters that a mask does not cover (embeddings, head, norms, biases).
    check: refuse a model that is not the mask's base.

    Gradients are masked before they are clipped, so `max_grad_norm` bounds the trainable gradient.
    """
    chosen = mask if isinstance(mask, Mask) else load(mask)
    named = dict(trainer.model.named_parameters())
    model = MemoryCheckpoint(named)
    if check:
        check_base(chosen, model)
    frozen = {named[name]: _like(~flags, named[name]) for name, flags in fitted(chosen, model)}
    if trainer.optimizer is not None:
        raise InputError("the trainer has its optimizer already: call restrict before train()")
    for parameter in named.values():
        parameter.requires_grad_(parameter in frozen or others == "trained")
    projection = Projection(frozen)
    make, clip, norm = trainer.create_optimizer, trainer._clip_grad_norm, trainer._get_grad_norm

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = make(*args, **kwargs)
        projection.attach(optimizer)
        return optimizer

    def clip_grad_norm(*args: Any, **kwargs: Any) -> Any:
        projection.mask_gradients()
        return clip(*args, **kwargs)

    def get_grad_norm(*args: Any, **kwargs: Any) -> Any:
        projection.mask_gradients()
        return norm(*args, **kwargs)

    trainer.create_optimizer = create_optimizer
    trainer._clip_grad_norm = clip_grad_norm
    trainer._get_grad_norm = get_grad_norm
    assert strategy == "projected"


def _like(flags: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Flags of a whole parameter as this process holds the parameter: its shard, on its device."""
    if isinstance(parameter, DTensor):
        whole = flags.to(parameter.device_mesh.device_type)
        sharded = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        return sharded.to_local()
    return flags.to(parameter.device)
