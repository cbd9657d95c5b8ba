"""Who predicts what from where to where, fixed before the runs were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from offaxis.predict.methods import Predictor
from offaxis.predict.rebuilding import RankK, Rebuilt, Recipe

__all__ = ["CONTESTANTS", "FRACTIONS", "REACHES", "REBUILT", "STOP", "Contestant", "places"]

FRACTIONS = (0.1, 0.2, 0.4)
"""Of the run, after which its last weights are predicted."""
REACHES = ((0.2, 0.4), (0.2, 0.6), (0.4, 0.6))
"""Further origins and targets, to see how far ahead a method holds."""
STOP = "stop"
"""The last checkpoint that was seen, as it is."""


def places(last: int) -> list[tuple[int, int]]:
    """Origins and targets of a run of `last` steps."""
    ends = [(round(fraction * last), last) for fraction in FRACTIONS]
    return ends + [(round(start * last), round(end * last)) for start, end in REACHES]


Goal = Literal["step", "chosen", "extrapolated", "oracle"]
"""What tells a prediction how far to go: the number of the step; the validation problems, on which
the reaches of `offaxis.predict.scale.LADDER` are tried; the curve of validation scores so far,
extrapolated to the step; or the score of the run's real end, which nobody has who predicts it."""


@dataclass(frozen=True)
class Contestant:
    """One way to predict."""

    name: str
    label: str
    method: Literal["scale", "linear", "relex", "rank", "alpharl", "alpharl-code"]
    goal: Goal
    everywhere: bool = False
    """Also asked at `REACHES`."""


CONTESTANTS: Mapping[str, Contestant] = {
    one.name: one
    for one in (
        Contestant("scale_chosen", "ΔW × a factor, chosen", "scale", "chosen"),
        Contestant("scale", "ΔW × target/origin", "scale", "step", everywhere=True),
        Contestant("linear", "each entry's line", "linear", "step", everywhere=True),
        Contestant("relex", "RELEX", "relex", "step", everywhere=True),
        Contestant("relex_chosen", "RELEX, reach chosen", "relex", "chosen"),
        Contestant("rank1", "rank 1 of ΔW × target/origin", "rank", "step"),
        Contestant("alpharl", "AlphaRL, score extrapolated", "alpharl", "extrapolated", True),
        Contestant("alpharl_step", "AlphaRL on the step", "alpharl", "step"),
        Contestant("alpharl_oracle", "AlphaRL, y* = 1 (oracle)", "alpharl", "oracle"),
        Contestant("alpharl_code", "AlphaRL, authors' code (oracle)", "alpharl-code", "oracle"),
    )
}
"""In the order of the tables. What is called an oracle is shown and recommended nowhere."""

_RANKS: Mapping[str, Predictor] = {
    "rank 1": RankK(1),
    "rank 1, as is": RankK(1, rescale=False),
    "rank 4": RankK(4),
    "all": RankK("full", rescale=False),
}
_DIRECTIONS: Mapping[str, Predictor] = {
    f"direction {number}": Rebuilt(Recipe(f"component-{number}", "component", component=number))
    for number in (2, 3, 5)
}
_LENGTHS: Mapping[str, Predictor] = {
    f"rank 1 × {factor}": Rebuilt(Recipe(f"scale-{factor}", "scale", rank=1, factor=factor))
    for factor in (0.5, 1.5, 2.0)
}
REBUILT: Mapping[str, Predictor] = {**_RANKS, **_DIRECTIONS, **_LENGTHS}
"""Models made of the final update's matrices alone; embeddings, norms and head stay at the base.
Single directions are made as long as ΔW, lengths are in ‖ΔW‖. Of a matrix of the lab's model, 144
wide, one percent of the directions is the first."""
