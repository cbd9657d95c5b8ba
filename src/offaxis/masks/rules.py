"""The rules: one matrix of the base in, packed bits out. M_princ and M_low are DESIGN's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from offaxis.errors import CheckpointError
from offaxis.kernels import bin_counts, magnitude_codes, pack, popcount, scan, select
from offaxis.kernels.sampling import draw, draw_in_bins
from offaxis.masks.mask import Bits, inverted
from offaxis.masks.side import Side
from offaxis.measures.overlaps import low_magnitude_mask, principal_mask, top_update_mask

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """A rule by name: its function, the options that it takes with their defaults, what it says."""

    name: str
    bits: Callable[..., Bits]
    options: Mapping[str, Any]
    """`...` marks an option that must be given."""
    says: str


def _principal(side: Side, *, alpha: float, rank: int | None) -> Bits:
    return principal_mask(side.exact, side.left(rank), alpha=alpha).mask


def _non_principal(side: Side, *, alpha: float, rank: int | None) -> Bits:
    return inverted(_principal(side, alpha=alpha, rank=rank), side.entries)


def _low_magnitude(side: Side, *, alpha: float | None, threshold: str | None) -> Bits:
    if threshold is None and alpha is not None:
        return low_magnitude_mask(side.finite, alpha=alpha).mask
    sizes = side.exact.abs()
    return pack(sizes <= sizes.mean())


def _safe(side: Side, *, alpha: float, rank: int | None, threshold: str | None) -> Bits:
    low = _low_magnitude(side, alpha=alpha, threshold=threshold)
    return low | _non_principal(side, alpha=alpha, rank=rank)


def _random(side: Side, *, density: float | None, like: Bits | None, seed: int) -> Bits:
    count = round((density or 0.0) * side.entries) if like is None else popcount(like)
    return draw(side.entries, count, seed=side.seed(seed))


def _magnitude_random(side: Side, *, like: Bits, seed: int) -> Bits:
    wanted = bin_counts(side.codes, like)
    return draw_in_bins(side.codes, side.bins, wanted, seed=side.seed(seed, model=like))


def _subnetwork(side: Side, *, tuned: str, density: float | None) -> Bits:
    other = side.elsewhere.tuned(tuned, side.part)
    if density is not None:
        update = other.to(torch.float64) - side.exact
        if not bool(torch.isfinite(update).all()):
            raise CheckpointError(
                f"{side.part.tensor}: {tuned} holds NaN or infinite entries, so its largest "
                "updates have no order; give another checkpoint, or leave density out"
            )
        return top_update_mask(update, share=density).mask
    mask = scan(side.stored, other).mask
    assert mask is not None
    return mask


def _lift(side: Side, *, budget_rank: int, filter_rank: int | None) -> Bits:
    left = side.left(filter_rank)
    count = min(budget_rank * sum(side.stored.shape), side.entries)
    reconstruction = left @ (left.T @ side.exact)
    return select(magnitude_codes(reconstruction), count, side="largest").mask


def _gradient(side: Side, *, density: float) -> Bits:
    return _largest(side, "gradient", density)


def _fisher(side: Side, *, density: float) -> Bits:
    return _largest(side, "fisher", density)


def _largest(side: Side, kind: str, density: float) -> Bits:
    scores = side.elsewhere.scores(kind, side.part)
    return select(magnitude_codes(scores), round(density * side.entries), side="largest").mask


def _all(side: Side) -> Bits:
    return inverted(np.zeros(-(-side.entries // 8), np.uint8), side.entries)


def _none(side: Side) -> Bits:
    return np.zeros(-(-side.entries // 8), np.uint8)


def _file(side: Side, *, path: str) -> Bits:
    return side.elsewhere.saved(path, side.view)


def _rule(name: str, bits: Callable[..., Bits], says: str, **options: Any) -> Rule:
    return Rule(name, bits, MappingProxyType(options), says)


_ALL = (
    _rule("principal", _principal, "the top alpha of |W₀⁽ʳ⁾|, the rank-r reconstruction",
          alpha=0.5, rank=None),
    _rule("non_principal", _non_principal, "what principal leaves", alpha=0.5, rank=None),
    _rule("low_magnitude", _low_magnitude,
          "the bottom alpha of |W₀|; threshold='mean': |W₀| at most its mean",
          alpha=0.5, threshold=None),
    _rule("safe", _safe, "low_magnitude | non_principal", alpha=0.5, rank=None, threshold=None),
    _rule("random", _random, "round(density·m·n) entries, or as many as like has in each matrix",
          density=None, like=None, seed=0),
    _rule("magnitude_random", _magnitude_random,
          "as many entries as like has in each bin of |W₀| of each matrix", like=..., seed=0),
    _rule("subnetwork", _subnetwork,
          "the entries whose bf16 value a finished run changed; with density, its largest updates",
          tuned=..., density=None),
    _rule("lift", _lift, "the budget_rank·(m + n) largest entries of the rank-filter_rank "
          "reconstruction", budget_rank=..., filter_rank=None),
    _rule("gradient", _gradient, "the largest |Σ gradient| over the data", density=...),
    _rule("fisher", _fisher, "the largest diagonal Fisher information over the data", density=...),
    _rule("all", _all, "every entry"),
    _rule("none", _none, "no entry"),
    _rule("file", _file, "a saved mask", path=...),
)  # fmt: skip

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ALL})
"""By name: what `offaxis mask --rule` knows."""
