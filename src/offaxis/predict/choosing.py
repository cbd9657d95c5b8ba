"""The factor of `scale`, chosen by what its models score on a validation set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from offaxis.predict.predicting import predict_series
from offaxis.predict.scale import LADDER, Ladder, Scale, climb
from offaxis.predict.series import AnyPath, open_series
from offaxis.predict.surveying import survey

__all__ = ["best_factor"]


def best_factor(
    base: AnyPath,
    checkpoint: AnyPath,
    *,
    score: Callable[[Path], float],
    factors: Sequence[float] = LADDER,
    patience: int | None = 2,
    dtype: str | None = None,
    scratch: AnyPath | None = None,
    allow_pickle: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Ladder:
    """The factor on the checkpoint's whole update whose model scores best, and all scores.

    score: from the directory of a candidate to its score on a *validation* set. factors, patience:
    as `climb` takes them. scratch: where candidates lie until they are scored, one at a time; by
    default the system's temporary directory. announce: told each score. Raises as `predict` and
    `climb`. Source: DESIGN.md, section 6 (there is no fit in it, and no SVD).
    """
    series = open_series(base, [checkpoint], allow_pickle=allow_pickle)
    found = survey(series)

    def write(factor: float, where: Path) -> None:
        predict_series(series, method=Scale(factor), out=where, dtype=dtype, found=found)

    def told(where: Path) -> float:
        value = score(where)
        announce(f"{where.name.removeprefix('scale-')} times the update: {value:.4f}")
        return value

    with tempfile.TemporaryDirectory(prefix="offaxis-scale-", dir=scratch) as place:
        return climb(write, told, factors=factors, patience=patience, scratch=Path(place))
