"""Tiny random models of the families that `offaxis.names` places, and checkpoints on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["FAMILIES", "build", "header_of", "random_state", "save", "save_shards"]

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _config(name: str) -> Any:
    import transformers

    moe = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 16}
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**_SMALL),
        "qwen2": lambda: transformers.Qwen2Config(**_SMALL, tie_word_embeddings=True),
        "qwen3": lambda: transformers.Qwen3Config(**_SMALL, head_dim=16),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_SMALL, **moe),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=96, n_positions=24, n_embd=32, n_layer=2, n_head=4
        ),
        "phi3": lambda: transformers.Phi3Config(**_SMALL, pad_token_id=0),
    }
    return made[name]()


FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gpt2", "phi3")


def build(family: str, *, seed: int = 0) -> Any:
    """A tiny random causal model of `family`, float32, in eval mode."""
    import transformers

    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(_config(family)).eval()


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, without its metadata."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return header


def random_state(
    shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random float32 tensors of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save(
    state: Mapping[str, torch.Tensor], directory: Path, config: Mapping[str, Any] | None = None
) -> Path:
    """A directory with `model.safetensors` and, if given, `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def save_shards(state: Mapping[str, torch.Tensor], directory: Path, assignment: list[int]) -> Path:
    """A sharded directory; tensor i goes to shard `assignment[i]`."""
    directory.mkdir(parents=True, exist_ok=True)
    used = sorted(set(assignment))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(used, start=1):
        file = f"model-{number:05d}-of-{len(used):05d}.safetensors"
        part = {
            name: tensor.contiguous()
            for (name, tensor), where in zip(state.items(), assignment, strict=True)
            if where == shard
        }
        weight_map |= dict.fromkeys(part, file)
        save_file(part, directory / file)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return directory
