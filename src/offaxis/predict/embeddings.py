"""How far the rows of the embedding moved, token by token, beside what rounding alone moves.

AlphaRL (section 2.3) shows embeddings of SFT and distillation shifted and those of RL in place, in
a picture without numbers. Here each row has its relative shift ‖e′ − e‖ / ‖e‖ and its cosine
distance 1 − cos(e′, e), and a floor: the relative shift that rounding the row once causes when
errors are uniform over one unit in the last place, √(Σ ulp²/12) / ‖e‖. A shift below the bfloat16
floor is one that a bfloat16 copy of the model can mostly not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from offaxis.checkpoint.dtypes import torch_dtype
from offaxis.predict.series import Series
from offaxis.predict.trails import SeriesTrail

__all__ = ["Shift", "embedding_shift", "rounding_floor", "row_shifts"]

_BLOCK = 1 << 22
"""Entries of the table in memory at a time."""


@dataclass(frozen=True, eq=False)
class Shift:
    """One embedding between base and last checkpoint. tokens: a table, one row a token."""

    tensor: str
    rows: int
    width: int
    empty: int
    """Rows that are zero in the base: they have no relative shift and are left out of the means."""
    stored: str
    """The dtype in which the last checkpoint stores it."""
    tokens: pl.DataFrame

    def summary(self) -> dict[str, Any]:
        """Means and extremes over the tokens; None where every row is empty."""
        told: dict[str, Any] = {
            key: value for key, value in asdict(self).items() if key != "tokens"
        }
        for name in ("relative_shift", "cosine_distance"):
            column = self.tokens[name]
            top = column.arg_max()
            told[f"{name}_mean"], told[f"{name}_max"] = column.mean(), column.max()
            told[f"{name}_max_token"] = None if top is None else self.tokens["token"][top]
        for name in ("floor_bf16", "floor_stored"):
            told[f"{name}_mean"] = self.tokens[name].mean()
        above = self.tokens.select((pl.col("relative_shift") > pl.col("floor_bf16")).mean())
        return told | {"above_floor_bf16": above.item()}


def embedding_shift(series: Series) -> Iterator[Shift]:
    """Each token embedding of the base against the last checkpoint, in blocks of rows."""
    for trail in series.trails():
        if trail.part.role.rpartition(".")[2] == "embed" and len(trail.shape) == 2:
            yield _shift(series, trail)


def _shift(series: Series, trail: SeriesTrail) -> Shift:
    rows, width = trail.shape
    code = series.code_of(trail.view.name)
    base, tuned = trail.ground(), trail.stored(len(trail) - 1)
    height = max(1, _BLOCK // width)
    columns: dict[str, list[float]] = {}
    for start in range(0, rows, height):
        before, after = (one[start : start + height].double() for one in (base, tuned))
        if not bool(torch.isfinite(after - before).all()):
            trail.rows(len(trail) - 1, slice(start * width, (start + height) * width))  # says whose
        shift, distance = row_shifts(before, after)
        block = {"relative_shift": shift, "cosine_distance": distance}
        block["floor_bf16"] = rounding_floor(before, torch.bfloat16)
        block["floor_stored"] = rounding_floor(before, torch_dtype(code) or torch.float32)
        for name, values in block.items():
            columns.setdefault(name, []).extend(values.tolist())
    table = pl.DataFrame({"token": range(rows), **columns}).with_columns(
        pl.col(pl.Float64).fill_nan(None)
    )
    empty = int(table["relative_shift"].null_count())
    return Shift(trail.name, rows, width, empty, code, table)


def row_shifts(
    base: Float[Tensor, "n d"], tuned: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """‖e′ − e‖/‖e‖ and 1 − cos(e′, e) of each row, float64.

    NaN where e is 0, and for the second where e′ is. The cosine distance is ½‖e′/‖e′‖ − e/‖e‖‖²,
    which keeps its digits where the rows agree; in [0, 2].
    """
    size, other = _length(base), _length(tuned)
    shift = torch.linalg.vector_norm(tuned - base, dim=1) / size
    units = tuned / other[:, None] - base / size[:, None]
    return shift, torch.linalg.vector_norm(units, dim=1).square() / 2


def rounding_floor(rows: Float[Tensor, "n d"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """√(Σ ulp(e_j)² / 12) / ‖e‖ of each row: one rounding to `dtype`, errors uniform over an ulp.

    ulp(e) = ε · 2^⌊log₂|e|⌋, ε the spacing at 1; constant below the smallest normal number. NaN for
    a row of zeros.
    """
    info = torch.finfo(dtype)
    size = rows.abs().clamp_min(info.tiny)
    ulp = torch.exp2(torch.floor(torch.log2(size))) * info.eps
    lost: Tensor = (ulp.square().sum(dim=1) / 12).sqrt()
    return lost / _length(rows)


def _length(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """‖row‖, NaN where it is 0."""
    size: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return torch.where(size > 0, size, torch.nan)
