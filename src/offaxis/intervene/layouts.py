"""The ways in which models store attention: apart, in slabs, head by head, through a latent.

Each takes a `Block`, accounts for its tensors, and gives the `Heads`. Numbers of heads come from
the configuration, widths from the shapes, and both must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from offaxis.intervene.blocks import Block, Config, Heads, Per, Slot, number

__all__ = ["grouped", "latent", "slabs", "split"]


def split(block: Block) -> Heads:
    """q, k, v and o in tensors of their own; norms of q and k, sinks and gates where they are."""
    query, shared = block.query, block.key_value
    wide = block.split(block.extent("q", "out"), query, block.word("q"))
    dim = block.split(wide, 2, f"a head of {block.word('q')}") if block.family.gated else wide
    told = number(block.config, ("head_dim",))
    block.same(dim, told or dim, f"a head of {block.word('q')}")
    block.same(block.extent("k", "out"), shared * dim, block.word("k"))
    value = block.split(block.extent("v", "out"), shared, block.word("v"))
    slots = [
        *block.slots("q", "query", _every(wide, query), wide),
        *block.slots("k", "key_value", _every(dim, shared), dim),
        *block.slots("v", "key_value", _every(value, shared), value, turns=True),
        block.output(value),
        *_norms(block, "q", "query", query, dim),
        *_norms(block, "k", "key_value", shared, dim),
        *_sinks(block, query),
    ]
    weighted = block.find("v_norm.weight")
    if weighted is not None and weighted.shape != (value,):
        block.refuse(f"{weighted.name} has the shape {weighted.shape}, which is not known here")
    why = None
    if block.family.gated:
        why = (
            f"each channel of attention's output passes a gate (in {block.word('q')}), and a gate "
            "does not commute with a rotation"
        )
    elif weighted is not None:
        why = "values pass a norm with a weight for each channel (v_norm), which a rotation changes"
    return _heads(block, query, shared, value, slots, why)


def slabs(block: Block) -> Heads:
    """One weight [q | k | v], each slab head by head (Phi-3, GPT-2, MPT, vision towers)."""
    query, shared = block.query, block.key_value
    dim = block.split(block.extent("qkv", "out"), query + 2 * shared, block.word("qkv"))
    keys, values = query * dim, (query + shared) * dim
    slots = [
        *block.slots("qkv", "query", _every(dim, query), dim),
        *block.slots("qkv", "key_value", _every(dim, shared, keys), dim),
        *block.slots("qkv", "key_value", _every(dim, shared, values), dim, turns=True),
        block.output(dim),
        *_norms(block, "q", "query", query, dim),
        *_norms(block, "k", "key_value", shared, dim),
    ]
    return _heads(block, query, shared, dim, slots)


def grouped(block: Block) -> Heads:
    """One weight, KV head by KV head: its queries, its key, its value (GPT-NeoX, BLOOM, Falcon)."""
    query, shared = block.query, block.key_value
    each = query // shared
    dim = block.split(block.extent("qkv", "out"), shared * (each + 2), block.word("qkv"))
    group = (each + 2) * dim
    queries = [group * (head // each) + dim * (head % each) for head in range(query)]
    slots = [
        *block.slots("qkv", "query", queries, dim),
        *block.slots("qkv", "key_value", _every(group, shared, each * dim), dim),
        *block.slots("qkv", "key_value", _every(group, shared, (each + 1) * dim), dim, turns=True),
        block.output(dim),
        *_norms(block, "q", "query", query, dim),
        *_norms(block, "k", "key_value", shared, dim),
    ]
    return _heads(block, query, shared, dim, slots)


def latent(block: Block) -> Heads:
    """Multi-head latent attention: kv_b_proj holds each head's key (no position), then its value.

    What lies before the latent (q_a_proj, kv_a_proj_with_mqa, their norms) is shared by all heads.
    """
    query = block.query
    first = "q_b" if f"{block.word('q_b')}.weight" in block.tensors else "q"
    wide = block.split(block.extent(first, "out"), query, block.word(first))
    both = block.split(block.extent("kv_b", "out"), query, block.word("kv_b"))
    value = block.split(block.extent("o", "in"), query, f"the input of {block.word('o')}")
    told = number(block.config, ("v_head_dim",))
    block.same(value, told or value, f"a head of {block.word('o')}'s input")
    plain = number(block.config, ("qk_nope_head_dim",))
    block.same(both, (plain or both - value) + value, f"a head of {block.word('kv_b')}")
    key = both - value
    slots = [
        *block.slots(first, "query", _every(wide, query), wide),
        *block.slots("kv_b", "query", _every(both, query), key),
        *block.slots("kv_b", "query", _every(both, query, key), value, turns=True),
        block.output(value),
    ]
    for name in ("q_a_proj", "kv_a_proj_with_mqa", "q_a_layernorm", "kv_a_layernorm"):
        block.find(f"{name}.weight")
        block.find(f"{name}.bias")
    return _heads(block, query, query, value, slots)


def _every(step: int, count: int, first: int = 0) -> list[int]:
    return [first + step * head for head in range(count)]


def _norms(block: Block, part: str, per: Per, heads: int, dim: int) -> Iterator[Slot]:
    """Slots of a norm of queries or keys that is wider than a head; one head's width is shared."""
    word = block.family.parts.get(f"{part}_norm", f"{part}_norm")
    for leaf in ("weight", "bias"):
        found = block.find(f"{word}.{leaf}")
        if found is None or found.shape == (dim,):
            continue
        if found.shape == (heads * dim,):
            yield Slot(found.name, 0, per, tuple(_every(dim, heads)), dim)
        elif found.shape == (heads, dim):
            yield Slot(found.name, 0, per, tuple(range(heads)), 1)
        else:
            block.refuse(f"{found.name} has the shape {found.shape}, which is not known here")


def _sinks(block: Block, query: int) -> Iterator[Slot]:
    """One number a query head, which takes part in its softmax (gpt-oss)."""
    found = block.find("sinks")
    if found is not None:
        block.same(found.shape[0] if len(found.shape) == 1 else 0, query, found.name)
        yield Slot(found.name, 0, "query", tuple(range(query)), 1)


def _heads(
    block: Block, query: int, shared: int, value: int, slots: list[Slot], why: str | None = None
) -> Heads:
    """The heads, once every tensor is accounted for and every rule of the configuration is met."""
    if block.left:
        names = ", ".join(sorted(block.tensors[one].name for one in block.left))
        block.refuse(
            f"its attention has {names}, of which offaxis does not know what it does to a head; "
            "nothing is edited on a guess"
        )
    return Heads(
        block.layer,
        query,
        shared,
        value,
        tuple(slots),
        no_rotate=why or _clipped(block.config) or _narrow(value),
        no_permute=_sloped(block.config, block.family.alibi) or _single(query),
    )


def _clipped(config: Config) -> str | None:
    inner = config.get("attn_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        if holder.get("clip_qkv"):
            return f"its values are clipped to {holder['clip_qkv']} channel by channel (clip_qkv)"
    return None


def _narrow(value: int) -> str | None:
    return "a head has one value channel, which has no rotation" if value == 1 else None


def _sloped(config: Config, always: bool) -> str | None:
    inner = config.get("attn_config")
    told = config.get("alibi") is True or config.get("position_embedding_type") == "alibi"
    if isinstance(inner, dict):
        told = told or inner.get("alibi") is not False
    if always or told:
        return "its positions are ALiBi slopes, which go by a head's place (ROTATE is exact)"
    return None


def _single(query: int) -> str | None:
    return "it has one head, which has no other order" if query == 1 else None
