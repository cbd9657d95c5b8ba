"""A checkpoint of llama2.c (its first format) as the tensors of a Hugging Face Llama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Stories", "read"]


@dataclass(frozen=True)
class Stories:
    """config: keyword arguments of LlamaConfig. cosines: the file's own rotary table."""

    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    cosines: torch.Tensor


def read(path: Path) -> Stories:
    """Seven int32 (dim, hidden, layers, heads, KV heads, vocabulary, length), then float32.

    A positive vocabulary says that the head is the embedding. Each kind of tensor is stored for
    all layers together. The file pairs neighbouring channels for its rotary positions, transformers
    channels half a head apart: rows of q and k are reordered.
    """
    raw = path.read_bytes()
    dim, hidden, layers, heads, shared, vocabulary, length = np.frombuffer(raw, "<i4", 7).tolist()
    assert vocabulary > 0, "a head of its own"
    values = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy())
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return values[at - count : at].view(shape)

    width = dim // heads
    state = {"model.embed_tokens.weight": take(vocabulary, dim)}
    for name, *shape in (
        ("input_layernorm", dim),
        ("self_attn.q_proj", heads * width, dim),
        ("self_attn.k_proj", shared * width, dim),
        ("self_attn.v_proj", shared * width, dim),
        ("self_attn.o_proj", dim, heads * width),
        ("post_attention_layernorm", dim),
        ("mlp.gate_proj", hidden, dim),
        ("mlp.down_proj", dim, hidden),
        ("mlp.up_proj", hidden, dim),
    ):
        for layer, tensor in enumerate(take(layers, *shape)):
            halves = name.endswith(("q_proj", "k_proj"))
            state[f"model.layers.{layer}.{name}.weight"] = (
                _halves(tensor, width) if halves else tensor
            )
    state["model.norm.weight"] = take(dim)
    cosines = take(length, width // 2)
    take(length, width // 2)
    assert at == len(values), (at, len(values))
    config = {
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Stories(config, state, cosines)


def _halves(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Rows 0, 2, 4, ... of each head first, then 1, 3, 5, ..."""
    rows, columns = tensor.shape
    pairs = tensor.view(rows // width, width // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
