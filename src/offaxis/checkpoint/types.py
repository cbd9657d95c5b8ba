"""What a checkpoint is to the rest of offaxis: names, shapes and dtypes first, tensors on demand.

`TensorSpec` comes from a header. `Part` is the unit that everything measures: one stored tensor,
or one piece of a fused or stacked one (the query rows of a QKV weight, one expert of a stack).
`Aligned` matches the parts of a base with those of a tuned checkpoint; `TensorPair` holds the
values of one matched part, and only one pair is resident at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = [
    "Aligned",
    "Checkpoint",
    "Mismatch",
    "Part",
    "PartPair",
    "TensorPair",
    "TensorSpec",
    "View",
]


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor, as its header describes it. `dtype` is the safetensors code (`BF16`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: str

    @property
    def numel(self) -> int:
        out = 1
        for extent in self.shape:
            out *= extent
        return out


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """A lazy, read-only mapping from tensor name to tensor.

    `checkpoint[name]` reads one tensor in its stored dtype, mapped from the file where it can be.
    Subclasses set the three attributes and define `__getitem__`; names come from `specs`, in
    natural order (`layers.2` before `layers.10`).
    """

    source: str
    """The argument that named it, verbatim."""
    specs: Mapping[str, TensorSpec]
    config: Mapping[str, object]
    """`config.json`, or an empty mapping."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __eq__(self, other: object) -> bool:
        """Identity: comparing values would read both checkpoints whole."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source!r}: {len(self)} tensors>"


@dataclass(frozen=True)
class View:
    """Where a part lies: a stored tensor and the basic slices that cut the part out of it."""

    name: str
    slices: tuple[tuple[int, int], ...] | None = None
    """One (start, stop) per stored axis; None is the whole tensor."""
    drop_leading: bool = False
    """True for one expert of a stack: the leading axis has extent 1 and is dropped."""
    turned: bool = False
    """True where the slices cut out the transpose of the part."""


@dataclass(frozen=True)
class Part:
    """One piece of a model that is measured by itself, in its *stored* orientation."""

    tensor: str
    """Label in the tables: the stored name, with `[q_proj]` or `[3,gate_proj]` for a piece."""
    layer: int | None
    role: str
    expert: int | None
    shape: tuple[int, ...]
    is_matrix: bool
    """2-D, min(m, n) >= 2, and not an embedding, head, norm or bias (DESIGN, section 3)."""
    transposed: bool
    """True where the model multiplies by the transpose of what is stored (GPT-2's Conv1D)."""


@dataclass(frozen=True)
class PartPair:
    """A part of the base and the matching view of the tuned checkpoint."""

    part: Part
    base: View
    tuned: View
    base_dtype: str
    tuned_dtype: str


@dataclass(frozen=True)
class Mismatch:
    """A stored tensor that has no measurable counterpart: an explicit row, never a silent skip."""

    tensor: str
    layer: int | None
    role: str
    expert: int | None
    shape: tuple[int, ...]
    status: Literal["missing", "extra", "reshaped", "tied", "not_float", "buffer"]
    """`buffer`: a floating-point constant that is no parameter (a causal mask, `inv_freq`)."""
    detail: str
    """For example `base (512, 64), tuned (520, 64)` or `same tensor as embed_tokens.weight`."""


@dataclass(frozen=True)
class Aligned:
    """The plan for one pair of checkpoints, made from headers alone."""

    pairs: tuple[PartPair, ...]
    mismatches: tuple[Mismatch, ...]
    renaming: str
    """The renaming that was chosen, in words: `identity`, `strip _orig_mod.`."""
    renamed: Mapping[str, str]
    """Tuned name -> base name, only where they differ."""


@dataclass(frozen=True)
class TensorPair:
    """One matched part with its values, each side in its stored dtype and orientation."""

    part: Part
    base: torch.Tensor
    tuned: torch.Tensor
