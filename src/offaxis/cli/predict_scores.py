"""Scores of checkpoints, read from whatever holds them: tables, `offaxis eval`, lighteval."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offaxis.evaluate import ScoreRow
    from offaxis.predict.scores import Entry, Scores

__all__ = ["read_scores"]


def read_scores(
    files: Sequence[Path],
    *,
    base: str,
    checkpoints: Sequence[str],
    steps: Sequence[float | None],
    metric: str | None = None,
) -> "Scores":
    """One score a checkpoint, and the base's, out of one or several files.

    files: CSV or TSV, JSON or JSON Lines; a directory of `offaxis eval`, or its results.json; a
    directory of lighteval, or its results_*.json. metric: the column, or the score (`pass@4`;
    lighteval's, averaged over its tasks); by default avg@n, else pass@1, else the only one.
    InputError where a file cannot be read or a score has no checkpoint (`match_scores`).
    """
    from offaxis.predict.scores import match_scores

    entries = [entry for file in files for entry in _entries(file.expanduser(), metric)]
    return match_scores(entries, base=base, checkpoints=checkpoints, steps=steps)


def _entries(path: Path, metric: str | None) -> "list[Entry]":
    from offaxis.errors import InputError
    from offaxis.predict.scores import parsed
    from offaxis.predict.steps import named_step

    if path.is_dir():
        if not (path / "results.json").is_file():
            return [_lighteval(path, metric)]
        path = path / "results.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read ({reason}); give a CSV or JSON file, or what offaxis eval or "
            "lighteval wrote"
        ) from error
    if _of_lighteval(text):
        return [_lighteval(path, metric)]
    entries = parsed(text, source=str(path), metric=metric)
    if len(entries) == 1 and path.name == "results.json" and entries[0].step is None:
        return [replace(entries[0], step=named_step(str(path.parent)))]
    return entries


def _of_lighteval(text: str) -> bool:
    import json

    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("results"), dict)


def _lighteval(path: Path, metric: str | None) -> "Entry":
    """One model's score: the mean over tasks of one metric."""
    from offaxis.errors import InputError
    from offaxis.evaluate import read_lighteval
    from offaxis.predict.scores import Entry
    from offaxis.predict.steps import named_step

    found = read_lighteval(path)
    by_metric: dict[str, list[ScoreRow]] = {}
    for row in found.rows:
        by_metric.setdefault(row.metric, []).append(row)
    chosen = metric or _usual(list(by_metric))
    if chosen is None or chosen not in by_metric:
        raise InputError(f"{path}: has the scores {', '.join(by_metric)}; pass --metric with one")
    rows = by_metric[chosen]
    tasks = {row.data for row in found.rows}
    if len(rows) < len(tasks):
        raise InputError(
            f"{path}: {chosen} is there for {len(rows)} of {len(tasks)} tasks; pass --metric with "
            "one that all have"
        )
    value = sum(row.value for row in rows) / len(rows)
    return Entry(value, str(path), named_step(found.model) or named_step(str(path)), found.model)


def _usual(metrics: list[str]) -> str | None:
    """avg@n, else pass@1, else the only one."""
    averaged = [one for one in metrics if one.startswith("avg@")]
    for kind in (averaged, [one for one in metrics if one == "pass@1"], metrics):
        if len(kind) == 1:
            return kind[0]
    return None
