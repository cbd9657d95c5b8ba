"""Cut stored tensors into the pieces that are measured by themselves.

A piece carries a *key*: the name it would have if every projection and every expert were saved
apart, in the words that transformers uses in memory. Fused and split, stacked and single
checkpoints of one model have the same keys but for a prefix, which is what lets them be aligned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from offaxis.names.place import Place, Shape, is_index, is_matrix, place, unwrap

__all__ = ["Piece", "natural_key", "pieces"]

Slices = tuple[tuple[int, int], ...]

_QKV = ("q_proj", "k_proj", "v_proj")
_GATE_UP = ("gate_proj", "up_proj")
_MULTIHEAD = ("in_proj_weight", "in_proj_bias")
"""The fused parameters of torch.nn.MultiheadAttention, which end in no `weight` or `bias`."""
_EXPERT = re.compile(r"(\.experts\.\d+\.)(w1|w2|w3)(?=\.|$)")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True)
class Piece:
    """One stored tensor, or one piece of a fused or stacked one."""

    key: str
    """The name if it were saved by itself: `model.layers.0.self_attn.q_proj.weight`."""
    name: str
    """The stored tensor that holds it."""
    label: str
    """The stored name, with `[q_proj]`, `[3]` or `[3,gate_proj]` for a piece."""
    place: Place
    shape: Shape
    slices: Slices | None = None
    """One (start, stop) per stored axis; None is the whole tensor."""
    drop_leading: bool = False
    """True for one expert of a stack: the leading axis has extent 1 and is dropped."""
    turned: bool = False
    """True where `shape` is that of the transpose of what `slices` cut out (see `facing`)."""

    def facing(self, other: Piece) -> Piece:
        """This piece, turned if it is stored the other way round than `other`.

        Only experts are turned: shapes of whole stacks prove which way each is stored, and the
        same model has both (Qwen3-VL-MoE is published as (in, out) and saved as (out, in)).
        """
        stacked = self.drop_leading or other.drop_leading
        if not stacked or self.place.transposed == other.place.transposed:
            return self
        where = replace(self.place, transposed=other.place.transposed)
        return replace(self, shape=self.shape[::-1], place=where, turned=not self.turned)

    @property
    def extent(self) -> Shape:
        """The shape, as (out, in) for an expert of a stack whichever way it is stored."""
        return self.shape[::-1] if self.drop_leading and self.place.transposed else self.shape

    @property
    def is_matrix(self) -> bool:
        return is_matrix(self.shape, self.place)


@dataclass(frozen=True)
class _Cut:
    """How one tensor is cut along one axis: roles and their extents, in order."""

    axis: int
    roles: tuple[str, ...]
    extents: tuple[int, ...]


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `layers.2` comes before `layers.10`."""
    return tuple(
        (0, int(token)) if is_index(token) else (1, token)
        for token in re.split(r"(\d+)", name)
        if token
    )


def pieces(
    shapes: Mapping[str, Sequence[int]], *, config: Mapping[str, object] | None = None
) -> list[Piece]:
    """Every piece of a checkpoint, in natural order of the stored names.

    shapes: stored name -> stored shape. config: `config.json`, used only where the shapes leave
    the split of a fused QKV weight open.
    """
    clean = {unwrap(name): tuple(shape) for name, shape in shapes.items()}
    out: list[Piece] = []
    for name in sorted(shapes, key=lambda stored: (natural_key(stored), stored)):
        out.extend(_cut(name, tuple(shapes[name]), clean, config or {}))
    return out


def _cut(
    name: str, shape: Shape, shapes: Mapping[str, Shape], config: Mapping[str, object]
) -> Iterator[Piece]:
    """The pieces of one stored tensor: itself, unless a rule below cuts it."""
    clean = unwrap(name)
    where = place(name, shape, shapes=shapes)
    stack = _stack_leaf(clean, shape)
    if stack is not None:
        yield from _cut_stack(name, shape, stack, shapes)
        return
    cut = None if where.buffer else _fused(clean, shape, shapes, config)
    if cut is None:
        yield Piece(_in_memory(clean), name, name, where, shape)
        return
    parent, _, leaf = _parse(clean)
    for role, slices, extent in _slabs(cut, shape):
        key = f"{parent}.{role}.{leaf}" if parent else f"{role}.{leaf}"
        piece_place = where.named("bias" if leaf == "bias" else role)
        yield Piece(_in_memory(key), name, f"{name}[{role}]", piece_place, extent, slices)


def _in_memory(name: str) -> str:
    """`name` in the words of memory: Mixtral's kin save `block_sparse_moe` and `w1`, `w2`, `w3`."""
    words = ("mlp" if word == "block_sparse_moe" else word for word in name.split("."))
    return _EXPERT.sub(lambda found: found[1] + _MIXTRAL[found[2]], ".".join(words))


def _parse(name: str) -> tuple[str, str, str]:
    """(parent, owner, `weight` or `bias`) of a parameter that may be fused."""
    module, _, leaf = name.rpartition(".")
    if leaf in _MULTIHEAD:
        return module, "in_proj_weight", leaf.removeprefix("in_proj_")
    parent, _, owner = module.rpartition(".")
    return parent, owner, leaf


def _slabs(cut: _Cut, shape: Shape) -> Iterator[tuple[str, Slices, Shape]]:
    """(role, slices, shape) of each slab of `cut`."""
    start = 0
    for role, extent in zip(cut.roles, cut.extents, strict=True):
        slices = tuple(
            (start, start + extent) if axis == cut.axis else (0, full)
            for axis, full in enumerate(shape)
        )
        yield role, slices, tuple(stop - first for first, stop in slices)
        start += extent


