"""`Mask`: which entries of a model's matrices are selected, and what they were selected from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from offaxis.checkpoint.digest import checksum, content_digest
from offaxis.errors import InputError
from offaxis.kernels import pack, popcount, unpack

if TYPE_CHECKING:
    from offaxis.checkpoint import Checkpoint

__all__ = ["Bits", "Mask", "Origin", "flags_at", "inverted", "origin_of", "put_flags"]

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Origin:
    """The base tensor that a mask belongs to: safetensors dtype code, XXH3-128 of its bytes."""

    dtype: str
    checksum: str


def origin_of(tensor: torch.Tensor, dtype: str) -> Origin:
    """The origin of a stored tensor, or of its copy in memory cast back to the stored `dtype`."""
    return Origin(dtype, checksum(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))


def inverted(bits: Bits, entries: int) -> Bits:
    """The complement of a packed mask; the bits past its last entry stay clear."""
    out = ~bits
    if entries % 8:
        out[-1] &= np.uint8((1 << entries % 8) - 1)
    return out


def flags_at(bits: Bits, start: int, count: int) -> npt.NDArray[np.bool_]:
    """Entries `start` to `start + count` of a packed mask."""
    first, lead = divmod(start, 8)
    piece = bits[first : -(-(start + count) // 8)]
    return np.unpackbits(piece, count=lead + count, bitorder="little")[lead:].astype(np.bool_)


def put_flags(bits: Bits, start: int, flags: npt.NDArray[np.bool_]) -> None:
    """Set the entries of a packed mask from `start` on, which must be clear, as `flags` says."""
    first, lead = divmod(start, 8)
    packed = pack(np.concatenate([np.zeros(lead, np.bool_), flags.reshape(-1)]))
    bits[first : first + packed.size] |= packed


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Mapping[str, torch.Tensor]):
    """A selection of entries of a base's matrices: stored tensor name -> boolean tensor.

    `mask[name]` has the stored shape and orientation, True = selected. Only tensors that hold
    matrices are in it (DESIGN's definition: no embedding, head, norm or bias), fused and stacked
    ones whole. In memory an entry takes one bit.

    `a | b`, `a & b`, `a - b`, `a ^ b` and `~a` (within the matrices) are masks of the same base;
    InputError where the bases or the tensors differ. `a == b`: the same entries of the same base,
    whatever the rules.
    """

    bits: Mapping[str, Bits]
    """Packed, row-major, entry i in bit i % 8 (lowest first) of byte i // 8; in natural order."""
    shapes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Origin]
    rule: str
    """The expression that made it (`offaxis.masks.build`)."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(unpack(self.bits[name], self.shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __contains__(self, name: object) -> bool:
        return name in self.bits

    def __repr__(self) -> str:
        return f"<Mask {self.rule!r}: {self.density:.4g} of {len(self)} tensors>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (
            self.shapes == other.shapes
            and self.origins == other.origins
            and all(np.array_equal(self.bits[name], other.bits[name]) for name in self)
        )

    __hash__ = None  # type: ignore[assignment]

    def entries(self, name: str) -> int:
        """Entries of one tensor."""
        return prod(self.shapes[name])

    def count(self, name: str) -> int:
        """Selected entries of one tensor."""
        return popcount(self.bits[name])

    @property
    def selected(self) -> int:
        """Selected entries in all."""
        return sum(map(self.count, self))

    @property
    def density(self) -> float:
        """Selected entries over all entries of the matrices, in [0, 1]; 0 where there are none."""
        return self.selected / max(1, sum(map(self.entries, self)))

    @property
    def base_digest(self) -> str:
        """One digest of the base tensors that the mask covers, whatever their sharding.

        As `offaxis delta info` gives for a whole model, of these tensors alone.
        """
        return content_digest(
            (name, one.dtype, self.shapes[name], one.checksum) for name, one in self.origins.items()
        )

    def check(self, base: Checkpoint) -> None:
        """InputError, naming the tensor, unless `base` holds what the mask was made from.

        A tensor that is stored in another dtype counts where casting it gives the same bytes, so
        a bf16 base that was loaded in float32 passes.
        """
        from offaxis.masks.fitting import check_base

        check_base(self, base)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask to a file of exactly this name (docs/mask-format.md)."""
        from offaxis.masks.file import save

        save(self, Path(path))

    def _with(self, other: Mask, symbol: str, join: Callable[[Bits, Bits], Bits]) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        self._check_alike(other)
        bits = {name: join(self.bits[name], other.bits[name]) for name in self}
        rule = f"({self.rule}) {symbol} ({other.rule})"
        return Mask(bits, self.shapes, self.origins, rule)

    def _check_alike(self, other: Mask) -> None:
        """InputError, naming a tensor, unless both are masks of one base."""
        for name in (*self, *other):
            if name not in self or name not in other:
                what = f"{name} is in one of them alone"
            elif self.shapes[name] != other.shapes[name]:
                what = f"{name} has the shapes {self.shapes[name]} and {other.shapes[name]}"
            elif self.origins[name] != other.origins[name]:
                sums = f"{self.origins[name].checksum} and {other.origins[name].checksum}"
                what = f"the base's {name} has the checksums {sums}"
            else:
                continue
            raise InputError(
                f"the masks {self.rule} and {other.rule} are not of one base: {what}; make both "
                "from one base"
            )

    def __or__(self, other: Mask) -> Mask:
        return self._with(other, "|", lambda a, b: a | b)

    def __and__(self, other: Mask) -> Mask:
        return self._with(other, "&", lambda a, b: a & b)

    def __sub__(self, other: Mask) -> Mask:
        return self._with(other, "-", lambda a, b: a & ~b)

    def __xor__(self, other: Mask) -> Mask:
        return self._with(other, "^", lambda a, b: a ^ b)

    def __invert__(self) -> Mask:
        bits = {name: inverted(one, self.entries(name)) for name, one in self.bits.items()}
        return Mask(bits, self.shapes, self.origins, f"~({self.rule})")
