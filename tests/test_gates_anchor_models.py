"""Gate I on models that transformers runs: float64 throughout, symmetries flat, files whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.gates.fisher import (
    Anchor,
    Move,
    Settings,
    anchor,
    anchor_summary,
    load_move,
    move_of,
)
from offaxis.gates.fisher.exact import Derivative, exactly
from offaxis.gates.fisher.forms import quadratic_forms
from offaxis.gates.fisher.nulls import real
from offaxis.gates.fisher.prefixes import Prefixes
from offaxis.lab.tasks import TASKS
from offaxis.live import LiveModel, load_live

BUNDLED = Path(__file__).parents[1] / "src" / "offaxis" / "lab" / "base"
QUICK = Settings(max_new_tokens=12, draws=2, probes=2, halvings=4)


def prompts(count: int) -> list[str]:
    task = TASKS["arithmetic"]
    return [one.prompt for one in task.problems(count, seed=0, split="held_out", difficulty=1)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled base with noise on every weight, in float32, without a tokenizer."""
    live = load_live(BUNDLED, device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in live.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.003)
    out = tmp_path_factory.mktemp("tuned") / "model"
    live.model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def move(tuned: Path) -> Move:
    return load_move(BUNDLED, tuned, device="cpu")


@pytest.fixture(scope="module")
def found(tuned: Path) -> Anchor:
    return anchor(BUNDLED, tuned, data=prompts(3), settings=QUICK, device="cpu")


@pytest.fixture(scope="module")
def some(move: Move) -> Prefixes:
    """Two prompts with made-up completions."""
    ids = tuple(tuple(move.base.tokenizer(one)["input_ids"]) for one in prompts(2))
    return Prefixes(ids, ((9, 12, 14), (11, 10)), np.arange(2))


def test_a_move_is_the_difference_of_the_stored_weights(move: Move, tuned: Path) -> None:
    """Tied weights are one parameter; the tuned model is reached to the bit."""
    names = [unit.name for unit in move.units]
    assert len(set(names)) == len(names) == len(dict(move.base.model.named_parameters()))
    assert "lm_head.weight" not in names
    move.place(1.0)
    theirs = dict(load_live(BUNDLED, device="cpu").model.named_parameters())
    from safetensors.torch import load_file

    stored = load_file(tuned / "model.safetensors")
    for name, parameter in move.tuned.model.named_parameters():
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter, stored[name].double())
        assert torch.equal(move.origin[name], theirs[name].double())


def test_small_steps_are_seen_only_in_float64_throughout(move: Move, some: Prefixes) -> None:
    """transformers' own casts to float32 hide what a step of 1e-9 of Δ does."""
    function = some.batch([0, 1]).logits(move.base)
    name, delta = move.units[1].view.name, move.delta[1]
    at = {name: move.origin[name]}
    step = 1e-7 / float(delta.norm())

    def slope() -> torch.Tensor:
        there, back = (function({name: at[name] + by * delta}) for by in (step, -step))
        return (there - back) / (2 * step)

    with torch.no_grad(), exactly():
        tangent = Derivative("forward").along(function, at, {name: delta[None]})[0]
        assert float((slope() - tangent).norm() / tangent.norm()) < 1e-5
    with torch.no_grad():
        assert float((slope() - tangent).norm() / tangent.norm()) > 1e-2, "else no need for it"


def test_a_symmetry_of_the_model_is_flat(move: Move, some: Prefixes) -> None:
    """A norm's weight grows and the columns that it feeds shrink: no logit moves.

    So F is singular on the full space of every such model, whatever the prefixes.
    """
    gain = "model.layers.1.input_layernorm.weight"
    fed = [f"model.layers.1.self_attn.{one}_proj.weight" for one in "qkv"]
    change = {name: torch.zeros_like(one) for name, one in move.origin.items()}
    change[gain] = move.origin[gain].clone()
    for name in fed:
        change[name] = -move.origin[name]
    moved = {name: move.origin[name] + one for name, one in change.items()}
    live = LiveModel(move.base.model, move.base.tokenizer, "base")
    flat = move_of(live, MemoryCheckpoint(moved, config=move.base.model.config.to_dict()))

    def form(one: Move, units: list[int]) -> float:
        every = quadratic_forms(
            one, some, [real(one)], slabs=[units], sets=[[0]], derivative=Derivative("forward")
        )
        return float(every.values.sum())

    touched = [at for at, unit in enumerate(flat.units) if unit.name in (gain, *fed)]
    assert len(touched) == 4
    alone = form(flat, touched[:1])
    assert alone > 1e-3
    assert form(flat, touched) < 1e-20 * alone