def _fused(
    name: str, shape: Shape, shapes: Mapping[str, Shape], config: Mapping[str, object]
) -> _Cut | None:
    """The cut of a fused weight or bias, or None.

    - `gate_up_proj` (2i, h): rows, halves.
    - `qkv_proj` (q + 2kv, h) beside an `o_proj` (h, q): rows; also found from the config.
    - `in_proj_qkv` (2k + v, h) of a linear attention beside its `in_proj_z` (v, h): rows.
    - `qkv` (3h, h) in a vision block, `in_proj_weight` of a MultiheadAttention: rows, thirds.
    - `c_attn` (h, 3h) of a Conv1D: columns, thirds. A `c_attn` of a Linear stays whole: whether
      its heads are interleaved cannot be told from its shape.
    """
    parent, owner, leaf = _parse(name)
    stem = f"{parent}.{owner}" if parent else owner
    weight = shapes.get(stem if owner in _MULTIHEAD else f"{stem}.weight", ())
    if len(shape) != {"weight": 2, "bias": 1}.get(leaf) or len(weight) != 2:
        return None
    if owner == "gate_up_proj" and shape[0] % 2 == 0:
        return _Cut(0, _GATE_UP, (shape[0] // 2,) * 2)
    if owner in ("qkv_proj", "in_proj_qkv"):
        beside = "o_proj" if owner == "qkv_proj" else "in_proj_z"
        known = shapes.get(f"{parent}.{beside}.weight", ())
        cut = _qkv_rows if owner == "qkv_proj" else _linear_rows
        return cut(shape[0], known, config)
    if owner in ("qkv", "in_proj_weight") and weight[0] == 3 * weight[1]:
        return _Cut(0, _QKV, (weight[1],) * 3)
    if owner == "c_attn" and weight[1] == 3 * weight[0]:
        return _Cut(len(shape) - 1, _QKV, (weight[0],) * 3)
    return None


def _qkv_rows(rows: int, output: Shape, config: Mapping[str, object]) -> _Cut | None:
    """q rows = columns of o_proj (or heads x head_dim of the config); k and v share the rest."""
    query = output[1] if len(output) == 2 else _query_rows(config)
    rest = rows - query
    if query <= 0 or rest <= 0 or rest % 2 or rest // 2 > query:
        return None
    return _Cut(0, _QKV, (query, rest // 2, rest // 2))


def _linear_rows(rows: int, gate: Shape, config: Mapping[str, object]) -> _Cut | None:
    """v rows = rows of the output gate; q and k share the rest."""
    rest = rows - gate[0] if len(gate) == 2 else 0
    return _Cut(0, _QKV, (rest // 2, rest // 2, gate[0])) if rest > 0 and rest % 2 == 0 else None


def _query_rows(config: Mapping[str, object]) -> int:
    """num_attention_heads x head_dim, or 0 where the config does not say."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head = config.get("head_dim")
    if not isinstance(heads, int) or heads <= 0:
        return 0
    if isinstance(head, int):
        return heads * head
    return hidden if isinstance(hidden, int) else 0


def _stack_leaf(name: str, shape: Shape) -> str | None:
    """`gate_up_proj`, `down_proj`, ... for a 3-D parameter under `experts`, else None."""
    segments = name.removesuffix(".weight").split(".")
    if len(shape) != 3 or len(segments) < 2 or segments[-2] != "experts":
        return None
    return segments[-1]


def _cut_stack(name: str, shape: Shape, leaf: str, shapes: Mapping[str, Shape]) -> Iterator[Piece]:
    """One piece an expert, or two where gate and up are fused in order."""
    clean = unwrap(name)
    where = place(name, shape, shapes=shapes)
    experts = clean.removesuffix(".weight").rpartition(".")[0]
    transposed = _stack_transposed(experts, shapes)
    axis = 2 if transposed else 1
    interleaved = f"{experts}.gate_up_proj_bias" in shapes
    if leaf == "gate_up_proj" and shape[axis] % 2 == 0 and not interleaved:
        cut = _Cut(axis, _GATE_UP, (shape[axis] // 2,) * 2)
    else:
        cut = _Cut(axis, (leaf,), (shape[axis],))
    fused = len(cut.roles) > 1
    slabs = list(_slabs(cut, shape))
    for expert in range(shape[0]):
        for role, slices, extent in slabs:
            tag = f"{expert},{role}" if fused else str(expert)
            yield Piece(
                key=_in_memory(f"{experts}.{expert}.{role}.weight"),
                name=name,
                label=f"{name}[{tag}]",
                place=replace(
                    where.named(role) if fused else where, expert=expert, transposed=transposed
                ),
                shape=extent[1:],
                slices=((expert, expert + 1), *slices[1:]),
                drop_leading=True,
            )


def _stack_transposed(experts: str, shapes: Mapping[str, Shape]) -> bool:
    """True for stacks stored (experts, in, out), as Llama 4 and gpt-oss do.

    (E, 2i, h) with (E, h, i) is (out, in); (E, h, 2i) with (E, i, h) is (in, out).
    """
    joint = shapes.get(f"{experts}.gate_up_proj", ())
    down = shapes.get(f"{experts}.down_proj", ())
    if len(joint) != 3 or len(down) != 3:
        return False
    return joint[1] == down[2] and joint[2] == 2 * down[1]
