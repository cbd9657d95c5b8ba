"""`offaxis.compare` on unusual input: no update, another model, NaN, bad settings, saving."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import models
import offaxis
import reference
from offaxis.comparison import Comparison
from offaxis.errors import InputError, OffaxisError, OutputError
from offaxis.table import CURVES, MEASUREMENTS

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base() -> models.State:
    return models.tiny()


@pytest.fixture(scope="module")
def tuned(base: models.State) -> models.State:
    return models.nudged(base, seed=1, dtype=torch.float32)


@pytest.fixture(scope="module")
def written(
    base: models.State, tuned: models.State, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return models.write(root / "base", base), models.write(root / "tuned", tuned)


@pytest.fixture(scope="module")
def compared(written: tuple[Path, Path]) -> Comparison:
    return offaxis.compare(*written)


def of_states(directory: Path, one: models.State, other: models.State, **settings: Any) -> Any:
    paths = [models.write(directory / n, s) for n, s in (("base", one), ("tuned", other))]
    return offaxis.compare(*paths, **settings)


def leaves(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list)):
        for child in children:
            yield from leaves(child)
    else:
        yield value


def check_json(found: Comparison, directory: Path) -> dict[str, Any]:
    """Saved, read back strictly: no NaN and no infinity anywhere."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in summary.json")

    out = found.save(directory / "saved")
    text = (out / "summary.json").read_text(encoding="utf-8")
    summary: dict[str, Any] = json.loads(text, parse_constant=refuse)
    numbers = [leaf for leaf in leaves(summary) if isinstance(leaf, float)]
    assert all(map(math.isfinite, numbers))
    assert found.measurements["value"].is_infinite().sum() == 0
    return summary


# ------------------------------------------------------------------------------- kinds of update


def test_an_identical_pair_is_called_so(base: models.State, tmp_path: Path) -> None:
    found = of_states(tmp_path, base, base)
    pair = check_json(found, tmp_path)["pairs"][0]
    assert pair["verdict"]["label"] == "identical"
    assert pair["unchanged_bf16"] == pair["unchanged_stored"] == 1
    assert pair["relative_update_norm"] == pair["nss"] == pair["rotation_left_deg"] == 0
    for name in ("principal_overlap", "principal_overlap_magnitude_null", "rank1_energy",
                 "effective_rank", "low_magnitude_overlap", "rank1_norm_share"):  # fmt: skip
        assert pair[name] is None, name


def test_an_update_below_bfloat16_is_not_identical(base: models.State, tmp_path: Path) -> None:
    tuned = {name: w.float() * (1 + 2**-16) for name, w in base.items()}
    pair = check_json(of_states(tmp_path, base, tuned), tmp_path)["pairs"][0]
    assert (pair["unchanged_bf16"], pair["verdict"]["label"]) == (1, "small_step")
    assert pair["unchanged_stored"] == 0
    assert pair["nss"] == pytest.approx(2**-16, rel=1e-6)
    assert pair["principal_overlap"] is None, "an empty M has no overlap"


@pytest.mark.parametrize(
    ("size", "label"),
    [
        (1e-5, "small_step"),
        (1.4e-4, "undetermined"),
        (1e-3, "large_step"),
        (1.0, "implausible_base"),
    ],
)
def test_the_size_of_the_step_sets_the_label(
    base: models.State, tmp_path: Path, size: float, label: str
) -> None:
    tuned = models.nudged(base, seed=1, size=size, dtype=torch.float32)
    pair = of_states(tmp_path, base, tuned, spectra="none").summary()["pairs"][0]
    assert pair["verdict"]["label"] == label


def test_an_unrelated_model_is_an_implausible_base(tmp_path: Path) -> None:
    pair = of_states(tmp_path, models.tiny(seed=0), models.tiny(seed=1)).summary()["pairs"][0]
    assert pair["verdict"]["label"] == "implausible_base"
    assert any("probably not the one" in line for line in pair["verdict"]["evidence"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: -w, id="negated"),
        pytest.param(lambda w: w.flip(0), id="reversed"),
        pytest.param(lambda w: w * 3, id="tripled"),
    ],
)
def test_other_implausible_bases(base: models.State, tmp_path: Path, change: Any) -> None:
    """Matrices alone decide: norms near one and an embedding left alone must not hide it."""
    tuned = {n: change(w) if n in models.roles_of(base) else w for n, w in base.items()}
    pair = of_states(tmp_path, base, tuned, spectra="none").summary()["pairs"][0]
    assert pair["verdict"]["label"] == "implausible_base"


