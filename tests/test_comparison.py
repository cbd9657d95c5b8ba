"""`offaxis.compare` through files: every number against the reference, and what must not matter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import models
import offaxis
import reference
from offaxis.comparison import Comparison, stream
from offaxis.measures import MEASURES

REDRAWN = ("principal_overlap_rounding_null", "low_magnitude_overlap_rounding_null")
"""Random by definition: compared with draws of the reference, within their spread."""
WORDS = ("tuned", "verdict", "method", "run_info")
CONTRACT = (
    "tuned", "parameters", "tensors", "matrices", "unchanged_bf16", "unchanged_stored",
    "relative_update_norm", "nss", "rotation_left_deg", "rotation_right_deg", "principal_overlap",
    "principal_overlap_magnitude_null", "principal_overlap_rounding_null", "low_magnitude_overlap",
    "low_magnitude_overlap_rounding_null", "rank1_energy", "rank1_norm_share", "effective_rank",
    "verdict",
)  # fmt: skip
ACROSS = ("jaccard_mean", "jaccard_chance", "jaccard_magnitude_null", "changed_in_r_runs", "series")


@pytest.fixture(scope="module")
def base() -> models.State:
    return models.tiny()


@pytest.fixture(scope="module")
def runs(base: models.State) -> list[models.State]:
    """A float32 step, a smaller one, and a bfloat16 step that leaves one matrix alone."""
    third = models.nudged(base, seed=3, size=1e-4, dtype=torch.bfloat16)
    third["model.layers.1.mlp.up_proj.weight"] = base["model.layers.1.mlp.up_proj.weight"]
    return [
        models.nudged(base, seed=1, dtype=torch.float32),
        models.nudged(base, seed=2, size=1e-5, dtype=torch.float32),
        third,
    ]


@pytest.fixture(scope="module")
def written(
    base: models.State, runs: list[models.State], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path]]:
    root = tmp_path_factory.mktemp("models")
    names = ("rl/checkpoint-40", "rl/checkpoint-20", "sft")
    paths = [models.write(root / n, s) for n, s in zip(names, runs, strict=True)]
    return models.write(root / "base", base), paths


@pytest.fixture(scope="module")
def compared(written: tuple[Path, list[Path]]) -> Comparison:
    return offaxis.compare(*written)


def agree(pair: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Every number of a pair against the reference, to 1e-6 relative."""
    for name, value in pair.items():
        if name in (*WORDS, *REDRAWN, "intervals", "measured", "nonfinite"):
            continue
        want = expected[name]
        assert value == (want if want is None else pytest.approx(want, rel=1e-6)), name
    for name, (low, high) in pair["intervals"].items():
        if name in REDRAWN:
            continue
        left, right = expected["intervals"][name]
        assert (low + high) / 2 == pytest.approx((left + right) / 2, rel=1e-6, abs=1e-15), name
        assert high - low >= (right - left) * (1 - 1e-6) - 1e-15, name
    for name, count in pair["measured"].items():
        if name not in REDRAWN:
            assert count == expected["measured"].get(name, 0), name


