"""Tiny models with attention, beyond those in `families`, run in float64 from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import families

__all__ = [
    "MORE",
    "Exact",
    "build",
    "distance",
    "logits",
    "made",
    "reload",
    "saved",
    "tower",
    "vision",
]

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROUTED = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_N = {"vocab_size": 96, "n_layer": 2, "n_head": 4}
_LATENT = {
    "kv_lora_rank": 10,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
_OLD = {k: v for k, v in _SMALL.items() if k != "num_key_value_heads"}
_ALL = {**_SMALL, "num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
_FALCON = {k: v for k, v in _OLD.items() if k != "intermediate_size"} | {"bias": True}
_BIG = {"vocab_size": 96, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {**_SMALL, "head_dim": 16}),
    "gemma3n_text": (
        "Gemma3nText",
        {
            **_SMALL,
            "num_hidden_layers": 5,
            "head_dim": 8,
            "num_kv_shared_layers": 2,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 96,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 5,
        },
    ),
    "glm": ("Glm", {**_SMALL, "head_dim": 8}),
    "olmo": ("Olmo", _SMALL),
    "olmo_clipped": ("Olmo", {**_SMALL, "clip_qkv": 0.5}),
    "olmoe": ("Olmoe", {**_SMALL, **_ROUTED}),
    "cohere": ("Cohere", {**_SMALL, "use_qk_norm": True}),
    "cohere2": ("Cohere2", {**_SMALL, "head_dim": 8}),
    "granite": ("Granite", {**_SMALL, "attention_bias": True}),
    "granitemoe": ("GraniteMoe", {**_SMALL, **_ROUTED}),
    "smollm3": ("SmolLM3", _SMALL),
    "starcoder2": ("Starcoder2", {**_SMALL, "use_bias": True}),
    "seed_oss": ("SeedOss", {**_SMALL, "head_dim": 8, "attention_bias": True}),
    "phimoe": ("Phimoe", {**_SMALL, **_ROUTED, "attention_bias": True}),
    "ernie4_5": ("Ernie4_5", {**_SMALL, "head_dim": 8, "use_bias": True}),
    "exaone4": ("Exaone4", {**_SMALL, "head_dim": 8}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {**_SMALL, "head_dim": 8}),
    "nemotron": ("Nemotron", {**_SMALL, "attention_bias": True}),
    "minimax_m2": ("MiniMaxM2", {**_SMALL, **_ROUTED, "head_dim": 8}),
    "dots1": (
        "Dots1",
        {**_SMALL, "head_dim": 8, "n_routed_experts": None, "first_k_dense_replace": 2},
    ),
    "apertus": ("Apertus", {**_SMALL, "attention_bias": True}),
    "arcee": ("Arcee", _SMALL),
    "helium": ("Helium", {**_SMALL, "head_dim": 8}),
    "ministral3": ("Ministral3", {**_SMALL, "head_dim": 8}),
    "qwen2_moe": ("Qwen2Moe", {**_SMALL, **_ROUTED, "shared_expert_intermediate_size": 24}),
    "stablelm": ("StableLm", {**_SMALL, "use_qkv_bias": True}),
    "phi": ("Phi", {**_SMALL, "qk_layernorm": True}),
    "opt": (
        "OPT",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 32,
            "pad_token_id": 0,
        },
    ),
    "gptj": ("GPTJ", {**_N, "n_embd": 32, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": ("GPTNeoX", _OLD),
    "persimmon": ("Persimmon", _OLD),
    "bloom": ("Bloom", {**_N, "hidden_size": 32}),
    "mpt": ("Mpt", {"vocab_size": 96, "d_model": 32, "n_heads": 4, "n_layers": 2}),
    "falcon_7b": ("Falcon", {**_FALCON, "multi_query": True}),
    "falcon_40b": (
        "Falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_rw": ("Falcon", {**_FALCON, "multi_query": False, "alibi": True}),
    "gpt_bigcode": ("GPTBigCode", {**_BIG, "multi_query": True}),
    "gpt_bigcode_all": ("GPTBigCode", {**_BIG, "multi_query": False}),
    "deepseek_v2": (
        "DeepseekV2",
        {**_ALL, **_LATENT, "q_lora_rank": None, "first_k_dense_replace": 2, "head_dim": 4},
    ),
    "glm4_moe_lite": (
        "Glm4MoeLite",
        {**_ALL, **_LATENT, "mlp_layer_types": ["dense", "dense"]},
    ),
    "minicpm3": ("MiniCPM3", {**_ALL, **_LATENT}),
    "lfm2": ("Lfm2", {**_SMALL, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "Jamba",
        {
            **_SMALL,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "use_mamba_kernels": False,
        },
    ),
    "llama_bias": ("Llama", {**_SMALL, "attention_bias": True}),
    "llama_one": ("Llama", {**_SMALL, "num_key_value_heads": 1}),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "text_config": {**_SMALL, "rope_scaling": _ROPE},
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4,
                              "patch_size": 4, "mlp_ratio": 2},
        },
    ),
}  # fmt: skip
MORE = tuple(_CONFIGS)
_SEEING = ("qwen2_vl",)


class Exact(TorchFunctionMode):
    """Whatever asks for float32 gets float64: norms, softmax and rotary angles too.

    transformers computes these in float32 in every model, so that a change of 1e-16 before them
    may become one of 1e-7 behind.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = [torch.float64 if one is torch.float32 else one for one in args]
        named = {
            key: torch.float64 if one is torch.float32 else one
            for key, one in (kwargs or {}).items()
        }
        return func(*wide, **named)


