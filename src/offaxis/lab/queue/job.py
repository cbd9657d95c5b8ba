"""One run of the queue: train, score and measure every checkpoint, write the row."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from offaxis.checkpoint import align, open_checkpoint, read_pair
from offaxis.comparison import compare
from offaxis.evaluate import pass_at_k
from offaxis.kernels import scan
from offaxis.lab.part import Part
from offaxis.lab.provenance import library_versions
from offaxis.lab.queue.edited import edited_base
from offaxis.lab.queue.grid import BASE_METHOD, RunConfig
from offaxis.lab.queue.rows import COMPARED, PROFILES, RUN, write_row
from offaxis.lab.queue.store import Store
from offaxis.lab.queue.twin import agreement, run_mask
from offaxis.lab.scoring import Exam, Sitting, divergences, mixture_losses, sit
from offaxis.lab.session import quiet_libraries
from offaxis.lab.tasks import DIFFICULTIES, TASKS
from offaxis.lab.training import Run, train_run
from offaxis.live import LiveModel, load_live
from offaxis.masks import Mask

__all__ = ["execute", "update_masks"]

Triple = tuple[float, float, float]


def execute(store: Store, config: RunConfig) -> None:
    """Do one run and write `rows/ID.parquet`, the last thing that appears.

    Beside it `measurements/ID.parquet` (what `compare` writes), `masks/ID.npz` (which bf16 entries
    changed) and, if `config.keep`, `checkpoints/ID`, which also holds the base that the run's edit
    made. A run that was killed leaves only `work/ID`, which the next attempt clears away.
    """
    name = config.identity(store.base_digest)
    work = store.directory / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    torch.set_num_threads(1)
    started = time.monotonic()
    with quiet_libraries():
        run, checkpoints, density = _measured(store, config, name, work)
    told = {key: value for key, value in asdict(config).items() if key in RUN}
    row = told | {
        "run": name,
        "revision": config.revision,
        "base": store.base_digest,
        "teacher": store.teacher_digest if config.needs_teacher else None,
        "mask": config.mask or None,
        "mask_density": density,
        "mask_refresh": config.mask_refresh or None,
        "adapter": config.adapter or None,
        "edit": config.edit or None,
        "trainable": run.trainable if run else None,
        "sampled": run.sampled if run else None,
        "train_seconds": run.seconds if run else 0.0,
        "train_cpu_seconds": run.cpu_seconds if run else 0.0,
        "total_seconds": time.monotonic() - started,
        "peak_mib": _peak_mib(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": json.dumps(library_versions()),
    }
    if config.keep and run is not None:
        kept = store.directory / "checkpoints" / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        work.rename(kept)
    shutil.rmtree(work, ignore_errors=True)
    write_row(store.row(name), row, checkpoints)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _measured(
    store: Store, config: RunConfig, name: str, work: Path
) -> tuple[Run | None, list[dict[str, Any]], float | None]:
    """The trained run (None for the base itself), what its checkpoints show, its mask's density."""
    ground = edited_base(store.base, config, work)
    base = load_live(ground)
    exam = Exam(config.problems, config.samples, config.difficulty, task=config.task)
    before = sit(base, exam)
    if config.method == BASE_METHOD:
        return None, [_scores(0, base, before, exam, last=not config.own_exam)], None
    twin = None
    if config.twin is not None:
        twin = _trained(store, config.twin, work / "twin", ground, None).checkpoints[-1][1]
    mask = run_mask(config, ground, twin)
    whole = _trained(store, config, work, ground, mask)
    scored = tuple(one for one in whole.checkpoints if config.scores(one[0]))
    run = replace(whole, checkpoints=scored)
    found = []
    for step, directory in run.checkpoints:
        live = load_live(directory)
        sitting = sit(live, exam)
        last = step == run.checkpoints[-1][0] and not config.own_exam
        found.append(
            _scores(step, live, sitting, exam, last=last)
            | _divergences(live, sitting, base, before)
        )
    rewards = _rewards(run)
    if twin is not None:
        found[-1] |= agreement(ground, twin, run.checkpoints[-1][1])
        shutil.rmtree(work / "twin")
    compared = _compare(store, ground, run, name)
    return (
        run,
        [
            one | reward | numbers
            for one, reward, numbers in zip(found, rewards, compared, strict=True)
        ],
        None if mask is None else mask.density,
    )


def _trained(store: Store, config: RunConfig, work: Path, ground: Path, mask: Mask | None) -> Run:
    if mask is None and config.mask:
        mask = run_mask(config, ground, None)
    own = bool(config.edit) and not config.needs_teacher  # samples of another base are not its own
    return train_run(
        config.method,
        base=ground,
        out=work,
        settings=config.settings(),
        teacher=store.teacher if config.needs_teacher else None,
        cache=None if own else store.directory / "samples",
        part=Part(mask, config.mask_refresh, config.adapter_spec),
    )