def test_a_zero_update_of_one_matrix_is_left_out_of_some_means(
    base: models.State, tuned: models.State, tmp_path: Path
) -> None:
    found = of_states(tmp_path, base, tuned | {NAME: base[NAME]})
    pair = found.summary()["pairs"][0]
    assert pair["measured"]["nss"] == 21
    assert pair["measured"]["principal_overlap"] == pair["measured"]["rank1_energy"] == 20
    row = found.measurements.filter((pl.col("tensor") == NAME) & (pl.col("measure") == "nss_bound"))
    assert row["value"].to_list() == [0.0]


# --------------------------------------------------------------------------- NaN, infinity, scale


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("side", ["base", "tuned", "both"])
def test_nonfinite_weights_are_reported_and_not_fatal(
    base: models.State, tuned: models.State, tmp_path: Path, side: str, value: float
) -> None:
    one, other = dict(base), dict(tuned)
    for state, sides in ((one, ("base", "both")), (other, ("tuned", "both"))):
        if side in sides:
            state[NAME] = state[NAME].clone()
            state[NAME][2, 3] = state[NAME][4, 5] = value
    found = of_states(tmp_path, one, other)
    pair = check_json(found, tmp_path)["pairs"][0]
    expected = {"base": 2 if side != "tuned" else 0, "tuned": 2 if side != "base" else 0}
    assert pair["nonfinite"] == expected
    assert any("NaN or infinite" in line for line in pair["verdict"]["evidence"])
    assert pair["parameters"] == sum(w.numel() for w in base.values())
    assert pair["measured"]["nss"] == 20
    changed = sum(reference.changed_bf16(one[n], other[n]).sum() for n in base)
    assert pair["unchanged_bf16"] == pytest.approx(1 - changed / pair["parameters"], rel=1e-12)
    rest = {n: role for n, role in models.roles_of(base).items() if n != NAME}
    want = reference.pair_summary(base, tuned, rest)
    for name in ("nss", "rotation_left_deg", "principal_overlap_top5", "effective_rank"):
        assert pair[name] == pytest.approx(want[name], rel=1e-6)
    rows = found.measurements.filter((pl.col("tensor") == NAME) & pl.col("value").is_null())
    assert set(rows["status"]) <= {"nonfinite", "tuned_not_wider_than_bf16"}
    assert "nss" in rows["measure"].to_list()


@pytest.mark.parametrize("power", [-100, 80])
@pytest.mark.parametrize("moved", [False, True])
def test_extreme_but_finite_weights_are_measured(
    base: models.State, tuned: models.State, tmp_path: Path, power: int, moved: bool
) -> None:
    """A model scaled by a power of two has the same relative numbers."""
    one = {n: w.float() * 2.0**power for n, w in base.items()}
    other = {n: w * 2.0**power for n, w in tuned.items()} if moved else one
    pair = check_json(of_states(tmp_path, one, other, spectra="none"), tmp_path)["pairs"][0]
    want = reference.pair_summary(base, tuned if moved else base, models.roles_of(base))
    for name in ("relative_update_norm", "correlation", "unchanged_bf16"):
        assert pair[name] == pytest.approx(want[name], rel=1e-6), name


