"""Sliding windows over modules: where they lie, which updates they inject, the control orders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import tiny, write
from offaxis.errors import InputError, OutputError
from offaxis.predict.series import Series, open_series
from offaxis.predict.trajectories import Trajectory, matrix_trails, trajectory
from offaxis.predict.windows import module_windows, orders, window_study
from predict_runs import read_all

F64 = torch.float64


@given(st.integers(1, 300), st.floats(0.01, 1), st.floats(0.01, 1))
def test_windows_cover_the_order_from_head_to_tail(count: int, share: float, step: float) -> None:
    order = [f"m{number}" for number in range(count)]
    found = module_windows(order, share=share, step=step)
    size = max(1, round(share * count))
    assert all(len(one.tensors) == size == one.stop - one.start for one in found)
    assert all(one.tensors == tuple(order[one.start : one.stop]) for one in found)
    starts = [one.start for one in found]
    assert starts == sorted(set(starts))
    assert (starts[0], found[-1].stop) == (0, count)
    assert np.diff(starts).max(initial=0) <= max(1, round(step * count))
    assert [one.number for one in found] == list(range(len(found)))


def test_the_papers_window_is_a_third_every_seventh() -> None:
    found = module_windows([f"m{number}" for number in range(28)])
    assert [(one.start, one.stop) for one in found] == [
        (0, 9), (4, 13), (8, 17), (12, 21), (16, 25), (19, 28),
    ]  # fmt: skip
    assert found[2].name == "r2-2"


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.1}, {"step": 0.0}, {"order": []}])
def test_windows_that_cannot_be_are_refused(bad: dict) -> None:
    order = bad.pop("order", ["a", "b"])
    with pytest.raises(InputError, match="modules"):
        module_windows(order, **bad)


def test_orders_are_sorted_or_drawn() -> None:
    r2 = {"a": 0.1, "b": 0.9, "c": 0.5}
    norms = {"a": 3.0, "b": 1.0, "c": 2.0}
    found = orders(r2, norms, random=2)
    assert found["r2"] == ("b", "c", "a")
    assert found["norm"] == ("a", "c", "b")
    assert all(sorted(found[f"random-{number}"]) == ["a", "b", "c"] for number in range(2))
    assert orders(r2, norms, random=2) == found
    many = {f"m{number}": 0.5 for number in range(30)}
    drawn = [orders(many, many, seed=seed)["random-0"] for seed in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, list[Trajectory]]:
    place = tmp_path_factory.mktemp("run")
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    generator = torch.Generator().manual_seed(0)
    tuned = {
        name: w + 1e-3 * torch.randn(w.shape, dtype=F64, generator=generator)
        for name, w in base.items()
    }
    write(place / "base", base, dtype=F64)
    write(place / "checkpoint-5", tuned, dtype=F64)
    series = open_series(place / "base", [place / "checkpoint-5"])
    return series, [trajectory(one) for one in matrix_trails(series)]


def test_only_the_windows_modules_are_injected(
    run: tuple[Series, list[Trajectory]], tmp_path: Path
) -> None:
    series, paths = run
    r2 = {one.tensor: 1 - number / 10 for number, one in enumerate(paths)}
    seen: dict[str, Path] = {}

    def score(place: Path) -> float:
        made = read_all(place)
        moved = {name for name in made if not torch.equal(made[name], series.base[name])}
        seen[place.name] = place
        return float(len(moved))

    table = window_study(series, paths, r2, out=tmp_path / "w", score=score)
    assert table.columns == ["order", "window", "start", "stop", "modules", "r2_least", "r2_mean",
                             "norm_share", "score"]  # fmt: skip
    assert (table["score"] == table["modules"]).all()
    assert set(table["order"]) == {"r2", "norm", "random-0"}
    made = read_all(tmp_path / "w" / "r2-0")
    update = {trail.name: trail[0] for trail in matrix_trails(series)}
    for number, one in enumerate(paths):
        got = (made[one.tensor] - series.base[one.tensor]).numpy()
        u, s, v = np.linalg.svd(update[one.tensor], full_matrices=False)
        size = np.linalg.norm(s) if number < 2 else 0.0  # round(7 / 3) modules
        assert np.linalg.norm(got) == pytest.approx(size, abs=1e-12)
        if size and not one.tied[0]:
            assert got == pytest.approx(size * np.outer(u[:, 0], v[0]), abs=1e-6)
    told = json.loads((tmp_path / "w" / "windows.json").read_text())
    assert told["rows"] == table.to_dicts()
    assert told["windows"][0]["tensors"] == [one.tensor for one in paths[:2]]
    row = table.filter(order="r2", window=0).to_dicts()[0]
    norms = np.array([one.norms[-1] for one in paths])
    share = np.linalg.norm(norms[:2]) / np.linalg.norm(norms)
    assert row["norm_share"] == pytest.approx(share)
    assert (row["r2_least"], row["r2_mean"]) == (pytest.approx(0.9), pytest.approx(0.95))


def test_of_a_fused_tensor_only_the_windows_part_moves(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    base = {name: torch.randn(12, 5, dtype=F64, generator=generator)}
    tuned = {name: base[name] + 0.01 * torch.randn(12, 5, dtype=F64, generator=generator)}
    places = [write(tmp_path / "b", base, dtype=F64), write(tmp_path / "t", tuned, dtype=F64)]
    series = open_series(places[0], places[1:])
    paths = [trajectory(one) for one in matrix_trails(series)]
    r2 = {f"{name}[gate_proj]": 0.9, f"{name}[up_proj]": 0.8}
    window_study(series, paths, r2, out=tmp_path / "w", share=0.5, step=0.5, random=0)
    gate, up = (read_all(tmp_path / "w" / f"r2-{number}")[name] for number in (0, 1))
    assert not torch.equal(gate[:6], base[name][:6])
    assert torch.equal(gate[6:], base[name][6:])
    assert torch.equal(up[:6], base[name][:6])
    assert not torch.equal(up[6:], base[name][6:])


def test_scratch_models_are_scored_and_removed(run: tuple[Series, list[Trajectory]]) -> None:
    series, paths = run
    seen: list[Path] = []

    def score(place: Path) -> float:
        assert (place / "model.safetensors").is_file()
        assert not any(one.exists() for one in seen)  # one at a time
        seen.append(place)
        return 0.5

    r2 = {one.tensor: 0.5 for one in paths}
    table = window_study(series, paths, r2, score=score, random=0, share=1, step=1)
    assert table["modules"].to_list() == [7, 7]
    assert table["norm_share"].to_list() == pytest.approx([1, 1])
    assert len(seen) == 2
    assert not any(one.exists() for one in seen)


def test_a_failing_score_leaves_nothing(
    run: tuple[Series, list[Trajectory]], tmp_path: Path
) -> None:
    series, paths = run
    r2 = {one.tensor: 0.5 for one in paths}

    def score(place: Path) -> float:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        window_study(series, paths, r2, out=tmp_path / "w", score=score)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="score, out"):
        window_study(series, paths, r2)
    with pytest.raises(InputError, match="no trajectory"):
        window_study(series, paths, {"odd": 0.5}, score=score)
    with pytest.raises(OutputError, match="directory of"):
        window_study(series, paths, r2, out=series.base.source, overwrite=True)
