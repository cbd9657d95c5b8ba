"""The last update times a factor: exact, and chosen by what its models score."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models import read, write
from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.predict import LADDER, Scale, Stop, Timeline, best_factor, climb, predict
from offaxis.predict.scale import Ladder
from predict_runs import distance, planted, read_all


def factor_of(run, place) -> float:
    """How many times the last checkpoint's update a written model has."""
    start, last = run.start, read_all(run.checkpoints[-1])
    return distance(read_all(place), start) / distance(last, start)


@pytest.mark.parametrize("factor", [0.5, 1.5, 3.75])
def test_it_is_a_multiple_of_the_update(factor, tmp_path):
    run = planted(tmp_path, noise=1e-5)
    found = predict(run.base, run.checkpoints, method=Scale(factor), out=tmp_path / "out")
    last = read_all(run.checkpoints[-1])
    expected = {n: one + factor * (last[n] - one) for n, one in run.start.items()}
    assert distance(read_all(tmp_path / "out"), expected) < 1e-13
    assert found.facts["over_last"] == pytest.approx(factor)
    assert found.facts["moved_on"] == pytest.approx(abs(factor - 1))
    assert found.facts["factor_mean"] == factor


def test_without_a_factor_it_is_the_ratio_of_the_steps(tmp_path):
    run = planted(tmp_path, steps=(10, 20, 40), curves=(lambda step: step,))
    predict(run.base, run.checkpoints, method="scale", at=100, out=tmp_path / "out")
    assert factor_of(run, tmp_path / "out") == pytest.approx(2.5, rel=1e-12)
    assert distance(read_all(tmp_path / "out"), run.truth(100)) < 1e-12
    with pytest.raises(InputError, match="--at"):
        predict(run.base, run.checkpoints, method="scale", out=tmp_path / "none")


def test_steps_are_not_asked_for_where_a_factor_is_given(tmp_path):
    run = planted(tmp_path, steps=(10,))
    place = run.checkpoints[0].rename(tmp_path / "final")
    found = predict(run.base, [place], method=Scale(2.0), out=tmp_path / "out")
    assert found.told()["checkpoints"][0]["step"] is None


@pytest.mark.parametrize("method", [Stop(), Scale(1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stopping_is_the_last_checkpoint_bit_for_bit(method, dtype, tmp_path):
    """Also where base + (checkpoint − base) would round: entries far smaller than the base's."""
    run = planted(tmp_path, dtype=dtype, noise=1e-5)
    name = "model.norm.weight"
    state = read(run.checkpoints[-1])
    state[name] = torch.full_like(state[name], 1.2345e-12)
    (run.checkpoints[-1] / "model.safetensors").unlink()
    (run.checkpoints[-1] / "config.json").unlink()
    run.checkpoints[-1].rmdir()
    write(run.checkpoints[-1], state)
    predict(run.base, run.checkpoints, method=method, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert all(torch.equal(found[one], values) for one, values in state.items())


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_is_a_number(factor):
    with pytest.raises(InputError, match="finite"):
        Scale(factor)


def test_what_grows_without_bound_is_refused(tmp_path):
    run = planted(tmp_path, dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"do not fit into F32.*--dtype"):
        predict(run.base, run.checkpoints, method=Scale(1e45), out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"predicted update is not finite"):
        predict(
            run.base,
            run.checkpoints,
            method=Scale(1e308 * 1.7),
            dtype="float64",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_weights_are_one_factor_on_the_last():
    class Nothing:
        name, shape, is_matrix = "weight", (2,), False

        def __len__(self) -> int:
            return 3

    fit = Scale().fit(Nothing(), Timeline(np.array([10.0, 20.0, 40.0]), 100.0))
    np.testing.assert_array_equal(fit.weights(), [0, 0, 2.5])
    np.testing.assert_array_equal(fit.weights(60.0), [0, 0, 1.5])


def climbed(scores: dict[float, float], **options) -> Ladder:
    """A ladder whose candidates score as told; each must be there when it is scored."""
    seen = []

    def write_one(factor, where):
        assert not where.exists()
        where.mkdir()
        (where / "factor").write_text(str(factor))
        seen.append(where)

    def score(where):
        return scores[float((where / "factor").read_text())]

    found = climb(write_one, score, factors=list(scores), **options)
    assert not any(place.exists() for place in seen)
    return found


def test_the_best_factor_is_taken():
    found = climbed({1: 0.5, 2: 0.7, 3: 0.6})
    assert (found.best.factor, found.best.score) == (2, 0.7)
    assert [(one.factor, one.score) for one in found.trials] == [(1, 0.5), (2, 0.7), (3, 0.6)]
    json.dumps(found.told(), allow_nan=False)


def test_of_equal_scores_the_smaller_factor():
    assert climbed({1: 0.5, 2: 0.7, 3: 0.7}).best.factor == 2
    assert climbed({3: 0.7, 2: 0.7, 1: 0.1}).best.factor == 2


def test_two_worse_in_a_row_end_it():
    found = climbed({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65, 5: 0.9})
    assert found.untried == (5,)
    assert found.best.factor == 2
    assert climbed({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.6, 6: 0.9}).best.factor == 6
    assert climbed({1: 0.5, 2: 0.4, 3: 0.3, 4: 0.9}, patience=None).best.factor == 4


@pytest.mark.parametrize("factors", [[], [1, 1], [0, 1], [-1], [float("nan")]])
def test_factors_that_are_refused(factors):
    with pytest.raises(InputError, match="factors"):
        climb(lambda *_: None, lambda _: 0.0, factors=factors)


def test_a_score_that_is_no_number():
    with pytest.raises(InputError, match="factor 1: its score is nan"):
        climbed({1: float("nan")})


def test_a_planted_best_factor_is_found(tmp_path):
    """The score falls with the distance to where the run really ends."""
    run = planted(tmp_path, steps=(10, 20), curves=(lambda step: step,), dtype=torch.float32)
    end = run.truth(20 * 2.5)
    asked = []

    def score(place):
        asked.append(place)
        assert (place / "config.json").is_file()
        return -distance(read_all(place), end)

    heard = []
    found = best_factor(
        run.base, run.checkpoints[-1], score=score, scratch=tmp_path, announce=heard.append
    )
    assert found.best.factor == 2.5
    assert len(asked) == len(found.trials) == len(heard)
    assert found.untried == LADDER[len(found.trials) :]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "rl"]


def test_a_place_that_is_taken(tmp_path):
    run = planted(tmp_path)
    for place in (run.base, run.checkpoints[0]):
        with pytest.raises(OutputError, match="is the directory of"):
            predict(run.base, run.checkpoints, method="stop", out=place, overwrite=True)
