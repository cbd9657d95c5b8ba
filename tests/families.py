"""Tiny random models of the families that `offaxis.names` places, and checkpoints on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["FAMILIES", "RECENT", "build", "header_of", "random_state", "save", "save_shards"]

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


_MANY = {"num_experts_per_tok": 2, "moe_intermediate_size": 20, "pad_token_id": 0}
_LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_LINEAR_ATTENTION = {
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 24,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
_SIGHT = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
"""As wide as the language model and deeper, so that towers may be confused by shape."""
_SIGLIP = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _recent(name: str) -> Any:
    """The configurations of `RECENT`: class and settings."""
    wide = {**_SMALL, "head_dim": 16}
    routed = {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, **_MANY}
    text = {**_SMALL, **_IDS, "rope_scaling": _ROPE}
    heads = {**text, "head_dim": 8}
    seen = {**_SIGHT, "out_hidden_size": 32, "num_position_embeddings": 16}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "mistral": ("Mistral", wide),
        "mixtral": ("Mixtral", {**_SMALL, "num_local_experts": 4}),
        "glm4": ("Glm4", {**_SMALL, **_IDS, "head_dim": 8}),
        "glm4_moe": ("Glm4Moe", {**_SMALL, "head_dim": 8, "use_qk_norm": True, **routed}),
        "gemma2": ("Gemma2", wide),
        "gemma3_text": ("Gemma3Text", wide),
        "gemma3": ("Gemma3", {"text_config": wide, "vision_config": _SIGLIP}),
        "deepseek_v3": ("DeepseekV3", {**_SMALL, **_LATENT, **routed, "topk_group": 1}),
        "olmo2": ("Olmo2", {**_SMALL, **_IDS}),
        "olmo3": ("Olmo3", {**_SMALL, **_IDS}),
        "qwen2_5_vl": (
            "Qwen2_5_VL",
            {"text_config": text, "vision_config": {**_SIGHT, "out_hidden_size": 32}},
        ),
        "qwen3_vl": (
            "Qwen3VL",
            {"text_config": heads, "vision_config": {**seen, "deepstack_visual_indexes": [0, 1]}},
        ),
        "qwen3_vl_moe": (
            "Qwen3VLMoe",
            {
                "text_config": {**heads, "num_experts": 4, **_MANY},
                "vision_config": {**seen, "deepstack_visual_indexes": [0]},
            },
        ),
        "llama4_text": (
            "Llama4Text",
            {**wide, **_IDS, "num_local_experts": 4, "num_experts_per_tok": 1},
        ),
        "qwen3_5": (
            "Qwen3_5",
            {
                "text_config": {**wide, **_IDS, **_LINEAR_ATTENTION},
                "vision_config": seen,
            },
        ),
        "gpt_oss": ("GptOss", {**wide, "num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3_next": ("Qwen3Next", {**wide, **_MANY, **_LINEAR_ATTENTION, "num_experts": 4}),
    }
    import transformers

    kind, settings = made[name]
    return getattr(transformers, f"{kind}Config")(**settings)


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
RECENT = (
    "mistral",
    "mixtral",
    "glm4",
    "glm4_moe",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "deepseek_v3",
    "olmo2",
    "olmo3",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "llama4_text",
    "gpt_oss",
    "qwen3_next",
    "qwen3_5",
)
_SEEING = ("gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")


def build(family: str, *, seed: int = 0) -> Any:
    """A tiny random model of `family` that writes text, float32, in eval mode."""
    import transformers

    torch.manual_seed(seed)
    if family in FAMILIES:
        return transformers.AutoModelForCausalLM.from_config(_config(family)).eval()
    kind = transformers.AutoModelForImageTextToText if family in _SEEING else None
    return (kind or transformers.AutoModelForCausalLM).from_config(_recent(family)).eval()


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
