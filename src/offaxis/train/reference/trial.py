"""Whether an adapter's initialisation overwrites its base, found by trying it on one layer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch

from offaxis.errors import InputError

__all__ = ["overwrites_base"]

_TOY = 256  # features that every method's default block sizes divide
_NARROWED: dict[str, Any] = {
    "target_modules": ["probe"],
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "layer_replication": None,
    "target_parameters": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "feedforward_modules": [],
    "rank_pattern": {},
    "alpha_pattern": {},
    "task_type": None,
    "base_model_name_or_path": None,
}


def overwrites_base(peft_config: Any) -> bool:
    """Whether an adapter's initialisation changes the weights of its base: found by trying.

    The configuration is applied to a single linear layer of random weights, with the samples or
    gradients that CorDA and LoRA-GA want. InputError where that fails.
    """
    from peft import get_peft_model

    if peft_config.is_prompt_learning or peft_config.is_adaption_prompt:
        return False
    trial = copy.deepcopy(peft_config)
    for name, value in _NARROWED.items():
        if hasattr(trial, name):
            setattr(trial, name, value)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        torch.manual_seed(0)
        toy = _Toy()
        before = toy.probe.weight.detach().clone()
        warnings.simplefilter("ignore")  # what there is to say of the real model comes with it
        try:
            _prime(toy, trial)
            made = get_peft_model(toy, trial)
        except Exception as error:  # a hundred settings, each with its own complaints
            raise InputError(
                f"{type(peft_config).__name__}: cannot be tried on a single layer ({error})"
            ) from error
    layer: Any = made.base_model.model.probe
    after = layer.get_base_layer().weight if hasattr(layer, "get_base_layer") else layer.weight
    return not torch.equal(before, after)


class _Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.probe = torch.nn.Linear(_TOY, _TOY, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.probe(x)
        return found


def _prime(toy: _Toy, config: Any) -> None:
    """What some initialisations want to have seen first."""
    init = getattr(config, "init_lora_weights", None)
    samples = torch.randn(2 * _TOY, _TOY)
    if init == "corda":
        from peft.tuners.lora.corda import preprocess_corda

        config.corda_config = copy.deepcopy(config.corda_config)
        for name in ("cache_file", "covariance_file"):
            setattr(config.corda_config, name, None)
        preprocess_corda(toy, config, run_model=lambda: toy(samples))
    elif init == "lora_ga":
        from peft.tuners.lora.loraga import preprocess_loraga

        preprocess_loraga(toy, config, lambda: toy(samples).square().sum().backward())
