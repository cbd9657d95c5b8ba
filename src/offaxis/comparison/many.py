"""`compare_manifest`: many (base, tuned) pairs, those that share a base compared together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.checkpoint import align
from offaxis.comparison.base import Settings
from offaxis.comparison.estimate import Estimate
from offaxis.comparison.manifest import Manifest, Row, read_manifest
from offaxis.comparison.pairs import pairs_frame, reserved
from offaxis.comparison.plan import DRAWN, AnyPath, Plan, open_base, open_tuned
from offaxis.comparison.record import check, record
from offaxis.comparison.result import ManyComparison
from offaxis.comparison.run_info import RunInfo, RunInfoLike
from offaxis.comparison.run_info import run_info as known_info
from offaxis.comparison.stream import Progress, Stream
from offaxis.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from offaxis.checkpoint import Aligned, Checkpoint
    from offaxis.comparison.result import Comparison

__all__ = ["compare_manifest"]


@dataclass(frozen=True)
class _Group:
    """Pairs that share a base: their plan, and their rows in the manifest."""

    plan: Plan
    places: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Entries to compare, each as often as there are pairs."""
        return len(self.places) * sum(prod(part.shape) for part, _ in self.plan.parts)


def compare_manifest(
    path: AnyPath,
    *,
    spectra: str = "all",
    seed: int = 0,
    alpha: float = 0.5,
    angle_rank: int | None = None,
    principal_rank: int | None = None,
    rounding_null: bool = True,
    allow_pickle: bool = False,
    run_info: RunInfoLike = None,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ManyComparison:
    """Measure each (base, tuned) pair of a manifest, beside the nulls, into one table.

    path: a `.csv`, `.tsv`, `.jsonl` or `.json` file with the columns `base`, `tuned`, optionally
    `name`, and any of your own; see `offaxis.comparison.manifest.read_manifest`. Relative paths
    are taken from the manifest's directory. All else is as in `compare`, and so is every number: a
    base that several pairs share is read once. run_info: of all pairs.

    Everything is opened and matched from headers first; one unusable row fails the whole. The
    `base` of the summary is the manifest's path, each pair has its own `base`, and `across` is
    None: what runs from one base share is in `run.bases`. Raises InputError and its subclasses.
    """
    started = time.time()
    settings = Settings(alpha, angle_rank, principal_rank, seed, rounding_null)
    check(settings)
    info = known_info(run_info)
    manifest = read_manifest(path)
    _check_reserved(manifest)
    groups = _plan(manifest, spectra=spectra, seed=seed, allow_pickle=allow_pickle)
    _announce(groups, announce or (lambda line: None))
    found = _stream(groups, settings, info, progress or (lambda step: None))
    run = record(started, spectra, settings, _alignment(groups), info=info)
    run["bases"] = [_base(manifest, group, one) for group, one in zip(groups, found, strict=True)]
    return _result(manifest, groups, found, run)


def _check_reserved(manifest: Manifest) -> None:
    for column in manifest.columns:
        if column in reserved():
            raise InputError(
                f"{manifest.path}: the column {column!r} is one that offaxis writes; rename it, "
                f"for example to 'reported_{column}'"
            )


# ------------------------------------------------------------------------------ before any reading


def _plan(manifest: Manifest, *, spectra: str, seed: int, allow_pickle: bool) -> list[_Group]:
    """Open and match every pair, what needs the Hub last, then plan each base's comparison."""
    places = range(len(manifest.rows))
    sources = [_sources(manifest, row) for row in manifest.rows]
    bases: dict[str, Checkpoint] = {}
    sides: dict[int, tuple[Checkpoint, Aligned]] = {}
    for place in sorted(places, key=lambda place: sources[place].hub):
        source = sources[place]
        with manifest.at(manifest.rows[place]):
            if source.key not in bases:
                bases[source.key] = open_base(source.base, allow_pickle=allow_pickle)
            ground = bases[source.key]
            side = open_tuned(source.tuned, ground, allow_pickle=allow_pickle)
            sides[place] = side, align(ground, side)
    members: dict[str, list[int]] = {}
    for place in places:
        members.setdefault(sources[place].key, []).append(place)
    names = [row.name for row in manifest.rows]
    return [
        _Group(
            Plan.of(
                bases[key],
                [sides[place] for place in group],
                names=[names[place] for place in group],
                labels=[names[place] for place in group],
                spectra=spectra,
                seed=seed,
                drawn=DRAWN // len(names),
            ),
            tuple(group),
        )
        for key, group in members.items()
    ]


@dataclass(frozen=True)
class _Source:
    """What a row names: paths or Hub ids, the base's identity, whether the Hub is asked."""

    base: str
    tuned: str
    key: str
    hub: bool


def _sources(manifest: Manifest, row: Row) -> _Source:
    with manifest.at(row):
        base, remote = manifest.locate(row.base)
        tuned, remote_too = manifest.locate(row.tuned)
        key = base if remote else str(Path(base).resolve())
    return _Source(base, tuned, key, remote or remote_too)


def _announce(groups: Sequence[_Group], tell: Callable[[str], None]) -> None:
    """Renamings and mismatches of every pair, then the cost of all."""
    costs = [group.plan.estimate for group in groups]
    for group in groups:
        for line in group.plan.notes():
            tell(line)
    total = Estimate(
        sum(cost.read_bytes for cost in costs),
        sum(cost.matrices for cost in costs),
        sum(cost.spectra for cost in costs),
        sum(cost.seconds for cost in costs),
    )
    pairs = sum(len(group.places) for group in groups)
    tell(f"{_some(pairs, 'pair')} over {_some(len(groups), 'base')}: {total}")


def _some(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------------- the work itself


def _stream(
    groups: Sequence[_Group],
    settings: Settings,
    info: RunInfo,
    progress: Callable[[Progress], None],
) -> list[Comparison]:
    """One comparison a base, one after the other."""
    done, total = 0, sum(group.entries for group in groups)
    found = []
    for group in groups:
        stream = Stream(group.plan, settings, info=info)
        stream.run(_onward(progress, done, len(group.places), total))
        found.append(stream.result({}))
        done += group.entries
    return found


def _onward(
    progress: Callable[[Progress], None], before: int, pairs: int, total: int
) -> Callable[[Progress], None]:
    """Progress within one base as progress within the whole manifest."""
    return lambda step: progress(Progress(before + pairs * step.done, total, step.tensor))


# -------------------------------------------------------------------------------------- the result


def _result(
    manifest: Manifest, groups: Sequence[_Group], found: Sequence[Comparison], run: dict[str, Any]
) -> ManyComparison:
    pairs = [
        {"name": row.name, "base": row.base, "tuned": row.tuned, "columns": row.extra, **measured}
        for row, measured in zip(manifest.rows, _pairs(groups, found), strict=True)
    ]
    own = manifest.frame()
    names = own["name"].to_list()
    summary = {"schema": 1, "base": manifest.path, "pairs": pairs, "across": None, "run": run}
    curves = _in_order([one.curves for one in found], names)
    return ManyComparison(
        pairs=pairs_frame(own, pairs),
        measurements=_in_order([one.measurements for one in found], names),
        curves=curves.filter(curves["tuned"] != ""),  # pictures of a consensus belong to one base
        columns=tuple(own.columns),
        _summary=summary,
    )


def _pairs(groups: Sequence[_Group], found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The numbers of each pair, in the manifest's order."""
    at: dict[int, dict[str, Any]] = {}
    for group, one in zip(groups, found, strict=True):
        for place, pair in zip(group.places, one.summary()["pairs"], strict=True):
            at[place] = {key: value for key, value in pair.items() if key != "tuned"}
    return [at[place] for place in sorted(at)]


def _in_order(frames: Sequence[pl.DataFrame], names: Sequence[str]) -> pl.DataFrame:
    """All rows, those of the pairs in the manifest's order, those of several pairs at the end."""
    import polars as pl

    order = pl.DataFrame({"tuned": names, "place": range(len(names))})
    rows = pl.concat(frames).join(order, on="tuned", how="left", maintain_order="left")
    return rows.sort("place", nulls_last=True, maintain_order=True).drop("place")


def _alignment(groups: Sequence[_Group]) -> list[dict[str, Any]]:
    """Renamings and mismatches of each pair, in the manifest's order."""
    found = {
        place: one
        for group in groups
        for place, one in zip(group.places, group.plan.record(), strict=True)
    }
    return [found[place] for place in sorted(found)]


def _base(manifest: Manifest, group: _Group, found: Comparison) -> dict[str, Any]:
    """One base, the pairs that share it, and what their updates share."""
    rows = [manifest.rows[place] for place in group.places]
    across = found.summary()["across"] or {}
    shared = {key: value for key, value in across.items() if key != "series"}
    return {
        "base": rows[0].base,
        "pairs": [row.name for row in rows],
        "across": shared or None,
    }
