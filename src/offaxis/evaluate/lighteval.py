"""Result files of lighteval, read without it: scores, and where there are details, every problem.

`results_*.json` holds a mean and a standard error a task and metric. `details_*.parquet` (with
`--save-details`) holds a row a problem: in older versions the columns `example`, `gold`,
`predictions` and `metrics`, in newer ones the structs `doc`, `model_response` and `metric` (also
seen between double underscores). Metric names are mapped: `pass@k:k=4&n=16` is pass@4,
`avg@n:n=16` is avg@16, `maj@n:n=8` is maj@8, `math_pass@1:16_samples` is pass@1; any other keeps
its name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate.scores import ScoreRow, scores_frame
from offaxis.evaluate.statistics import bootstrap_mean, mean_score

__all__ = ["LightEval", "read_lighteval"]

Floats = NDArray[np.float64]
_NORMAL = 1.959964  # half the width of a 95 % interval in standard errors
_AT = re.compile(r"(?P<kind>pass|avg|maj)@[kn]:(?P<settings>[\w=&]+)")
_PLAIN_AT = re.compile(r"(?:pass|avg|maj)@(?P<k>\d+)")
_OF_N = re.compile(r"(?:\w+_)?pass@(?P<k>\d+):\d+(?:_samples)?")


@dataclass(frozen=True)
class LightEval:
    """What a lighteval run found."""

    source: str
    model: str
    rows: tuple[ScoreRow, ...]
    """One a task and metric; `data` is the task."""
    per_problem: Mapping[tuple[str, str], Floats]
    """(task, metric) -> a number for each problem, where details are there."""
    queries: Mapping[str, tuple[str, ...]]
    """Task -> the prompts, in the order of `per_problem`."""

    @property
    def score(self) -> pl.DataFrame:
        """`rows` as a table with the columns `SCORE_COLUMNS`."""
        return scores_frame(self.rows)


def read_lighteval(path: str | Path) -> LightEval:
    """A `results_*.json`, a `details_*.parquet`, or a directory that holds them.

    Of several results in a directory the newest is taken, by the time in its name, with the details
    of that time. Intervals are bootstrapped over problems where details are there; else the mean
    plus and minus 1.96 standard errors, cut to [0, 1] where the mean is in it; else null. Raises
    InputError where nothing of lighteval's can be read.
    """
    place = Path(path).expanduser()
    results, details = _files(place)
    table = _json(results) if results is not None else {}
    model = str(table.get("config_general", {}).get("model_name") or place)
    per_problem: dict[tuple[str, str], Floats] = {}
    queries: dict[str, tuple[str, ...]] = {}
    for file in details:
        task = _task(file)
        queries[task], found = _details(file)
        per_problem |= {(task, metric): values for metric, values in found.items()}
    rows = _rows(table.get("results", {}), model, per_problem)
    if not rows:
        raise InputError(f"{path}: holds no score of lighteval; give its --output-dir")
    return LightEval(str(path), model, tuple(rows), per_problem, queries)


def _files(place: Path) -> tuple[Path | None, list[Path]]:
    """The results file and the details that belong to it."""
    if place.is_file():
        if place.suffix == ".parquet":
            return None, [place]
        return place, sorted(place.parent.glob(f"details_*_{_time(place)}.parquet"))
    if not place.is_dir():
        raise InputError(f"{place}: no such file or directory; give lighteval's --output-dir")
    results = sorted(place.rglob("results_*.json"), key=lambda file: (_time(file), file))
    details = sorted(place.rglob("details_*.parquet"))
    if not results:
        if not details:
            raise InputError(
                f"{place}: neither results_*.json nor details_*.parquet is in it; give lighteval's "
                "--output-dir"
            )
        newest = max(map(_time, details))
        return None, [file for file in details if _time(file) == newest]
    newest = _time(results[-1])
    models = {file.parent for file in results if _time(file) == newest}
    if len(models) > 1:
        raise InputError(
            f"{place}: results of {len(models)} models at {newest}; give one results_*.json"
        )
    return results[-1], [file for file in details if _time(file) == newest]


def _time(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _task(file: Path) -> str:
    return file.stem.removeprefix("details_").rpartition("_")[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("results"), dict):
        raise InputError(f"{path}: no `results`; is it a results_*.json of lighteval?")
    return found


def _details(path: Path) -> tuple[tuple[str, ...], dict[str, Floats]]:
    """Prompts, and the numbers of every metric that all rows have."""
    try:
        rows = pl.read_parquet(path).to_dicts()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from error
    metrics = [_mapping(_first(row, "metrics", "metric", "__metric__")) for row in rows]
    if not rows or not all(metrics):
        raise InputError(f"{path}: no column `metrics` or `metric`; is it lighteval's?")
    found: dict[str, Floats] = {}
    for name in metrics[0]:
        values = [one.get(name) for one in metrics]
        if all(isinstance(value, int | float) for value in values):
            numbers = np.array(values, dtype=np.float64)
            if np.isfinite(numbers).all():
                found[_metric(name)[0]] = numbers
    return tuple(_query(row) for row in rows), found


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _mapping(value: Any) -> dict[str, Any]:
    """A struct, or the text of a dict, into which some versions turn it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return {}
    return value if isinstance(value, dict) else {}


def _query(row: Mapping[str, Any]) -> str:
    doc = _mapping(_first(row, "doc", "__doc__"))
    return str(_first(row, "example", "full_prompt") or doc.get("query") or "")


def _metric(name: str) -> tuple[str, int | None]:
    """Our name of a metric, and its k."""
    if found := _AT.fullmatch(name):
        settings = dict(part.split("=", 1) for part in found["settings"].split("&") if "=" in part)
        k = settings.get("k") or settings.get("n")
        if k is not None and k.isdigit():
            return f"{found['kind']}@{k}", int(k)
    if of_n := _OF_N.fullmatch(name):
        return f"pass@{of_n['k']}", int(of_n["k"])
    plain = _PLAIN_AT.fullmatch(name)
    return name, int(plain["k"]) if plain else None


def _rows(
    results: Mapping[str, Any], model: str, per_problem: Mapping[tuple[str, str], Floats]
) -> list[ScoreRow]:
    tasks = {task: values for task, values in results.items() if isinstance(values, dict)}
    found: dict[tuple[str, str], ScoreRow] = {}
    for task, values in tasks.items():
        if task == "all" and len(tasks) > 1:
            continue
        for name, value in values.items():
            if name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            metric, k = _metric(name)
            low, high = _interval(value, values.get(f"{name}_stderr"))
            found[task, metric] = ScoreRow(model, task, metric, k, float(value), low, high, None)
    for (task, metric), numbers in per_problem.items():
        found[task, metric] = _from_problems(model, task, metric, numbers)
    return list(found.values())


def _interval(value: float, error: Any) -> tuple[float | None, float | None]:
    if not isinstance(error, int | float) or not np.isfinite(error):
        return None, None
    low, high = value - _NORMAL * error, value + _NORMAL * error
    return (max(0.0, low), min(1.0, high)) if 0 <= value <= 1 else (low, high)


def _from_problems(model: str, task: str, metric: str, numbers: Floats) -> ScoreRow:
    k = _metric(metric)[1]
    if ((numbers >= 0) & (numbers <= 1)).all():
        one = mean_score(metric, numbers)
        return ScoreRow(model, task, metric, k, one.value, one.low, one.high, one.n)
    value, low, high = bootstrap_mean(numbers)
    return ScoreRow(model, task, metric, k, value, low, high, len(numbers))
