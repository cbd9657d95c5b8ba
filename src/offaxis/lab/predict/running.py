"""Measuring a queue's finished runs over the cores; what is measured already is left alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import polars as pl
import torch

from offaxis.errors import InputError, OffaxisError
from offaxis.lab.predict.history import History
from offaxis.lab.predict.measuring import measure_run, missing
from offaxis.lab.predict.rows import TABLES
from offaxis.lab.queue import Store
from offaxis.lab.queue.grid import BASE_METHOD, RunConfig
from offaxis.lab.session import quiet_libraries
from offaxis.output import staged_directory

__all__ = ["measure", "read_measured"]


def measure(directory: str | Path, *, workers: int = 1) -> Iterator[str]:
    """Measure every finished run with kept checkpoints from the queue's base; yields a line each.

    Each run's tables appear whole in `predicted/RUN`, so that a kill loses the runs under way. Runs
    are taken in the queue's order, which has whole replications first. A contestant that is new
    since then is measured alone. A run that fails is told and the others go on; InputError at the
    end names the first of them.
    """
    store = Store.open(Path(directory))
    pending = [one for one in store.runs if _ready(store, one)]
    if not pending:
        return
    context = multiprocessing.get_context("forkserver")
    failed: list[BaseException] = []
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        jobs = {pool.submit(_measured, store.directory, one): one for one in pending}
        for number, job in enumerate(as_completed(jobs), start=1):
            config, error = jobs[job], job.exception()
            if error is None:
                end = f"{job.result():.0f} s of CPU"
            else:
                failed.append(error)
                end = f"failed: {_words(error)}"
            what = f"{config.method} {config.task} seed {config.seed}"
            yield f"{number} of {len(jobs)}: {what}, {end}"
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(pending)} runs could not be measured, the others are; the "
            f"first failed with: {_words(failed[0])}"
        ) from failed[0]


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, OffaxisError) else f"{type(error).__name__}: {error}"


def _place(store: Store, config: RunConfig) -> Path:
    return store.directory / "predicted" / config.identity(store.base_digest)


def _ready(store: Store, config: RunConfig) -> bool:
    """Is the run finished, and something of it still to be measured?"""
    name = config.identity(store.base_digest)
    if config.method == BASE_METHOD or config.edit:  # an edited run has another base
        return False
    if not config.keep or not store.row(name).is_file():
        return False
    known = _known(_place(store, config))
    if known is None or set(known) < set(TABLES):
        return True
    return bool(missing(config.steps, known["models"]))


def _known(place: Path) -> dict[str, pl.DataFrame] | None:
    """A run's tables so far."""
    if not place.is_dir():
        return None
    files = {name: place / f"{name}.parquet" for name in TABLES}
    return {name: pl.read_parquet(file) for name, file in files.items() if file.is_file()}


def _measured(directory: Path, config: RunConfig) -> float:
    """One run in a process of its own, on one thread; returns its CPU seconds."""
    torch.set_num_threads(1)
    store = Store.open(directory)
    started = sum(os.times()[:2])
    with quiet_libraries():
        place = _place(store, config)
        tables = measure_run(History(store, config), _known(place))
    place.parent.mkdir(exist_ok=True)
    with staged_directory(place, overwrite=True) as staged:
        for name, table in tables.items():
            table.write_parquet(staged / f"{name}.parquet", compression="zstd")
    return float(sum(os.times()[:2]) - started)


def read_measured(directory: str | Path) -> dict[str, pl.DataFrame]:
    """The tables of all runs measured so far. InputError where there are none."""
    places = sorted((Path(directory) / "predicted").glob(f"*/{list(TABLES)[-1]}.parquet"))
    if not places:
        raise InputError(
            f"{directory}: no run of it is measured yet; add --measure, with a queue whose runs "
            "keep their checkpoints"
        )
    return {
        name: pl.concat([pl.read_parquet(one.parent / f"{name}.parquet") for one in places])
        for name in TABLES
    }
