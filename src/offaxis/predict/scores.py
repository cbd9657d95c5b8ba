"""Scores of a series' checkpoints: what a table says, and which checkpoint each belongs to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offaxis.errors import InputError
from offaxis.predict.steps import named_step

__all__ = [
    "Entry",
    "Scores",
    "check_score",
    "csv_entries",
    "json_entries",
    "match_scores",
    "parsed",
]

_WHEN = ("step", "global_step", "steps", "iteration")
_WHOSE = ("checkpoint", "model", "name", "path", "ckpt")
_MARKS = ("score", "accuracy", "acc", "avg", "value", "mean")
_REMEDY = "the columns are step or checkpoint, and score, accuracy or avg (or name it: --metric)"


@dataclass(frozen=True)
class Entry:
    """One score as a file has it: of a step, or of a checkpoint by its name."""

    value: float | None
    """None where the file leaves it out."""
    source: str
    """The file, for messages."""
    step: float | None = None
    name: str | None = None
    """It goes before the step, which then serves where no checkpoint has the name."""

    @property
    def whose(self) -> str:
        return self.name if self.name is not None else f"step {self.step:g}"


@dataclass(frozen=True)
class Scores:
    """One score a checkpoint in the order of the series, None where none was given."""

    values: tuple[float | None, ...]
    base: float | None = None


def check_score(name: str, score: float | None) -> float | None:
    """A score as a share in [0, 1], NaN as None. InputError for anything else."""
    if score is None or math.isnan(score):
        return None
    if 1 < score <= 100:
        raise InputError(
            f"{name}: score {score:g} is outside [0, 1]; if it is in percent, give {score / 100:g}"
        )
    if not 0 <= score <= 1:
        raise InputError(
            f"{name}: score {score:g} is outside [0, 1]; give a share of right answers"
        )
    return float(score)


def csv_entries(text: str, *, source: str, metric: str | None = None) -> list[Entry]:
    """The rows of a CSV or TSV text with a header.

    Columns (in any case): `step` or `checkpoint`, and `score`, `accuracy`, `avg` or the like, or
    the one that `metric` names. InputError where one of the two is not there, or is no number.
    """
    first = text.lstrip("\ufeff").partition("\n")[0]
    rows = csv.DictReader(
        io.StringIO(text.lstrip("\ufeff")), delimiter="\t" if "\t" in first else ","
    )
    return _rows(list(rows), source, metric)


def json_entries(value: Any, *, source: str, metric: str | None = None) -> list[Entry]:
    """Scores out of parsed JSON.

    A list of objects with the columns of a CSV; an object from step or checkpoint name to score;
    or the `results.json` of `offaxis eval`, of which avg@n is taken unless `metric` names another
    (`pass@4`). InputError for anything else.
    """
    if isinstance(value, list):
        if not all(isinstance(one, dict) for one in value):
            raise InputError(f"{source}: a list must be of objects; {_REMEDY}")
        return _rows(value, source, metric)
    if not isinstance(value, dict):
        raise InputError(f"{source}: holds no list and no object; {_REMEDY}")
    if isinstance(value.get("scores"), list) and "model" in value:
        return [_evaluated(value, source, metric)]
    if isinstance(value.get("scores"), list | dict):
        return json_entries(value["scores"], source=source, metric=metric)
    return [
        _entry({"checkpoint": key, "score": score}, "checkpoint", "score", source)
        for key, score in value.items()
    ]


def _rows(rows: Sequence[Mapping[str | Any, Any]], source: str, metric: str | None) -> list[Entry]:
    if not rows:
        raise InputError(f"{source}: holds no row; {_REMEDY}")
    columns = {str(key).strip().lower(): key for key in rows[0]}
    wanted = (metric.lower(),) if metric is not None else _MARKS
    when = next((columns[one] for one in (*_WHEN, *_WHOSE) if one in columns), None)
    mark = next((columns[one] for one in wanted if one in columns), None)
    if mark is None and metric is None:  # avg@16, pass@1, the only one of its kind
        at = [key for one, key in columns.items() if one.startswith(("avg@", "pass@1", "mean@"))]
        mark = at[0] if len(at) == 1 else None
    if when is None or mark is None:
        raise InputError(f"{source}: has the columns {', '.join(map(str, columns))}; {_REMEDY}")
    return [_entry(row, when, mark, source) for row in rows]


def _entry(row: Mapping[Any, Any], when: Any, mark: Any, source: str) -> Entry:
    key, value = row.get(when), row.get(mark)
    if key is None or not str(key).strip():
        raise InputError(f"{source}: a row has no {when}; fill it in, or leave the row out")
    text = str(key).strip()
    step = _number(text)
    if isinstance(value, dict | list | bool):
        raise InputError(f"{source}: {text}: {value!r} is no score; {_REMEDY}")
    score = None
    if value is not None and str(value).strip().lower() not in ("", "nan", "null", "none"):
        score = _number(str(value))
        if score is None:
            raise InputError(f"{source}: {text}: {value!r} is no number; give a share in [0, 1]")
    return Entry(score, source, step, None if step is not None else text)


def _evaluated(value: Mapping[str, Any], source: str, metric: str | None) -> Entry:
    """The score of `offaxis eval`'s results.json."""
    model = value["model"]
    name = str(model.get("source", "")) if isinstance(model, dict) else str(model)
    rows = {str(one.get("metric")): one.get("value") for one in value["scores"]}
    wanted = metric or next((one for one in rows if one.startswith("avg@")), None)
    if wanted not in rows or not isinstance(rows[wanted], int | float):
        raise InputError(
            f"{source}: has no score {wanted}; it has {', '.join(rows) or 'none'}; pass --metric"
        )
    return Entry(float(rows[wanted]), source, None, name)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def match_scores(
    entries: Iterable[Entry],
    *,
    base: str,
    checkpoints: Sequence[str],
    steps: Sequence[float | None],
) -> Scores:
    """Each score with its checkpoint: by step, or by name.

    A name is a checkpoint's if it is the same argument or path, or ends in the same, unique last
    segment, or tells its step. Step 0 and the base's name are the base. Checkpoints without a score
    have None. InputError for scores that belong to no checkpoint, two for one, or outside [0, 1].
    """
    found: dict[int, Entry] = {}
    strangers = []
    for entry in entries:
        at = _index(entry, base, checkpoints, steps)
        if at is None:
            strangers.append(entry)
            continue
        twin = found.setdefault(at, entry)
        if twin is not entry:
            where = "" if twin.source == entry.source else f" ({twin.source} and {entry.source})"
            raise InputError(
                f"{entry.source}: two scores for {entry.whose}{where}; leave one of them"
            )
    if strangers:
        listed = ", ".join(entry.whose for entry in strangers[:8])
        known = ", ".join("?" if step is None else f"{step:g}" for step in steps)
        raise InputError(
            f"{strangers[0].source}: scores of what is no checkpoint given: {listed}; the "
            f"checkpoints are at steps {known}. Leave those scores out: what comes after the last "
            "checkpoint must not be known to a prediction"
        )
    values = [_checked(found.get(at)) for at in range(len(checkpoints))]
    return Scores(tuple(values), _checked(found.get(-1)))


def _checked(entry: Entry | None) -> float | None:
    return None if entry is None else check_score(f"{entry.source}: {entry.whose}", entry.value)


def _index(
    entry: Entry, base: str, checkpoints: Sequence[str], steps: Sequence[float | None]
) -> int | None:
    """The checkpoint's index, -1 for the base, None for neither."""
    names = [*checkpoints, base]
    if entry.name is not None:
        for alike in (str, _resolved, _last):
            hits = [at for at, one in enumerate(names) if alike(one) == alike(entry.name)]
            if len(hits) == 1:
                return -1 if hits[0] == len(checkpoints) else hits[0]
    step = entry.step if entry.step is not None else named_step(entry.name or "")
    if step == 0:
        return -1
    return steps.index(step) if step is not None and step in steps else None


def _resolved(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def parsed(text: str, *, source: str, metric: str | None = None) -> list[Entry]:
    """The scores of a file's text: JSON or JSON Lines where it looks like it, else CSV."""
    if text.lstrip("\ufeff \t\r\n")[:1] not in ("{", "["):
        return csv_entries(text, source=source, metric=metric)
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise InputError(f"{source}: is no JSON ({error}); save it again") from error
    return json_entries(value, source=source, metric=metric)
