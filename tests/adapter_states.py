"""Adapted models a few random steps from their start, on tiny bases of several families."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

import families
from offaxis.lab.session import quiet_libraries
from offaxis.train.adapters import AdapterSpec, adapt

__all__ = ["ALL", "RANKED", "adapted", "base_dir", "load", "logits", "saved", "shaken"]

ALL = ("lora", "rslora", "lora_plus", "lora_fa", "dora", "adalora", "miss", "pissa", "milora",
       "vera", "ia3", "ln_tuning", "lora_rank1", "off_principal_lora", "geora")  # fmt: skip
"""Every row of the table but full fine-tuning."""
_RANKLESS = ("ia3", "ln_tuning", "lora_rank1")
RANKED = {name: name if name in _RANKLESS else f"{name}?rank=4" for name in ALL}
RANKED["miss"] = "miss?rank=5"  # which divides no width
"""A small adapter of each, as `AdapterSpec.parse` reads it."""


def base_dir(family: str, out: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A tiny random model on disk, in `dtype`; GPT-2 and NeoX with room for 64 positions."""
    with quiet_libraries():
        own = family in ("gpt2", "neox")
        model = _built(family, seed) if own else families.build(family, seed=seed)
        with torch.no_grad():
            for one in model.parameters():
                one.add_(torch.randn_like(one) * 0.05)
        model.to(dtype).save_pretrained(out)
    return out


def _built(family: str, seed: int) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

    torch.manual_seed(seed)
    config = (
        GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        if family == "gpt2"
        else GPTNeoXConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def load(directory: Path, *, dtype: torch.dtype | str = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def adapted(
    base: Path, spec: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 0.05
) -> Any:
    """The base with an adapter, `size` away from its start in every trained number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapt(load(base, dtype=dtype), AdapterSpec.parse(spec), seed=seed)
    return shaken(model, size=size)


def shaken(model: Any, *, size: float = 0.05, seed: int = 1) -> Any:
    """`model` with noise on everything that it trains; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(size * torch.randn(one.shape, generator=generator).to(one))
    return model.eval()


def saved(model: Any, out: Path) -> Path:
    """The model's adapter in a directory, as a Trainer saves it."""
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(out))
    return out


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """What the model computes on fixed tokens, all of it in float64."""
    ids = torch.arange(16)[None] * 5
    found: torch.Tensor = model.double()(input_ids=ids).logits
    assert found.dtype == torch.float64
    return found
