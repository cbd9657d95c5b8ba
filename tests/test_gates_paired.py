"""Gate I of two runs from one base: planted flat directions, lengths that do not count."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anchor_models import fisher, flattened, naive_kl, prefixes, tiny_move
from offaxis.errors import InputError
from offaxis.gates import versus, versus_summary
from offaxis.gates.fisher import Settings
from offaxis.gates.fisher.exact import Derivative
from offaxis.gates.fisher.intervals import Resampler
from offaxis.gates.fisher.paired import _measured, contrasts
from offaxis.lab.tasks import TASKS

BUNDLED = Path(__file__).parents[1] / "src" / "offaxis" / "lab" / "base"
QUICK = Settings(max_new_tokens=8)


def prompts(count: int) -> list[str]:
    task = TASKS["arithmetic"]
    return [one.prompt for one in task.problems(count, seed=0, split="held_out", difficulty=1)]


def written(out: Path, changes: dict[str, torch.Tensor]) -> Path:
    """The bundled base, in float64, with some tensors changed."""
    state = {n: w.double() for n, w in load_file(BUNDLED / "model.safetensors").items()}
    out.mkdir()
    save_file(state | {n: state[n] + d for n, d in changes.items()}, out / "model.safetensors")
    (out / "config.json").write_text((BUNDLED / "config.json").read_text())
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noise on one matrix, twice that, and the direction along which no logit moves."""
    root = tmp_path_factory.mktemp("runs")
    state = load_file(BUNDLED / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(state[name].shape, generator=generator).double()
    gain = "model.layers.1.input_layernorm.weight"
    fed = [f"model.layers.1.self_attn.{one}_proj.weight" for one in "qkv"]
    flat = {gain: 1e-3 * state[gain].double()} | {n: -1e-3 * state[n].double() for n in fed}
    return {
        "noise": written(root / "noise", {name: noise}),
        "twice": written(root / "twice", {name: 2 * noise}),
        "flat": written(root / "flat", flat),
    }


def test_flat_against_steep_and_length_does_not_count(runs: dict[str, Path]) -> None:
    said: list[str] = []
    pairs = [(runs["flat"], runs["noise"]), (runs["twice"], runs["noise"])]
    found = versus(
        BUNDLED, pairs, data=prompts(3), settings=QUICK, device="cpu", announce=said.append
    )
    assert len(said) == 5
    model = next(one for one in found.contrasts if one.scope == "model")
    assert model.each[0] < 1e-12, "no logit moves along it"
    assert model.each[1] == pytest.approx(1, rel=1e-5), "a quotient has no length"
    norms = {(Path(one.run).name, one.scope): one.norm for one in found.sides}
    assert norms["twice", "model"] == pytest.approx(2 * norms["noise", "model"], rel=1e-6)
    assert norms["noise", "matrices"] == norms["noise", "model"]
    kls = {Path(one.run).name: one.kl_base_tuned.value for one in found.sides}
    assert kls["flat"] < 1e-4 * kls["noise"] < kls["noise"] < kls["twice"]
    assert found.positions <= 3 * QUICK.max_new_tokens
    assert versus_summary(found)["contrasts"][0]["pairs"] == 2


def test_a_run_against_itself_is_one_for_every_prompt(runs: dict[str, Path]) -> None:
    one = [(runs["noise"], runs["noise"])]
    found = versus(BUNDLED, one, data=prompts(3), settings=QUICK, device="cpu")
    for contrast in found.contrasts:
        ends = (contrast.over_prompts.low, contrast.over_prompts.high)
        assert (contrast.over_prompts.value, *ends) == pytest.approx((1, 1, 1))
        assert contrast.over_runs.low is None, "one pair has no spread"


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        versus(BUNDLED, [], data=prompts(1))
    with pytest.raises(InputError, match="same weights as the base"):
        versus(BUNDLED, [(BUNDLED, BUNDLED)], data=prompts(1), settings=QUICK, device="cpu")


def test_quotients_against_the_matrix_written_out() -> None:
    move, given = tiny_move(), prefixes(samples=2)
    each, norms, apart = _measured(move, given, Derivative())
    whole = flattened({unit.name: one for unit, one in zip(move.units, move.delta, strict=True)})
    square = float(whole @ whole)
    forms = np.array([float(whole @ one @ whole) for one in fisher(move, given)])
    assert each["model"] == pytest.approx(given.over_prompts(forms) / square, rel=1e-9)
    assert norms["model"] == pytest.approx(square**0.5)
    assert set(each) == {"model", "matrices"}
    back = given.over_prompts(np.array(naive_kl(move, given, 1.0)[1]))
    assert apart == pytest.approx(back, rel=1e-9)


def test_intervals_over_prompts_and_over_runs() -> None:
    """Geometric means, Student's t of the logarithm, prompts resampled alike on both sides."""
    rng = np.random.default_rng(0)
    prompts_ = rng.lognormal(size=8)
    ratios = np.array([0.5, 0.8, 1.25])
    first = [{"model": ratio * prompts_} for ratio in ratios]
    second = [{"model": prompts_} for _ in ratios]
    (found,) = contrasts(first, second, resampler=Resampler(8, seed=0))
    middle = float(np.exp(np.log(ratios).mean()))
    assert found.each == pytest.approx(ratios.tolist())
    assert found.over_prompts.value == pytest.approx(middle)
    assert found.over_prompts.low == pytest.approx(middle), "one factor for all prompts: no spread"
    half = 4.303 * float(np.log(ratios).std(ddof=1)) / math.sqrt(3)
    assert found.over_runs.value == pytest.approx(middle)
    assert found.over_runs.high == pytest.approx(middle * math.exp(half), rel=2e-3)
    uneven = [{"model": rng.lognormal(size=8)} for _ in ratios]
    (spread,) = contrasts(uneven, second, resampler=Resampler(8, seed=0))
    assert spread.over_prompts.low is not None
    assert spread.over_prompts.low < spread.over_prompts.value < spread.over_prompts.high
