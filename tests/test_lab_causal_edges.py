"""The causal test where something is not there: no update, one seed, no runs from the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.causal import CausalStudy
from offaxis.lab.causal.pairs import pair_rows
from offaxis.lab.causal.subjects import Seen, Subject, Weights

SAVED = Path(__file__).parents[1] / "docs" / "studies" / "causal"


@pytest.fixture(scope="module")
def study() -> CausalStudy:
    """Of one arm and edit, to be quick."""
    found = CausalStudy.read(SAVED)
    kept = pl.col("edit").is_null() | pl.col("edit").str.starts_with("permute")
    rows = found.rows.filter(kept, (pl.col("optimizer") == "sgd") & (pl.col("method") == "sft"))
    return partial(found, rows)


def partial(study: CausalStudy, rows: pl.DataFrame) -> CausalStudy:
    runs = rows["run"].to_list()
    both = pl.col("run_a").is_in(runs) & pl.col("run_b").is_in(runs)
    principal = study.principal.filter(pl.col("run").is_in(runs))
    return replace(study, rows=rows, pairs=study.pairs.filter(both), principal=principal)


def seen(seed: int, *, scale: float = 1.0) -> Seen:
    rng = np.random.default_rng(seed)
    update = rng.standard_normal((24, 16)) * scale
    left, _, right = np.linalg.svd(update)
    weights = Weights(np.ones(update.size, bool), np.ones(update.size))
    flat = update.reshape(-1)
    return Seen(weights, weights, flat, flat, left[:, :8], right[:8].T, False, torch.zeros(24, 16))


def test_of_no_update_there_are_no_directions() -> None:
    ground = open_checkpoint(str(BASE))
    runs = [Subject(f"run{seed}", (), None, seed, ground, None, {}) for seed in range(3)]
    rows = list(pair_rows(runs, [seen(0), seen(1, scale=0), seen(2)]))
    told = [[row[name] for name in ("back_cosine", "left_1", "right_8")] for row in rows]
    assert [np.isnan(one).all() for one in told] == [True, False, True]
    assert np.isfinite(told[1]).all()


def test_a_number_that_is_undefined_is_a_dash(study: CausalStudy) -> None:
    nothing = [pl.lit(None, pl.Float32).alias(name) for name in ("cosine", "back_cosine")]
    told = replace(study, pairs=study.pairs.with_columns(*nothing))
    assert told.one_seed["edited"].null_count() == told.one_seed.height > 0
    assert "nan" not in told.blocks()["one-seed"]


@pytest.mark.parametrize("which", ["one seed", "no run from the base"])
def test_a_queue_under_way_is_read_as_far_as_it_goes(
    study: CausalStudy, tmp_path: Path, which: str
) -> None:
    kept = pl.col("seed") == 0 if which == "one seed" else pl.col("edit").is_not_null()
    told = partial(study, study.rows.filter(kept))
    out = told.save(tmp_path / "saved")
    assert not (out / "layers.svg").exists()
    assert set(told.readings["reading"]) <= {"cannot tell"}
    assert CausalStudy.read(out).markdown() == told.markdown()


def test_runs_that_it_cannot_tell_apart_are_refused(study: CausalStudy) -> None:
    other = study.rows.head(1).with_columns(run=pl.lit("other"))
    twice = replace(study, rows=pl.concat([study.rows, other]))
    with pytest.raises(InputError, match="and other are of one arm, edit and seed"):
        twice.check()
