"""Tensor name -> layer, role, expert, orientation.

Roles come from the module that owns the parameter (`q_proj`, `c_fc`, `ln_1`), looked up in one
table; where a word means different things in attention and MLP (`c_proj`, `dense`), the modules
above it decide. A name that no rule knows has the role `other` and is measured all the same.

A model may hold several towers, each with its own layer 3. What lies in a vision or audio tower
carries the tower before its role (`vision.q_proj`, `vision.norm`), so that layer and role together
never mix two towers; a role without a prefix belongs to the language model or to what joins the
towers. `Place.tower` and `Place.kind` take the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

__all__ = ["MATRIX_EXEMPT", "ROLES", "Place", "is_index", "is_matrix", "place", "unwrap"]

Shape = tuple[int, ...]

ROLES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
    "router",
    "embed",
    "position_embed",
    "lm_head",
    "norm",
    "bias",
    "classifier",
    "value_head",
    "other",
)
"""Every role, before the prefix of a tower.

`q_a_proj` ... `kv_b_proj` are the low-rank halves of multi-head latent attention, kept as stored:
`kv_b_proj` interleaves keys and values head by head. `qkv_proj` and `gate_up_proj` are fused
weights that cannot be cut into slabs (interleaved by head or by row, or of unknown split).
"""

MATRIX_EXEMPT = frozenset(
    {"embed", "position_embed", "lm_head", "norm", "bias", "classifier", "value_head"}
)
"""Roles that are measured entry by entry even where they are 2-D."""

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

_TOWERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("visual", "vision_tower", "vision_model", "vision_encoder", "image_encoder"), "vision"
    ),
    **dict.fromkeys(("audio_tower", "audio_model", "audio_encoder"), "audio"),
}

_CONTAINERS = re.compile(r"(?:^|_)(?:layers?|blocks?|h|resblocks|units)$")

_MODULES: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "query", "c_q", "wq", "q_lin", "to_q"), "q_proj"),
    **dict.fromkeys(("k_proj", "key", "c_k", "wk", "k_lin", "to_k"), "k_proj"),
    **dict.fromkeys(("v_proj", "value", "c_v", "wv", "v_lin", "to_v"), "v_proj"),
    **dict.fromkeys(("o_proj", "wo", "out_lin"), "o_proj"),
    **{mla: mla for mla in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")},
    **dict.fromkeys(("qkv_proj", "qkv", "Wqkv", "query_key_value", "in_proj_weight"), "qkv_proj"),
    "in_proj_qkv": "qkv_proj",
    "gate_up_proj": "gate_up_proj",
    **dict.fromkeys(("gate_proj", "w1"), "gate_proj"),
    **dict.fromkeys(("up_proj", "w3", "c_fc", "fc1", "fc_in", "dense_h_to_4h"), "up_proj"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"), "down_proj"),
    **dict.fromkeys(("router", "shared_expert_gate", "gate_network"), "router"),
    **dict.fromkeys(
        ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"), "embed"
    ),
    **dict.fromkeys(
        ("wpe", "embed_positions", "position_embeddings", "position_embedding", "pos_embed"),
        "position_embed",
    ),
    **dict.fromkeys(("lm_head", "embed_out"), "lm_head"),
    **dict.fromkeys(("score", "classifier", "qa_outputs", "classification_head"), "classifier"),
    **dict.fromkeys(("v_head", "value_head", "reward_head", "rm_head"), "value_head"),
}

_ATTENTION = re.compile(r"attn|attention")
_FEED_FORWARD = re.compile(r"mlp|feed_forward|ffn|moe|experts")
_NORM = re.compile(r"norm|^ln(?:_|\d|$)|^ln_f$")
_MLP_ONLY: Mapping[str, str] = {"linear_fc1": "up_proj", "linear_fc2": "down_proj"}
"""Words that name the MLP of a vision block, and in a merger its two unlike linears."""
_BUFFERS = ("inv_freq", "original_inv_freq", "masked_bias", "position_ids", "rope.freqs")


@dataclass(frozen=True)
class Place:
    """Where a parameter sits in its model."""

    layer: int | None
    """The layer's number within its tower."""
    role: str
    """One of `ROLES`, after `vision.` or `audio.` in such a tower."""
    expert: int | None
    """The number of a routed expert; None elsewhere, a shared expert included."""
    transposed: bool
    """True where the model multiplies by the transpose of what is stored (GPT-2's Conv1D)."""
    buffer: bool = False
    """True for a constant that is no parameter: a causal mask, a table of rotary frequencies."""

    @property
    def tower(self) -> str:
        """`vision`, `audio`, or an empty string for the language model."""
        return self.role.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """The role without its tower: one of `ROLES`."""
        return self.role.rpartition(".")[2]

    def named(self, kind: str) -> Place:
        """The same place with another role of the same tower."""
        return replace(self, role=_join(self.tower, kind))


