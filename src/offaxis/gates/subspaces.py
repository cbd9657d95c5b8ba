"""Theorem 3.3, tried: how far a step of the gap's share x can turn a leading direction.

On 2×2 matrices, to which every pair of a leading direction and another can be brought: W₀ =
diag(a + 1, a), so that γ₁ = 1 and the paper's bound is x = ‖ΔW‖₂ itself.
Source: The Path Not Taken, theorem 3.3, lemma E.11, corollary E.13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offaxis.gates import byhand
from offaxis.gates.lemmas import Lemma

__all__ = ["Turn", "largest_turn", "subspace_lemmas", "turning_step"]

Floats = npt.NDArray[np.float64]

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.45, 0.49)
_OVER = (0.55, 0.7, 1.0)
_DRAWS = 20_000


@dataclass(frozen=True)
class Turn:
    """The largest sine over what a form of the bound allows, among `cases` steps with ‖ΔW‖₂ = x.

    paper: sine / x. mixed: sine · (1 − x) / x, the gap less the step; None from x = 1 on. planted:
    the sine over x of `turning_step`; None above x = ½.
    """

    share: float
    cases: int
    paper: float
    mixed: float | None
    planted: float | None


def turning_step(share: float) -> Floats:
    """x[[−2x, s], [s, 2x]], s = √(1 − 4x²): of norm x, it turns diag(a + 1, a) by ½ arcsin 2x."""
    turn = math.sqrt(1 - 4 * share**2)
    return share * np.array([[-2 * share, turn], [turn, 2 * share]])


def largest_turn(share: float, *, draws: int = _DRAWS, seed: int = 0) -> Turn:
    """`draws` random steps of norm x on diag(a + 1, a), a of 0 to 10, and the swap diag(−x, x)."""
    rng = np.random.default_rng([seed, round(1e6 * share)])
    lower = rng.choice([0.0, 0.1, 1.0, 10.0], draws)
    drawn = rng.standard_normal((draws, 2, 2))
    drawn[: draws // 2, 1, 0] = drawn[: draws // 2, 0, 1]  # half of them symmetric
    drawn *= share / np.linalg.norm(drawn, 2, axis=(1, 2))[:, None, None]
    drawn[0] = np.diag([-share, share])
    sine = _sines(lower, drawn)
    worst = float(sine.max()) / share
    planted = None
    if share <= 0.5:
        planted = float(_sines(np.ones(1), turning_step(share)[None])[0]) / share
    return Turn(share, draws, worst, worst * (1 - share) if share < 1 else None, planted)


def _sines(lower: Floats, steps: Floats) -> Floats:
    """The larger of the left and right sines between leading directions, before and after."""
    base = np.zeros_like(steps)
    base[:, 0, 0], base[:, 1, 1] = lower + 1, lower
    left, _, right = np.linalg.svd(base + steps)
    found: Floats = np.maximum(np.abs(left[:, 1, 0]), np.abs(right[:, 0, 1]))
    return found


def subspace_lemmas(*, draws: int = _DRAWS, seed: int = 0) -> list[Lemma]:
    """Theorem 3.3 as the paper has it, and with the mixed gap."""
    found = [largest_turn(share, draws=draws, seed=seed) for share in (*SHARES, *_OVER)]
    below = [one for one in found if one.share < 0.5]
    over = sum(one.paper > 1 for one in found)
    examples = tuple(
        f"‖ΔW‖₂ = {one.share:g} γ: the sine is at most {one.paper:.3f} times the bound in "
        f"{one.cases:,} steps; {one.planted:.3f} constructed"
        for one in below
        if one.share in (0.1, 0.45)
    )
    worst = max(one.mixed for one in below if one.mixed is not None)
    return [
        Lemma(
            "3.3 rotation, the base's gap alone",
            "Theorem 3.3, Lemma E.11, Corollary E.13",
            "‖sin Θ‖₂ ≤ ‖ΔW‖₂ / γ_k for any k with γ_k > 0",
            "false" if over else "holds",
            len(found),
            over,
            examples,
            "A step that closes the gap breaks it. Wedin's theorem has the gap between W₀ and W₊, "
            "which is at least γ_k − ‖ΔW‖₂: with that it holds (largest ratio for ‖ΔW‖₂ < ½γ_k "
            f"{worst:.3f}). For small steps the paper's form is nearly right.",
            byhand.swapped_directions(),
        )
    ]
