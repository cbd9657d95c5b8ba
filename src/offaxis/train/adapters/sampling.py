"""Sampling from merged weights: an adapter then costs a decoded token nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from offaxis.errors import InputError

__all__ = ["merged", "sample_merged"]


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Compute without the adapters' own products; afterwards every weight is back, to the bit.

    model: a PEFT model in float32 or wider. There merging changes the policy by rounding alone;
    in bfloat16 it would round away what an adapter has learnt, hence InputError, as for a model
    that is merged already. Memory: the adapted weights once more.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    kept = [(one, one.data) for layer in layers for one in layer.get_base_layer().parameters()]
    if any(layer.merged for layer in layers):
        raise InputError("the adapter is merged already: unmerge it first (unmerge_adapter)")
    if narrow := [
        one.dtype
        for one, _ in kept
        if not one.is_floating_point() or torch.finfo(one.dtype).bits < 32
    ]:
        raise InputError(
            f"the base is in {narrow[0]}, whose rounding is coarser than an adapter's update; load "
            "it in float32 to sample merged"
        )
    try:
        for layer in layers:
            layer.merge(safe_merge=True)  # into a new tensor
        yield
    finally:
        for layer in layers:
            if layer.merged and _undoes(layer):
                layer.unmerge()
            layer.merged_adapters.clear()
        for parameter, data in kept:
            parameter.data = data


def _undoes(layer: Any) -> bool:
    """Has it merged otherwise than into a new tensor: by exchanging modules, or exactly?"""
    return hasattr(layer, "ln_tuning_layers") or hasattr(layer, "offaxis_plain")


def sample_merged(trainer: Any) -> None:
    """Have `trainer` sample its completions from merged weights.

    trainer: TRL's GRPO trainer or one made of it, without vLLM. InputError for others, and as for
    `merged`.
    """
    if not hasattr(trainer, "_generate_single_turn") or getattr(trainer, "use_vllm", False):
        raise InputError(f"{type(trainer).__name__} does not sample with transformers")
    plain = trainer._generate_single_turn

    def generate(*args: Any, **named: Any) -> Any:
        with merged(trainer.model):
            return plain(*args, **named)

    trainer._generate_single_turn = generate
