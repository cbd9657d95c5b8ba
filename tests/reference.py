"""Independent float64 reference implementations, written from DESIGN.md's definitions alone.

Nothing here imports offaxis. Sorting, full SVDs and dense boolean masks throughout: slow and plain,
so that a mistake in the fast code has nothing to hide behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]

MAGNITUDE_BINS = 2048
_Z95 = 1.959963984540054
_BINS = [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128),
         (129, 256), (257, 512), (513, 1024), (1025, 10**9)]  # fmt: skip


# ---------------------------------------------------------------------------- bfloat16, exactly


def values64(tensor: torch.Tensor) -> np.ndarray:
    """The stored values as float64, exact for every float dtype."""
    return tensor.to(torch.float64).numpy()


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float64 rounded once to the nearest bfloat16 (ties to even), as float64.

    A bfloat16 has 8 significant bits and exponents from -126: its quantum at x = m·2^e with m in
    [0.5, 1) is 2^(max(e, -125) - 8). Scaling by powers of two is exact, so `rint` rounds once.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        _, exponent = np.frexp(values)
        power = np.maximum(exponent, -125) - 8
        rounded = np.ldexp(np.rint(np.ldexp(values, -power)), power)
        overflow = np.abs(rounded) >= 2.0**128
    return np.where(overflow, np.copysign(np.inf, values), rounded)


def bf16_codes(values: np.ndarray) -> np.ndarray:
    """The 16-bit codes of float64 values rounded to bfloat16 (NaN: the canonical one)."""
    nan = np.isnan(values)
    rounded = round_bf16(np.where(nan, 0.0, values)).astype(np.float32)
    return np.where(nan, 0x7FC0, (rounded.view(np.uint32) >> 16).astype(np.int64))


def line_position(codes: np.ndarray) -> np.ndarray:
    """Signed position of bfloat16 codes along the real line; both zeros at 0."""
    magnitude = codes & 0x7FFF
    return np.where(codes & 0x8000, -magnitude, magnitude)


def _nan_bits(tensor: torch.Tensor) -> np.ndarray:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(width).numpy()


def changed_bf16(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    """M: where the values differ after rounding to bfloat16. NaN: unchanged if bit-identical."""
    x, y = values64(base), values64(tuned)
    changed = line_position(bf16_codes(x)) != line_position(bf16_codes(y))
    return np.where(np.isnan(x) | np.isnan(y), _nan_differs(base, tuned), changed)


def changed_stored(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    """Where the values differ after promotion to the wider dtype (float64 holds either)."""
    x, y = values64(base), values64(tuned)
    return np.where(np.isnan(x) | np.isnan(y), _nan_differs(base, tuned), x != y)


def _nan_differs(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    x, y = values64(base), values64(tuned)
    if base.dtype == tuned.dtype and base.element_size() > 1:
        return _nan_bits(base) != _nan_bits(tuned)
    return ~(np.isnan(x) & np.isnan(y))  # a NaN widened without a change of payload


def ulp_histogram(base: torch.Tensor, tuned: torch.Tensor) -> list[int]:
    """Entries in each bin of the distance in bfloat16 steps. Finite input only."""
    x, y = (line_position(bf16_codes(values64(t))) for t in (base, tuned))
    distance = np.abs(x - y)
    return [int(((distance >= low) & (distance <= high)).sum()) for low, high in _BINS]


def finite_sums(base: torch.Tensor, tuned: torch.Tensor) -> tuple[float, float, float]:
    """Sum ΔW², sum W₀², sum W₀·W₊ over entries finite on both sides, each sum exactly rounded."""
    x, y = values64(base).reshape(-1), values64(tuned).reshape(-1)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    return math.fsum((y - x) ** 2), math.fsum(x * x), math.fsum(x * y)


# ------------------------------------------------------------------------- fixed masks and nulls


def default_angle_rank(rows: int, cols: int) -> int:
    return min(512, max(1, min(rows, cols) // 8))


def default_principal_rank(rows: int, cols: int) -> int:
    return min(64, max(1, min(rows, cols) // 16))


def first_of(order: np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(order.size, bool)
    mask[order[:count]] = True
    return mask.reshape(shape)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest |values|, ties to the lower row-major index."""
    return first_of(np.argsort(-np.abs(values.reshape(-1)), kind="stable"), count, values.shape)


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest |values|, ties to the lower row-major index."""
    return first_of(np.argsort(np.abs(values.reshape(-1)), kind="stable"), count, values.shape)


def principal(base: np.ndarray, rank: int, alpha: float) -> np.ndarray:
    """M_princ: the top round(α·m·n) of the rank-r SVD reconstruction."""
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    return largest((u[:, :rank] * s[:rank]) @ vt[:rank], round(alpha * base.size))


def near_threshold(base: np.ndarray, rank: int, alpha: float) -> int:
    """Entries of the reconstruction within 1e-12 relative of the smallest one selected."""
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    size = np.abs((u[:, :rank] * s[:rank]) @ vt[:rank])
    threshold = size[principal(base, rank, alpha)].min()
    return int((np.abs(size - threshold) <= 1e-12 * threshold).sum())


def low_magnitude(base: np.ndarray, alpha: float) -> np.ndarray:
    """M_low: the bottom round(α·m·n) of |W₀|."""
    return smallest(base, round(alpha * base.size))


def top_update(update: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The top `share` of |ΔW|, of entries that moved."""
    return largest(update, min(round(share * update.size), int((update != 0).sum())))


