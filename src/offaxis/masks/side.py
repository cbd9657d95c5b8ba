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
from offaxis.linalg import angle_rank, principal_rank, spectrum_and_basis

if TYPE_CHECKING:
    from offaxis.checkpoint import Part, View
    from offaxis.masks.mask import Bits

__all__ = ["Elsewhere", "Side", "plain"]


class Elsewhere(Protocol):
    """What a rule may read beside the base, matched to one part of it."""

    def tuned(self, source: str, part: Part) -> torch.Tensor:
        """The part in another checkpoint."""

    def scores(self, kind: str, part: Part) -> torch.Tensor:
        """Scores of the part's entries, such as gradients."""

    def saved(self, source: str, view: View) -> Bits:
        """The part in another mask, of which `view` is the place."""


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """float8 widened to float32, which holds it exactly: torch has no arithmetic on float8."""
    return tensor.to(torch.float32) if tensor.itemsize == 1 else tensor


@dataclass
class Side:
    """A matrix in its stored orientation; in its stored dtype, float8 widened to float32."""

    part: Part
    view: View
    stored: torch.Tensor
    elsewhere: Elsewhere
    _left: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return self.stored.numel()

    @cached_property
    def finite(self) -> torch.Tensor:
        """`stored`. CheckpointError where an entry is NaN or infinite."""
        found = torch.isfinite(self.stored)
        if not bool(found.all()):
            count = self.entries - int(found.sum())
            raise CheckpointError(
                f"{self.part.tensor}: {count} of {self.entries} entries are NaN or infinite, and "
                "the rule asks how large they are; repair the checkpoint, or choose another rule"
            )
        return self.stored

    @cached_property
    def exact(self) -> torch.Tensor:
        """W₀ in float64. CheckpointError where it is not finite."""
        return self.finite.to(torch.float64)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint16]:
        """The bf16 codes of W₀, flat. CheckpointError where it is not finite."""
        return bf16_codes(self.finite)

    @cached_property
    def bins(self) -> npt.NDArray[np.int64]:
        """Entries in each magnitude bin."""
        return bin_counts(self.codes)

    def left(self, rank: int | None) -> torch.Tensor:
        """The top left singular vectors (m, r), r = min(rank, m, n); None: DESIGN's r.

        The call is `compare`'s, to the bit: the matrix turned as the model uses it, and as many
        vectors at once as `compare` needs for its angles.
        """
        rows, cols = self.stored.shape
        wanted = min(rank or principal_rank(rows, cols), rows, cols)
        most = min(max(wanted, angle_rank(rows, cols)), rows, cols)
        if most not in self._left:
            turned = self.exact.T if self.part.transposed else self.exact
            _, basis = spectrum_and_basis(turned, rank=most)
            self._left[most] = basis.right if self.part.transposed else basis.left
        return self._left[most][:, :wanted]

    def seed(self, seed: int, *, model: Bits | None = None) -> int:
        """A seed of 64 bits for this part alone, whatever the order in which parts are done.

        model: also for this mask alone. What is drawn to be set beside a mask must not come of the
        numbers of which that one may have been drawn itself.
        """
        own = "" if model is None else f"\n{checksum(model.data)}"
        return int(checksum(f"{seed}\n{self.part.tensor}{own}".encode())[:16], 16)
