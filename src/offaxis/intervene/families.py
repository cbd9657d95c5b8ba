"""Which models offaxis knows how to edit, by the `model_type` of their configuration.

A family is here because a test holds its logits through both edits. What is not here is refused:
an attention that nobody has read may do anything to a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.intervene.blocks import Config, Family, number
from offaxis.intervene.layouts import grouped, latent, slabs, split

__all__ = ["FAMILIES", "SEEING", "family_of"]

_APART = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_OUT = {**_APART, "o": "out_proj"}
_LAYERNORMS = {"q_norm": "q_layernorm", "k_norm": "k_layernorm"}
_HUNYUAN = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}
_QKV = {"qkv": "query_key_value", "o": "dense"}
_LATENT = {"q": "q_proj", "q_b": "q_b_proj", "kv_b": "kv_b_proj", "o": "o_proj"}
_OLD = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def _grouped_heads(config: Config, query: int) -> int:
    return number(config, ("num_key_value_heads",)) or query


def _falcon_heads(config: Config, query: int) -> int | str:
    """KV heads of Falcon's three layouts; its two switches must both be told."""
    new, one = config.get("new_decoder_architecture"), config.get("multi_query")
    if not isinstance(new, bool):
        return "new_decoder_architecture"
    if new:
        return number(config, ("num_kv_heads", "n_head_kv")) or "num_kv_heads"
    if not isinstance(one, bool):
        return "multi_query"
    return 1 if one else query


def _one_or_all(config: Config, query: int) -> int | str:
    one = config.get("multi_query")
    return (1 if one else query) if isinstance(one, bool) else "multi_query"


def _split(**settings: Any) -> Family:
    return Family(split, **{"parts": _APART, "key_value": _grouped_heads, **settings})


_PLAIN = _split()
_GATED = _split(gated=True)
_MLA = Family(latent, parts=_LATENT)
_BLOOM = Family(grouped, "self_attention", _QKV, _OLD, alibi=True)
_NORMED = _split(parts={**_APART, **_LAYERNORMS})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "mixtral", "ministral3", "smollm3", "arcee"), _PLAIN),
        **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _PLAIN),
        **dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _PLAIN),
        **dict.fromkeys(("qwen3_vl_text", "qwen3_vl_moe_text"), _PLAIN),
        **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _GATED),
        **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma3n_text"), _PLAIN),
        **dict.fromkeys(("glm", "glm4", "glm4_moe", "seed_oss", "ernie4_5"), _PLAIN),
        **dict.fromkeys(("olmo", "olmo2", "olmo3", "olmoe", "starcoder2"), _PLAIN),
        **dict.fromkeys(("cohere", "cohere2", "granite", "granitemoe", "helium"), _PLAIN),
        **dict.fromkeys(("exaone4", "nemotron", "apertus", "dots1", "minimax_m2"), _PLAIN),
        **dict.fromkeys(("llama4_text", "gpt_oss", "phimoe", "jamba"), _PLAIN),
        **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3"), _MLA),
        "stablelm": _NORMED,
        "hunyuan_v1_dense": _split(parts={**_APART, **_HUNYUAN}),
        "phi": _split(parts={**_APART, **_LAYERNORMS, "o": "dense"}),
        "lfm2": _split(parts={**_OUT, **_LAYERNORMS}),
        "opt": _split(parts=_OUT, key_value=None),
        "gptj": _split(module="attn", parts=_OUT, query=_OLD, key_value=None),
        "gpt_neo": _split(module="attn.attention", parts=_OUT, query=_OLD, key_value=None),
        "phi3": Family(slabs, parts={"qkv": "qkv_proj", "o": "o_proj"}, key_value=_grouped_heads),
        "gpt2": Family(slabs, "attn", {"qkv": "c_attn", "o": "c_proj"}, _OLD, transposed=True),
        "mpt": Family(slabs, "attn", {"qkv": "Wqkv", "o": "out_proj"}, _OLD, alibi=True),
        "gpt_neox": Family(grouped, "attention", _QKV),
        "persimmon": Family(grouped, parts={**_QKV, **_LAYERNORMS}),
        "bloom": _BLOOM,
        "falcon": Family(grouped, "self_attention", _QKV, _OLD, _falcon_heads),
        "gpt_bigcode": Family(grouped, "attn", {"qkv": "c_attn", "o": "c_proj"}, _OLD, _one_or_all),
    }
)
"""The language model, by `text_config.model_type`, or the configuration's own where it has none."""

_SIGHT = Family(slabs, "attn", {"qkv": "qkv", "o": "proj"}, ("num_heads", "num_attention_heads"))
_SIGLIP = Family(split, parts=_OUT)

SEEING: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _SIGHT),
        **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _SIGHT),
        "gemma3": _SIGLIP,
    }
)
"""The vision tower, by the configuration's own `model_type`."""


def family_of(config: Config, tower: str, *, source: str) -> tuple[Family, Config]:
    """The family of one tower, and the part of the configuration that is about it.

    InputError where the configuration names none, or one that is not known here.
    """
    if not config:
        raise InputError(f"{source}: no config.json, so its heads cannot be told; add the model's")
    root = config.get("model_type")
    inner = config.get("vision_config" if tower == "vision" else "text_config")
    if tower == "vision":
        kind, known = root, SEEING
        inner = inner if isinstance(inner, Mapping) else {}
    else:
        known = FAMILIES
        inner = inner if isinstance(inner, Mapping) else config
        kind = inner.get("model_type")
    found = known.get(kind) if isinstance(kind, str) else None
    if found is None:
        what = f"{tower} tower of model_type" if tower else "model_type"
        raise InputError(
            f"{source}: the {what} {kind!r} has an attention that offaxis does not know, and "
            f"nothing is edited on a guess; known are {', '.join(sorted(known))}"
        )
    return found, inner