def test_everything_is_there_and_agrees(found: Anchor) -> None:
    there, back = found.leashes
    assert (there.direction, back.direction) == ("kl_tuned_base", "kl_base_tuned")
    assert found.run["derivative"] == "forward"
    assert found.shrinking.kl_tuned_base[0] == pytest.approx(there.kl.value)
    assert there.ratio.value == pytest.approx(found.shrinking.ratio_tuned_base[0])
    assert found.shrinking.ratio_tuned_base[-1] == pytest.approx(1, abs=0.1)
    for one in found.leashes:
        assert 0 < one.per_token < one.kl.value
        assert one.kl.low <= one.kl.value <= one.kl.high
    whole = next(one for one in found.quotients if one.scope.kind == "model")
    assert whole.form == pytest.approx(2 * there.half_form.value)
    assert whole.quotient.value == pytest.approx(whole.form / whole.norm**2)
    assert len(whole.draws) == QUICK.draws
    span = found.bounds[1]
    assert span.ratio == pytest.approx(there.ratio.value**-0.5)
    assert found.bounds[0].status == "vacuous"
    assert found.bounds[2].ratio <= 1.1 * span.ratio


def test_noise_looks_like_its_own_null(found: Anchor) -> None:
    """Δ is Gaussian here, so its exact quotient is a draw of the null that is estimated."""
    for one in found.quotients:
        if one.scope.kind in ("model", "matrices") and one.null == "gaussian":
            assert 0.4 < one.ratio.value < 2.5
            assert 0.4 < np.mean(one.draws) / one.null_quotient.value < 2.5


def test_parts_make_up_layers_and_roles(found: Anchor) -> None:
    gaussian = [one for one in found.quotients if one.null == "gaussian"]
    norms = {
        kind: sum(one.norm**2 for one in gaussian if one.scope.kind == kind)
        for kind in ("model", "role", "tensor")
    }
    assert norms["role"] == pytest.approx(norms["model"])
    assert norms["tensor"] == pytest.approx(norms["model"])


def test_the_same_call_gives_the_same_numbers(found: Anchor, tuned: Path) -> None:
    again = anchor(BUNDLED, tuned, data=prompts(3), settings=QUICK, device="cpu")
    assert anchor_summary(again) == anchor_summary(found)


def test_it_is_saved_whole_and_without_nan(found: Anchor, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    tables = ("confined", "contrasts", "quotients", "shrinking")
    assert names == ["anchor.json", *(f"anchor_{one}.parquet" for one in tables)]

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    text = (tmp_path / "out" / "anchor.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == anchor_summary(found)
    for name in tables:
        table = pl.read_parquet(tmp_path / "out" / f"anchor_{name}.parquet")
        assert table.height > 0
        for column in table.select(pl.col(pl.Float64)).columns:
            assert not table[column].is_nan().any()


def test_no_move_is_told_as_such(tmp_path: Path) -> None:
    still = anchor(BUNDLED, BUNDLED, data=prompts(1), settings=QUICK, device="cpu")
    assert [one.kl.value for one in still.leashes] == [0, 0]
    assert [one.ratio.value for one in still.leashes] == [None, None]
    assert still.quotients == ()
    assert still.shrinking.order_tuned_base is None
    assert [one.status for one in still.bounds] == ["vacuous", "no_move", "no_move"]
    assert any(one.contrast == "principal / non_principal" for one in still.contrasts)
    still.save(tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "anchor_quotients.parquet").height == 0


def test_a_prompt_that_leaves_no_room_is_refused(tuned: Path) -> None:
    long = Settings(max_new_tokens=4000)
    with pytest.raises(InputError, match=r"positions; lower max_new_tokens to \d+"):
        anchor(BUNDLED, tuned, data=prompts(1), settings=long, device="cpu")


@pytest.mark.slow
def test_a_real_run_is_steep_and_principal_weights_are_too(pairs: Path) -> None:
    """docs/gates.md, on few prompts."""
    found = anchor(
        pairs / "base", pairs / "rl-checkpoint-60", data=prompts(4), settings=QUICK, device="cpu"
    )
    for one in found.quotients:
        if one.scope.kind == "model":
            assert one.ratio.low is not None
            assert one.ratio.low > 10
    for contrast in found.contrasts:
        if contrast.scope.kind == "matrices" and contrast.contrast == "principal / non_principal":
            assert contrast.ratio.value is not None
            assert contrast.ratio.value > 1
