"""Full-length curves in, what a screen can show out; and which matrices to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LEVELS",
    "Detail",
    "blocks",
    "consensus_curves",
    "log_indices",
    "matrix_curves",
    "pack",
    "pack_signed",
    "rounded",
    "spread",
    "stratified",
]

Values = npt.NDArray[np.float64]

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclass(frozen=True, slots=True)
class Detail:
    """How finely one matrix is shown: picture side, stripe length, points on a curve."""

    picture: int
    stripe: int
    points: int

    @property
    def size(self) -> int:
        """Characters that one matrix of one checkpoint takes, about."""
        return self.picture**2 + 8 * self.stripe + 34 * self.points + 500

    @property
    def consensus(self) -> int:
        """Characters that the consensus of the runs on one matrix takes, about."""
        return 2 * self.picture**2 + 8 * self.stripe + 300


LEVELS = (Detail(96, 256, 64), Detail(64, 128, 48), Detail(48, 128, 40), Detail(32, 64, 32))
"""From finest to coarsest; the page takes the finest at which all matrices fit. Stripes halve the
256 stretches in which the null profiles are stored, so that both have the same edges."""

_STORED = 256
_COARSE = 24
_SIDES = ("consensus_rows", "consensus_columns")
_NULL = "_magnitude_null"


def rounded(value: float | None, digits: int = 4) -> float | None:
    """`value` to so many significant digits; None for what is not finite."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def log_indices(length: int, points: int) -> list[int]:
    """At most `points` indices from 0 to length − 1, evenly spaced on a log axis of rank."""
    if length < 1:
        return []
    ranks = np.unique(np.round(np.geomspace(1, length, points)).astype(int))
    return [int(rank) - 1 for rank in ranks]


def blocks(values: Values, length: int, axis: int = 0) -> Values:
    """Means over at most `length` nearly equal blocks along `axis`."""
    have = values.shape[axis]
    if have <= length:
        return values
    edges = np.linspace(0, have, length + 1).astype(int)
    shape = [1] * values.ndim
    shape[axis] = length
    sums: Values = np.add.reduceat(values, edges[:-1], axis=axis)
    return sums / np.diff(edges).reshape(shape)


def pack(values: Values, digits: int) -> dict[str, Any]:
    """Non-negative values as text of 1 or 2 base-64 digits each, scaled by the largest.

    `{"max": largest, "d": digits, "q": text}`; the step is `max / (64**digits - 1)`.
    """
    flat = np.clip(np.nan_to_num(values.ravel(), nan=0.0, posinf=0.0), 0.0, None)
    largest = float(flat.max(initial=0.0))
    top = 64**digits - 1
    codes = np.round(flat * (top / largest if largest > 0 else 0.0)).astype(int)
    if digits == 1:
        text = "".join(_DIGITS[code] for code in codes)
    else:
        text = "".join(_DIGITS[code >> 6] + _DIGITS[code & 63] for code in codes)
    return {"max": rounded(largest, 6), "d": digits, "q": text}


def pack_signed(values: Values) -> dict[str, Any]:
    """Values of either sign as text of one base-64 digit each: 31 is zero, 0 and 62 the ends.

    `{"reach": largest size, "q": text}`; the step is `reach / 31`.
    """
    flat = np.nan_to_num(values.ravel(), nan=0.0, posinf=0.0, neginf=0.0)
    reach = float(np.abs(flat).max(initial=0.0))
    codes = 31 + np.round(flat * (31 / reach if reach > 0 else 0.0)).astype(int)
    return {"reach": rounded(reach, 6), "q": "".join(_DIGITS[code] for code in codes)}


