"""Gate III on many runs: what one update, rescaled, foretells of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import models
import reference
from offaxis.errors import InputError
from offaxis.gates import lost_steps, rates

GRID = ((1e-5, 0.5), (1e-4, 5.0))  # rate, and the update's multiple


def rounded(base: torch.Tensor, tuned: torch.Tensor) -> np.ndarray:
    before, after = (reference.round_bf16(one.double().numpy()) for one in (base, tuned))
    return (before == after).reshape(-1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, one run, and rows of two further directions at two sizes each."""
    root = tmp_path_factory.mktemp("models")
    base = models.tiny(layers=1)
    moved = models.nudged(base, seed=1, dtype=torch.float32)
    rows = []
    size = sum(float(w.double().square().sum()) for w in base.values())
    for seed in (2, 3):
        other = models.nudged(base, seed=seed, dtype=torch.float32)
        for rate, times in GRID:
            same, square = [], 0.0
            for name, weight in base.items():
                step = times * (other[name].double() - weight.double())
                square += float(step.square().sum())
                same.append(rounded(weight, weight.double() + step))
            rows.append(
                {"run": f"{seed}{rate}", "method": "noise", "task": "t", "learning_rate": rate,
                 "seed": seed, "relative_update_norm": (square / size) ** 0.5,
                 "unchanged_bf16": float(np.concatenate(same).mean())}
            )  # fmt: skip
    paths = models.write(root / "base", base), models.write(root / "tuned", moved)
    return {"paths": paths, "rows": pl.DataFrame(rows), "base": base}


def test_one_random_update_foretells_the_others(world: dict[str, Any]) -> None:
    """They differ in direction alone, which rounding does not see."""
    names: list[str] = []
    found = rates(*world["paths"], world["rows"], progress=lambda step: names.append(step.tensor))
    assert found.table.height == 4
    assert len(names) == len(world["base"])
    off = (found.table["unchanged"] - found.table["rescaled"]).abs()
    assert off.max() < 0.01  # type: ignore[operator]
    grouped = found.grouped()
    assert grouped["runs"].to_list() == [2, 2]
    assert grouped["unchanged"][0] > grouped["unchanged"][1] + 0.2, "it melts"
    # norms are exactly in proportion to the rates here, so that the rate foretells them too
    assert found.table["by_rate"].to_list() == pytest.approx(
        found.table["rescaled"].to_list(), abs=1e-6
    )
    assert found.summary()["root_mean_square"] < 0.01
    assert found.residuals()["runs"].to_list() == [4]
    assert found.stores().height == 0


def test_an_update_that_avoids_small_weights_stands_out(world: dict[str, Any]) -> None:
    """Negative control: at equal norm, a step in proportion to the weights is not foretold."""
    base = world["base"]
    same, square, size = [], 0.0, 0.0
    for weight in base.values():
        step = weight.double() * 2.0**-10
        same.append(rounded(weight, weight.double() + step))
        square += float(step.square().sum())
        size += float(weight.double().square().sum())
    row = world["rows"][:1].with_columns(
        relative_update_norm=pl.lit((square / size) ** 0.5),
        unchanged_bf16=pl.lit(float(np.concatenate(same).mean())),
    )
    found = rates(*world["paths"], row)
    assert found.table["unchanged"].item() > found.table["rescaled"].item() + 0.1


def test_the_steps_that_a_store_loses() -> None:
    weights = torch.tensor([1.0, -1.0, 0.5, 2.0**-10, 0.0])
    # ½ULP: 2^-8 away from zero at 1, a tie toward zero at 2^-9; 0.002 crosses it there alone
    found = lost_steps(weights, [0.002, 0.003, 1e-9])
    assert found.tolist() == pytest.approx([(0.5 + 0.5 + 0 + 0 + 0) / 5] * 2 + [(1 * 4) / 5])
    steps = 0.02 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    before = reference.round_bf16(steps.double().numpy())
    for size in (1e-5, 1e-4):
        expected = [np.mean(reference.round_bf16(before + s * size) == before) for s in (1, -1)]
        assert lost_steps(steps, [size])[0] == pytest.approx(np.mean(expected), abs=1e-12)


def test_two_stores_stand_side_by_side(world: dict[str, Any]) -> None:
    masters = world["rows"].with_columns(dtype=pl.lit(None, pl.String), optimizer=pl.lit(None))
    pure = world["rows"].with_columns(
        dtype=pl.lit("bfloat16"), optimizer=pl.lit("adamw_torch"),
        unchanged_bf16=pl.col("unchanged_bf16") + 0.1,
    )  # fmt: skip
    sgd = pure.with_columns(optimizer=pl.lit("sgd"))
    both = pl.concat([masters, pure, sgd], how="diagonal_relaxed")
    found = rates(*world["paths"], both)
    assert found.table["store"].value_counts().sort("store")["count"].to_list() == [8, 4]
    stores = found.stores()
    assert stores.height == 2
    assert (stores["pure"] - stores["masters"]).to_list() == pytest.approx([0.1, 0.1])
    assert stores["lost"][0] > stores["lost"][1]
    sgd_rows = found.table.filter(pl.col("optimizer") == "sgd")
    assert sgd_rows["lost"].null_count() == 4, "its steps are not of the rate's size"


def test_bad_rows_are_refused(world: dict[str, Any]) -> None:
    base, tuned = world["paths"]
    with pytest.raises(InputError, match="no column method"):
        rates(base, tuned, world["rows"].drop("method"))
    with pytest.raises(InputError, match="no run has moved"):
        rates(base, tuned, world["rows"].with_columns(relative_update_norm=pl.lit(0.0)))
    with pytest.raises(InputError, match="zero or not finite"):
        rates(base, base, world["rows"])


def test_the_first_study_melts_with_the_rate(world: dict[str, Any]) -> None:
    """Its rows have what `offaxis gates --rows` reads, and the share falls with the rate."""
    from offaxis.cli.gates import _runs

    root = Path(__file__).parents[1]
    table = root / "docs" / "studies" / "first" / "runs.parquet"
    found = _runs(table, str(root / "src" / "offaxis" / "lab" / "base"))
    assert found.filter(pl.col("unchanged_bf16").is_not_null()).height == 192
    by = found.filter(pl.col("method") == "grpo").group_by("learning_rate").agg(
        pl.col("unchanged_bf16").mean()
    ).sort("learning_rate")  # fmt: skip
    assert by["unchanged_bf16"].is_sorted(descending=True)
    with pytest.raises(InputError, match="give the base that they started from"):
        _runs(table, str(world["paths"][0]))
