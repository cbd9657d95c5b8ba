"""Small models on disk and manifests over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import models

__all__ = ["PAIRS", "write_models", "write_table"]

PAIRS = (
    ("one", "runs/a", "GRPO", "Math", "1e-6"),
    ("two", "runs/b", "SFT", "Code", "1e-5"),
    ("one", "runs/c", "GRPO", "Code", "1e-6"),
    ("two", "runs/d", "DAPO", "Math", ""),
    ("one", "runs/e", "SFT", "Math", "2e-5"),
)
"""base, tuned, algorithm, data, lr; rows that share a base do not stand together."""

_SIZES = {"runs/a": 2e-5, "runs/b": 6e-4, "runs/c": 4e-5, "runs/d": 6e-5, "runs/e": 0.0}
_BASES = {"one": (0, 1), "two": (1, 2)}


def write_models(root: Path) -> Path:
    """Two bases and what was tuned from each, under the names of `PAIRS`.

    `runs/d` changes principal weights alone; `runs/e` changes nothing.
    """
    states = {
        name: models.tiny(seed=seed, layers=layers) for name, (seed, layers) in _BASES.items()
    }
    for name, state in states.items():
        models.write(root / name, state)
    for number, (base, tuned, *_) in enumerate(PAIRS):
        dtype = torch.float32 if tuned == "runs/c" else torch.bfloat16
        state = models.nudged(states[base], seed=10 + number, size=_SIZES[tuned], dtype=dtype)
        if tuned == "runs/d":
            state = {n: _where_principal(states[base][n], w) for n, w in state.items()}
        models.write(root / tuned, state)
    return root


def _where_principal(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """The tuned matrix where the base's reconstruction of low rank is large, else the base."""
    if base.dim() < 2:
        return base
    u, s, vh = torch.linalg.svd(base.double(), full_matrices=False)
    rank = max(1, min(base.shape) // 16)
    size = ((u[:, :rank] * s[:rank]) @ vh[:rank]).abs()
    return torch.where(size > size.median(), tuned, base)


def write_table(path: Path, rows: Sequence[Sequence[str]], header: str = "") -> Path:
    """Rows of cells without separators in them, as CSV or TSV by the ending."""
    separator = "\t" if path.suffix == ".tsv" else ","
    columns = (header or "base,tuned,algorithm,data,lr").split(",")
    lines = [separator.join(row) for row in (columns, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def as_objects(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Mapping[str, str]]:
    """The same as JSON objects, empty cells left out."""
    return [{c: v for c, v in zip(columns, row, strict=True) if v} for row in rows]
