"""What recent families hold, written down by reading the models, not by running `offaxis.names`.

`MEMORY` and `saved_patterns`: each name, with `N` for every number, and the roles of its pieces in
order. `COUNTS`: layers, experts and matrices of the tiny models in `families`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COUNTS", "MEMORY", "Counts", "Patterns", "saved_patterns"]

Patterns = dict[str, str]
"""Name pattern -> the roles of its pieces, separated by spaces."""


def named(prefix: str, *blocks: Patterns) -> Patterns:
    return {prefix + name: roles for block in blocks for name, roles in block.items()}


def each(suffix: str, *names: str, role: str = "") -> Patterns:
    """`x.suffix` for every x, under its own name or one role for all."""
    return {f"{name}.{suffix}": role or name.rpartition(".")[2] for name in names}


def norms(*names: str) -> Patterns:
    return each("weight", *names, role="norm")


def vision(prefix: str, *blocks: Patterns) -> Patterns:
    """The same, each role in the vision tower."""
    return {
        name: " ".join(f"vision.{role}" for role in roles.split())
        for name, roles in named(prefix, *blocks).items()
    }


QKV = "q_proj k_proj v_proj"
ATTENTION = named("self_attn.", each("weight", "q_proj", "k_proj", "v_proj", "o_proj"))
QK_NORM = norms("self_attn.q_norm", "self_attn.k_norm")
MLP = named("mlp.", each("weight", "gate_proj", "up_proj", "down_proj"))
PRE, POST = norms("input_layernorm"), norms("post_attention_layernorm")
STACKS = {"experts.gate_up_proj": "gate_proj up_proj", "experts.down_proj": "down_proj"}
ROUTED = {"gate.weight": "router", **STACKS}
SCORED = {**ROUTED, "gate.e_score_correction_bias": "bias"}
SHARED = each("weight", "shared_experts.gate_proj", "shared_experts.up_proj")
SHARED = SHARED | each("weight", "shared_experts.down_proj")
ONE_SHARED = {name.replace("experts", "expert"): role for name, role in SHARED.items()}
LATENT = named(
    "self_attn.",
    each("weight", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    norms("q_a_layernorm", "kv_a_layernorm"),
)


def biases(*names: str) -> Patterns:
    return each("bias", *names, role="bias")


def affine(*names: str, role: str) -> Patterns:
    """Weight and bias of layer norms (one role) or of linears (`bias` for the second)."""
    return each("weight", *names, role=role) | each(
        "bias", *names, role="norm" if role == "norm" else "bias"
    )


QKV_BIAS = biases("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def text(*layer: Patterns, at: str = "model.") -> Patterns:
    """A language model: embedding, layers, final norm, head."""
    ends = {f"{at}embed_tokens.weight": "embed", f"{at}norm.weight": "norm"}
    return {**ends, **named(f"{at}layers.N.", *layer), "lm_head.weight": "lm_head"}


FUSED_SIGHT = affine("attn.proj", role="o_proj") | {
    "attn.qkv.weight": QKV,
    "attn.qkv.bias": "bias bias bias",
}


def qwen3_sight(at: str, *, mergers: bool = True) -> Patterns:
    """Qwen3-VL's vision tower with its mergers, of which Qwen3.5 has one."""
    linears = affine("linear_fc1", "linear_fc2", role="other") | affine("norm", role="norm")
    mlp = affine("mlp.linear_fc1", role="up_proj") | affine("mlp.linear_fc2", role="down_proj")
    return vision(
        at,
        affine("patch_embed.proj", role="other"),
        {"pos_embed.weight": "position_embed"},
        named("blocks.N.", FUSED_SIGHT, affine("norm1", "norm2", role="norm"), mlp),
        named("merger.", linears),
        named("deepstack_merger_list.N.", linears) if mergers else {},
    )


