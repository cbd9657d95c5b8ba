"""One matrix of the base, and whatever else a rule may ask about it, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from offaxis.checkpoint.digest import checksum
from offaxis.errors import CheckpointError
from offaxis.kernels import bf16_codes, bin_counts
from offaxis.linalg import principal_rank, spectrum_and_basis

if TYPE_CHECKING:
    from offaxis.checkpoint import Part, View
    from offaxis.masks.mask import Bits

__all__ = ["Elsewhere", "Side"]


class Elsewhere(Protocol):
    """What a rule may read beside the base, matched to one part of it."""

    def tuned(self, source: str, part: Part) -> torch.Tensor:
        """The part in another checkpoint."""

    def scores(self, kind: str, part: Part) -> torch.Tensor:
        """Scores of the part's entries, such as gradients."""

    def saved(self, source: str, view: View) -> Bits:
        """The part in another mask, of which `view` is the place."""


@dataclass
class Side:
    """A matrix in its stored dtype and orientation."""

    part: Part
    view: View
    stored: torch.Tensor
    elsewhere: Elsewhere
    _left: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return self.stored.numel()

    @cached_property
    def exact(self) -> torch.Tensor:
        """W₀ in float64. CheckpointError where it is not finite."""
        found = self.stored.to(torch.float64)
        if not bool(torch.isfinite(found).all()):
            count = int((~torch.isfinite(found)).sum())
            raise CheckpointError(
                f"{self.part.tensor}: {count} of {found.numel()} entries are NaN or infinite, so "
                "it has no singular vectors; repair the checkpoint, or choose a rule without them"
            )
        return found

    @cached_property
    def codes(self) -> npt.NDArray[np.uint16]:
        """The bf16 codes of W₀, flat."""
        return bf16_codes(self.stored)

    @cached_property
    def bins(self) -> npt.NDArray[np.int64]:
        """Entries in each magnitude bin."""
        return bin_counts(self.codes)

    def left(self, rank: int | None) -> torch.Tensor:
        """The top left singular vectors (m, r), r = min(rank, m, n); None: DESIGN's r."""
        rows, cols = self.stored.shape
        wanted = min(rank or principal_rank(rows, cols), rows, cols)
        if wanted not in self._left:
            _, basis = spectrum_and_basis(self.exact, rank=wanted)
            self._left[wanted] = basis.left
        return self._left[wanted]

    def seed(self, seed: int) -> int:
        """A seed of 64 bits for this part alone, whatever the order in which parts are done."""
        return int(checksum(f"{seed}\n{self.part.tensor}".encode())[:16], 16)
