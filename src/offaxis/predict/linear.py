"""Each weight on a line of its own, and the training that simply stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offaxis.errors import InputError
from offaxis.predict.fitting import Combination, gram, line_facts, line_weights
from offaxis.predict.methods import Floats, Timeline, Trail

__all__ = ["Linear", "Stop"]


@dataclass(frozen=True)
class Linear:
    """Each entry's least squares line through the true steps, with an intercept.

    θ̂ − θ_BASE = Σ_t h_t(at) (θ_t − θ_BASE), h the line's hat vector: RELEX at full rank.
    through_base: the line goes through the base at step 0 instead, and one checkpoint is enough.

    Facts of a tensor: `r2` and `residual` of the lines of all its entries together
    (`fitting.line_facts`).
    """

    through_base: bool = False

    @property
    def name(self) -> str:
        return "linear"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"steps", "at"})

    @property
    def least(self) -> int:
        return 1 if self.through_base else 2

    @property
    def cuts(self) -> bool:
        return False

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        """One tensor's fit. InputError for fewer checkpoints than `least`."""
        if len(trail) < self.least:
            raise InputError(
                f"linear needs {self.least} checkpoints, and there are {len(trail)}; name more, or "
                "pass through_base (--through-base)"
            )
        inner = gram(trail)

        def weigh(at: float | None) -> Floats:
            if at is None:
                raise InputError("linear needs the step to predict; pass at (--at)")
            return line_weights(timeline.steps, at, through_base=self.through_base)

        still = not np.trace(inner) > 0
        lined = line_facts(inner, timeline.steps, through_base=self.through_base)
        return Combination(trail, timeline, weigh, still, {} if still else lined)


@dataclass(frozen=True)
class Stop:
    """The last checkpoint as it is: what every prediction has to beat."""

    @property
    def name(self) -> str:
        return "stop"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def least(self) -> int:
        return 1

    @property
    def cuts(self) -> bool:
        return False

    def fit(self, trail: Trail, timeline: Timeline) -> Combination:
        """The weight 1 on the last checkpoint, at every step."""
        last = np.zeros(len(trail))
        last[-1] = 1
        return Combination(trail, timeline, lambda _: last)
