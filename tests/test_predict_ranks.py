"""`rank_study` and its recipes: planted ranks, exact sums, what stays at the base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from models import State, tiny, write
from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.predict.methods import Timeline
from offaxis.predict.ranks import rank_study
from offaxis.predict.rebuilding import (
    RankK,
    directions,
    parse_recipes,
    percent_rank,
    rank_recipe,
)
from predict_runs import read_all

F64 = torch.float64


def drawn(rows: int, cols: int, *, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, cols, dtype=F64, generator=generator)
    left, _ = torch.linalg.qr(torch.randn(rows, rank, dtype=F64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(cols, rank, dtype=F64, generator=generator))
    return left @ torch.diag(torch.arange(rank, 0, -1, dtype=F64)) @ right.T


def by_svd(matrix: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Σ σᵢuᵢvᵢᵀ by LAPACK's SVD."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, start:stop] * s[start:stop]) @ v[start:stop]


# ------------------------------------------------------------------------------------ one matrix


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (17, 17)])
def test_a_planted_rank_three_is_found_and_rebuilt(shape: tuple[int, int]) -> None:
    update = drawn(*shape, rank=3)
    found = directions(update, most=3)
    assert torch.allclose(found.values, torch.tensor([3.0, 2, 1], dtype=F64), atol=1e-12)
    assert torch.allclose(found.part(0, 3), update, atol=1e-12)
    assert float((found.part(0, 2) - update).norm()) == pytest.approx(1, abs=1e-9)
    assert found.shape == shape


@pytest.mark.parametrize("shape", [(9, 31), (31, 9), (1, 6), (6, 1), (14, 14)])
def test_every_recipe_agrees_with_an_svd(shape: tuple[int, int]) -> None:
    update, least = drawn(*shape, seed=3), min(shape)
    found, norm = directions(update), float(update.norm())
    for k in range(1, least + 1):
        kept = by_svd(update, 0, k)
        assert torch.allclose(rank_recipe(k, rescale=False).rebuild(found), kept, atol=1e-9)
        longer = rank_recipe(k).rebuild(found)
        assert torch.allclose(longer, kept * norm / kept.norm(), atol=1e-9)
        (one,) = parse_recipes((), components=[k], rescale=False)
        assert torch.allclose(one.rebuild(found), by_svd(update, k - 1, k), atol=1e-9)
    (half,) = parse_recipes((), scales=[0.5])
    assert float(half.rebuild(found).norm()) == pytest.approx(norm / 2)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.floats(1e-160, 1e100))
@settings(max_examples=40, deadline=None)
def test_components_add_up_and_all_of_them_are_the_update(
    rows: int, cols: int, seed: int, size: float
) -> None:
    update = drawn(rows, cols, seed=seed) * size
    found, least = directions(update), min(rows, cols)
    whole = rank_recipe("full", rescale=False).rebuild(found)
    assert float((whole / size - update / size).abs().max()) <= 1e-13 * (rows * cols)
    ones = [parse_recipes((), components=[i], rescale=False)[0] for i in range(1, least + 1)]
    total = torch.zeros(rows, cols, dtype=F64)
    for k, one in enumerate(ones, 1):
        total += one.rebuild(found)
        kept = rank_recipe(k, rescale=False).rebuild(found)
        assert torch.allclose(total / size, kept / size, atol=1e-12)


def test_turning_scaling_and_transposing_the_update_turn_the_result() -> None:
    update = drawn(10, 7)
    rotation, _ = torch.linalg.qr(drawn(10, 10, seed=5))
    one = rank_recipe(2).rebuild(directions(update))
    assert torch.allclose(rank_recipe(2).rebuild(directions(rotation @ update)), rotation @ one)
    assert torch.allclose(rank_recipe(2).rebuild(directions(-3 * update)), -3 * one)
    assert torch.allclose(rank_recipe(2).rebuild(directions(update.T.contiguous())), one.T)


def test_edges_of_one_matrix() -> None:
    zero = directions(torch.zeros(4, 3, dtype=F64))
    assert zero.norm == 0
    assert not rank_recipe(1).rebuild(zero).any()
    (beyond,) = parse_recipes((), components=[9])
    assert not beyond.rebuild(directions(drawn(4, 3))).any()
    broken = drawn(4, 3)
    broken[1, 1] = float("nan")
    with pytest.raises(CheckpointError, match="q_proj: 1 of 12"):
        directions(broken, name="q_proj")
    with pytest.raises(InputError, match="a matrix is needed"):
        directions(torch.zeros(3, dtype=F64))


@pytest.mark.parametrize(
    ("percent", "shape", "rank"),
    [(1, (128, 448), 1), (1, (199, 300), 1), (1, (200, 200), 2), (1, (4096, 11008), 40),
     (1, (3, 3), 1), (10, (29, 100), 2), (100, (7, 9), 7), (0.1, (3000, 3000), 3)],
)  # fmt: skip
def test_a_percentage_of_the_smaller_side(
    percent: float, shape: tuple[int, int], rank: int
) -> None:
    assert percent_rank(percent, shape) == rank


def test_recipes_are_named_and_refused() -> None:
    found = parse_recipes((1, "1%", "full"), components=[2], scales=[0.25])
    names = ["rank-1", "rank-1pct", "full", "component-2", "scale-0.25"]
    assert [one.name for one in found] == names
    assert parse_recipes((4,), rescale=False)[0].name == "rank-4-as-is"
    for bad in (0, "-1", "x", "0%", "101%", "1.5", ""):
        with pytest.raises(InputError, match="rank"):
            parse_recipes((bad,))
    with pytest.raises(InputError, match="counted from 1"):
        parse_recipes((), components=[0])
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="scale"):
            parse_recipes((), scales=[scale])
    with pytest.raises(InputError, match="twice: rank-1"):
        parse_recipes((1, "1"))
    with pytest.raises(InputError, match="nothing to rebuild"):
        parse_recipes(())


# ------------------------------------------------------------------------------------ predictor


class Fixed:
    """A trail of one tensor in memory."""

    def __init__(self, *updates: torch.Tensor, matrix: bool = True) -> None:
        self.name, self.shape, self.is_matrix = "w", tuple(updates[0].shape), matrix
        self._updates = [one.numpy() for one in updates]

    def __len__(self) -> int:
        return len(self._updates)

    def __getitem__(self, t: int) -> np.ndarray:
        return self._updates[t]

    def rows(self, t: int, part: slice) -> np.ndarray:
        return self._updates[t].reshape(-1)[part]


def test_the_predictor_grows_the_last_update_with_the_step() -> None:
    first, last = drawn(8, 5), drawn(8, 5, seed=1)
    timeline = Timeline(np.array([10.0, 20.0]), at=50.0)
    fitted = RankK(1).fit(Fixed(first, last), timeline)
    kept = by_svd(last, 0, 1)
    kept *= last.norm() / kept.norm()
    assert np.allclose(fitted.update(), 2.5 * kept.numpy())
    assert np.allclose(fitted.update(20), kept.numpy())
    assert np.allclose(RankK("full").fit(Fixed(last), Timeline(np.array([3.0]))).update(), last)
    assert fitted.facts["norm_share"] == pytest.approx(
        float(by_svd(last, 0, 1).norm() / last.norm())
    )
    assert RankK().fit(Fixed(last, matrix=False), timeline).update() is None
    assert RankK().fit(Fixed(torch.zeros(3, 3, dtype=F64)), timeline).facts == {"rank": 1.0}


# ------------------------------------------------------------------------------------ models


def moved(state: State, *, size: float = 1e-3, seed: int = 1) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: w.double() + size * torch.randn(w.shape, dtype=F64, generator=generator)
        for name, w in state.items()
    }


def pair(directory: Path, *, dtype: torch.dtype = F64) -> tuple[Path, Path, State, State]:
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    tuned = moved(base)
    return (
        write(directory / "base", base, dtype=dtype),
        write(directory / "tuned", tuned, dtype=dtype),
        base,
        tuned,
    )


def is_matrix(name: str) -> bool:
    return "proj" in name


def test_full_rank_as_it_is_gives_the_matrices_back(tmp_path: Path) -> None:
    base, tuned, before, after = pair(tmp_path)
    rank_study(base, tuned, ranks=["full"], rescale=False, out=tmp_path / "out")
    made = read_all(tmp_path / "out")
    assert made.keys() == before.keys()
    for name, value in made.items():
        if is_matrix(name):
            assert float((value - after[name]).abs().max()) <= 1e-16
        else:
            assert torch.equal(value, before[name])


def test_one_recipe_is_a_model_and_several_are_directories(tmp_path: Path) -> None:
    base, tuned, before, after = pair(tmp_path)
    study = rank_study(
        base, tuned, ranks=(1, "1%"), components=[2], scales=[0.5], out=tmp_path / "out"
    )
    assert [one.name for one in study.models] == ["rank-1", "rank-1pct", "component-2", "scale-0.5"]
    name = "model.layers.0.mlp.up_proj.weight"
    update = after[name] - before[name]
    first = by_svd(update, 0, 1)
    made = {one.name: read_all(one)[name] - before[name] for one in study.models}
    assert torch.allclose(made["rank-1"], first * update.norm() / first.norm(), atol=1e-12)
    assert torch.equal(made["rank-1"], made["rank-1pct"])
    assert float(made["scale-0.5"].norm()) == pytest.approx(float(update.norm()) / 2)
    second = by_svd(update, 1, 2)
    assert torch.allclose(made["component-2"], second * update.norm() / second.norm(), atol=1e-12)
    for one in study.models:
        assert (one / "config.json").is_file()
    told = json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert told == study.summary()
    assert told["notes"][0] == "rank-1pct is rank-1 in all 7 matrices: one model"
    assert pl.read_parquet(tmp_path / "out" / "ranks.parquet").equals(study.measurements)
    rank_study(base, tuned, ranks=[1], out=tmp_path / "one")
    alone = load_file(tmp_path / "one" / "model.safetensors")[name] - before[name]
    assert torch.allclose(alone, made["rank-1"], rtol=0, atol=1e-15)


def test_the_numbers_are_those_of_the_updates(tmp_path: Path) -> None:
    base, tuned, before, after = pair(tmp_path)
    study = rank_study(base, tuned, ranks=[2])
    assert study.directory is None
    assert study.models == ()
    table = study.measurements
    total = sum(float((after[n] - before[n]).norm()) ** 2 for n in before)
    for name in before:
        own = {r["measure"]: r["value"] for r in table.filter(tensor=name).to_dicts()}
        update = after[name] - before[name]
        assert own["update_norm"] == pytest.approx(float(update.norm()))
        assert own["update_share"] == pytest.approx(float(update.norm()) ** 2 / total)
        if is_matrix(name):
            sigma = torch.linalg.svdvals(update)
            assert own["rank1_norm_share"] == pytest.approx(float(sigma[0] / sigma.norm()))
            assert own["norm_share[rank-2]"] == pytest.approx(
                float(sigma[:2].norm() / sigma.norm())
            )
            assert own["factor[rank-2]"] == pytest.approx(float(sigma.norm() / sigma[:2].norm()))
    groups = {one["group"]: one for one in study.summary()["groups"]}
    assert sum(one["share"] for one in groups.values()) == pytest.approx(1)
    assert set(groups) == {"matrices", "embeddings", "norms"}
    assert groups["matrices"]["included"]
    assert not groups["norms"]["included"]


def test_a_planted_direction_stands_out_from_the_same_entries_shuffled(tmp_path: Path) -> None:
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    tuned = {n: w + (drawn(*w.shape, rank=1) / 10 if is_matrix(n) else 0) for n, w in base.items()}
    write(tmp_path / "b", base, dtype=F64)
    write(tmp_path / "t", tuned, dtype=F64)
    study = rank_study(tmp_path / "b", tmp_path / "t")
    mean = study.summary()["mean"]
    assert mean["rank1_norm_share"] == pytest.approx(1)
    assert mean["rank1_norm_share_null"] < 0.6
    again = rank_study(tmp_path / "b", tmp_path / "t", seed=1).summary()["mean"]
    assert again["rank1_norm_share"] == mean["rank1_norm_share"]
    assert again["rank1_norm_share_null"] != mean["rank1_norm_share_null"]


def test_what_is_included_is_tuned_to_the_last_bit(tmp_path: Path) -> None:
    base, tuned, _, after = pair(tmp_path)
    rank_study(base, tuned, ranks=[1], include=["norms", "embeddings"], out=tmp_path / "out")
    for name, value in read_all(tmp_path / "out").items():
        if not is_matrix(name):
            assert torch.equal(value, after[name])
    with pytest.raises(InputError, match="include tails"):
        rank_study(base, tuned, include=["tails"])


def test_an_update_grows_in_proportion_to_the_step(tmp_path: Path) -> None:
    base, tuned, before, after = pair(tmp_path)
    rank_study(
        base, tuned, ranks=["full"], rescale=False, step=20, at=50, include=["norms"],
        out=tmp_path / "out",
    )  # fmt: skip
    for name, value in read_all(tmp_path / "out").items():
        factor = 0.0 if "embed" in name else 2.5
        assert torch.allclose(
            value, before[name] + factor * (after[name] - before[name]), atol=1e-12
        )
    with pytest.raises(InputError, match="--steps"):
        rank_study(base, tuned, at=50)


def test_models_come_in_the_tuned_dtype_or_the_one_asked_for(tmp_path: Path) -> None:
    before = {name: w.double() for name, w in tiny(layers=1).items()}
    base = write(tmp_path / "base", before, dtype=torch.bfloat16)
    tuned = write(tmp_path / "tuned", moved(before), dtype=torch.float32)
    rank_study(base, tuned, ranks=[1], out=tmp_path / "wide")
    assert {w.dtype for w in read_all(tmp_path / "wide").values()} == {torch.float32}
    rank_study(base, tuned, ranks=[1], dtype="bfloat16", out=tmp_path / "narrow")
    wide, narrow = read_all(tmp_path / "wide"), read_all(tmp_path / "narrow")
    for name, value in narrow.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, wide[name].bfloat16())


def test_sharding_changes_nothing(tmp_path: Path) -> None:
    base, tuned, before, _ = pair(tmp_path)
    write(tmp_path / "shards", before, dtype=F64, shards=3)
    one = rank_study(base, tuned, ranks=[2], out=tmp_path / "one")
    many = rank_study(tmp_path / "shards", tuned, ranks=[2], out=tmp_path / "many")
    assert one.measurements.equals(many.measurements)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    expected = read_all(tmp_path / "one")
    for name, value in read_all(tmp_path / "many").items():
        assert torch.equal(value, expected[name])


def test_fused_parts_are_rebuilt_one_by_one(tmp_path: Path) -> None:
    before = {name: w.double() for name, w in tiny(layers=1).items()}
    after = moved(before)
    stem = "model.layers.0.mlp"

    def fused(state: State) -> State:
        gate, up = (state[f"{stem}.{side}_proj.weight"] for side in ("gate", "up"))
        rest = {n: w for n, w in state.items() if "gate_proj" not in n and "up_proj" not in n}
        return rest | {f"{stem}.gate_up_proj.weight": torch.cat([gate, up])}

    places = [
        write(tmp_path / name, state, dtype=F64)
        for name, state in (
            ("b", before),
            ("t", after),
            ("bf", fused(before)),
            ("tf", fused(after)),
        )
    ]
    apart = rank_study(places[0], places[1], ranks=[1], out=tmp_path / "o")
    rank_study(places[2], places[3], ranks=[1], out=tmp_path / "of")
    expected = fused(read_all(tmp_path / "o"))
    for name, value in read_all(tmp_path / "of").items():
        assert torch.allclose(value, expected[name], atol=1e-15)
    assert apart.summary()["mean"]["matrices"] == 7


def test_refusals_write_nothing(tmp_path: Path) -> None:
    base, tuned, before, after = pair(tmp_path)
    broken = {name: w.clone() for name, w in after.items()}
    broken["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    write(tmp_path / "broken", broken, dtype=F64)
    with pytest.raises(CheckpointError, match=r"up_proj.*1 of 1536"):
        rank_study(base, tmp_path / "broken", out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="BASE"):
        rank_study(base, write(tmp_path / "same", before, dtype=F64), out=tmp_path / "out")
    with pytest.raises(InputError, match="BASE itself"):
        rank_study(base, base, out=tmp_path / "out")
    with pytest.raises(InputError, match="dtype"):
        rank_study(base, tuned, dtype="int8", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        rank_study(base, tuned, out=tmp_path / "full")
    with pytest.raises(OutputError, match="directory of"):
        rank_study(base, tuned, out=tuned, overwrite=True)


def test_a_still_matrix_has_no_share(tmp_path: Path) -> None:
    base, _, before, after = pair(tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    still = write(tmp_path / "still", after | {name: before[name]}, dtype=F64)
    study = rank_study(base, still, ranks=[1], out=tmp_path / "out")
    own = study.measurements.filter(tensor=name, measure="rank1_norm_share").to_dicts()[0]
    assert own["value"] is None
    assert own["status"] == "no_update"
    assert study.summary()["mean"]["unmoved"] == 1
    assert torch.equal(read_all(tmp_path / "out")[name], before[name])
