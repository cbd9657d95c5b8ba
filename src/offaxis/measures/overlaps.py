"""Where the changed entries lie: overlaps with fixed masks, and the nulls they must beat.

Masks are packed bits in the row-major order of the stored tensor (see `offaxis.kernels.selection`).
M is the update mask: the entries whose bfloat16 rounding changed.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from offaxis.kernels import Selection, magnitude_codes, popcount, scan, select
from offaxis.measures.number import Number, undefined

__all__ = [
    "ALPHA",
    "low_magnitude_mask",
    "magnitude_null",
    "overlap",
    "principal_mask",
    "rounding_null",
    "top_update_mask",
]

Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

ALPHA = 0.5
"""Density of the fixed masks M_princ and M_low."""


def principal_mask(
    base: Float[Tensor, "m n"], left: Float[Tensor, "m r"], *, alpha: float = ALPHA
) -> Selection:
    """M_princ: the top round(α·m·n) entries of |W₀⁽ʳ⁾|, W₀⁽ʳ⁾ = U_r U_rᵀ W₀ in float64.

    base: float64; left: the top-r left singular vectors (the right ones and `base.T` give the
    same matrix transposed). The Path Not Taken, section 4.2; LIFT. Ties go to the lower index.
    """
    reconstruction = left @ (left.T @ base)
    return select(magnitude_codes(reconstruction), round(alpha * base.numel()), side="largest")


def low_magnitude_mask(base: Float[Tensor, "m n"], *, alpha: float = ALPHA) -> Selection:
    """M_low: the bottom round(α·m·n) entries of |W₀|, in the stored dtype. Section 4.2."""
    return select(magnitude_codes(base), round(alpha * base.numel()), side="smallest")


def top_update_mask(update: Float[Tensor, "m n"], *, share: float = 0.05) -> Selection:
    """The top `share` of |ΔW| by size, so that dense and sparse updates compare.

    Never an entry that did not move: fewer are selected where fewer moved.
    """
    moved = int(torch.count_nonzero(update))
    count = min(round(share * update.numel()), moved)
    return select(magnitude_codes(update), count, side="largest")


def overlap(update: Bits, fixed: Bits) -> Number:
    """|M ∩ P| / |M|, in [0, 1]. Undefined for an empty M. The Path Not Taken, section 4.2."""
    changed = popcount(update)
    if changed == 0:
        return undefined("no_change")
    return Number(popcount(update & fixed) / changed)


def magnitude_null(total: Counts, update: Counts, fixed: Counts) -> Number:
    """The overlap expected if the changed entries were redrawn within bins of equal |W₀|.

    Σ_b |M_b|·|P_b|/|b| / |M|, the arguments being counts in each bin b (`kernels.bin_counts`):
    of all entries, of M and of P. `error` is the standard deviation of the overlap under this
    null (hypergeometric within bins), so that an observed overlap can be read in its units.
    """
    changed = int(update.sum())
    if changed == 0:
        return undefined("no_change")
    used = total > 0
    b, m = total[used].astype(np.float64), update[used].astype(np.float64)
    share = fixed[used] / b
    variance = m * share * (1 - share) * (b - m) / np.maximum(b - 1, 1)
    return Number(float((m * share).sum()) / changed, math.sqrt(float(variance.sum())) / changed)


def rounding_null(
    base: Float[Tensor, "m n"],
    update: Float[Tensor, "m n"],
    fixed: Sequence[Bits],
    *,
    seed: int,
    draws: int = 1,
) -> list[Number]:
    """The overlap with each fixed mask that rounding alone would give to an update of these sizes.

    Permutes the entries of ΔW within the matrix (seeded), adds them to W₀, rounds to bfloat16 and
    counts again; `error` is the standard deviation over draws (None for one draw). It needs a ΔW
    that bf16 storage has not yet rounded: a tuned side wider than bfloat16.

    base, update: float64.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    values = update.reshape(-1).numpy()
    found: list[list[float]] = [[] for _ in fixed]
    for _ in range(draws):
        noise = torch.from_numpy(generator.permutation(values)).reshape(base.shape)
        mask = scan(base, base + noise).mask
        changed = popcount(mask) if mask is not None else 0
        if mask is None or changed == 0:
            return [undefined("no_change_in_null")] * len(fixed)
        for shares, bits in zip(found, fixed, strict=True):
            shares.append(popcount(mask & bits) / changed)
    return [
        Number(float(np.mean(shares)), float(np.std(shares, ddof=1)) if draws > 1 else None)
        for shares in found
    ]
