"""What a predictor is, what it is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["Fitted", "Floats", "Predictor", "Timeline", "Trail", "Weighted"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the checkpoints of a series were saved, how well they do, and where to predict."""

    steps: Floats
    """(T,), strictly increasing and > 0: of the checkpoints given. Where no step is known and no
    method asks for one: 1, ..., T."""
    at: float | None = None
    """The step to predict; None where a target score rules, or a method needs none."""
    scores: Floats | None = None
    """(T,), accuracy in [0, 1], NaN where none was measured; None where none was given at all."""
    base_score: float | None = None
    """Of the base (step 0), where given."""


class Trail(Protocol):
    """One tensor over time. It is read when it is asked for, and nothing is kept."""

    @property
    def name(self) -> str:
        """The stored name in the base, with `[q_proj]` or the like for a part of it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def is_matrix(self) -> bool:
        """DESIGN section 3's *matrix*; for a whole stored tensor: all of its parts are."""
        ...

    def __len__(self) -> int:
        """T, the number of checkpoints."""
        ...

    def __getitem__(self, t: int) -> Floats:
        """θ_t − θ_BASE, float64, of `shape`. CheckpointError where an entry is not finite."""
        ...

    def rows(self, t: int, part: slice) -> Floats:
        """A stretch of the flattened θ_t − θ_BASE."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """What the fit of one tensor found. It may read the trail again when it is asked."""

    @property
    def facts(self) -> Mapping[str, float]:
        """For the record: residuals, coefficients, explained shares. Finite numbers alone."""
        ...

    def update(self, at: float | None = None) -> Floats | None:
        """The predicted θ − θ_BASE, float64, of the tensor's shape.

        at: the step; None: the timeline's. None is returned where the tensor stays at the base.
        """
        ...


@runtime_checkable
class Weighted(Fitted, Protocol):
    """A fit whose prediction is a combination of the checkpoints, Σ_t w_t (θ_t − θ_BASE)."""

    def weights(self, at: float | None = None) -> Floats:
        """(T,): w at a step (None: the timeline's)."""
        ...


class Predictor(Protocol):
    """A method: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """`relex`, `linear`, `scale`, `stop`, `alpharl`, `alpharl-code`, `rank`."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it cannot do without, of `steps`, `at`, `scores`."""
        ...

    @property
    def least(self) -> int:
        """How many different checkpoints it needs."""
        ...

    @property
    def cuts(self) -> bool:
        """True: fused tensors are cut into their parts first, as `compare` does; False: tensors are
        fitted as the base stores them."""
        ...

    def fit(self, trail: Trail, timeline: Timeline) -> Fitted: ...
