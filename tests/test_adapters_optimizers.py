"""LoRA+ and LoRA-FA: their optimizers reach TRL's trainers, and do what their papers say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import TrainerCallback

from adapter_runs import IDS, base, layers, made, trained
from kl_runs import column, make, quiet_libraries
from offaxis.errors import InputError
from offaxis.train.adapters import AdapterSpec, LoraFaAdamW, load_adapted, wire

RATE = 1e-3
ARGUMENTS: dict[str, Any] = {
    "learning_rate": RATE, "weight_decay": 0.05, "adam_beta1": 0.8, "adam_beta2": 0.9,
    "adam_epsilon": 1e-9, "lr_scheduler_type": "linear", "max_steps": 4,
}  # fmt: skip


def run(model: Any, out: Path, *callbacks: Any, family: str = "GRPO", **more: Any) -> Any:
    trainer = make(family, model, out, *callbacks, **more)
    wire(trainer)
    with quiet_libraries():
        trainer.train()
    return trainer


def optimizer(name: str, out: Path, **more: Any) -> Any:
    """The trainer's optimizer, made as `train` makes it."""
    trainer = make("GRPO", made(name), out, **(ARGUMENTS | more))
    wire(trainer)
    return trainer, trainer.create_optimizer()


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


# LoRA+


def test_b_has_its_own_rate_and_the_arguments_reach_both_groups(tmp_path: Path) -> None:
    trainer, found = optimizer("lora_plus?rank=4&ratio=8", tmp_path)
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    rates = {}
    for group in found.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-9, 0.05)
        rates |= {names[id(one)]: group["lr"] for one in group["params"]}
    assert set(rates) == {f"base_model.model.{name}" for name in trained(trainer.model)}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {RATE}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {8 * RATE}


def test_without_the_wire_there_is_one_rate(tmp_path: Path) -> None:
    """The naive wiring: `lora_plus` is LoRA."""
    trainer = make("GRPO", made("lora_plus?rank=4"), tmp_path, **ARGUMENTS)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {RATE}


def test_bs_first_update_is_the_ratio_and_the_schedule_scales_both(tmp_path: Path) -> None:
    model = made("lora_plus?rank=4&ratio=8")
    before = copied(model)
    rows: list[list[float]] = []

    class Rates(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            rows.append([group["lr"] for group in more["optimizer"].param_groups])
            if len(rows) == 1:
                for name, one in model.named_parameters():
                    if "lora_B" in name:
                        step = (one.detach() - before[name]).abs()
                        assert step.max() == pytest.approx(8 * RATE, rel=1e-2)
                        assert (step > 7.9 * RATE).float().mean() > 0.9
                    elif "lora_A" in name:
                        assert torch.equal(one, before[name]), "its gradient is 0 while B is"

    run(model, tmp_path, Rates(), **{**ARGUMENTS, "weight_decay": 0.0})
    assert [row[1] / row[0] for row in rows] == pytest.approx([8.0] * 4)
    assert [row[0] / RATE for row in rows] == pytest.approx([1.0, 0.75, 0.5, 0.25])


# LoRA-FA


def tiny(rank: int = 4) -> Any:
    return made(AdapterSpec("lora_fa", rank=rank, alpha=6.0), "llama")


def gradients(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for one in trained(model).values():
        one.grad = torch.randn(one.shape, generator=generator) * 0.1


OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}


def independent(model: Any, steps: int) -> dict[str, torch.Tensor]:
    """AdamW on G (A Aᵀ)⁻¹ / s², written out in float64; eps is large, or s would not show."""
    found, moments = {}, {}
    twin = copy.deepcopy(model)
    for path, layer in layers(twin).items():
        down = layer.lora_A["default"].weight.detach().double()
        inverse = torch.linalg.inv(down @ down.T) / layer.scaling["default"] ** 2
        name = f"{path}.lora_B.default.weight"
        found[name] = layer.lora_B["default"].weight.detach().double()
        moments[name] = (inverse, torch.zeros_like(found[name]), torch.zeros_like(found[name]))
    first, second = OPTIONS["betas"]
    for step in range(1, steps + 1):
        gradients(twin, step)
        for name, one in trained(twin).items():
            inverse, mean, square = moments[name]
            gradient = one.grad.double() @ inverse
            mean.mul_(first).add_(gradient, alpha=1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (square / (1 - second**step)).sqrt() + OPTIONS["eps"]
            found[name] = found[name] * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"])
            found[name] = found[name] - OPTIONS["lr"] * (mean / (1 - first**step)) / size
    return found


def stepped(model: Any, steps: int, optimizer: Any = None) -> dict[str, torch.Tensor]:
    optimizer = optimizer or LoraFaAdamW(trained(model).values(), model=model, **OPTIONS)
    for step in range(1, steps + 1):
        gradients(model, step)
        optimizer.step()
    return {name: one.detach().double() for name, one in trained(model).items()}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two models' matrices."""
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)


def test_ten_steps_are_those_of_the_formula() -> None:
    model = tiny()
    expected = independent(model, 10)
    assert expected.keys() == trained(model).keys()
    assert apart(stepped(model, 10), expected) < 2e-6


def test_pefts_own_optimizer_rounds_the_gradient_to_bfloat16() -> None:
    """On a machine that knows bfloat16, a float32 run included: by some 3e-3 of it."""
    model = tiny()
    options = OPTIONS | {"weight_decay": 0.0, "eps": 1e-8}
    told = create_lorafa_optimizer(
        model, r=4, lora_alpha=6, lr=options["lr"], weight_decay=0.0
    )  # it freezes A
    told.param_groups[0].update(betas=options["betas"], eps=options["eps"])
    ours = copy.deepcopy(model)
    mine = stepped(ours, 1, LoraFaAdamW(trained(ours).values(), model=ours, **options))
    twin = stepped(model, 1, told)
    # After one step Adam's update is lr · sign: what is rounded shows in its moments.
    state = next(iter(told.state.values()))
    name, layer = next(iter(layers(ours).items()))
    gradients(ours, 1)
    down = layer.lora_A["default"].weight.detach().double()
    exact = trained(ours)[f"{name}.lora_B.default.weight"].grad.double() @ torch.linalg.inv(
        down @ down.T
    ) / layer.scaling["default"] ** 2  # fmt: skip
    error = float((state["exp_avg_B"].double() / 0.2 - exact).norm() / exact.norm())
    assert 5e-4 < error < 1e-2
    assert apart(mine, twin) < 1e-2


def test_a_never_moves_and_its_moments_do_not_exist(tmp_path: Path) -> None:
    model = made("lora_fa?rank=4")
    before = copied(model)
    trainer = run(model, tmp_path, **ARGUMENTS)
    after = copied(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"base_model.model.{name}" for name in trained(model)}
    assert all("lora_B" in name for name in moved)
    inner = trainer.optimizer.optimizer
    assert isinstance(inner, LoraFaAdamW)
    assert len(inner.state) == len(moved) == 28
    group = inner.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-9, 0.05)