def _triple(name: str, values: Triple) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _avg(name: str, sitting: Sitting) -> dict[str, float]:
    score = sitting.score
    return _triple(name, (score.value, score.low, score.high))


def _scores(
    step: int, live: LiveModel, sitting: Sitting, exam: Exam, *, last: bool
) -> dict[str, Any]:
    """Accuracy on the run's task and loss on the mixture; at the last step other exams too."""
    samples = sitting.correct.shape[1]
    found: dict[str, Any] = {
        "step": step,
        "pass_k": pass_at_k(sitting.correct, samples).value,
        "right": _right(sitting),
    }
    found |= _avg("avg", sitting)
    for family, loss in mixture_losses(live).items():
        found |= _triple("mixture_loss" if family == "all" else f"mixture_loss_{family}", loss)
    if not last:
        return found
    for task in TASKS:
        other = sitting if task == exam.task else sit(live, replace(exam, task=task))
        found |= _avg(f"avg_{task}", other)
    if exam.difficulty + 1 in DIFFICULTIES:
        harder = replace(exam, difficulty=exam.difficulty + 1)
        sat = sit(live, harder)
        found |= _avg("avg_harder", sat) | {"right_harder": _right(sat)}
    return found


def _right(sitting: Sitting) -> list[int]:
    """Right answers to each problem, in the exam's order."""
    counts: list[int] = sitting.correct.sum(axis=1).tolist()
    return counts


def _divergences(
    live: LiveModel, sitting: Sitting, base: LiveModel, before: Sitting
) -> dict[str, float]:
    found = divergences(live, sitting, base, before)
    return (
        _triple("kl_tuned_base", found.tuned_base)
        | _triple("kl_base_tuned", found.base_tuned)
        | {
            "kl_tuned_base_token": found.tuned_base_token,
            "kl_base_tuned_token": found.base_tuned_token,
        }
    )


def _rewards(run: Run) -> list[dict[str, float | None]]:
    """Mean training reward of the steps since the checkpoint before."""
    found: list[dict[str, float | None]] = []
    since = 0
    for step, _ in run.checkpoints:
        values = [
            value
            for row in run.log
            if since < row["step"] <= step and (value := _reward(row)) is not None
        ]
        found.append({"reward": float(np.mean(values)) if values else None})
        since = step
    return found


def _reward(row: Mapping[str, Any]) -> float | None:
    """The share of right samples, without what else is rewarded."""
    value: float | None = row.get("rewards/reward/mean", row.get("reward"))
    return value


def _compare(store: Store, ground: Path, run: Run, name: str) -> list[dict[str, Any]]:
    """The summary's numbers for every checkpoint; the tables and masks go to their files."""
    paths = [directory for _, directory in run.checkpoints]
    comparison = compare(ground, paths)
    steps = {str(path): str(step) for step, path in run.checkpoints}
    table = comparison.measurements
    steps |= {  # rows across checkpoints name two, as A ∥ B
        label: " ∥ ".join(steps[path] for path in label.split(" ∥ "))
        for label in table["tuned"].unique()
    }
    table = table.with_columns(table["tuned"].replace(steps))
    (store.directory / "measurements").mkdir(exist_ok=True)
    table.write_parquet(store.directory / "measurements" / f"{name}.parquet", compression="zstd")
    masks = {
        f"{step}/{tensor}": bits
        for step, path in run.checkpoints
        for tensor, bits in update_masks(ground, path).items()
    }
    (store.directory / "masks").mkdir(exist_ok=True)
    np.savez_compressed(store.directory / "masks" / f"{name}.npz", allow_pickle=False, **masks)
    means = _profile_means(table)
    return [
        _numbers(pair) | means.get(str(step), {})
        for (step, _), pair in zip(run.checkpoints, comparison.summary()["pairs"], strict=True)
    ]


def _profile_means(table: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Checkpoint -> the mean over matrices of each measure of row and column profiles."""
    chosen = table.filter(pl.col("measure").is_in(PROFILES), pl.col("value").is_not_null())
    found: dict[str, dict[str, float]] = {}
    for step, measure, value in (
        chosen.group_by("tuned", "measure").agg(pl.col("value").mean()).iter_rows()
    ):
        found.setdefault(step, {})[measure] = value
    return found


def _numbers(pair: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"verdict": pair["verdict"]["label"]}
    for measure in COMPARED:
        found[measure] = pair.get(measure)
        if interval := pair["intervals"].get(measure):
            found[f"{measure}_low"], found[f"{measure}_high"] = interval
    return found


def update_masks(base: Path, tuned: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Which entries of each matrix change in bfloat16: packed bits, row-major, by tensor name."""
    ground, side = open_checkpoint(str(base)), open_checkpoint(str(tuned))
    found = {}
    for pair in align(ground, side).pairs:
        if pair.part.is_matrix:
            both = read_pair(ground, side, pair)
            mask = scan(both.base, both.tuned).mask
            assert mask is not None
            found[pair.part.tensor] = mask
    return found
