"""Do runs change the same entries? Jaccard overlaps of all checkpoints of a queue, with nulls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from offaxis.checkpoint import align, open_checkpoint, read_pair
from offaxis.errors import InputError
from offaxis.kernels import bf16_codes, bin_counts, unpack
from offaxis.lab.queue import Store, read_rows
from offaxis.lab.queue.grid import BASE_METHOD

__all__ = ["PAIRS", "Overlaps", "overlap_pairs", "overlaps", "pair_table"]

PAIRS = {
    "run_a": pl.String,
    "run_b": pl.String,
    "step": pl.Int64,
    "jaccard": pl.Float64,
    "jaccard_chance": pl.Float64,
    "jaccard_magnitude_null": pl.Float64,
}
"""Columns of the pair table. Each number is the mean over matrices in which both changed."""

_COMPARED = ((False, False, True), (False, True, False), (True, False, True))
"""Which of (method, task, seed) differ in the pairs that are compared."""

Floats = NDArray[np.float64]
Key = tuple[str, int]


@dataclass(frozen=True)
class Overlaps:
    """Square matrices over checkpoints (run, step): means over the model's matrices."""

    keys: tuple[Key, ...]
    jaccard: Floats
    chance: Floats
    null: Floats
    """The magnitude null: what masks that are independent within bins of equal |W₀| would share."""


def _base_bins(base: Path) -> dict[str, tuple[NDArray[np.uint16], NDArray[np.int64]]]:
    """bf16 codes of each matrix, and its entries in each magnitude bin."""
    ground = open_checkpoint(str(base))
    found = {}
    for pair in align(ground, ground).pairs:
        if pair.part.is_matrix:
            codes = bf16_codes(read_pair(ground, ground, pair).base)
            found[pair.part.tensor] = (codes, bin_counts(codes))
    return found


def _masks(
    store: Store, runs: Sequence[str]
) -> tuple[list[Key], dict[str, list[NDArray[np.uint8]]]]:
    """Every checkpoint, and for each tensor the packed masks in the same order."""
    keys: list[Key] = []
    masks: dict[str, list[NDArray[np.uint8]]] = {}
    for run in runs:
        path = store.directory / "masks" / f"{run}.npz"
        if not path.is_file():
            raise InputError(f"{path}: the masks of run {run} are not there; do the run again")
        with np.load(path, allow_pickle=False) as file:
            names = [name.split("/", 1) for name in file.files]
            steps = sorted({int(step) for step, _ in names})
            tensors = list(dict.fromkeys(tensor for _, tensor in names))
            keys += [(run, step) for step in steps]
            for step in steps:
                for tensor in tensors:
                    masks.setdefault(tensor, []).append(file[f"{step}/{tensor}"])
    return keys, masks


def overlaps(store: Store, runs: Sequence[str]) -> Overlaps:
    """Jaccard overlap of every pair of checkpoints of these runs, its chance level and its null.

    For masks A, B of one matrix: |A ∩ B| / |A ∪ B|; chance pq / (p + q − pq) at their densities;
    null I / (|A| + |B| − I) with I = Σ_b |A_b||B_b| / |b| over bins of equal |W₀|. Then the mean
    over matrices. (The Path Not Taken, section 2.2; the null is ours.)
    """
    keys, masks = _masks(store, runs)
    sums = np.zeros((3, len(keys), len(keys)))
    counted = np.zeros((len(keys), len(keys)))
    for tensor, (codes, total) in _base_bins(store.base).items():
        three = np.stack(_one_tensor(masks[tensor], codes, total))
        known = ~np.isnan(three[0])
        counted += known
        sums += np.where(known, three, 0.0)
    with np.errstate(invalid="ignore"):
        jaccard, chance, null = sums / counted
    return Overlaps(tuple(keys), jaccard, chance, null)


def _one_tensor(
    packed: Sequence[NDArray[np.uint8]], codes: NDArray[np.uint16], total: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """Observed, chance and null for one matrix, (checkpoints, checkpoints); NaN where undefined."""
    entries = codes.size
    bits = np.stack([unpack(mask, (entries,)) for mask in packed])
    rows = torch.from_numpy(bits).float()
    both = (rows @ rows.T).double().numpy()  # exact: counts below 2**24
    sizes = np.diag(both)
    used = total > 0
    per_bin = np.stack([bin_counts(codes, mask) for mask in packed])[:, used].astype(np.float64)
    expected = (per_bin / total[used]) @ per_bin.T
    independent = np.outer(sizes, sizes) / entries
    either = sizes[:, None] + sizes[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        observed, chance, null = (i / (either - i) for i in (both, independent, expected))
    return observed, chance, null


def pair_table(found: Overlaps, rows: pl.DataFrame) -> pl.DataFrame:
    """The pairs of runs that the study compares, with the columns `PAIRS`.

    Both runs are at one step and have one learning rate. They differ in the seed, or in the task,
    or in method *and* seed: methods that share a seed share their problems too, and the overlap of
    their updates says as much about those. rows: the queue's table of runs.
    """
    told = {
        run: where
        for run, *where in rows.select("run", "learning_rate", "method", "task", "seed").iter_rows()
    }
    kept = []
    for i, j in itertools.combinations(range(len(found.keys)), 2):
        (run_a, step_a), (run_b, step_b) = found.keys[i], found.keys[j]
        rate_a, *a = told[run_a]
        rate_b, *b = told[run_b]
        differing = tuple(x != y for x, y in zip(a, b, strict=True))
        if step_a == step_b and rate_a == rate_b and differing in _COMPARED:
            numbers = (found.jaccard[i, j], found.chance[i, j], found.null[i, j])
            kept.append((run_a, run_b, step_a, *numbers))
    return pl.DataFrame(kept, schema=PAIRS, orient="row").fill_nan(None)


def overlap_pairs(store: Store) -> pl.DataFrame:
    """`pair_table` of all finished runs of a queue."""
    rows = read_rows(store.directory)
    runs = rows.filter(pl.col("method") != BASE_METHOD)
    return pair_table(overlaps(store, runs["run"].to_list()), rows)
