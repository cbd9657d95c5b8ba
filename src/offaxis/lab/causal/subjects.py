"""The runs of the causal test: their kept checkpoints, what they started from, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from offaxis.checkpoint import Checkpoint, Part, align, open_checkpoint
from offaxis.errors import InputError
from offaxis.intervene import Intervention
from offaxis.kernels import bf16_codes, bin_counts, scan, unpack
from offaxis.lab.queue import Store
from offaxis.lab.queue.edited import EDITED
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.linalg import spectrum_and_basis

__all__ = ["ARM", "RANKS", "Seen", "Subject", "Weights", "look", "matrices", "subjects", "trained"]

ARM = (
    "method", "revision", "task", "difficulty", "optimizer", "dtype", "learning_rate", "steps",
    "prompts_per_step", "completions_per_prompt",
)  # fmt: skip
"""What runs that are held against each other have in common; edit and seed may differ."""

RANKS = (1, 4, 8)
"""Leading singular vectors of an update whose spans are compared."""

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """One run, opened."""

    run: str
    arm: tuple[object, ...]
    edit: str | None
    seed: int
    ground: Checkpoint
    """What it started from: the base, or its edit."""
    made: Intervention | None
    steps: Mapping[int, Checkpoint]


@dataclass(frozen=True)
class Weights:
    """Changes of one matrix's bfloat16 entries, flat, and what their sizes make of them."""

    changed: Flags
    rates: Floats
    """The share that changed of the entries in each entry's |W₀| bin."""


@dataclass(frozen=True)
class Seen:
    """One matrix of one checkpoint, in its own coordinates and in those of the base."""

    own: Weights
    back: Weights
    """Of the base's matrix with the update pulled back; `own` where nothing was edited."""
    update: Floats
    """ΔW, flat, in its own coordinates."""
    pulled: Floats
    """ΔW pulled back."""
    left: Floats
    """(m, k) leading left singular vectors of the pulled-back ΔW, k the largest of `RANKS`."""
    right: Floats
    """(n, k)."""
    edited: bool
    ground: torch.Tensor
    """W₀ of the run."""


def trained(rows: pl.DataFrame) -> pl.DataFrame:
    """The runs that were trained; old rows have no `edit`. InputError where there is none,
    or where two are alike in all that this test tells apart."""
    if "edit" not in rows.columns:
        rows = rows.with_columns(pl.lit(None, pl.String).alias("edit"))
    found = rows.filter(pl.col("method") != BASE_METHOD)
    if found.is_empty() or found["edit"].is_null().all():
        raise InputError(
            "no run from an edited base among these rows; queue the study `causal`, or runs with "
            "`edit` beside some without"
        )
    twice = found.filter(found.select(*ARM, "edit", "seed").is_duplicated())["run"].to_list()
    if twice:
        raise InputError(
            f"runs {' and '.join(twice[:2])} are of one arm, edit and seed: they differ in what "
            "the causal test does not tell apart (a mask, an adapter); leave one kind out"
        )
    return found


def subjects(store: Store, rows: pl.DataFrame) -> dict[tuple[object, ...], list[Subject]]:
    """Arm -> its runs, those from the base first. InputError where checkpoints were not kept."""
    ground = open_checkpoint(str(store.base))
    found: dict[tuple[object, ...], list[Subject]] = {}
    ordered = trained(rows).sort(*ARM, "edit", "seed", nulls_last=False)
    for row in ordered.iter_rows(named=True):
        kept = store.directory / "checkpoints" / row["run"]
        steps = _steps(kept)
        if not steps:
            raise InputError(
                f"{kept}: holds no checkpoints of run {row['run']}, from which all is measured; "
                "queue it with keep = true"
            )
        made = Intervention.load(kept / EDITED) if row["edit"] else None
        own = open_checkpoint(str(kept / EDITED)) if row["edit"] else ground
        arm = tuple(row[name] for name in ARM)
        one = Subject(row["run"], arm, row["edit"], row["seed"], own, made, steps)
        found.setdefault(arm, []).append(one)
    return found


def _steps(kept: Path) -> dict[int, Checkpoint]:
    paths = {int(path.name.removeprefix("checkpoint-")): path for path in kept.glob("checkpoint-*")}
    return {step: open_checkpoint(str(paths[step])) for step in sorted(paths)}


def matrices(base: Checkpoint) -> Iterator[Part]:
    """The base's matrices. InputError for one that is stored fused with others."""
    for pair in align(base, base).pairs:
        if pair.part.is_matrix:
            if pair.base.slices is not None:
                raise InputError(
                    f"{base.source}: {pair.part.tensor} is stored with others in one tensor, which "
                    "the causal test does not cut apart; use a base that stores them apart"
                )
            yield pair.part


def look(subject: Subject, step: int, name: str, original: torch.Tensor) -> Seen:
    """One matrix after `step`. original: the base's, before any edit."""
    ground, tuned = subject.ground[name], subject.steps[step][name]
    update = tuned.double() - ground.double()
    made = subject.made
    edited = made is not None and name in made.tensors
    pulled = made.pull_back_update(name, update) if made is not None and edited else update
    own = _weights(ground, tuned)
    rank = min(max(RANKS), *update.shape)
    basis = spectrum_and_basis(pulled, rank=rank)[1]
    return Seen(
        own=own,
        back=_weights(original, original.double() + pulled) if edited else own,
        update=update.reshape(-1).numpy(),
        pulled=pulled.reshape(-1).numpy(),
        left=basis.left.numpy(),
        right=basis.right.numpy(),
        edited=edited,
        ground=ground,
    )


def _weights(base: torch.Tensor, tuned: torch.Tensor) -> Weights:
    mask = scan(base, tuned).mask
    assert mask is not None
    codes = bf16_codes(base).reshape(-1)
    total, changed = bin_counts(codes), bin_counts(codes, mask)
    share = changed / np.maximum(total, 1)
    bins = (codes & np.uint16(0x7FFF)) >> np.uint16(4)  # as `bin_counts` has them
    return Weights(unpack(mask, (codes.size,)), share[bins])