def test_torch_keeps_its_number_of_threads(base: models.State, tmp_path: Path) -> None:
    """Workers run BLAS on fewer; threads born afterwards (autograd's) must not inherit that."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        of_states(tmp_path, base, base)
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_a_model_of_zeros_is_measured(base: models.State, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(w) for name, w in base.items()}
    pair = check_json(of_states(tmp_path, zeros, base), tmp_path)["pairs"][0]
    assert pair["relative_update_norm"] is None
    assert pair["nss"] is None
    assert pair["rank1_energy"] is not None


@pytest.mark.parametrize("shape", [(0,), (0, 8), (8, 0)], ids=str)
def test_an_empty_tensor_is_measured_as_nothing(
    base: models.State, tuned: models.State, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    extra = {"model.empty": torch.zeros(shape, dtype=torch.bfloat16)}
    found = of_states(tmp_path, base | extra, tuned | extra, spectra="none")
    pair = check_json(found, tmp_path)["pairs"][0]
    assert pair["parameters"] == sum(w.numel() for w in base.values())


@pytest.mark.parametrize("shape", [(2, 2), (2, 50), (50, 2), (3, 3)], ids=str)
def test_the_smallest_matrices_are_measured(tmp_path: Path, shape: tuple[int, int]) -> None:
    state = {"model.layers.0.mlp.up_proj.weight": torch.randn(shape).to(torch.bfloat16)}
    tuned = models.nudged(state, seed=0, size=0.1, dtype=torch.float32)
    pair = check_json(of_states(tmp_path, state, tuned), tmp_path)["pairs"][0]
    assert pair["matrices"] == pair["measured"]["nss"] == 1
    assert pair["intervals"] == {}


def test_a_vector_shaped_matrix_is_no_matrix(tmp_path: Path) -> None:
    state = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(1, 9).to(torch.bfloat16),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(4, 9).to(torch.bfloat16),
    }
    tuned = models.nudged(state, seed=0, size=0.1, dtype=torch.float32)
    pair = of_states(tmp_path, state, tuned).summary()["pairs"][0]
    assert (pair["tensors"], pair["matrices"]) == (2, 1)


# ----------------------------------------------------------------------------- labels and spectra


@pytest.mark.parametrize("extra", [[], ["{} (2)"]], ids=["twice", "with the label taken"])
def test_a_tuned_named_twice_stays_apart_in_the_tables(
    written: tuple[Path, Path], tuned: models.State, tmp_path: Path, extra: list[str]
) -> None:
    one = models.write(tmp_path / "tuned", tuned)
    others = [models.write(Path(name.format(one)), tuned) for name in extra]
    names = [str(path) for path in (one, *others, one)]
    found = offaxis.compare(written[0], names, spectra="none")
    assert [pair["tuned"] for pair in found.summary()["pairs"]] == names, "verbatim"
    alone = found.measurements.filter(~pl.col("measure").str.starts_with("jaccard"))
    assert alone.select("tuned", "tensor", "measure").is_duplicated().sum() == 0
    assert alone["tuned"].n_unique() == len(names)


def test_without_spectra_the_rest_is_the_same(
    compared: Comparison, written: tuple[Path, Path]
) -> None:
    found = offaxis.compare(*written, spectra="none")
    pair, full = (c.summary()["pairs"][0] for c in (found, compared))
    for name in ("unchanged_bf16", "low_magnitude_overlap", "low_magnitude_overlap_rounding_null",
                 "low_magnitude_overlap_top5", "relative_update_norm", "nss_bound"):  # fmt: skip
        assert pair[name] == full[name], name
    for name in ("nss", "principal_overlap", "rotation_left_deg", "rank1_energy"):
        assert pair[name] is None
    rows = found.measurements.filter(pl.col("measure") == "nss")
    assert set(rows["status"]) == {"not_asked_for"}
    assert rows.height == 21


def test_a_sample_of_spectra(compared: Comparison, written: tuple[Path, Path]) -> None:
    found, again, other = (
        offaxis.compare(*written, spectra="sample:14", seed=seed) for seed in (0, 0, 5)
    )
    assert found.measurements.equals(again.measurements), "seeded"
    rows = found.measurements.filter(pl.col("measure") == "nss")
    assert (
        rows.filter(pl.col("value").is_not_null())["role"].value_counts()["count"].to_list()
        == [2] * 7
    )
    assert set(rows.filter(pl.col("value").is_null())["status"]) == {"not_sampled"}
    chosen = [set(c.measurements.filter((pl.col("measure") == "nss")
                                        & pl.col("value").is_not_null())["tensor"])
              for c in (found, other)]  # fmt: skip
    assert chosen[0] != chosen[1]
    full = compared.measurements.filter(pl.col("measure") == "nss")
    both = rows.drop_nulls("value").join(full, on="tensor")
    assert both["value"].to_list() == pytest.approx(both["value_right"].to_list(), rel=1e-9)


def test_intervals_of_sampled_spectra_cover_the_full_mean(
    compared: Comparison, written: tuple[Path, Path]
) -> None:
    truth = compared.summary()["pairs"][0]
    inside = 0
    for seed in range(10):
        pair = offaxis.compare(*written, spectra="sample:14", seed=seed).summary()["pairs"][0]
        for name in ("nss", "effective_rank", "rotation_left_deg"):
            low, high = pair["intervals"][name]
            inside += low <= truth[name] <= high
    assert inside >= 25, "of 30"


def test_a_sample_of_all_is_all(compared: Comparison, written: tuple[Path, Path]) -> None:
    pair = offaxis.compare(*written, spectra="sample:999").summary()["pairs"][0]
    full = compared.summary()["pairs"][0]
    assert pair["nss"] == pytest.approx(full["nss"], rel=1e-9)
    assert pair["measured"] == full["measured"]


# --------------------------------------------------------------------------- refused, named, kept


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"angle_rank": 0}, "angle_rank"),
        ({"principal_rank": -1}, "principal_rank"),
        ({"spectra": "most"}, "sample:N"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused(
    written: tuple[Path, Path], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        offaxis.compare(*written, **settings)


def test_no_tuned_at_all_is_refused(written: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="at least one"):
        offaxis.compare(written[0], [])


@pytest.mark.parametrize("where", ["first", "last"])
def test_one_bad_tuned_fails_the_whole(
    written: tuple[Path, Path], tmp_path: Path, where: str
) -> None:
    names = [written[1], tmp_path / "missing"]
    with pytest.raises(OffaxisError, match="missing"):
        offaxis.compare(written[0], names if where == "last" else names[::-1])


def test_progress_counts_to_the_end(written: tuple[Path, Path], base: models.State) -> None:
    steps: list[Any] = []
    lines: list[str] = []
    offaxis.compare(*written, spectra="none", progress=steps.append, announce=lines.append)
    total = sum(w.numel() for w in base.values())
    assert [step.total for step in steps] == [total] * len(base)
    assert steps[-1].done == total
    assert [step.tensor for step in steps] == sorted(base) or len({s.tensor for s in steps}) == len(
        base
    )
    assert any("GB to read" in line for line in lines)


def test_an_error_in_a_callback_reaches_the_caller(written: tuple[Path, Path]) -> None:
    def stop(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        offaxis.compare(*written, spectra="none", progress=stop)


# ------------------------------------------------------------------------------------------ save


def test_saved_tables_read_back_equal(compared: Comparison, tmp_path: Path) -> None:
    out = compared.save(tmp_path / "deep" / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.parquet", "measurements.parquet", "report.html", "summary.json",
    ]  # fmt: skip
    stored = pl.read_parquet(out / "measurements.parquet")
    assert stored.equals(compared.measurements)
    assert tuple(stored.columns) == MEASUREMENTS == (
        "tuned", "tensor", "layer", "role", "expert", "rows", "cols", "measure", "value", "unit",
        "error", "status",
    )  # fmt: skip
    kinds = {"layer": pl.Int32, "expert": pl.Int32, "rows": pl.Int64, "cols": pl.Int64,
             "value": pl.Float64, "error": pl.Float64}  # fmt: skip
    assert dict(stored.schema) == {name: kinds.get(name, pl.String()) for name in MEASUREMENTS}
    curves = pl.read_parquet(out / "curves.parquet")
    assert curves.equals(compared.curves)
    assert tuple(curves.columns) == CURVES
    assert json.loads((out / "summary.json").read_text()) == json.loads(
        json.dumps(compared.summary())
    )
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_rows_and_columns_are_those_of_the_model(compared: Comparison, base: models.State) -> None:
    for name, rows, cols in compared.measurements.select("tensor", "rows", "cols").unique().rows():
        shape = base[name].shape
        assert (rows, cols) == (tuple(shape) if len(shape) == 2 else (1, shape[0]))


def test_save_refuses_what_is_not_empty(compared: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="overwrite"):
        compared.save(out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    compared.save(out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("there", [False, True], ids=["new", "overwritten"])
def test_a_failed_save_leaves_nothing(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "summary.json").write_text("old")

    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises((OffaxisError, OSError)):
        compared.save(out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if there else [])
    if there:
        assert (out / "summary.json").read_text() == "old"


def test_steps_are_read_from_the_last_part_of_a_name() -> None:
    """A directory above that speaks of steps or epochs is not the step."""
    from offaxis.comparison.consensus import step_of

    assert step_of("rl-checkpoint-20") == ("rl", 20)
    assert step_of("runs/rl/checkpoint-20/") == ("runs/rl", 20)
    assert step_of("global_step_20/actor") == ("actor", 20)
    assert step_of("sft-60")[1] is None
    assert step_of("sweep-epoch3/checkpoint-500")[1] == 500
    assert step_of("/tmp/test_step_1/rl/checkpoint-20")[1] == 20
