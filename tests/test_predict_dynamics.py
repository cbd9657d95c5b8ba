"""Trajectories of u₁, what `dynamics` says of planted runs, embedding shift, files and verbs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from models import ROLES, State, tiny, write
from offaxis.cli.app import build
from offaxis.errors import InputError, OutputError
from offaxis.predict.dynamics import Dynamics, dynamics
from offaxis.predict.dynamics_pictures import save_picture
from offaxis.predict.embeddings import embedding_shift, rounding_floor, row_shifts
from offaxis.predict.series import open_series
from offaxis.predict.trajectories import aligned_signs, matrix_trails, trajectory

F64 = torch.float64
STEPS = (10, 20, 30, 40, 60, 80)
SCORES = (0.55, 0.61, 0.66, 0.70, 0.76, 0.80)


def unit(size: int, rng: np.random.Generator) -> np.ndarray:
    found = rng.standard_normal(size)
    return found / np.linalg.norm(found)


def turning(directory: Path, *, drift: bool = False) -> tuple[Path, list[Path], dict[str, list]]:
    """A run whose matrices are rank one and turn in a plane, by the score or on a walk of u."""
    rng = np.random.default_rng(0)
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    truth: dict[str, list] = {name: [] for name in base if "proj" in name}
    states: list[State] = [dict(base) for _ in STEPS]
    for name, told in truth.items():
        rows, cols = base[name].shape
        first, second, right = unit(rows, rng), unit(rows, rng), unit(cols, rng)
        for t, score in enumerate(SCORES):
            u = first + 2 * (score - 0.5) * second
            if drift:
                first = first + 0.3 * unit(rows, rng)
                u = first
            u = u / np.linalg.norm(u)
            told.append((u, right, 1e-3 * (t + 1)))
            flipped = -1.0 if t % 2 else 1.0  # of both: the update stays
            update = 1e-3 * (t + 1) * np.outer(flipped * u, flipped * right)
            states[t][name] = base[name] + torch.from_numpy(update)
    base_dir = write(directory / "base", base, dtype=F64)
    places = [
        write(directory / f"checkpoint-{step}", state, dtype=F64)
        for step, state in zip(STEPS, states, strict=True)
    ]
    return base_dir, places, truth


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], dict[str, list]]:
    return turning(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def found(run: tuple[Path, list[Path], dict[str, list]]) -> Dynamics:
    return dynamics(run[0], run[1], scores=SCORES, draws=40)


# ------------------------------------------------------------------------------- trajectories


def test_planted_directions_are_followed(run: tuple[Path, list[Path], dict[str, list]]) -> None:
    series = open_series(run[0], run[1])
    trails = list(matrix_trails(series))
    assert {one.name for one in trails} == set(run[2])
    for trail in trails:
        path = trajectory(trail)
        u, v, sizes = zip(*run[2][trail.name], strict=True)
        assert np.abs((path.left * np.array(u)).sum(axis=1)) == pytest.approx(np.ones(6))
        assert path.sigma == pytest.approx(sizes, rel=1e-6)
        assert path.norms == pytest.approx(sizes, rel=1e-6)
        assert (np.sum(path.left[1:] * path.left[:-1], axis=1) > 0).all()
        assert abs(path.right @ v[-1]) == pytest.approx(1)
        update = path.last_update()
        assert update == pytest.approx(sizes[-1] * np.outer(u[-1], v[-1]), abs=1e-12)
        assert np.linalg.norm(path.last_update(2.0)) == pytest.approx(2)
        assert np.linalg.norm(path.rows("scaled"), axis=1) == pytest.approx(sizes, rel=1e-6)
        assert np.linalg.norm(path.rows("raw"), axis=1) == pytest.approx(np.ones(6))


def test_trajectories_agree_with_full_decompositions(tmp_path: Path) -> None:
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    generator = torch.Generator().manual_seed(0)
    state, places = base, []
    for step in (1, 2, 3):
        state = {n: w + 1e-3 * torch.randn(w.shape, dtype=F64, generator=generator)
                 for n, w in state.items()}  # fmt: skip
        places.append(write(tmp_path / f"checkpoint-{step}", state, dtype=F64))
    series = open_series(write(tmp_path / "base", base, dtype=F64), places)
    for trail in matrix_trails(series):
        path = trajectory(trail)
        for t in range(3):
            u, s, _ = np.linalg.svd(trail[t])
            assert path.sigma[t] == pytest.approx(s[0], rel=1e-6)
            assert path.norms[t] == pytest.approx(np.linalg.norm(s))
            if not path.tied[t]:
                assert abs(path.left[t] @ u[:, 0]) == pytest.approx(1, abs=1e-6)
        whole = np.linalg.norm(path.last_update())
        assert whole == pytest.approx(path.norms[-1])
        cosine = (path.last_update() * trail[2]).sum() / path.norms[-1] ** 2
        assert cosine == pytest.approx(path.sigma[-1] / path.norms[-1])  # u and v turn together


def test_of_a_transposed_linear_u_is_on_the_output_side(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn.c_attn": (8, 24), "mlp.c_fc": (8, 20)}  # (in, out), as Conv1D stores
    base = {f"h.0.{name}.weight": torch.randn(*shape, dtype=F64, generator=generator)
            for name, shape in shapes.items()}  # fmt: skip
    tuned = {name: w + 0.01 * torch.randn(w.shape, dtype=F64, generator=generator)
             for name, w in base.items()}  # fmt: skip
    places = [write(tmp_path / "b", base, dtype=F64), write(tmp_path / "t", tuned, dtype=F64)]
    paths = {one.name: one for one in matrix_trails(open_series(places[0], places[1:]))}
    trail = paths["h.0.mlp.c_fc.weight"]
    path = trajectory(trail)
    assert path.shape == (20, 8)
    _, s, v = np.linalg.svd(trail[0])
    assert abs(path.left[0] @ v[0]) == pytest.approx(1)
    assert path.last_update().shape == (8, 20)
    assert (path.last_update() * trail[0]).sum() == pytest.approx(path.norms[0] * s[0])


def test_signs_are_walked_backwards_and_pass_over_zeros() -> None:
    u = np.array([[1.0, 0], [0, 0], [-0.9, 0.1], [0.8, -0.3]])
    signs = aligned_signs(u)
    assert signs.tolist() == [1, 1, -1, 1]
    assert aligned_signs(-u).tolist() == (-signs * [1, -1, 1, 1]).tolist()
    assert aligned_signs(np.zeros((3, 2))).tolist() == [1, 1, 1]
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((7, 5))
    flips = rng.choice([-1.0, 1.0], 7)
    flipped = rows * flips[:, None]
    assert flipped * aligned_signs(flipped)[:, None] == pytest.approx(
        rows * aligned_signs(rows)[:, None]
    )


def test_a_matrix_that_stays_is_told_so(tmp_path: Path) -> None:
    base_dir, places, _ = turning(tmp_path)
    from safetensors.torch import load_file, save_file

    name = "model.layers.0.self_attn.q_proj.weight"
    ground = load_file(base_dir / "model.safetensors")[name]
    for place in places:
        state = load_file(place / "model.safetensors")
        save_file(state | {name: ground}, place / "model.safetensors")
    found = dynamics(base_dir, places, scores=SCORES, draws=5)
    rows = found.measurements.filter(tensor=name, kind="raw").to_dicts()
    assert rows[0]["status"] == "no_movement"
    assert all(row["value"] is None for row in rows)
    assert name not in found.r2()
    assert found.summary()["kinds"]["raw"]["matrices"] == 6


# ------------------------------------------------------------------------------- what it says


def test_a_run_that_turns_with_its_score_beats_the_nulls(found: Dynamics) -> None:
    told = found.summary()
    raw = told["kinds"]["raw"]
    assert raw["matrices"] == 7
    assert raw["mean"]["r2"] > 0.99
    assert raw["mean"]["q2"] > 0.99
    assert raw["mean"]["walk_r2"] > 0.8
    assert raw["shares"]["above_walks"] > 0.8
    assert raw["shares"]["left_out_above_step"] == 1
    assert told["step_line"]["r2"] < raw["mean"]["r2"]
    assert {row["role"] for row in raw["by_role"]} == set(ROLES)
    assert raw["by_layer"][0]["matrices"] == 7
    json.dumps(told, allow_nan=False)


def test_a_run_that_drifts_has_a_high_r2_and_beats_nothing(tmp_path: Path) -> None:
    base, places, _ = turning(tmp_path, drift=True)
    told = dynamics(base, places, scores=SCORES, draws=60).summary()["kinds"]["raw"]
    assert told["mean"]["r2"] > 0.8
    assert told["shares"]["above_walks"] <= 0.3
    assert abs(told["mean"]["r2"] - told["mean"]["walk_r2"]) < 0.08


def test_checkpoints_without_a_score_are_followed_and_not_fitted(
    run: tuple[Path, list[Path], dict[str, list]], found: Dynamics
) -> None:
    sparse = dynamics(run[0], run[1], scores=[*SCORES[:2], None, *SCORES[3:]], draws=40)
    assert sparse.summary()["fitted_on"] == 5
    assert sparse.paths.height == found.paths.height
    left_out = dynamics(run[0], [*run[1][:2], *run[1][3:]], scores=[*SCORES[:2], *SCORES[3:]],
                        draws=40)  # fmt: skip
    assert sparse.r2() == pytest.approx(left_out.r2(), abs=1e-8)


def test_the_seed_decides_and_the_other_tensors_do_not(
    run: tuple[Path, list[Path], dict[str, list]], found: Dynamics
) -> None:
    again = dynamics(run[0], run[1], scores=SCORES, draws=40)
    assert again.measurements.equals(found.measurements)
    other = dynamics(run[0], run[1], scores=SCORES, draws=40, seed=1)
    assert other.r2() == found.r2()
    assert not other.measurements.equals(found.measurements)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.5, 0.6, 0.7, None, None, None], "3 checkpoints have a score, and 4"),
        ([0.5] * 6, "all 6 scores are 0.5"),
        ([None] * 6, "--scores"),
        ([0.5, 61.0, *SCORES[2:]], "percent"),
    ],
)
def test_scores_that_say_nothing_are_refused(
    run: tuple[Path, list[Path], dict[str, list]], scores: list, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        dynamics(run[0], run[1], scores=scores, draws=5)


# ------------------------------------------------------------------------------- embeddings


def test_row_shifts_are_exact_where_cosines_lose_their_digits() -> None:
    base = torch.tensor([[1.0, 0], [3, 4], [0, 0], [1, 0]], dtype=F64)
    tuned = torch.tensor([[1.0, 1e-9], [6, 8], [1, 0], [-1, 0]], dtype=F64)
    shift, distance = row_shifts(base, tuned)
    assert shift[:2].tolist() == pytest.approx([1e-9, 1.0])
    assert float(distance[0]) == pytest.approx(5e-19, rel=1e-6)  # 1 − cos in floats is 0
    assert float(distance[1]) == pytest.approx(0, abs=1e-30)
    assert math.isnan(float(distance[2]))
    assert math.isnan(float(shift[2]))
    assert float(distance[3]) == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_rounding_floor_is_what_rounding_does(dtype: torch.dtype) -> None:
    rows = torch.randn(64, 4096, dtype=F64, generator=torch.Generator().manual_seed(0))
    lost = torch.linalg.vector_norm(rows.to(dtype).double() - rows, dim=1)
    measured = lost / torch.linalg.vector_norm(rows, dim=1)
    assert (rounding_floor(rows, dtype) / measured).mean() == pytest.approx(1, abs=0.03)
    assert rounding_floor(4 * rows, dtype) == pytest.approx(rounding_floor(rows, dtype))
    assert math.isnan(float(rounding_floor(torch.zeros(1, 3, dtype=F64), dtype)[0]))


def test_a_moved_token_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {name: w.double() for name, w in tiny(layers=1).items()}
    name = "model.embed_tokens.weight"
    base[name][5] = 0
    tuned = {n: w.clone() for n, w in base.items()}
    tuned[name][17] *= 1.5
    tuned[name][3] += 1e-12
    series = open_series(
        write(tmp_path / "b", base, dtype=F64), [write(tmp_path / "t", tuned, dtype=F64)]
    )
    (whole,) = embedding_shift(series)
    told = whole.summary()
    assert (told["rows"], told["width"], told["empty"], told["stored"]) == (40, 32, 1, "F64")
    assert told["relative_shift_max"] == pytest.approx(0.5)
    assert told["relative_shift_max_token"] == 17
    assert told["relative_shift_mean"] == pytest.approx(0.5 / 39, rel=1e-6)
    assert told["cosine_distance_max_token"] == 3
    assert told["above_floor_bf16"] == pytest.approx(1 / 39)
    assert 0 < told["floor_stored_mean"] < told["floor_bf16_mean"] < 1e-2
    monkeypatch.setattr("offaxis.predict.embeddings._BLOCK", 100)
    (blocks,) = embedding_shift(series)
    assert blocks.tokens.equals(whole.tokens)


# ------------------------------------------------------------------------------- files, verbs


def test_what_is_saved_says_what_was_found(found: Dynamics, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "dynamics.json").read_text())
    assert told == found.summary()
    assert pl.read_parquet(tmp_path / "out" / "dynamics.parquet").equals(found.measurements)
    paths = pl.read_parquet(tmp_path / "out" / "paths.parquet")
    assert paths.height == 7 * 2 * 6
    assert pl.read_parquet(tmp_path / "out" / "embeddings.parquet").height == 40
    names = {one.name for one in (tmp_path / "out").glob("*.svg")}
    assert names == {"r2.svg", "components.svg", "trajectories-raw.svg", "trajectories-scaled.svg"}
    picture = (tmp_path / "out" / "components.svg").read_text()
    assert "half a cosine" in picture
    assert "6/π²" in picture
    first = (tmp_path / "out" / "r2.svg").read_bytes()
    save_picture(found.figures()["r2.svg"], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first
    with pytest.raises(OutputError, match="not empty"):
        found.save(tmp_path / "out")


def test_the_verbs_run(
    run: tuple[Path, list[Path], dict[str, list]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dynamics, "figures", lambda self: {})
    table = tmp_path / "scores.csv"
    rows = [f"{step},{score}" for step, score in zip(STEPS, SCORES, strict=True)]
    table.write_text("\n".join(["step,accuracy", *rows]))
    places = [str(run[0]), *map(str, run[1])]
    app, runner = build(), CliRunner()
    asked = ["predict", "dynamics", *places, "--scores", str(table), "--draws", "10"]
    done = runner.invoke(app, [*asked, "--out", str(tmp_path / "d"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    saved = json.loads((tmp_path / "d" / "dynamics.json").read_text())
    assert told == {"out": str(tmp_path / "d"), **saved}
    words = runner.invoke(app, [*asked, "--out", str(tmp_path / "e"), "--windows", "raw"])
    assert words.exit_code == 0, words.output
    assert "random walks" in words.stdout
    assert (tmp_path / "e" / "windows" / "r2-0" / "model.safetensors").is_file()
    assert runner.invoke(app, [*asked, "--out", "x", "--windows", "odd"]).exit_code == 2
    asked = ["predict", "rank", *places, "--out", str(tmp_path / "r"), "--json"]
    done = runner.invoke(app, [*asked, "--scores", str(table)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["tuned"], told["step"], told["score"]) == (places[-1], 80, 0.80)
    assert (tmp_path / "r" / "model.safetensors").is_file()
    assert (tmp_path / "r" / "ranks.json").is_file()
    words = runner.invoke(app, ["predict", "rank", *places[:2], "--ranks", "1,1%", "--components",
                                "2", "--out", str(tmp_path / "s")])  # fmt: skip
    assert "rank-1pct is rank-1 in all 7 matrices" in words.stdout
    assert (tmp_path / "s" / "component-2" / "config.json").is_file()
    assert runner.invoke(app, [*asked, "--overwrite", "--scales", "x"]).exit_code == 2