def build(name: str, *, seed: int = 0) -> Any:
    """A tiny float64 model, every parameter random, in eval mode."""
    import transformers

    if name in _CONFIGS:
        kind, settings = _CONFIGS[name]
        config = getattr(transformers, f"{kind}Config")(**settings)
        auto = (
            transformers.AutoModelForImageTextToText
            if name in _SEEING
            else transformers.AutoModelForCausalLM
        )
        model = auto.from_config(config)
    else:
        model = families.build(name)
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(0.25 * drawn + (1.0 if value.ndim == 1 else 0.0))
    return model


def saved(model: Any, directory: Path) -> Path:
    model.config.dtype = torch.float64
    model.save_pretrained(directory)
    return directory


def made(name: str, directory: Path) -> tuple[Any, Path]:
    """The model of `build` in `directory`, and as transformers loads it from there.

    Loaded, since constants such as Gemma's scale of the embedding are made in the model's dtype.
    """
    model = build(name)
    return reload(model, saved(model, directory)), directory


def reload(model: Any, directory: Path) -> Any:
    """The model in `directory`, by transformers, as `model` is; every tensor must be found."""
    found, report = type(model).from_pretrained(
        directory,
        dtype=torch.float64,
        experts_implementation="eager",  # the others have no float64
        output_loading_info=True,
        local_files_only=True,
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return found.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """(2, 11, vocabulary), float64."""
    ids = torch.arange(22).view(2, 11).mul(7).remainder(83).add(4)
    with Exact():
        return model(input_ids=ids, use_cache=False).logits


def tower(model: Any) -> Any:
    inner = model.model
    return inner.visual if hasattr(inner, "visual") else inner.vision_tower


@torch.no_grad()
def vision(model: Any) -> torch.Tensor:
    """What the vision tower makes of random patches."""
    seen = tower(model)
    generator = torch.Generator().manual_seed(3)
    with Exact():
        if hasattr(seen, "patch_embed"):
            width = seen.patch_embed.proj.weight.shape[1:].numel()
            pixels = torch.randn(16, width, generator=generator, dtype=torch.float64)
            out = seen(pixels, grid_thw=torch.tensor([[1, 4, 4]]))
        else:
            pixels = torch.randn(2, 3, 28, 28, generator=generator, dtype=torch.float64)
            out = seen(pixels)
    return out.last_hidden_state


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert one.dtype == other.dtype == torch.float64
    assert bool(torch.isfinite(one).all())
    return float((one - other).abs().max() / one.abs().max())
