"""A saved SparseAdamW goes on bit by bit; a state that is not its parameter's is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from offaxis.errors import InputError
from offaxis.train.sparse.optimizer import SparseAdamW
from sparse_adamw import draw, gradients

SHAPE = (60, 90)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def start(dtype: torch.dtype, density: float = 0.4, seed: int = 0) -> tuple[Parameter, SparseAdamW]:
    p, mask = draw(SHAPE, density, dtype, seed=seed)
    parameter = Parameter(p)
    return parameter, SparseAdamW([("w", parameter)], **SETTINGS, masks={parameter: mask})


def go(parameter: Parameter, made: Any, grads: list[torch.Tensor]) -> None:
    for gradient in grads:
        parameter.grad = gradient.to(parameter.dtype)
        made.step()


def grown(dtype: torch.dtype, *, refresh: bool, steps: int = 4) -> tuple[Parameter, SparseAdamW]:
    parameter, made = start(dtype)
    grads = gradients(SHAPE, steps, torch.float32)
    go(parameter, made, grads)
    if refresh:
        made.refresh({parameter: draw(SHAPE, 0.3, dtype, seed=5)[1]})
        go(parameter, made, grads[:2])
    return parameter, made


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_saved_run_goes_on_bit_by_bit(
    dtype: torch.dtype, refresh: bool, steps: int, tmp_path: Path
) -> None:
    parameter, made = grown(dtype, refresh=refresh, steps=steps)
    made.param_groups[0]["lr"] = 3e-3
    torch.save({"p": parameter.detach(), "o": made.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other, again = start(dtype, density=0.01, seed=9)  # another mask, other weights
    with torch.no_grad():
        other.copy_(saved["p"])
    again.load_state_dict(saved["o"])
    assert torch.equal(again.mask_of(other), made.mask_of(parameter))
    more = gradients(SHAPE, 6, torch.float32)
    for one, optimizer in ((parameter, made), (other, again)):
        go(one, optimizer, more)
        optimizer.refresh({one: draw(SHAPE, 0.5, dtype, seed=6)[1]})
        go(one, optimizer, more)
    assert torch.equal(parameter, other)
    assert again.state_bytes() == made.state_bytes()
    assert again.param_groups[0]["lr"] == 3e-3
    for key, value in made.state[parameter].items():
        found = again.state[other][key]
        same = torch.equal(found, value) if torch.is_tensor(value) else found == value
        assert same, key


def test_a_loaded_state_is_a_copy() -> None:
    parameter, made = grown(torch.bfloat16, refresh=True)
    other, again = start(torch.bfloat16)
    before = copy.deepcopy(made.state_dict())
    again.load_state_dict(made.state_dict())
    go(other, again, gradients(SHAPE, 2, torch.float32))
    for key, value in before["state"][0].items():
        if torch.is_tensor(value):
            assert torch.equal(made.state[parameter][key], value)


@pytest.mark.parametrize("by", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_of_the_whole_optimizer(by: Callable[[Any], Any]) -> None:
    parameter, made = grown(torch.bfloat16, refresh=True)
    again = by(made)
    other = again.param_groups[0]["params"][0]
    grads = gradients(SHAPE, 3, torch.float32)
    go(parameter, made, grads)
    go(other, again, grads)
    assert other is not parameter
    assert torch.equal(parameter, other)


def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    _, made = grown(torch.bfloat16, refresh=True)
    saved = copy.deepcopy(made.state_dict())
    change(saved["state"][0])
    return saved


def put(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({key: value(state) if callable(value) else value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("shape", (90, 60)), r"w has shape \(90, 60\), not \(60, 90\)"),
        (put("trainable", 7), "a bitmap that does not have the 7 bits"),
        (put("trainable", -1), "-1 trainable entries of 5400"),
        (put("trainable", 5400), "an index where none belongs"),
        (put("step", -3), "step -3"),
        (put("step", 1.5), "step 1.5"),
        (put("births", (0, 99)), r"births \(0, 99\)"),
        (put("births", (0,)), "1 ages and a cohort"),
        (put("bits", lambda s: s["bits"][:-1]), "a bitmap of 674 bytes"),
        (put("bits", lambda s: s["bits"] ^ 1), "a bitmap that does not have"),
        (put("starts", lambda s: s["starts"] + 1), "a bitmap that does not have"),
        (put("starts", lambda s: s["starts"][:1]), r"block starts of shape \(1,\)"),
        (lambda s: s.pop("bits"), "no index"),
        (lambda s: s.pop("trainable"), "no mask in it"),
        (lambda s: s.pop("master"), "exp_avg, exp_avg_sq, not exp_avg, exp_avg_sq, master"),
        (put("master", lambda s: s["master"].bfloat16()), "master of .* torch.bfloat16"),
        (put("exp_avg", lambda s: s["exp_avg"][1:]), "exp_avg of"),
        (put("cohort", lambda s: s["cohort"] + 1), "cohorts 1 to 2 of 2"),
        (put("cohort", lambda s: s["cohort"].long()), "cohorts of .* torch.int64"),
    ],
)
def test_a_damaged_state_is_refused(change: Callable[..., object], words: str) -> None:
    parameter, made = start(torch.bfloat16)
    before = made.mask_of(parameter)
    with pytest.raises(InputError, match=f"state of w has .*{words}|{words}"):
        made.load_state_dict(damaged(change))
    assert torch.equal(made.mask_of(parameter), before)
    assert made.param_groups[0]["params"][0] is parameter
    go(parameter, made, gradients(SHAPE, 1, torch.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("offsets", lambda s: s["offsets"][torch.arange(51, -1, -1)]), "out of order"),
        (put("offsets", lambda s: s["offsets"][1:]), "offsets for"),
        (put("offsets", lambda s: s["offsets"].int()), "offsets for"),
        (put("starts", lambda s: s["starts"].flip(0)), "do not count"),
        (put("offsets", lambda s: torch.full_like(s["offsets"], 60_000)), "out of order or beyond"),
    ],
)
def test_damaged_offsets_are_refused(change: Callable[..., object], words: str) -> None:
    _, made = start(torch.float32, density=0.01)
    saved = copy.deepcopy(made.state_dict())
    assert "offsets" in saved["state"][0]
    change(saved["state"][0])
    with pytest.raises(InputError, match=words):
        made.load_state_dict(saved)


def test_other_optimizers_and_other_models_are_refused() -> None:
    parameter, made = start(torch.float32)
    dense = torch.optim.AdamW([parameter])
    go(parameter, dense, gradients(SHAPE, 1, torch.float32))
    with pytest.raises(InputError, match="state of w has no mask in it; load a state that"):
        made.load_state_dict(dense.state_dict())
    with pytest.raises(InputError, match="no mask in it"):
        made.load_state_dict({**made.state_dict(), "state": {}})
    half, narrower = start(torch.bfloat16)
    go(half, narrower, gradients(SHAPE, 1, torch.float32))
    with pytest.raises(InputError, match="exp_avg, exp_avg_sq, master, not"):
        made.load_state_dict(narrower.state_dict())


def test_hooks_see_what_is_loaded() -> None:
    parameter, made = grown(torch.bfloat16, refresh=False)
    saved = made.state_dict()
    other, again = start(torch.bfloat16, seed=3)
    moved = {"state": {7: saved["state"][0]}, "param_groups": saved["param_groups"]}
    again.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "state": {0: state["state"][7]}}
    )
    seen = []
    again.register_load_state_dict_post_hook(lambda one: seen.append(one.state[other]["step"]))
    again.load_state_dict(moved)
    assert seen == [4]
    assert torch.equal(again.mask_of(other), made.mask_of(parameter))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_accelerate(dtype: torch.dtype) -> None:
    """AcceleratedOptimizer loads the optimizer's own state on its way in."""
    from accelerate import Accelerator

    plain, made = start(dtype)
    wrapped, inner = start(dtype)
    prepared = Accelerator(cpu=True).prepare(inner)
    grads = gradients(SHAPE, 5, torch.float32)
    go(plain, made, grads)
    go(wrapped, prepared, grads)
    assert torch.equal(plain, wrapped)
    saved = prepared.state_dict()
    prepared.load_state_dict(saved)
    go(plain, made, grads)
    go(wrapped, prepared, grads)
    assert torch.equal(plain, wrapped)


def test_a_language_model_trained_so_keeps_its_frozen_weights() -> None:
    from transformers import AutoModelForCausalLM

    from offaxis.lab import BASE

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    masks = {one: torch.rand(one.shape, generator=generator) < 0.05 for one in model.parameters()}
    made = SparseAdamW(model.named_parameters(), lr=1e-3, masks=masks)
    tokens = torch.randint(5, 40, (4, 24), generator=generator)
    losses = []
    for _ in range(6):
        loss = model(input_ids=tokens, labels=tokens).loss
        made.zero_grad()
        loss.backward()
        made.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, one in model.named_parameters():
        frozen = ~masks[one]
        assert torch.equal(one[frozen], before[name][frozen])
        assert masks[one].sum() == 0 or not torch.equal(one, before[name])
