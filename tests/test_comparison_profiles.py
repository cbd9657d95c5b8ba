"""Profiles through `offaxis.compare`: over the steps of a run, over runs, and where heads lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import models
import offaxis
import reference
from offaxis import measures
from offaxis.checkpoint import Part
from offaxis.comparison import Comparison
from offaxis.comparison.base import BaseSide, Settings
from offaxis.comparison.heads import heads
from offaxis.comparison.profiles import finals, look, runs_of
from offaxis.kernels import bin_counts, pack, scan
from offaxis.kernels.bits import bf16_codes

NAMES = ("rl/checkpoint-40", "rl/checkpoint-20", "sft", "rl/checkpoint-60")
MATRIX = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def base() -> models.State:
    return models.tiny()


@pytest.fixture(scope="module")
def runs(base: models.State) -> list[models.State]:
    sizes = (3e-5, 1e-5, 1e-4, 6e-5)
    return [
        models.nudged(base, seed=seed, size=size, dtype=torch.bfloat16)
        for seed, size in enumerate(sizes, 1)
    ]


@pytest.fixture(scope="module")
def compared(
    base: models.State, runs: list[models.State], tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    root = tmp_path_factory.mktemp("models")
    paths = [models.write(root / name, run) for name, run in zip(NAMES, runs, strict=True)]
    ground = models.write(root / "base", base)
    config = json.loads((ground / "config.json").read_text())
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    (ground / "config.json").write_text(json.dumps(config))
    return offaxis.compare(ground, paths, spectra="none")


def masks(base: models.State, runs: list[models.State], name: str) -> list[np.ndarray]:
    return [reference.changed_bf16(base[name], run[name]) for run in runs]


def value(compared: Comparison, index: int, measure: str, tensor: str = MATRIX) -> float | None:
    found = compared.measurements.filter(
        pl.col("tuned").str.ends_with(NAMES[index])
        & (pl.col("tensor") == tensor)
        & (pl.col("measure") == measure)
    )
    assert found.height <= 1
    return found["value"][0] if found.height else None


def curves(compared: Comparison, tuned: str, tensor: str = MATRIX) -> dict[str, np.ndarray]:
    mine = pl.col("tuned").str.ends_with(tuned) if tuned else pl.col("tuned") == ""
    rows = compared.curves.filter(mine & (pl.col("tensor") == tensor))
    return {
        row["curve"]: np.array(row["values"]).reshape(row["shape"])
        for row in rows.iter_rows(named=True)
    }


def test_profiles_and_their_null_agree_with_the_reference(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    w = reference.values64(base[MATRIX])
    for name, mask in zip(NAMES, masks(base, runs, MATRIX), strict=True):
        found, rate = curves(compared, name), reference.null_rate(w, mask)
        np.testing.assert_allclose(found["row_changed"], mask.mean(1))
        np.testing.assert_allclose(found["row_changed_magnitude_null"], rate.mean(1), rtol=1e-12)
        np.testing.assert_allclose(found["column_changed_magnitude_null"], rate.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found["mask_picture"], mask)


def test_only_checkpoints_before_the_last_of_a_run_are_correlated_with_it(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    for tensor in models.roles_of(base):
        seen = masks(base, runs, tensor)
        codes = bf16_codes(base[tensor])
        total, counts = bin_counts(codes), [bin_counts(codes, pack(mask)) for mask in seen]
        rates = [reference.null_rate(reference.values64(base[tensor]), mask) for mask in seen]
        for axis, side in ((1, "row"), (0, "column")):
            name = f"{side}_profile_correlation"
            for index in (2, 3):
                assert value(compared, index, name, tensor) is None
            for index in (0, 1):
                expected = np.corrcoef(seen[index].mean(axis), seen[3].mean(axis))[0, 1]
                assert value(compared, index, name, tensor) == pytest.approx(expected, rel=1e-9)
                null = measures.profile_correlation_null(
                    (rates[index].mean(axis), rates[3].mean(axis)),
                    total,
                    (counts[index], counts[3]),
                    bin_counts(codes, pack(seen[index] & seen[3])),
                ).value
                found = value(compared, index, f"{name}_magnitude_null", tensor)
                assert found == pytest.approx(null, rel=1e-9)


def test_stripes_stand_in_every_matrix(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    for index, mask in enumerate(masks(base, runs, MATRIX)):
        codes = bf16_codes(base[MATRIX])
        rate = reference.null_rate(reference.values64(base[MATRIX]), mask)
        counts = (bin_counts(codes), bin_counts(codes, pack(mask)))
        for axis, side in ((1, "row"), (0, "column")):
            expected = measures.stripes(mask.mean(axis), rate.mean(axis), *counts).value
            assert value(compared, index, f"{side}_stripes") == pytest.approx(expected, rel=1e-9)
    measured = compared.measurements.filter(pl.col("measure") == "row_stripes")
    assert set(measured["tensor"]) == set(models.roles_of(base))


def test_the_series_holds_means_over_matrices_with_intervals(compared: Comparison) -> None:
    series = compared.summary()["across"]["series"]
    assert [row["step"] for row in series] == [20, 40, 60]
    for measure in ("row_profile_correlation", "column_profile_correlation_magnitude_null"):
        rows = compared.measurements.filter(pl.col("measure") == measure)
        for row in series[:2]:
            mine = rows.filter(pl.col("tuned") == row["tuned"])["value"]
            assert row[measure] == pytest.approx(mine.mean(), rel=1e-12)
            low, high = row["intervals"][measure]
            assert low < row[measure] < high
        assert series[2][measure] is None
    assert series[2]["intervals"] == {}


def test_the_consensus_is_over_the_last_checkpoint_of_each_run(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    across = compared.summary()["across"]
    assert [Path(one).name for one in across["consensus_of"]] == ["sft", "checkpoint-60"]
    seen = np.mean(masks(base, [runs[2], runs[3]], MATRIX), axis=0)
    w = reference.values64(base[MATRIX])
    rate = np.mean([reference.null_rate(w, m) for m in masks(base, runs[2:], MATRIX)], axis=0)
    found = curves(compared, "")
    for ending, expected in (("", seen), ("_magnitude_null", rate)):
        np.testing.assert_allclose(found[f"consensus_picture{ending}"], expected, rtol=1e-12)
        np.testing.assert_allclose(found[f"consensus_rows{ending}"], expected.mean(1), rtol=1e-12)
        np.testing.assert_allclose(
            found[f"consensus_columns{ending}"], expected.mean(0), rtol=1e-12
        )


def test_one_run_has_no_consensus(
    base: models.State, runs: list[models.State], tmp_path: Path
) -> None:
    paths = [models.write(tmp_path / f"checkpoint-{i}", run) for i, run in enumerate(runs[:2])]
    found = offaxis.compare(models.write(tmp_path / "base", base), paths, spectra="none")
    assert found.summary()["across"]["consensus_of"] == []
    assert not found.curves["curve"].str.starts_with("consensus").any()
    assert found.summary()["run"]["heads"] is None


def test_runs_are_told_from_names_and_ordered_by_step() -> None:
    labels = ["a/checkpoint-20", "b", "a/checkpoint-5", "c/step_1", "b"]
    assert list(runs_of(labels).values()) == [[2, 0], [1], [3], [4]]
    assert finals(labels) == [0, 1, 3, 4]


def test_profiles_of_a_matrix_stored_transposed_are_turned() -> None:
    base = reference.power_law_matrix(40, 24, seed=0)
    tuned = base.clone()
    tuned[3] += 0.01
    found = []
    for turned in (False, True):
        stored = [one.T.contiguous() if turned else one for one in (base, tuned)]
        part = Part("w", 0, "q_proj", None, tuple(stored[0].shape), True, turned)
        side = BaseSide(part, stored[0], Settings(), "not_asked_for")
        scanned = scan(*stored)
        assert scanned.mask is not None
        both = look(scanned, side, bin_counts(side.codes, scanned.mask))
        assert both is not None
        found.append(both)
    for one, other in zip(found[0], found[1], strict=True):
        assert one.rows.shape == (40,)
        for plain, twice_turned in zip(one, other, strict=True):
            np.testing.assert_allclose(plain, twice_turned, rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}, (4, 2, 32)),
        ({"num_attention_heads": 4, "hidden_size": 128}, (4, 4, 32)),
        ({"n_head": 12, "n_embd": 768}, (12, 12, 64)),
        ({"text_config": {"num_attention_heads": 8, "hidden_size": 64}, "n_head": 2}, (8, 8, 8)),
        ({"text_config": "none", "n_head": 2, "n_embd": 4}, (2, 2, 2)),
        ({"num_attention_heads": 5, "hidden_size": 128}, None),
        ({"num_attention_heads": "4", "hidden_size": 128}, None),
        ({"num_attention_heads": True, "hidden_size": 128}, None),
        ({"num_attention_heads": -4, "head_dim": 8}, None),
        ({}, None),
    ],
)
def test_heads_come_from_the_config(
    config: dict[str, Any], expected: tuple[int, int, int] | None
) -> None:
    names = ("query", "key_value", "dim")
    assert heads(config) == (expected and dict(zip(names, expected, strict=True)))


def test_the_run_records_the_heads_of_the_base(compared: Comparison) -> None:
    assert compared.summary()["run"]["heads"] == {"query": 4, "key_value": 2, "dim": 8}
