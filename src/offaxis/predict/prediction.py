"""`Prediction`: a predicted model that was written, and the record beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offaxis.provenance import library_versions

__all__ = ["FILE", "Prediction"]

FILE = "predict.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Prediction:
    """A predicted model that was written, and what its fits found."""

    directory: Path
    method: str
    options: Mapping[str, Any]
    at: float | None
    """The predicted step, or None."""
    facts: Mapping[str, float]
    """Of the whole model: `relative_update_norm` ‖θ̂ − θ_BASE‖/‖θ_BASE‖; `over_last` ‖θ̂ − θ_BASE‖ /
    ‖θ_T − θ_BASE‖; `moved_on` ‖θ̂ − θ_T‖/‖θ_T − θ_BASE‖; `rounding`, the norm that was lost when
    the tensors were rounded to their dtypes over ‖θ̂ − θ_BASE‖; `stayed`, the tensors that stayed
    at the base; and every fact of the fits, averaged over the tensors (`explained_mean`)."""
    tensors: Mapping[str, Mapping[str, float]]
    """Stored tensor, or part of one → the facts of its fit."""
    series: Mapping[str, Any]
    """Base, checkpoints with steps and scores, and their norms."""
    dtypes: Mapping[str, int]
    """Dtype code → entries that are written in it."""
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a caller adds to the record: how a factor was chosen."""

    def told(self) -> dict[str, Any]:
        """The content of `predict.json`."""
        return {
            "schema": _SCHEMA,
            "method": {"name": self.method, "options": dict(self.options)},
            "at": self.at,
            **self.series,
            "facts": dict(self.facts),
            "dtypes": dict(self.dtypes),
            "notes": list(self.notes),
            **self.extra,
            "tensors": {name: dict(one) for name, one in self.tensors.items()},
            "versions": library_versions("numpy", "scikit-learn"),
        }