@pytest.mark.parametrize("family", ["GRPO", "DPO"])
def test_a_reference_does_not_wake_a(family: str, tmp_path: Path) -> None:
    """PEFT makes all of an adapter trainable when it is switched on again, and TRL's reference
    switches it. A's gradient would then count where gradients are clipped."""
    naive = get_peft_model(base(), LoraConfig(r=4, target_modules="all-linear"))
    layer = next(iter(layers(naive).values())).lora_A["default"]
    layer.weight.requires_grad_(False)
    with naive.disable_adapter():
        pass
    assert layer.weight.requires_grad, "what PEFT does, and `keep_frozen` is for"
    model = made("lora_fa?rank=4")
    names = set(trained(model))
    trainer = run(model, tmp_path, family=family, beta=0.05, max_steps=2, learning_rate=RATE)
    assert set(trained(model)) == names
    frozen = [one for name, one in model.named_parameters() if "lora_A.default" in name]
    assert len(frozen) == 28
    assert all(one.grad is None for one in frozen)
    assert column(trainer, "grad_norm")[0] > 0


def test_its_state_goes_on_where_it_was() -> None:
    model = tiny()
    first = LoraFaAdamW(trained(model).values(), model=model, **OPTIONS)
    stepped(model, 3, first)
    twin = copy.deepcopy(model)
    second = LoraFaAdamW(trained(twin).values(), model=twin, **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    a, b = stepped(model, 3, first), stepped(twin, 3, second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_its_steps_take_a_closure() -> None:
    model = tiny()
    found = LoraFaAdamW(trained(model).values(), model=model, **OPTIONS)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=IDS).logits.square().mean()
        loss.backward()
        return loss

    assert found.step(closure) > 0
    assert len(found.state) == 14


def test_a_model_that_adapt_has_not_made_is_wired_by_name(tmp_path: Path) -> None:
    """PEFT's files say LoRA for both: unnamed, that is what is trained."""
    made("lora_fa?rank=4").save_pretrained(tmp_path / "adapter")
    model = load_adapted(base(), tmp_path / "adapter", trainable=True)
    trainer = make("GRPO", model, tmp_path / "out", **ARGUMENTS)
    wire(trainer, "lora_fa")
    assert set(trained(model)) == set(trained(made("lora_fa?rank=4")))
    assert isinstance(trainer.create_optimizer(), LoraFaAdamW)


# What stands in the way


def test_optimizers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    lora = made("lora?rank=4", "llama")
    with pytest.raises(InputError, match=r"lora_A of .* would be trained; freeze it"):
        LoraFaAdamW(trained(lora).values(), model=lora)
    model = tiny()
    with pytest.raises(InputError, match="given no lora_B"):
        LoraFaAdamW([torch.nn.Parameter(torch.zeros(2))], model=model)
    trainer = make("GRPO", made("lora_fa?rank=4"), tmp_path, optim="sgd")
    with pytest.raises(InputError, match=r"lora_fa needs AdamW, and optim is sgd"):
        wire(trainer)
    trainer = make("GRPO", made("lora_plus?rank=4"), tmp_path)
    trainer.create_optimizer()
    with pytest.raises(InputError, match="lora_plus is its optimizer, and the trainer was given"):
        wire(trainer)
    trainer.optimizer = None
    wire(trainer)
    rates = {group["lr"] for group in trainer.create_optimizer().param_groups}
    assert len(rates) == 2, "a refusal is no wiring"