def magnitude_bins(base: np.ndarray) -> np.ndarray:
    """Exponent and top three mantissa bits of |W₀| in bfloat16: its code without the last four."""
    return (bf16_codes(base) & 0x7FFF) >> 4


def bin_totals(bins: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    chosen = bins.reshape(-1) if mask is None else bins[mask]
    return np.bincount(chosen, minlength=MAGNITUDE_BINS)


def overlap(mask: np.ndarray, fixed: np.ndarray) -> float | None:
    return float((mask & fixed).sum() / mask.sum()) if mask.any() else None


def magnitude_null(base: np.ndarray, mask: np.ndarray, fixed: np.ndarray) -> float | None:
    """Σ_b |M_b|·|P_b|/|b| / |M|, bin by bin."""
    if not mask.any():
        return None
    bins = magnitude_bins(base)
    expected = 0.0
    for b in np.unique(bins):
        here = bins == b
        expected += mask[here].sum() * fixed[here].sum() / here.sum()
    return float(expected / mask.sum())


def redraw_within_bins(
    base: np.ndarray, mask: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """`mask` with its entries permuted at random within bins of equal |W₀|."""
    bins, flat = magnitude_bins(base).reshape(-1), mask.reshape(-1)
    out = np.zeros_like(flat)
    for b in np.unique(bins):
        here = np.flatnonzero(bins == b)
        out[here] = generator.permutation(flat[here])
    return out.reshape(mask.shape)


def redraw_together(
    base: np.ndarray, masks: Sequence[np.ndarray], generator: np.random.Generator
) -> list[np.ndarray]:
    """Several masks redrawn within bins of equal |W₀|, the bits of an entry staying together."""
    bins = magnitude_bins(base).reshape(-1)
    source = np.arange(bins.size)
    for b in np.unique(bins):
        here = np.flatnonzero(bins == b)
        source[here] = generator.permutation(here)
    return [mask.reshape(-1)[source].reshape(mask.shape) for mask in masks]


def null_rate(base: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """For each entry the changed share of its magnitude bin; means of it are null profiles."""
    bins = magnitude_bins(base)
    shares = bin_totals(bins, mask) / np.maximum(bin_totals(bins), 1)
    return np.asarray(shares[bins])


def jaccard(one: np.ndarray, other: np.ndarray) -> float | None:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else None


def jaccard_chance(one: np.ndarray, other: np.ndarray) -> float | None:
    p, q = one.mean(), other.mean()
    return float(p * q / (p + q - p * q)) if p + q else None


def jaccard_magnitude_null(base: np.ndarray, one: np.ndarray, other: np.ndarray) -> float | None:
    """Independence within bins: I = Σ_b |A_b||B_b|/|b|, then I / (|A| + |B| − I)."""
    bins = magnitude_bins(base)
    total, a, b = (bin_totals(bins, m) for m in (None, one, other))
    both = sum(a[k] * b[k] / total[k] for k in np.flatnonzero(total))
    union = a.sum() + b.sum() - both
    return float(both / union) if union else None


# ----------------------------------------------------------------------------------- spectra


def principal_angles_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles between two column spaces, degrees, ascending: atan2 of sine and cosine."""
    a, b = np.linalg.qr(first)[0], np.linalg.qr(second)[0]
    cosines = np.linalg.svd(a.T @ b, compute_uv=False)
    sines = np.linalg.svd(b - a @ (a.T @ b), compute_uv=False)[::-1]
    return np.degrees(np.arctan2(sines, cosines))


def spectral(base: np.ndarray, update: np.ndarray, *, k: int, r: int) -> dict[str, float | None]:
    """All spectral measures of one matrix, from full SVDs."""
    u0, s0, v0 = np.linalg.svd(base, full_matrices=False)
    u1, s1, v1 = np.linalg.svd(base + update, full_matrices=False)
    change = np.linalg.svd(update, compute_uv=False)
    out: dict[str, float | None] = {
        "nss": float(np.linalg.norm(s1 - s0) / np.linalg.norm(s0)),
        "nss_bound": float(np.linalg.norm(update) / np.linalg.norm(base)),
        "rotation_left_deg": 0.0,
        "rotation_right_deg": 0.0,
    }
    names = ("wedin_bound_deg", "weyl_ratio", "rank1_energy", "rank1_norm_share", "effective_rank",
             "update_energy_left", "update_energy_right", "update_energy_two_sided")  # fmt: skip
    if not update.any():
        return out | dict.fromkeys(names)
    out["rotation_left_deg"] = float(principal_angles_deg(u0[:, :k], u1[:, :k]).mean())
    out["rotation_right_deg"] = float(principal_angles_deg(v0[:k].T, v1[:k].T).mean())
    gap = s0[k - 1] - s0[k] if k < s0.size else None
    vacuous = gap is None or change[0] >= gap - change[0]
    total = (change**2).sum()
    p = change**2 / total
    left, right = u0[:, :r].T @ update, update @ v0[:r].T
    values = (
        None if vacuous else float(np.degrees(np.arcsin(change[0] / (gap - change[0])))),
        float(np.abs(s1 - s0).max() / change[0]),
        float(change[0] ** 2 / total),
        float(change[0] / np.sqrt(total)),
        float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())),
        float((left**2).sum() / total),
        float((right**2).sum() / total),
        float(((left @ v0[:r].T) ** 2).sum() / total),
    )
    return out | dict(zip(names, values, strict=True))


# ------------------------------------------------------------------------------- whole models


def matrix_numbers(
    base: torch.Tensor,
    tuned: torch.Tensor,
    *,
    alpha: float = 0.5,
    angle_rank: int | None = None,
    principal_rank: int | None = None,
) -> dict[str, float | None]:
    """Every measure of one matrix that DESIGN defines, but the (random) rounding null."""
    w, update = values64(base), values64(tuned) - values64(base)
    mask = changed_bf16(base, tuned)
    k = min(angle_rank or default_angle_rank(*w.shape), *w.shape)
    r = min(principal_rank or default_principal_rank(*w.shape), *w.shape)
    princ, low, top = principal(w, r, alpha), low_magnitude(w, alpha), top_update(update)
    out = spectral(w, update, k=k, r=r)
    out["principal_near_threshold"] = float(near_threshold(w, r, alpha))
    for name, fixed in (
        ("principal_overlap", princ),
        ("low_magnitude_overlap", low),
        ("principal_not_low_overlap", princ & ~low),
    ):
        out[name] = overlap(mask, fixed)
        out[f"{name}_magnitude_null"] = magnitude_null(w, mask, fixed)
        if name == "principal_not_low_overlap":
            continue
        out[f"{name}_top5"] = overlap(top, fixed)
        out[f"{name}_top5_magnitude_null"] = magnitude_null(w, top, fixed)
        seen, null = out[name], out[f"{name}_magnitude_null"]
        out[f"{name}_excess"] = None if seen is None or null is None else seen - null
    return out


def mean_and_half_width(values: Sequence[float], roles: Sequence[str]) -> tuple[float, float]:
    """Plain mean, and 1.96 standard errors with the variance taken within roles."""
    data, labels = np.asarray(values), np.asarray(roles)
    variance = 0.0
    for role in set(roles):
        mine = data[labels == role]
        spread = mine.var(ddof=1) if mine.size > 1 else data.var(ddof=1)
        variance += (mine.size / data.size) ** 2 * spread / mine.size
    return float(data.mean()), _Z95 * math.sqrt(variance)


def pair_summary(
    base: Tensors, tuned: Tensors, roles: Mapping[str, str], **settings: Any
) -> dict[str, Any]:
    """The numbers of one entry of `pairs`. roles: matrix name → role; all else entry by entry."""
    entries = sum(t.numel() for t in base.values())
    sums = np.array([finite_sums(base[name], tuned[name]) for name in base])
    update, ground, cross = (math.fsum(column) for column in sums.T)
    other = math.fsum(finite_sums(tuned[name], base[name])[1] for name in base)
    out: dict[str, Any] = {
        "parameters": entries,
        "tensors": len(base),
        "matrices": len(roles),
        "unchanged_bf16": 1 - sum(changed_bf16(base[n], tuned[n]).sum() for n in base) / entries,
        "unchanged_stored": 1
        - sum(changed_stored(base[n], tuned[n]).sum() for n in base) / entries,
        "relative_update_norm": math.sqrt(update / ground),
        "correlation": cross / math.sqrt(ground * other),
    }
    update, ground, cross = (
        math.fsum(column)
        for column in np.array([finite_sums(base[name], tuned[name]) for name in roles]).T
    )
    other = math.fsum(finite_sums(tuned[name], base[name])[1] for name in roles)
    out["matrix_update_norm"] = math.sqrt(update / ground)
    out["matrix_correlation"] = cross / math.sqrt(ground * other)
    moved = [n for n in base if changed_stored(base[n], tuned[n]).any()]
    still = sum(base[n].numel() - changed_bf16(base[n], tuned[n]).sum() for n in moved)
    inside = sum(base[n].numel() for n in moved)
    out["unchanged_bf16_in_moved_tensors"] = float(still / inside) if moved else None
    rows = {name: matrix_numbers(base[name], tuned[name], **settings) for name in roles}
    out["intervals"], out["measured"] = {}, {}
    for measure in next(iter(rows.values())):
        found = {n: row[measure] for n, row in rows.items() if row[measure] is not None}
        out["measured"][measure] = len(found)
        if not found:
            out[measure] = None
            continue
        mean, half = mean_and_half_width(list(found.values()), [roles[n] for n in found])
        out[measure] = mean
        if len(found) > 1:
            out["intervals"][measure] = [mean - half, mean + half]
    return out


def across_summary(
    base: Tensors, runs: Sequence[Tensors], roles: Mapping[str, str]
) -> dict[str, Any]:
    """Jaccard, its chance level and null (mean over matrices, then over pairs), and consensus."""
    masks = [{n: changed_bf16(base[n], run[n]) for n in base} for run in runs]
    kinds: dict[str, list[float]] = {"mean": [], "chance": [], "magnitude_null": []}
    for i in range(len(runs)):
        for j in range(i + 1, len(runs)):
            cells = []
            for name in roles:
                a, b = masks[i][name], masks[j][name]
                if not (a | b).any():
                    continue
                w = values64(base[name])
                cells.append((jaccard(a, b), jaccard_chance(a, b), jaccard_magnitude_null(w, a, b)))
            for kind, column in zip(kinds, zip(*cells, strict=True), strict=True):
                kinds[kind].append(float(np.mean(column)))
    counts = np.zeros(len(runs) + 1)
    for name in base:
        times = np.sum([one[name] for one in masks], axis=0).reshape(-1)
        counts += np.bincount(times, minlength=len(runs) + 1)
    return {
        **{f"jaccard_{kind}": float(np.mean(values)) for kind, values in kinds.items()},
        "changed_in_r_runs": list(counts / counts.sum()),
    }


def power_law_matrix(
    rows: int, cols: int, *, seed: int, exponent: float = 0.5, std: float = 0.02
) -> torch.Tensor:
    """A bfloat16 matrix with singular values i^-exponent, random singular vectors, and this std."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, cols)
    make = [torch.randn(n, short, generator=generator, dtype=torch.float64) for n in (rows, cols)]
    left, right = (torch.linalg.qr(one).Q for one in make)
    values = torch.arange(1, short + 1, dtype=torch.float64) ** -exponent
    matrix = (left * values) @ right.T
    return (matrix * (std / matrix.std())).to(torch.bfloat16)
