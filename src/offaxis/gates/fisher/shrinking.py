"""KL against its quadratic form as the step shrinks: The Path Not Taken, lemma E.5, measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offaxis.evaluate.divergence import sequence_kl
from offaxis.gates.fisher.exact import exactly
from offaxis.gates.fisher.move import Move
from offaxis.gates.fisher.prefixes import Prefixes
from offaxis.live import LiveModel

__all__ = ["Shrinking", "kl", "shrink"]

Floats = NDArray[np.float64]
_FLOOR = 1e-7  # of KL / form − 1: below it stands rounding


@dataclass(frozen=True)
class Shrinking:
    """KL of W₀ + tΔ and W₀ on fixed prefixes, over ½t²ΔᵀFΔ."""

    steps: tuple[float, ...]
    """t, descending."""
    kl_tuned_base: tuple[float, ...]
    """KL(π_t ‖ π), nats a sequence."""
    kl_base_tuned: tuple[float, ...]
    ratio_tuned_base: tuple[float | None, ...]
    """KL / (½ t² ΔᵀFΔ): 1 in the limit. None where the form is 0."""
    ratio_base_tuned: tuple[float | None, ...]
    order_tuned_base: float | None
    """Order of the remainder: p in |KL − ½t²ΔᵀFΔ| ∝ t^p, a line fitted to the smaller half of the
    steps at which the remainder stands above rounding. The lemma says at least 3."""
    order_base_tuned: float | None


def kl(p: LiveModel, q: LiveModel, prefixes: Prefixes) -> Floats:
    """KL(p ‖ q) on each of the prefixes' sequences, exact over the vocabulary, in float64."""
    with exactly():
        return sequence_kl(p, q, prefixes.prompts, prefixes.completions, batch_size=32).sequence


def shrink(move: Move, prefixes: Prefixes, form: float, *, halvings: int) -> Shrinking:
    """KL at t = 1, ½, ¼, ..., 2^−halvings. form: ΔᵀFΔ a sequence, on the same prefixes."""
    steps = tuple(0.5**k for k in range(halvings + 1))
    both = []
    for step in steps:
        move.place(step)
        there, back = (move.tuned, move.base), (move.base, move.tuned)
        each = [prefixes.over_prompts(kl(p, q, prefixes)).mean() for p, q in (there, back)]
        both.append([float(one) for one in each])
    move.place(1.0)
    forward, backward = (tuple(row[side] for row in both) for side in (0, 1))
    ratios = [
        tuple(
            found / (0.5 * step**2 * form) if form > 0 else None
            for found, step in zip(side, steps, strict=True)
        )
        for side in (forward, backward)
    ]
    orders = [remainder_order(steps, ratio) for ratio in ratios]
    return Shrinking(steps, forward, backward, ratios[0], ratios[1], orders[0], orders[1])


def remainder_order(steps: tuple[float, ...], ratios: tuple[float | None, ...]) -> float | None:
    """2 + the slope of ln |ratio − 1| in ln t; None where fewer than two points stand out."""
    known = [
        (step, abs(ratio - 1))
        for step, ratio in zip(steps, ratios, strict=True)
        if ratio is not None and abs(ratio - 1) > _FLOOR
    ]
    used = known[len(known) // 2 :] if len(known) >= 4 else known
    if len(used) < 2:
        return None
    t, off = np.log(np.array(used)).T
    return 2 + float(np.polyfit(t, off, 1)[0])