def matrix_curves(found: Mapping[str, Values], detail: Detail) -> dict[str, Any]:
    """What the page draws of one matrix: keys absent for curves that were not measured."""
    out: dict[str, Any] = {}
    base, tuned = found.get("singular_values_base"), found.get("singular_values_tuned")
    if base is not None and tuned is not None and base.shape == tuned.shape:
        out["shift"] = _shift(base, tuned, log_indices(len(base), detail.points))
    for key, curve, choose in (
        ("update", "singular_values_update", log_indices),
        ("left", "angles_left_deg", spread),
        ("right", "angles_right_deg", spread),
    ):
        if curve in found:
            chosen = choose(len(found[curve]), detail.points)
            out[key] = {"n": len(found[curve]), "y": [rounded(found[curve][i]) for i in chosen]}
    out |= _stripes(found, "row_changed", "column_changed", detail.stripe)
    if "mask_picture" in found:
        out["picture"] = picture(found["mask_picture"], detail.picture)
    if "ulp_histogram" in found:
        out["ulp"] = [int(value) for value in np.nan_to_num(found["ulp_histogram"])]
    return out


def consensus_curves(found: Mapping[str, Values], detail: Detail) -> dict[str, Any] | None:
    """What the page draws of the consensus of the runs on one matrix; None without a picture.

    The null's picture is the observed one minus `gap`. A small matrix gets larger blocks, since
    the difference of blocks of a few entries is noise.
    """
    seen, null = found.get("consensus_picture"), found.get(f"consensus_picture{_NULL}")
    if seen is None or seen.ndim != 2:
        return None
    null = null if null is not None and null.shape == seen.shape else None
    shape = [
        len(found.get(name, ())) or side for name, side in zip(_SIDES, seen.shape, strict=True)
    ]
    high, wide = (min(detail.picture, max(_COARSE, extent // 4)) for extent in shape)
    seen = blocks(blocks(seen, high, 0), wide, 1)
    out = {"picture": picture(seen, detail.picture)}
    if null is not None:
        out["gap"] = pack_signed(seen - blocks(blocks(null, high, 0), wide, 1))
    return out | _stripes(found, *_SIDES, detail.stripe)


def _stripes(found: Mapping[str, Values], rows: str, columns: str, length: int) -> dict[str, Any]:
    """Row and column profiles and their nulls, absent where they were not measured."""
    return {
        key + short: pack(blocks(blocks(found[name + null], _STORED), length), 2)
        for key, name in (("rows", rows), ("cols", columns))
        for short, null in (("", ""), ("Null", _NULL))
        if name + null in found
    }


def _shift(base: Values, tuned: Values, chosen: Sequence[int]) -> list[float | None]:
    """(σᵢ(W₊) − σᵢ(W₀)) / σᵢ(W₀) at the chosen indices."""
    return [rounded((tuned[i] - base[i]) / base[i]) if base[i] > 0 else None for i in chosen]


def picture(values: Values, side: int) -> dict[str, Any]:
    """A two-dimensional picture as packed text with its height and width."""
    grid = values if values.ndim == 2 else values.reshape(1, -1)
    grid = blocks(blocks(grid, side, 0), side, 1)
    return {"h": grid.shape[0], "w": grid.shape[1], **pack(grid, 1)}


def spread(count: int, chosen: int) -> list[int]:
    """`chosen` of the indices below `count`, the ends included, evenly spaced."""
    if chosen >= count:
        return list(range(count))
    if chosen == 1:
        return [count // 2]
    return [int(i) for i in np.round(np.linspace(0, count - 1, chosen)).astype(int)]


def stratified(roles: Sequence[str], limit: int) -> list[int]:
    """At most `limit` positions, shared out evenly over roles and, in each, over depth.

    `roles` holds the role of each candidate, candidates being in order of depth.
    """
    groups: dict[str, list[int]] = {}
    for position, role in enumerate(roles):
        groups.setdefault(role, []).append(position)
    quota = dict.fromkeys(groups, 0)
    left = min(limit, len(roles))
    while left > 0:
        for role, members in groups.items():
            if left > 0 and quota[role] < len(members):
                quota[role] += 1
                left -= 1
    return sorted(
        members[i]
        for role, members in groups.items()
        if quota[role]
        for i in spread(len(members), quota[role])
    )
