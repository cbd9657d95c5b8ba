"""Adapted models, tiny and real, for the tests of `offaxis.train.adapters`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import families
from kl_runs import BUNDLED
from offaxis.lab.session import quiet_libraries
from offaxis.train.adapters import AdapterSpec, adapt

IDS = torch.arange(3, 27)[None]
_LAYERS = {"bundled": 4, "llama": 2, "qwen2": 2, "gemma2": 2, "gpt2": 2, "qwen3_moe": 2}
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_USUAL = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_LINEAR = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "qwen3_moe": _ATTENTION,  # its experts are stacked
}
_PAIR = ("input_layernorm", "post_attention_layernorm")
_HEADS = ("self_attn.q_norm", "self_attn.k_norm")
_NORMS = {
    "bundled": (*_PAIR, *_HEADS),
    "qwen3_moe": (*_PAIR, *_HEADS),
    "gpt2": ("ln_1", "ln_2"),
    "gemma2": (*_PAIR, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}
SOME = tuple(_LAYERS)


@functools.cache
def _made(family: str) -> Any:
    if family == "bundled":
        with quiet_libraries():
            return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    if family == "gpt2":
        import transformers

        torch.manual_seed(0)
        small = {"vocab_size": 96, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config = transformers.GPT2Config(**small, bos_token_id=1, eos_token_id=2)
        return AutoModelForCausalLM.from_config(config).eval()
    return families.build(family)


def base(family: str = "bundled") -> Any:
    """A fresh model in float32: its weights are a copy, made once a session."""
    import copy

    return copy.deepcopy(_made(family))


def made(spec: AdapterSpec | str, family: str = "bundled", *, seed: int = 0) -> Any:
    """The same with an adapter, in eval mode."""
    return adapt(base(family), spec, seed=seed).eval()


def linear(family: str) -> list[str]:
    """The linear layers that an adapter is for, written down by hand."""
    return _paths(family, _LINEAR.get(family, _USUAL))


def norms(family: str) -> list[str]:
    last = "transformer.ln_f" if family == "gpt2" else "model.norm"
    return [*_paths(family, _NORMS.get(family, _PAIR)), last]


def _paths(family: str, parts: Iterable[str]) -> list[str]:
    stem = "transformer.h" if family == "gpt2" else "model.layers"
    return [f"{stem}.{layer}.{part}" for layer in range(_LAYERS[family]) for part in parts]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def trained(model: Any) -> dict[str, Any]:
    """What gets gradients, by its name in the unadapted model."""
    return {
        name.removeprefix("base_model.model."): one
        for name, one in model.named_parameters()
        if one.requires_grad
    }


@torch.no_grad()
def shake(model: Any, scale: float = 0.05, *, seed: int = 1) -> Any:
    """Move everything that is trained, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for one in trained(model).values():
        one.add_(scale * torch.randn(one.shape, generator=generator))
    return model


def layers(model: Any) -> dict[str, Any]:
    """The adapted layers, by their paths in the unadapted model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix("base_model.model."): one
        for name, one in model.named_modules()
        if isinstance(one, BaseTunerLayer)
    }