def qwen25_sight(at: str) -> Patterns:
    """Qwen2.5-VL's vision tower, gated like its language model, and its merger."""
    mlp = {
        **MLP,
        **biases("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    }
    return vision(
        at,
        {"patch_embed.proj.weight": "other", "merger.ln_q.weight": "norm"},
        named("blocks.N.", FUSED_SIGHT, norms("norm1", "norm2"), mlp),
        affine("merger.mlp.N", role="other"),
    )


def siglip(at: str) -> Patterns:
    """Gemma 3's vision tower with its pooling head, and the projector outside it."""
    mlp = affine("mlp.fc1", role="up_proj") | affine("mlp.fc2", role="down_proj")
    split = affine("self_attn.q_proj", role="q_proj") | affine("self_attn.k_proj", role="k_proj")
    split |= affine("self_attn.v_proj", role="v_proj") | affine("self_attn.out_proj", role="o_proj")
    layer_norms = affine("layer_norm1", "layer_norm2", role="norm")
    pooled = affine("attention.out_proj", role="o_proj") | {
        "probe": "other",
        "attention.in_proj_weight": QKV,
        "attention.in_proj_bias": "bias bias bias",
    }
    return vision(
        f"{at}vision_tower.",
        affine("embeddings.patch_embedding", role="other"),
        {"embeddings.position_embedding.weight": "position_embed"},
        named("encoder.layers.N.", split, mlp, layer_norms),
        affine("post_layernorm", role="norm"),
        named("head.", pooled, mlp, affine("layernorm", role="norm")),
    ) | {
        f"{at}multi_modal_projector.mm_input_projection_weight": "other",
        f"{at}multi_modal_projector.mm_soft_emb_norm.weight": "norm",
    }


GLM_NORMS = norms("post_self_attn_layernorm", "post_mlp_layernorm")
GEMMA_NORMS = norms("pre_feedforward_layernorm", "post_feedforward_layernorm")
GEMMA3_LAYER = (ATTENTION, QK_NORM, MLP, PRE, POST, GEMMA_NORMS)
OLMO = text(ATTENTION, QK_NORM, MLP, POST, norms("post_feedforward_layernorm"))
FUSED_MLP = {"mlp.gate_up_proj.weight": "gate_proj up_proj", "mlp.down_proj.weight": "down_proj"}
OSS_ATTENTION = {**ATTENTION, **QKV_BIAS, "self_attn.o_proj.bias": "bias"}
OSS_MLP = {
    "self_attn.sinks": "other",
    **affine("mlp.router", role="router"),
    "mlp.experts.gate_up_proj": "gate_up_proj",  # interleaved: one piece an expert
    "mlp.experts.gate_up_proj_bias": "bias",
    "mlp.experts.down_proj": "down_proj",
    "mlp.experts.down_proj_bias": "bias",
}
DELTA = named(
    "linear_attn.",
    {"dt_bias": "bias", "A_log": "other", "conv1d.weight": "other", "norm.weight": "norm"},
    {"in_proj_qkvz.weight": "other", "in_proj_ba.weight": "other", "out_proj.weight": "o_proj"},
)
DELTA_35 = named(
    "linear_attn.",
    {"dt_bias": "bias", "A_log": "other", "conv1d.weight": "other", "norm.weight": "norm"},
    {"in_proj_qkv.weight": QKV, "out_proj.weight": "o_proj"},
    each("weight", "in_proj_z", "in_proj_b", "in_proj_a", role="other"),
)
NEXT_MLP = named("mlp.", ROUTED, ONE_SHARED, {"shared_expert_gate.weight": "router"})
LLAMA4_MLP = named("feed_forward.", STACKS, ONE_SHARED, {"router.weight": "router"})

MEMORY: dict[str, Patterns] = {
    "mistral": text(ATTENTION, MLP, PRE, POST),
    "mixtral": text(ATTENTION, named("mlp.", ROUTED), PRE, POST),
    "glm4": text(ATTENTION, QKV_BIAS, FUSED_MLP, PRE, POST, GLM_NORMS),
    "glm4_moe": text(ATTENTION, QK_NORM, MLP, named("mlp.", SCORED, SHARED), PRE, POST),
    "gemma2": text(ATTENTION, MLP, PRE, POST, GEMMA_NORMS),
    "gemma3_text": text(*GEMMA3_LAYER),
    "gemma3": text(*GEMMA3_LAYER, at="model.language_model.") | siglip("model."),
    "deepseek_v3": text(LATENT, MLP, named("mlp.", SCORED, SHARED), PRE, POST),
    "olmo2": OLMO,
    "olmo3": OLMO,
    "qwen2_5_vl": text(ATTENTION, QKV_BIAS, MLP, PRE, POST, at="model.language_model.")
    | qwen25_sight("model.visual."),
    "qwen3_vl": text(ATTENTION, QK_NORM, MLP, PRE, POST, at="model.language_model.")
    | qwen3_sight("model.visual."),
    "qwen3_vl_moe": text(
        ATTENTION, QK_NORM, named("mlp.", ROUTED), PRE, POST, at="model.language_model."
    )
    | qwen3_sight("model.visual."),
    "llama4_text": text(ATTENTION, LLAMA4_MLP, PRE, POST),
    "gpt_oss": text(OSS_ATTENTION, OSS_MLP, PRE, POST),
    "qwen3_5": text(ATTENTION, QK_NORM, DELTA_35, MLP, PRE, POST, at="model.language_model.")
    | qwen3_sight("model.visual.", mergers=False),
    "qwen3_next": text(ATTENTION, QK_NORM, DELTA, NEXT_MLP, PRE, POST),
}


def singly(patterns: Patterns, container: str, gate: str, up: str, down: str) -> Patterns:
    """The same model with its experts saved one by one under the given words."""
    out = {n.replace("mlp.gate.", f"{container}.gate."): r for n, r in patterns.items()}
    for name in [name for name in out if name.endswith("mlp.experts.gate_up_proj")]:
        at = name.removesuffix("mlp.experts.gate_up_proj") + f"{container}.experts.N."
        del out[name], out[name.replace("gate_up_proj", "down_proj")]
        words = {gate: "gate_proj", up: "up_proj", down: "down_proj"}
        out |= {f"{at}{word}.weight": role for word, role in words.items()}
    return out


def saved_patterns(family: str) -> Patterns:
    """What `save_pretrained` writes: experts one by one, older prefixes, no tied head."""
    patterns = dict(MEMORY[family])
    if family in ("gemma2", "gemma3_text", "gemma3"):
        del patterns["lm_head.weight"]
    if family == "mixtral":
        return singly(patterns, "block_sparse_moe", "w1", "w3", "w2")
    if family in ("glm4_moe", "deepseek_v3", "qwen3_next"):
        return singly(patterns, "mlp", "gate_proj", "up_proj", "down_proj")
    if family == "gemma3":
        old = ("model.language_model.", "language_model.model.")
        return {n.replace(*old).removeprefix("model."): r for n, r in patterns.items()}
    if family == "qwen2_5_vl":
        plain = {n.replace("model.language_model.", "model."): r for n, r in patterns.items()}
        return {n.replace("model.visual.", "visual."): r for n, r in plain.items()}
    return patterns


@dataclass(frozen=True)
class Counts:
    """What a family has, counted by hand from `families`."""

    matrices: int
    layers: int = 2
    experts: int = 0
    seeing: int = 0
    """Layers of the vision tower."""


COUNTS = {
    "mistral": Counts(2 * 7),
    "mixtral": Counts(2 * (4 + 1 + 4 * 3), experts=4),
    "glm4": Counts(2 * 7),
    "glm4_moe": Counts(7 + (4 + 1 + 4 * 3 + 3), experts=4),
    "gemma2": Counts(2 * 7),
    "gemma3_text": Counts(2 * 7),
    "gemma3": Counts(2 * 7 + 2 * 6 + 6 + 1, seeing=2),
    "deepseek_v3": Counts(8 + (5 + 1 + 4 * 3 + 3), experts=4),
    "olmo2": Counts(2 * 7),
    "olmo3": Counts(2 * 7),
    "qwen2_5_vl": Counts(2 * 7 + 3 * 7 + 2, seeing=3),
    "qwen3_vl": Counts(2 * 7 + 3 * 6 + 2 + 2 * 2, seeing=3),
    "qwen3_vl_moe": Counts(2 * (4 + 1 + 4 * 3) + 3 * 6 + 2 + 2, experts=4, seeing=3),
    "llama4_text": Counts(2 * (4 + 1 + 4 * 3 + 3), experts=4),
    "gpt_oss": Counts(2 * (4 + 1 + 4 * 2), experts=4),
    "qwen3_5": Counts(3 * 7 + 4 + 4 * 3 + 3 * 6 + 2, layers=4, seeing=3),
    "qwen3_next": Counts(3 * 3 + 4 + 4 * (1 + 4 * 3 + 3), layers=4, experts=4),
}