def unwrap(name: str) -> str:
    """`name` without the segments that torch.compile, FSDP and activation checkpointing add."""
    return _WRAPPERS.sub("", name)


def is_index(token: str) -> bool:
    """True for a layer or expert number: ASCII digits, and few enough for any table column."""
    return token.isascii() and token.isdigit() and len(token) <= 9


def is_matrix(shape: Sequence[int], place: Place) -> bool:
    """2-D, min(m, n) >= 2, and no embedding, head, norm, bias or buffer."""
    return (
        len(shape) == 2 and min(shape) >= 2 and place.kind not in MATRIX_EXEMPT and not place.buffer
    )


def place(name: str, shape: Sequence[int], *, shapes: Mapping[str, Shape] | None = None) -> Place:
    """Place one parameter.

    name, shape: as stored. shapes: every tensor of the checkpoint, used to tell GPT-2's Conv1D
    (in, out) from a Linear (out, in) of the same name; without it `c_attn`, `c_fc` and `c_proj`
    count as Conv1D.
    """
    segments = unwrap(name).split(".")
    buffer = _is_buffer(segments, shape)
    return Place(
        layer=_index_after(segments, _CONTAINERS),
        role=_join(_tower(segments), "other" if buffer else _role(segments, len(shape))),
        expert=_index_after(segments, re.compile(r"^(?:experts?|local_experts)$")),
        transposed=not buffer and _transposed(unwrap(name), segments, shape, shapes),
        buffer=buffer,
    )


def _tower(segments: Sequence[str]) -> str:
    """The tower of the first segment that names one, or an empty string."""
    return next((_TOWERS[segment] for segment in segments if segment in _TOWERS), "")


def _join(tower: str, kind: str) -> str:
    return f"{tower}.{kind}" if tower else kind


def _index_after(segments: Sequence[str], container: re.Pattern[str]) -> int | None:
    """The first all-digit segment whose predecessor matches `container`."""
    for before, segment in pairwise(segments):
        if is_index(segment) and container.search(before):
            return int(segment)
    return None


def _is_buffer(segments: Sequence[str], shape: Sequence[int]) -> bool:
    """GPT-2's `attn.bias` is a (1, 1, n, n) mask, not a bias."""
    tail = ".".join(segments[-2:])
    if segments[-1] in _BUFFERS or tail in _BUFFERS:
        return True
    return segments[-1] == "bias" and len(shape) == 4 and tuple(shape[:2]) == (1, 1)


def _role(segments: Sequence[str], rank: int) -> str:
    """The role of the parameter whose dotted name splits into `segments`."""
    leaf, owners = segments[-1], segments[:-1]
    if leaf not in ("weight", "bias"):
        owners = segments  # a bare parameter (`experts.down_proj`, `A_log`) is its own owner
    owner = owners[-1] if owners else leaf
    if _NORM.search(owner):
        return "norm"
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    for segment in owners:
        if _MODULES.get(segment) in ("value_head", "classifier"):
            return _MODULES[segment]
    return _MODULES.get(owner) or _by_context(owner, owners[:-1], rank)


def _by_context(owner: str, above: Sequence[str], rank: int) -> str:
    """Roles of words that mean one thing in attention and another elsewhere."""
    path = ".".join(above[-2:])
    nearest = above[-1] if above else ""
    if owner in ("c_proj", "out_proj", "dense", "proj", "output"):
        if _ATTENTION.search(nearest) or (owner == "dense" and _ATTENTION.search(path)):
            return "o_proj"
        if owner == "c_proj" and _FEED_FORWARD.search(nearest):
            return "down_proj"
    if owner == "gate" and _FEED_FORWARD.search(path) and rank == 2:
        return "router"
    if owner in _MLP_ONLY and nearest == "mlp":
        return _MLP_ONLY[owner]
    if (owner == "output" and not above) or (owner == "head" and nearest == "shared_head"):
        return "lm_head"
    return "other"


def _transposed(
    name: str, segments: Sequence[str], shape: Sequence[int], shapes: Mapping[str, Shape] | None
) -> bool:
    """Conv1D stores (in, out). A sibling `c_attn` with more columns than rows proves it.

    Gemma 3 multiplies by its bare `mm_input_projection_weight` from the right: (in, out) as well.
    """
    if segments[-1] == "mm_input_projection_weight":
        return len(shape) == 2
    if len(shape) != 2 or segments[-1] != "weight" or len(segments) < 3:
        return False
    if segments[-2] not in ("c_attn", "c_proj", "c_fc", "q_attn"):
        return False
    if shapes is None:
        return True
    block = name.rsplit(".", 3)[0]
    for sibling in (f"{block}.attn.c_attn.weight", f"{block}.crossattention.c_attn.weight"):
        found = shapes.get(sibling)
        if found is not None and len(found) == 2:
            return found[1] > found[0]
    bias = shapes.get(name.removesuffix("weight") + "bias")
    return bias is not None and bias == (shape[1],) != (shape[0],)
