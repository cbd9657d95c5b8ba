"""What Gate I found: values, tables and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.gates.fisher.bound import Bound
from offaxis.gates.fisher.curvature import Confined, Contrast, Quotient
from offaxis.gates.fisher.intervals import Estimate
from offaxis.gates.fisher.scopes import Scope
from offaxis.gates.fisher.shrinking import Shrinking
from offaxis.output import staged_directory

__all__ = ["Anchor", "Leash", "anchor_summary"]

_HEADLINES = ("model", "matrices", "layer", "role")


@dataclass(frozen=True)
class Leash:
    """One direction of KL, exact over the vocabulary, and the quadratic form beside it."""

    direction: str
    """kl_tuned_base: KL(π₊ ‖ π) on completions of π₊. kl_base_tuned: KL(π ‖ π₊) on those of π."""
    kl: Estimate
    """Nats a sequence."""
    per_token: float
    half_form: Estimate
    """½ΔᵀFΔ a sequence on the same prefixes, F of π."""
    ratio: Estimate
    """kl / half_form."""
    sequences: int
    positions: int


@dataclass(frozen=True)
class Anchor:
    """Gate I of one base and one tuned model."""

    leashes: tuple[Leash, ...]
    shrinking: Shrinking
    """On the completions of π₊, the same for every step."""
    quotients: tuple[Quotient, ...]
    confined: tuple[Confined, ...]
    contrasts: tuple[Contrast, ...]
    bounds: tuple[Bound, ...]
    run: Mapping[str, Any]

    def tables(self) -> dict[str, pl.DataFrame]:
        """quotients, confined, contrasts and shrinking, as polars frames; undefined is null."""
        steps = asdict(self.shrinking)
        columns = {name: list(values) for name, values in steps.items() if name[:5] != "order"}
        return {
            "quotients": pl.DataFrame([_quotient(one) for one in self.quotients]),
            "confined": pl.DataFrame([_confined(one) for one in self.confined]),
            "contrasts": pl.DataFrame([_contrast(one) for one in self.contrasts]),
            "shrinking": pl.DataFrame(columns),
        }

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write anchor.json and one parquet file a table (anchor_quotients.parquet, ...)."""
        with staged_directory(Path(directory), overwrite=overwrite) as staged:
            text = json.dumps(anchor_summary(self), indent=1, ensure_ascii=False, allow_nan=False)
            (staged / "anchor.json").write_text(text + "\n", encoding="utf-8")
            for name, table in self.tables().items():
                table.write_parquet(staged / f"anchor_{name}.parquet")


def anchor_summary(found: Anchor) -> dict[str, Any]:
    """All but the rows of single tensors, as JSON takes it: an undefined number is None."""
    return {
        "schema": 1,
        "leashes": [asdict(one) for one in found.leashes],
        "shrinking": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(found.shrinking).items()
        },
        "quotients": [_quotient(one) for one in found.quotients if _headline(one.scope)],
        "confined": [_confined(one) for one in found.confined if _headline(one.scope)],
        "contrasts": [_contrast(one) for one in found.contrasts if _headline(one.scope)],
        "bounds": [asdict(one) for one in found.bounds],
        "run": dict(found.run),
    }


def _headline(scope: Scope) -> bool:
    return scope.kind in _HEADLINES


def _scoped(scope: Scope) -> dict[str, Any]:
    return {"scope": scope.kind, "name": scope.name, "entries": scope.entries}


def _estimated(name: str, one: Estimate) -> dict[str, float | None]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}


def _quotient(one: Quotient) -> dict[str, Any]:
    many = one.draws
    return {
        **_scoped(one.scope),
        "norm": one.norm,
        "form": one.form,
        **_estimated("quotient", one.quotient),
        "null": one.null,
        **_estimated("null_quotient", one.null_quotient),
        **_estimated("ratio", one.ratio),
        "draws": len(many),
        "draws_mean": sum(many) / len(many) if many else None,
        "draws_smallest": min(many) if many else None,
        "draws_largest": max(many) if many else None,
    }


def _confined(one: Confined) -> dict[str, Any]:
    return {
        **_scoped(one.scope),
        "space": one.space,
        "dimension": one.dimension,
        **_estimated("quotient", one.quotient),
    }


def _contrast(one: Contrast) -> dict[str, Any]:
    return {
        **_scoped(one.scope),
        "contrast": one.contrast,
        **_estimated("ratio", one.ratio),
        "above": one.above,
        "matrices": one.matrices,
    }
