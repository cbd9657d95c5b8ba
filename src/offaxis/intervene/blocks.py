"""Attention as headers show it: which rows or columns of which tensor belong to which head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from offaxis.errors import InputError
from offaxis.intervene.selecting import Layer

__all__ = ["Block", "Config", "Family", "Heads", "Per", "Slot", "Taken", "number"]

Config = Mapping[str, Any]
Per = Literal["query", "key_value"]


@dataclass(frozen=True)
class Slot:
    """Where the heads lie along one axis of one tensor: head i has [starts[i], starts[i] + size).

    per: which heads are counted. turns: ROTATE turns these rows or columns (values as they leave
    v_proj, and as they enter o_proj).
    """

    name: str
    axis: int
    per: Per
    starts: tuple[int, ...]
    size: int
    turns: bool = False


@dataclass(frozen=True)
class Heads:
    """The attention of one layer: `query` heads in order, `query // key_value` to each KV head."""

    layer: Layer
    query: int
    key_value: int
    value_dim: int
    """Width of one head's value: R is (value_dim, value_dim)."""
    slots: tuple[Slot, ...]
    no_rotate: str | None = None
    """Why ROTATE would change the model, or None."""
    no_permute: str | None = None
    """Why PERMUTE would, or None."""


@dataclass(frozen=True)
class Family:
    """How one kind of model stores attention. `layout` turns a block into its heads."""

    layout: Callable[[Block], Heads]
    module: str = "self_attn"
    parts: Mapping[str, str] = field(default_factory=dict)
    """The module's own words for `q`, `k`, `v`, `o`, `qkv`, `q_norm`, `k_norm`."""
    query: tuple[str, ...] = ("num_attention_heads",)
    """Keys of the configuration, any of which counts the query heads."""
    key_value: Callable[[Config, int], int | str] | None = None
    """KV heads from the configuration and the query heads; a text says what is missing."""
    gated: bool = False
    """True where each head of q_proj is its query, then a gate on the head's output."""
    transposed: bool = False
    """True where weights are stored (in, out)."""
    alibi: bool = False
    """True where positions enter as slopes that differ from head to head, always."""


@dataclass(frozen=True)
class Taken:
    """One tensor of a block."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Block:
    """The tensors of one attention module, each to be accounted for by a layout."""

    source: str
    layer: Layer
    family: Family
    config: Config
    tensors: Mapping[str, Taken]
    """Name within the module (`q_proj.weight`) -> the stored tensor."""
    left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left = set(self.tensors)

    def refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.source}: layer {self.layer}: {why}")

    def word(self, part: str) -> str:
        """The module's own name of `q`, `o`, ..."""
        return self.family.parts[part]

    def find(self, name: str) -> Taken | None:
        """A tensor by its name within the module, which counts as accounted for."""
        self.left.discard(name)
        return self.tensors.get(name)

    def weight(self, part: str) -> Taken:
        """The 2-D weight of a part. Refuses where it is missing."""
        name = f"{self.word(part)}.weight"
        found = self.find(name)
        if found is None or len(found.shape) != 2:
            has = ", ".join(sorted(self.tensors))
            shape = "missing" if found is None else f"of the shape {found.shape}"
            self.refuse(f"{name} is {shape} (the attention has {has}); save the whole model again")
        return found

    def extent(self, part: str, axis: Literal["out", "in"]) -> int:
        """Rows (`out`) or columns (`in`) of a part's weight, as the model uses it."""
        return self.weight(part).shape[self.axis(axis)]

    def axis(self, axis: Literal["out", "in"]) -> int:
        return int((axis == "out") == self.family.transposed)

    def split(self, extent: int, by: int, what: str) -> int:
        """extent / by. Refuses where it does not divide."""
        if extent < by or extent % by:
            self.refuse(f"{what} has {extent} channels, which {by} heads do not divide; {_CONFIG}")
        return extent // by

    def same(self, found: int, expected: int, what: str) -> None:
        """Refuse unless a tensor is as wide as the heads say."""
        if found != expected:
            self.refuse(f"{what} has {found} channels where its heads make {expected}; {_CONFIG}")

    @property
    def query(self) -> int:
        """Query heads, from the configuration."""
        found = number(self.config, self.family.query)
        if found is None:
            self.refuse(f"config.json lacks {self.family.query[0]}; give a model with its own")
        return found

    @property
    def key_value(self) -> int:
        """KV heads, from the configuration; as many as query heads where it does not know them."""
        told = self.family.key_value
        found = self.query if told is None else told(self.config, self.query)
        if isinstance(found, str):
            self.refuse(f"config.json lacks {found}, so its heads cannot be told; add it")
        if self.query % found:
            self.refuse(f"{self.query} query heads are not shared evenly by {found} KV heads")
        return found

    def slots(
        self, part: str, per: Per, starts: Iterable[int], size: int, *, turns: bool = False
    ) -> list[Slot]:
        """The same rows of a part's weight and, where there is one, its bias."""
        first = tuple(starts)
        out = [Slot(self.weight(part).name, self.axis("out"), per, first, size, turns)]
        bias = self.find(f"{self.word(part)}.bias")
        if bias is not None:
            if bias.shape != (self.extent(part, "out"),):
                self.refuse(f"{bias.name} has the shape {bias.shape}; save the model again")
            out.append(Slot(bias.name, 0, per, first, size, turns))
        return out

    def output(self, size: int) -> Slot:
        """The columns of o_proj. Its bias is no head's, and stays."""
        self.same(self.extent("o", "in"), self.query * size, f"the input of {self.word('o')}")
        self.find(f"{self.word('o')}.bias")
        starts = tuple(size * head for head in range(self.query))
        return Slot(self.weight("o").name, self.axis("in"), "query", starts, size, turns=True)


_CONFIG = "config.json and the weights are not of one model"


def number(config: Config, names: Iterable[str]) -> int | None:
    """The first positive integer that the configuration holds under one of `names`."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
