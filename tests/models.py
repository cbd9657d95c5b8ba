"""A tiny Llama-shaped model as plain tensors, and the ways in which one is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

__all__ = ["ROLES", "nudged", "read", "tiny", "write"]

State = dict[str, torch.Tensor]

_SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}
ROLES = tuple(name.rpartition(".")[2] for name in _SHAPES)


def tiny(*, seed: int = 0, layers: int = 3, scale: int = 1) -> State:
    """A random model in bfloat16: seven matrices a layer, norms, an embedding, a tied head.

    scale multiplies every extent.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*(scale * n for n in shape), generator=generator) * 0.02
        return drawn.to(torch.bfloat16)

    state = {"model.embed_tokens.weight": normal(40, 32)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        state |= {f"{block}.{name}.weight": normal(*shape) for name, shape in _SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{block}.{norm}.weight"] = 1 + normal(32)
    return state | {"model.norm.weight": 1 + normal(32)}


def roles_of(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Matrix name → role, told from the names that `tiny` gives."""
    return {n: n.split(".")[-2] for n in state if n.split(".")[-2] in ROLES}


def nudged(state: State, *, seed: int, size: float = 3e-5, dtype: torch.dtype) -> State:
    """The model after a Gaussian step of standard deviation `size` in every entry."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (w.double() + size * torch.randn(w.shape, generator=generator).double()).to(dtype)
        for name, w in state.items()
    }


def write(
    directory: Path,
    state: State,
    *,
    dtype: torch.dtype | None = None,
    shards: int = 1,
    prefix: str = "",
) -> Path:
    """Save as a transformers directory: one file, or shards with an index, names prefixed."""
    directory.mkdir(parents=True)
    config = {"model_type": "llama", "tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))
    stored = {f"{prefix}{n}": (w if dtype is None else w.to(dtype)) for n, w in state.items()}
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    if shards == 1:
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = sorted(stored)
    where = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(names)
    }
    for shard in sorted(set(where.values())):
        save_file({n: stored[n] for n in names if where[n] == shard}, directory / shard)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def read(directory: Path) -> State:
    """The tensors of a one-file directory, read by safetensors and not by offaxis."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")
