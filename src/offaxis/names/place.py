"""Tensor name -> layer, role, expert, orientation.

Roles come from the module that owns the parameter (`q_proj`, `c_fc`, `ln_1`), looked up in one
table; where a word means different things in attention and MLP (`c_proj`, `dense`), the modules
above it decide. A name that no rule knows has the role `other` and is measured all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["MATRIX_EXEMPT", "ROLES", "Place", "is_index", "is_matrix", "place", "unwrap"]

Shape = tuple[int, ...]

ROLES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
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

MATRIX_EXEMPT = frozenset(
    {"embed", "position_embed", "lm_head", "norm", "bias", "classifier", "value_head"}
)
"""Roles that are measured entry by entry even where they are 2-D."""

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

_CONTAINERS = re.compile(r"(?:^|_)(?:layers?|blocks?|h|resblocks|units)$")

_MODULES: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "query", "c_q", "wq", "q_lin", "to_q"), "q_proj"),
    **dict.fromkeys(("k_proj", "key", "c_k", "wk", "k_lin", "to_k"), "k_proj"),
    **dict.fromkeys(("v_proj", "value", "c_v", "wv", "v_lin", "to_v"), "v_proj"),
    **dict.fromkeys(("o_proj", "wo", "out_lin"), "o_proj"),
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
_BUFFERS = ("inv_freq", "original_inv_freq", "masked_bias", "position_ids", "rope.freqs")


@dataclass(frozen=True)
class Place:
    """Where a parameter sits in its model."""

    layer: int | None
    role: str
    expert: int | None
    transposed: bool
    """True where the model multiplies by the transpose of what is stored (GPT-2's Conv1D)."""
    buffer: bool = False
    """True for a constant that is no parameter: a causal mask, a table of rotary frequencies."""


def unwrap(name: str) -> str:
    """`name` without the segments that torch.compile, FSDP and activation checkpointing add."""
    return _WRAPPERS.sub("", name)


def is_index(token: str) -> bool:
    """True for a layer or expert number: ASCII digits, and few enough for any table column."""
    return token.isascii() and token.isdigit() and len(token) <= 9


def is_matrix(shape: Sequence[int], place: Place) -> bool:
    """2-D, min(m, n) >= 2, and no embedding, head, norm, bias or buffer."""
    return (
        len(shape) == 2 and min(shape) >= 2 and place.role not in MATRIX_EXEMPT and not place.buffer
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
        role="other" if buffer else _role(segments, len(shape)),
        expert=_index_after(segments, re.compile(r"^(?:experts?|local_experts)$")),
        transposed=not buffer and _transposed(unwrap(name), segments, shape, shapes),
        buffer=buffer,
    )


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
    if owner in ("c_proj", "out_proj", "dense", "proj", "output"):
        nearest = above[-1] if above else ""
        if _ATTENTION.search(nearest) or (owner == "dense" and _ATTENTION.search(path)):
            return "o_proj"
        if owner == "c_proj" and _FEED_FORWARD.search(nearest):
            return "down_proj"
    if owner == "gate" and _FEED_FORWARD.search(path) and rank == 2:
        return "router"
    if owner == "output" and not above:
        return "lm_head"
    return "other"


def _transposed(
    name: str, segments: Sequence[str], shape: Sequence[int], shapes: Mapping[str, Shape] | None
) -> bool:
    """Conv1D stores (in, out). A sibling `c_attn` with more columns than rows proves it."""
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