def agree_across(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, want in expected.items():
        assert found[name] == pytest.approx(want, rel=1e-6), name


# ----------------------------------------------------------------------- against the reference


def test_every_number_agrees_with_the_reference(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    summary, roles = compared.summary(), models.roles_of(base)
    for pair, run in zip(summary["pairs"], runs, strict=True):
        agree(pair, reference.pair_summary(base, run, roles))
    agree_across(summary["across"], reference.across_summary(base, runs, roles))


def test_every_number_of_the_real_pairs_agrees_with_the_reference(pairs: Path) -> None:
    names = ["rl-checkpoint-20", "rl-checkpoint-40", "rl-checkpoint-60", "sft-60"]
    summary = offaxis.compare(pairs / "base", [pairs / name for name in names]).summary()
    base = models.read(pairs / "base")
    runs = [models.read(pairs / name) for name in names]
    roles = models.roles_of(base)
    assert summary["pairs"][0]["matrices"] == len(roles) == 28
    for pair, run in zip(summary["pairs"], runs, strict=True):
        agree(pair, reference.pair_summary(base, run, roles))
    agree_across(summary["across"], reference.across_summary(base, runs, roles))


def test_designs_figures_for_the_real_pairs(pairs: Path) -> None:
    """DESIGN.md, section 3: observed principal overlap beside its magnitude null, 'so far'."""
    found = offaxis.compare(pairs / "base", [pairs / "rl-checkpoint-60", pairs / "sft-60"])
    for pair in found.summary()["pairs"]:
        seen, null = pair["principal_overlap"], pair["principal_overlap_magnitude_null"]
        assert seen == pytest.approx(null, abs=0.002), "not the principal weights, but their size"


def test_settings_reach_every_measure(
    written: tuple[Path, list[Path]], base: models.State, runs: list[models.State]
) -> None:
    settings = {"alpha": 0.3, "angle_rank": 3, "principal_rank": 5}
    summary = offaxis.compare(written[0], written[1][0], **settings).summary()
    agree(
        summary["pairs"][0],
        reference.pair_summary(base, runs[0], models.roles_of(base), **settings),
    )
    assert summary["run"]["settings"] | settings == summary["run"]["settings"]


def test_ranks_beyond_the_matrix_are_cut_to_it(written: tuple[Path, list[Path]]) -> None:
    """16 is the shorter side of k_proj, 32 of all others."""
    found = [
        offaxis.compare(written[0], written[1][0], angle_rank=k, principal_rank=k).measurements
        for k in (32, 32_000)
    ]
    assert found[0].equals(found[1])


def test_the_rounding_null_agrees_with_draws_of_the_reference(
    compared: Comparison, base: models.State, runs: list[models.State]
) -> None:
    """Mean over matrices; ours is a mean of 16 draws each, the reference's of 40."""
    generator = np.random.default_rng(0)
    means = {name: np.zeros(40) for name in REDRAWN}
    roles = models.roles_of(base)
    for name in roles:
        w = reference.values64(base[name])
        update = (reference.values64(runs[0][name]) - w).reshape(-1)
        rank = reference.default_principal_rank(*w.shape)
        fixed = (reference.principal(w, rank, 0.5), reference.low_magnitude(w, 0.5))
        for draw in range(40):
            noise = generator.permutation(update).reshape(w.shape)
            mask = reference.changed_bf16(base[name], torch.from_numpy(w + noise))
            for null, one in zip(REDRAWN, fixed, strict=True):
                means[null][draw] += reference.overlap(mask, one) / len(roles)
    pair = compared.summary()["pairs"][0]
    for null, values in means.items():
        spread = values.std(ddof=1) * math.sqrt(1 / 16 + 1 / 40)
        assert abs(pair[null] - values.mean()) < 5 * spread
    assert all(compared.summary()["pairs"][2][null] is None for null in REDRAWN), "stored in bf16"


# -------------------------------------------------------------------------- what must not matter


def numbers(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in pair.items() if isinstance(v, (int, float))}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"shards": 3}, id="sharded"),
        pytest.param({"prefix": "module."}, id="renamed"),
        pytest.param({"prefix": "_orig_mod.module.", "shards": 2}, id="sharded and renamed"),
        pytest.param({"dtype": torch.float64}, id="float64"),
    ],
)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_copies_of_the_same_values_give_the_same_numbers(
    compared: Comparison,
    written: tuple[Path, list[Path]],
    base: models.State,
    runs: list[models.State],
    tmp_path: Path,
    how: dict[str, Any],
    side: str,
) -> None:
    copy = models.write(tmp_path / "copy", base if side == "base" else runs[0], **how)
    sides = (copy, written[1][0]) if side == "base" else (written[0], copy)
    found = offaxis.compare(*sides).summary()["pairs"][0]
    expected = numbers(compared.summary()["pairs"][0])
    drawn = {name: pytest.approx(expected.pop(name), abs=0.01) for name in REDRAWN}
    # the draws hang on the tensor's name; float32 sums are float32 sums
    assert numbers(found) == {k: pytest.approx(v, rel=1e-7) for k, v in expected.items()} | drawn
    assert found["unchanged_bf16"] == expected["unchanged_bf16"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ground", [torch.bfloat16, torch.float32], ids=str)
def test_unchanged_bf16_does_not_depend_on_the_dtype_of_the_copy(
    compared: Comparison,
    base: models.State,
    runs: list[models.State],
    tmp_path: Path,
    dtype: torch.dtype,
    ground: torch.dtype,
) -> None:
    """The float32 run rounded to bfloat16 differs from the base in the same entries."""
    one = models.write(tmp_path / "base", base, dtype=ground)
    other = models.write(tmp_path / "tuned", runs[0], dtype=dtype)
    pair = offaxis.compare(one, other, spectra="none").summary()["pairs"][0]
    expected = compared.summary()["pairs"][0]
    for name in ("unchanged_bf16", "low_magnitude_overlap", "low_magnitude_overlap_magnitude_null"):
        assert pair[name] == expected[name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_narrow_formats_are_measured(tmp_path: Path, dtype: torch.dtype) -> None:
    """A plain float8 or float16 pair, spectra and all, as the same values in float32."""
    state = {name: (w.float() * 10).to(dtype) for name, w in models.tiny(layers=1).items()}
    tuned = {name: (w.float() * 1.3).to(dtype) for name, w in state.items()}
    one, other = models.write(tmp_path / "base", state), models.write(tmp_path / "tuned", tuned)
    found = offaxis.compare(one, other).summary()["pairs"][0]
    agree(found, reference.pair_summary(state, tuned, models.roles_of(state)))


@pytest.mark.parametrize("workers", [(1, 1), (3, 1)], ids=["one worker", "three"])
def test_the_number_of_workers_changes_nothing(
    compared: Comparison,
    written: tuple[Path, list[Path]],
    workers: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_workers", lambda plan: workers)
    found = offaxis.compare(*written)
    keys = ["tuned", "tensor", "measure"]
    one, other = (c.measurements.sort(keys) for c in (found, compared))
    assert one.drop("value", "error").equals(other.drop("value", "error"))
    values = [c["value"].fill_null(-1.0).to_numpy() for c in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-9, abs=1e-13)
    assert found.measurements["tensor"].equals(compared.measurements["tensor"]), "the same order"


def test_the_order_of_the_tuned_changes_nothing(
    compared: Comparison, written: tuple[Path, list[Path]]
) -> None:
    found = offaxis.compare(written[0], written[1][::-1]).summary()
    expected = compared.summary()
    for one, other in zip(found["pairs"], expected["pairs"][::-1], strict=True):
        assert one["tuned"] == other["tuned"]
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-9)
    for name in ("jaccard_mean", "jaccard_chance", "jaccard_magnitude_null", "changed_in_r_runs"):
        assert found["across"][name] == pytest.approx(expected["across"][name], rel=1e-12)
    assert [row["tuned"] for row in found["across"]["series"]] == [
        row["tuned"] for row in expected["across"]["series"]
    ]


def test_two_runs_give_the_same_tables(
    compared: Comparison, written: tuple[Path, list[Path]]
) -> None:
    other = offaxis.compare(*written).measurements
    random = pl.col("measure").is_in(REDRAWN)
    assert compared.measurements.filter(random).equals(other.filter(random)), "seeded"


def test_the_seed_moves_the_rounding_null_alone(written: tuple[Path, list[Path]]) -> None:
    one, other = (
        offaxis.compare(written[0], written[1][0], seed=seed).summary()["pairs"][0]
        for seed in (0, 1)
    )
    moved = {k for k, v in numbers(one).items() if v != pytest.approx(other[k], rel=1e-9)}
    assert moved == set(REDRAWN)


# ------------------------------------------------------------------------------ laws and shapes


def test_consensus_and_change_are_one_count(compared: Comparison) -> None:
    """Mean over runs of the changed share = Σ_r r/R · share of entries changed in r runs."""
    summary = compared.summary()
    changed = np.mean([1 - pair["unchanged_bf16"] for pair in summary["pairs"]])
    shares = summary["across"]["changed_in_r_runs"]
    assert sum(shares) == pytest.approx(1)
    assert changed == pytest.approx(sum(r / 3 * share for r, share in enumerate(shares)))
    null = summary["across"]["changed_in_r_runs_magnitude_null"]
    assert sum(null) == pytest.approx(1)
    assert changed == pytest.approx(sum(r / 3 * share for r, share in enumerate(null)))
    assert null[3] < shares[3]  # one model's runs agree beyond the size of its entries


def test_the_summary_has_the_fields_of_the_contract(
    compared: Comparison, written: tuple[Path, list[Path]]
) -> None:
    summary = compared.summary()
    assert list(summary) == ["schema", "base", "pairs", "across", "run"]
    assert (summary["schema"], summary["base"]) == (1, str(written[0]))
    assert [pair["tuned"] for pair in summary["pairs"]] == [str(path) for path in written[1]]
    for pair in summary["pairs"]:
        assert set(CONTRACT) <= set(pair)
        assert all(type(pair[name]) is int for name in ("parameters", "tensors", "matrices"))
        assert list(pair["verdict"]) == ["label", "evidence", "confounds"]
    assert set(ACROSS) <= set(summary["across"])
    assert [row["step"] for row in summary["across"]["series"]] == [20, 40]
    assert summary["run"]["settings"]["seed"] == 0
    assert summary["run"]["torch"] == torch.__version__.split("+")[0]


def test_one_pair_has_nothing_across(written: tuple[Path, list[Path]]) -> None:
    assert offaxis.compare(written[0], written[1][0]).summary()["across"] is None
    assert offaxis.compare(written[0], [written[1][0]]).summary()["across"] is None


def test_each_matrix_has_a_row_for_every_measure(compared: Comparison, base: models.State) -> None:
    once = {m.name for m in MEASURES if m.needs == "series"}
    counted = {m.name for m in MEASURES} - {"nonfinite_base", "nonfinite_tuned"}
    for name in models.roles_of(base):
        found = compared.measurements.filter(
            (pl.col("tensor") == name) & ~pl.col("measure").str.starts_with("jaccard")
        )
        assert set(found["measure"]) == counted
        assert found.height == len(counted - once) * 3 + len(once), "of checkpoint 20 alone"
    others = compared.measurements.filter(pl.col("tensor") == "model.norm.weight")
    assert set(others["measure"]) == {
        "unchanged_bf16", "unchanged_stored", "relative_update_norm", "correlation",
    }  # fmt: skip


def test_a_null_value_has_a_reason_and_a_value_has_none_missing(
    compared: Comparison,
) -> None:
    table = compared.measurements
    assert table.filter(pl.col("value").is_null() & (pl.col("status") == "ok")).height == 0
    assert table["value"].is_nan().sum() == 0
    assert table["status"].null_count() == table["unit"].null_count() == 0


def test_curves_hold_the_spectra_of_the_reference(
    compared: Comparison, written: tuple[Path, list[Path]], base: models.State
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    rows = compared.curves.filter(
        (pl.col("tensor") == name) & (pl.col("tuned") == str(written[1][0]))
    )
    curves = {row["curve"]: row for row in rows.iter_rows(named=True)}
    w = reference.values64(base[name])
    assert curves["singular_values_base"]["values"] == pytest.approx(
        np.linalg.svd(w, compute_uv=False), rel=1e-9
    )
    assert sum(curves["ulp_histogram"]["values"]) == w.size
    for row in curves.values():
        assert math.prod(row["shape"]) == len(row["values"])
        assert all(map(math.isfinite, row["values"]))


def test_the_base_side_may_be_a_str_or_a_path(written: tuple[Path, list[Path]]) -> None:
    by_name = offaxis.compare(str(written[0]), str(written[1][0]), spectra="none").summary()
    by_path = offaxis.compare(written[0], written[1][0], spectra="none").summary()
    assert json.dumps(by_name["pairs"]) == json.dumps(by_path["pairs"])
