"""Pairs of runs, matrix by matrix: shared entries, their nulls, and shared directions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.lab.causal.subjects import RANKS, Seen, Subject, Weights

__all__ = ["KINDS", "PAIRS", "kind_of", "pair_rows"]

KINDS = ("base, base", "base, edited", "edited, edited")
"""What the two runs of a pair started from; two edited ones from the same edit."""

_SPANS = tuple(f"{side}_{rank}" for side in ("left", "right") for rank in RANKS)

PAIRS: dict[str, Any] = {
    "run_a": pl.String(),
    "run_b": pl.String(),
    "step": pl.Int64(),
    "tensor": pl.String(),
    "layer": pl.Int64(),
    "role": pl.String(),
    "edited": pl.Boolean(),
    "rows": pl.Int64(),
    "cols": pl.Int64(),
    **{
        f"{view}{name}": kind
        for view in ("", "back_")
        for name, kind in (
            ("changed_a", pl.Int64()),
            ("changed_b", pl.Int64()),
            ("shared", pl.Int64()),
            ("expected", pl.Float64()),
        )
    },
    "cosine": pl.Float64(),
    "back_cosine": pl.Float64(),
    **{name: pl.Float64() for name in _SPANS},
}
"""Columns of the pair table. run_a started from the base wherever one did. `edited`: an edit of one
of the two changed this tensor. changed_a, changed_b, shared: entries that one, the other, both
changed in bfloat16, each in its own coordinates; expected: what they would share if, in each run,
every entry changed independently with the rate of its own base's |W₀| bin, Σ p_a p_b. back_*: the
same of the base's matrix with both updates pulled back. cosine, back_cosine: ⟨ΔW, ΔW′⟩ / ‖ΔW‖‖ΔW′‖
of raw and of pulled-back updates. left_k, right_k: ‖UᵀU′‖²_F / k of the first k singular vectors of
the pulled-back updates, in [0, 1]; k/m or k/n for random subspaces."""

Floats = NDArray[np.float64]


def kind_of(a: str | None, b: str | None, seed_a: int, seed_b: int) -> str | None:
    """The kind of a pair by the two edits; None where it says nothing (two edits, or one run)."""
    if a == b and seed_a != seed_b:
        return KINDS[0] if a is None else KINDS[2]
    return KINDS[1] if a is None and b is not None else None


def pair_rows(runs: Sequence[Subject], seen: Sequence[Seen]) -> Iterator[dict[str, Any]]:
    """Numbers of every pair of one arm's runs in one matrix at one step; NaN where undefined.

    runs: those from the base first. The columns of `PAIRS` but step, tensor, layer and role.
    """
    numbers = {**_entries([one.own for one in seen]), **_back([one.back for one in seen])}
    numbers["cosine"] = _cosines([one.update for one in seen])
    numbers["back_cosine"] = _cosines([one.pulled for one in seen])
    none = np.isnan(numbers["back_cosine"])  # of no update every vector is a singular one
    for k in RANKS:
        numbers[f"left_{k}"] = np.where(none, np.nan, _spans([one.left for one in seen], k))
        numbers[f"right_{k}"] = np.where(none, np.nan, _spans([one.right for one in seen], k))
    for i, j in itertools.combinations(range(len(runs)), 2):
        a, b = runs[i], runs[j]
        if kind_of(a.edit, b.edit, a.seed, b.seed) is None:
            continue
        told: dict[str, Any] = {"run_a": a.run, "run_b": b.run}
        told["edited"] = seen[i].edited or seen[j].edited
        told["rows"], told["cols"] = seen[i].ground.shape
        yield told | {name: values[i, j].item() for name, values in numbers.items()}


def _entries(seen: Sequence[Weights]) -> dict[str, NDArray[Any]]:
    """Square matrices over runs: changed, shared, expected."""
    bits = np.stack([one.changed for one in seen]).astype(np.float32)
    shared = np.rint(bits @ bits.T).astype(np.int64)  # exact: counts below 2**24
    rates = np.stack([one.rates for one in seen])
    sizes = np.diag(shared)
    across = np.ones_like(shared)
    return {
        "changed_a": sizes[:, None] * across,
        "changed_b": sizes[None, :] * across,
        "shared": shared,
        "expected": rates @ rates.T,
    }


def _back(seen: Sequence[Weights]) -> dict[str, NDArray[Any]]:
    return {f"back_{name}": values for name, values in _entries(seen).items()}


def _cosines(updates: Sequence[Floats]) -> Floats:
    stacked = np.stack(updates)
    products = stacked @ stacked.T
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(products / np.outer(norms, norms), dtype=np.float64)


def _spans(bases: Sequence[Floats], rank: int) -> Floats:
    """‖UᵀU′‖²_F / k for every two of the bases, each cut to its first `rank` columns."""
    cut = [one[:, :rank] for one in bases]
    width = cut[0].shape[1]
    stacked = np.concatenate(cut, axis=1)
    squares = (stacked.T @ stacked) ** 2
    blocks = squares.reshape(len(cut), width, len(cut), width)
    return np.asarray(blocks.sum(axis=(1, 3)) / width, dtype=np.float64)
