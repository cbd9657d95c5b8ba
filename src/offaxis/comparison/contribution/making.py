"""From what `compare` wrote to what can be sent: aggregates by role and by layer, with nulls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.comparison.contribution.identity import Named, named
from offaxis.comparison.contribution.numbers import AVERAGED, Numbers, matrices_of
from offaxis.comparison.contribution.reading import sealed
from offaxis.comparison.contribution.shared import overlaps
from offaxis.comparison.plan import distinct
from offaxis.comparison.profiles import step_of
from offaxis.comparison.run_info import RunInfoLike, run_info
from offaxis.comparison.sampling import mean_over
from offaxis.errors import InputError

__all__ = ["contribute"]

_FILES = ("summary.json", "measurements.parquet", "curves.parquet")
_NUMBERS = (
    "unchanged_bf16",
    "unchanged_stored",
    "unchanged_bf16_in_moved_tensors",
    "relative_update_norm",
    "correlation",
    "matrix_update_norm",
    "matrix_correlation",
)
_PAIR = {"tuned", "verdict", "nonfinite", "parameters", "tensors", "matrices"}
_SETTINGS = ("spectra", "alpha", "angle_rank", "principal_rank", "seed", "rounding_null")


def contribute(
    directory: str | PathLike[str],
    *,
    base_ids: Sequence[str] | None = None,
    tuned_ids: Sequence[str] | None = None,
    run_infos: Sequence[RunInfoLike] | None = None,
    read_weights: bool = True,
) -> dict[str, Any]:
    """What the comparison in `directory` found, in the form of `schema.json`.

    directory: what `Comparison.save` wrote. base_ids, tuned_ids: what the models are called, one a
    pair in the comparison's order (one base id for all will do); needed where `compare` was given
    paths. run_infos: what is known of the runs, as in `compare`, one a pair or one for all; by
    default what `compare` was told. read_weights: read the checkpoints again, for their digests
    and dtypes.

    Raises InputError where the directory holds no comparison, an id is missing or looks like a
    path, or the weights are gone.
    """
    place = Path(directory)
    summary, measurements, curves = _read(place)
    pairs = summary["pairs"]
    many = summary["across"] is None and "bases" in summary["run"]
    beside = Path(summary["base"]).parent if many else Path()
    models = _models(summary, beside, base_ids, tuned_ids, read_weights)
    labels = distinct([pair.get("name", pair["tuned"]) for pair in pairs])
    numbers = [
        matrices_of(measurements, curves, label, summary["run"]["settings"]) for label in labels
    ]
    infos = _infos(summary, run_infos)
    runs: dict[str, int] = {}
    told = []
    for index, pair in enumerate(pairs):
        run, step = step_of(labels[index])
        where = {"run": runs.setdefault(run, len(runs)), "step": step, "told": infos[index]}
        base, tuned = models[index]
        unmatched = summary["run"]["alignment"][index]["mismatches"]
        told.append(_pair(pair, base, tuned, where, unmatched, numbers[index]))
    shared = overlaps(measurements, labels, numbers)
    return sealed(_head(summary) | {"pairs": told, "overlaps": shared})


def _read(place: Path) -> tuple[dict[str, Any], pl.DataFrame, pl.DataFrame]:
    missing = [name for name in _FILES if not (place / name).is_file()]
    if missing:
        raise InputError(
            f"{place}: holds no {missing[0]}; give the directory that `offaxis compare` wrote"
        )
    try:
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        frames = [pl.read_parquet(place / name) for name in _FILES[1:]]
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{place}: cannot be read ({error}); compare again") from error
    if not isinstance(summary, dict) or summary.get("schema") != 1 or not summary.get("pairs"):
        raise InputError(f"{place}: summary.json is not of schema 1; compare again")
    if not _whole(summary):
        raise InputError(f"{place}: summary.json lacks what `compare` writes; compare again")
    return summary, frames[0], frames[1]


def _whole(summary: Mapping[str, Any]) -> bool:
    """Whether everything that is read of a summary is there."""
    run, pairs = summary.get("run"), summary["pairs"]
    if not (
        isinstance(run, dict) and isinstance(pairs, list) and isinstance(summary.get("base"), str)
    ):
        return False
    needed = {"offaxis", "torch", "numpy", "seconds", "threads", "settings", "alignment"}
    return (
        "across" in summary
        and needed <= run.keys()
        and isinstance(run["settings"], dict)
        and set(_SETTINGS) <= run["settings"].keys()
        and isinstance(run["alignment"], list)
        and len(run["alignment"]) == len(pairs)
        and all(isinstance(one, dict) and one.keys() >= _PAIR for one in pairs)
    )


def _models(
    summary: Mapping[str, Any],
    beside: Path,
    base_ids: Sequence[str] | None,
    tuned_ids: Sequence[str] | None,
    read: bool,
) -> list[tuple[Named, Named]]:
    pairs = summary["pairs"]
    grounds = [pair.get("base", summary["base"]) for pair in pairs]
    if base_ids is not None and len(base_ids) == 1:
        base_ids = [*base_ids] * len(grounds)
    bases = named(grounds, base_ids, option="--base", beside=beside, read=read)
    sides = [pair["tuned"] for pair in pairs]
    tuned = named(sides, tuned_ids, option="--tuned", beside=beside, read=read)
    return list(zip(bases, tuned, strict=True))


def _infos(
    summary: Mapping[str, Any], given: Sequence[RunInfoLike] | None
) -> list[dict[str, Any] | None]:
    pairs = len(summary["pairs"])
    if given is None:
        return [summary["run"].get("run_info")] * pairs
    if len(given) not in (1, pairs):
        raise InputError(
            f"{len(given)} times --run-info for {pairs} checkpoints; give one for all or one for "
            "each, in the order of the comparison"
        )
    told = [run_info(one).told() or None for one in given]
    return told * pairs if len(told) == 1 else told


def _head(summary: Mapping[str, Any]) -> dict[str, Any]:
    run = summary["run"]
    return {
        "format": "offaxis contribution",
        "schema": 1,
        "versions": {name: run[name] for name in ("offaxis", "torch", "numpy")},
        "settings": {name: run["settings"][name] for name in _SETTINGS},
        "cost": {"seconds": run["seconds"], "threads": run["threads"]},
    }


def _pair(
    pair: Mapping[str, Any],
    base: Named,
    tuned: Named,
    where: Mapping[str, Any],
    unmatched: Sequence[Mapping[str, Any]],
    numbers: Numbers,
) -> dict[str, Any]:
    every = numbers.matrices.values()
    roles = sorted({one.role for one in every})
    layers = sorted({one.layer for one in every}, key=lambda layer: (layer is None, layer or 0))
    bad = pair["nonfinite"]
    return {
        "base": base.told(),
        "tuned": tuned.told(),
        **where,
        "verdict": pair["verdict"]["label"],
        "counts": {name: pair[name] for name in ("parameters", "tensors", "matrices")}
        | {"nonfinite": bad["base"] + bad["tuned"]},
        "unmatched": dict(Counter(row["status"] for row in unmatched)),
        "numbers": {name: pair.get(name) for name in _NUMBERS},
        "means": _means(numbers, numbers.matrices),
        "roles": [
            {"role": role} | _group(numbers, [m.tensor for m in every if m.role == role])
            for role in roles
        ],
        "layers": [
            {"layer": layer} | _group(numbers, [m.tensor for m in every if m.layer == layer])
            for layer in layers
        ],
    }


def _group(numbers: Numbers, tensors: Sequence[str]) -> dict[str, Any]:
    return {"matrices": len(tensors), "means": _means(numbers, tensors)}


def _means(numbers: Numbers, tensors: Iterable[str]) -> dict[str, list[float | int | None]]:
    """[mean, low, high, matrices] of every measure that is defined in any of these matrices.

    The interval is `compare`'s, over matrices. Where a sample has spectra, each role weighs as
    much as it has matrices.
    """
    tensors = list(tensors)
    sizes = Counter(numbers.matrices[tensor].role for tensor in tensors)
    found = {}
    for name in AVERAGED:
        known = numbers.over(name, tensors)
        roles = [numbers.matrices[tensor].role for tensor in known]
        mean = mean_over(list(known.values()), roles, sizes if numbers.sampled else None)
        if mean.count:
            found[name] = [mean.value, mean.low, mean.high, mean.count]
    return found
