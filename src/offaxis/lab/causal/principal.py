"""One run at a time: do the entries that change avoid the principal ones, and whose?"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from offaxis.kernels import unpack
from offaxis.lab.causal.subjects import Flags, Floats, Seen, Weights
from offaxis.linalg import principal_rank, spectrum_and_basis
from offaxis.measures import principal_mask

__all__ = ["PRINCIPAL", "principal_entries", "principal_row"]

_VIEWS = ("own", "original", "back")

PRINCIPAL: dict[str, Any] = {
    "run": pl.String(),
    "step": pl.Int64(),
    "tensor": pl.String(),
    "layer": pl.Int64(),
    "role": pl.String(),
    "edited": pl.Boolean(),
    "entries": pl.Int64(),
    "changed": pl.Int64(),
    "back_changed": pl.Int64(),
    **{
        f"{view}_{name}": kind
        for view in _VIEWS
        for name, kind in (("shared", pl.Int64()), ("expected", pl.Float64()))
    },
}
"""Columns. shared: changed entries that lie in M_princ (the top half of |W₀⁽ʳ⁾|); expected: as
many as the magnitude null has there, Σ of the rates of M_princ's entries. own: M_princ of the base
that the run started from; original: that of the base before its edit, entry by entry in the run's
own coordinates; back: that of the base before its edit, with the update pulled back."""


def principal_entries(base: torch.Tensor) -> Flags:
    """M_princ of a matrix, flat."""
    wide = base.double()
    left = spectrum_and_basis(wide, rank=principal_rank(*wide.shape))[1].left
    return unpack(principal_mask(wide, left).mask, (wide.numel(),))


def principal_row(seen: Seen, own: Flags, original: Flags) -> dict[str, Any]:
    """Numbers of one matrix of one checkpoint: the columns from `edited` on.

    own, original: M_princ of the run's base and of the base before its edit.
    """
    told: dict[str, Any] = {
        "edited": seen.edited,
        "entries": own.size,
        "changed": int(seen.own.changed.sum()),
        "back_changed": int(seen.back.changed.sum()),
    }
    views: tuple[tuple[str, Weights, Flags], ...] = (
        ("own", seen.own, own),
        ("original", seen.own, original),
        ("back", seen.back, original),
    )
    for view, weights, fixed in views:
        told[f"{view}_shared"] = int(np.count_nonzero(weights.changed & fixed))
        told[f"{view}_expected"] = _expected(weights.rates, fixed)
    return told


def _expected(rates: Floats, fixed: Flags) -> float:
    return float(rates[fixed].sum())
