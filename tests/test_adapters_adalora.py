"""AdaLoRA under real TRL: its ranks fall, its penalty is in the loss; alone it has neither."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import TrainerCallback

from adapter_runs import base, layers, made, shake
from kl_runs import Gradients, column, make, quiet_libraries, same, weights
from offaxis.errors import InputError
from offaxis.train.adapters import wire
from offaxis.train.adapters.adalora import AdaLoraCallback, orthogonality, schedule

RANK, FIRST, STEPS = 4, 6, 8
SPEC = f"adalora?rank={RANK}"


class Ranks(TrainerCallback):  # type: ignore[misc]
    """The nonzero entries of every E after each step, and the pattern that they should have."""

    def __init__(self) -> None:
        self.found: list[dict[str, list[bool]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.found.append(
            {
                name.removeprefix("base_model.model."): (one.detach()[:, 0] != 0).tolist()
                for name, one in more["model"].named_parameters()
                if ".lora_E." in name
            }
        )

    @property
    def mean(self) -> list[float]:
        return [sum(map(sum, one.values())) / len(one) for one in self.found]


def trained(model: Any, out: Path, *callbacks: Any, wired: bool = True, **more: Any) -> Any:
    """GRPO, or another of TRL's families."""
    family = more.pop("family", "GRPO")
    trainer = make(family, model, out, *callbacks, **{"rows": 4, **more})
    if wired:
        wire(trainer)
    with quiet_libraries():
        trainer.train()
    return trainer


def naive(**more: Any) -> Any:
    """What a TRL script does with PEFT's AdaLoRA: everything set, nothing called."""
    config = AdaLoraConfig(
        **{"init_r": FIRST, "target_r": RANK, "tinit": 1, "tfinal": 2, "total_step": STEPS}
        | {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_alpha": 12}
        | more
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(base(), config)


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ranks]:
    ranks = Ranks()
    out = tmp_path_factory.mktemp("wired")
    return trained(made(SPEC), out, ranks, max_steps=STEPS, learning_rate=1e-3), ranks


def test_ranks_fall_to_the_target_on_average_and_stay_there(wired: Any) -> None:
    trainer, ranks = wired
    config = trainer.model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (1, 2, STEPS)
    assert ranks.mean[0] == FIRST, "the warm-up has every rank"
    assert ranks.mean == sorted(ranks.mean, reverse=True)
    assert ranks.mean[-3:] == [RANK] * 3
    assert len({sum(one) for one in ranks.found[-1].values()}) > 1, "some matrices got more"


def test_what_is_pruned_in_the_end_is_zero_after_every_step_since(wired: Any) -> None:
    trainer, ranks = wired
    callback = next(
        one for one in trainer.callback_handler.callbacks if isinstance(one, AdaLoraCallback)
    )
    pattern = {name.removeprefix("model."): kept for name, kept in callback.pattern.items()}
    for found in ranks.found[-2:]:
        assert {name.removeprefix("model."): kept for name, kept in found.items()} == pattern
    assert trainer.model.peft_config["default"].rank_pattern is None, "PEFT would cut checkpoints"


def test_alone_nothing_is_pruned_and_there_is_no_penalty(tmp_path: Path) -> None:
    """The naive wiring: with E = 0 no gradient reaches A and B but the penalty's."""
    ranks, gradients = Ranks(), Gradients()
    trained(naive(), tmp_path, ranks, gradients, wired=False, max_steps=STEPS, learning_rate=1e-3)
    assert ranks.mean == [FIRST] * STEPS
    factors = [one for name, one in gradients.found.items() if "lora_E" not in name]
    assert len(factors) == 2 * 28
    assert not any(one.any() for one in factors)


# The penalty


def written_out(model: Any, weight: float) -> dict[str, torch.Tensor]:
    """The gradient of weight · mean ‖AAᵀ − I‖ and ‖BᵀB − I‖: 2 (AAᵀ − I) A / ‖AAᵀ − I‖ each."""
    found = {}
    for path, layer in layers(model).items():
        down = layer.lora_A["default"].detach().double()
        up = layer.lora_B["default"].detach().double()
        for part, one in (("lora_A", down), ("lora_B", up.T)):
            off = one @ one.T - torch.eye(FIRST, dtype=torch.float64)
            slope = 2 * off @ one / torch.linalg.norm(off)
            found[f"base_model.model.{path}.{part}.default"] = (
                slope if part == "lora_A" else slope.T
            )
    return {name: weight / len(found) * one for name, one in found.items()}


@pytest.mark.parametrize(
    ("family", "micro"),
    [
        ("GRPO", 1),
        ("GRPO", 4),
        pytest.param("SFT", 1, marks=pytest.mark.slow),
        ("SFT", 4),
        pytest.param("DPO", 1, marks=pytest.mark.slow),
        ("DPO", 4),
    ],
)
def test_the_penalty_counts_once_an_optimizer_step(family: str, micro: int, tmp_path: Path) -> None:
    """In the first step E is 0, so all the gradient of A and B is the penalty's."""
    gradients, model = Gradients(), made(f"{SPEC}&cooldown=0")
    wanted = written_out(model, 0.5)
    trained(model, tmp_path, gradients, family=family, rows=8 // micro, max_steps=2,
            gradient_accumulation_steps=micro, **STILL)  # fmt: skip
    assert {name for name in gradients.found if "lora_E" not in name} == set(wanted)
    for name, one in wanted.items():
        torch.testing.assert_close(gradients.found[name].double(), one, rtol=1e-4, atol=1e-9)


STILL: dict[str, Any] = {"learning_rate": 0.0}


def test_the_penalty_is_its_formula_and_is_logged(tmp_path: Path) -> None:
    model = shake(made(SPEC))
    layer = next(iter(layers(model).values()))
    assert layer.lora_A["default"].shape[0] == FIRST
    terms = [
        torch.linalg.norm(one @ one.T - torch.eye(FIRST))
        for layer in layers(model).values()
        for one in (layer.lora_A["default"], layer.lora_B["default"].T)
    ]
    expected = float(torch.stack(terms).mean().detach())
    found = float(orthogonality(model.base_model.model, "default").detach())
    assert found == pytest.approx(expected, rel=1e-6)
    trainer = trained(model, tmp_path, max_steps=3, **STILL)
    logged = column(trainer, "adalora/orthogonality")
    assert logged == pytest.approx([expected] * 3, rel=1e-3), "E alone is pruned"


def test_autocast_does_not_round_the_penalty() -> None:
    """Near orthogonality, bfloat16 would leave nothing of AAᵀ − I but its rounding."""
    model = made(SPEC).base_model.model
    with torch.autocast("cpu", torch.bfloat16):
        found = orthogonality(model, "default")
    assert torch.equal(found, orthogonality(model, "default"))


def test_no_weight_is_no_penalty_bit_for_bit(tmp_path: Path) -> None:
    free = made(f"{SPEC}&orthogonality=0")
    bare = made(SPEC)
    first = trained(free, tmp_path / "free", max_steps=3, learning_rate=1e-3)
    second = make("GRPO", bare, tmp_path / "bare", max_steps=3, learning_rate=1e-3, rows=4)
    second.add_callback(AdaLoraCallback(bare, (0.1, 0.3)))
    with quiet_libraries():
        second.train()
    assert same(weights(first), weights(second))
    third = trained(made(SPEC), tmp_path / "third", max_steps=3, learning_rate=1e-3)
    assert not same(weights(first), weights(third))


def test_wiring_twice_is_wiring_once(tmp_path: Path) -> None:
    trainer = make("GRPO", made(SPEC), tmp_path)
    wire(trainer)
    loss, count = trainer.compute_loss, len(trainer.callback_handler.callbacks)
    wire(trainer)
    assert trainer.compute_loss is loss
    assert len(trainer.callback_handler.callbacks) == count


# The schedule


def config() -> Any:
    return SimpleNamespace(tinit=0, tfinal=0, total_step=0)


@pytest.mark.parametrize(
    ("steps", "shares", "found"),
    [
        (100, (0.1, 0.3), (10, 30)),
        (8, (0.1, 0.3), (1, 2)),
        (3, (0.1, 0.3), (0, 1)),
        (2, (0.0, 0.0), (0, 0)),
        (10, (0.5, 0.4), (5, 4)),
    ],
)
def test_the_phases_fit_the_run(steps: int, shares: Any, found: Any) -> None:
    one = config()
    schedule(one, steps, *shares)
    assert (one.tinit, one.tfinal, one.total_step) == (*found, steps)


@pytest.mark.parametrize(
    ("steps", "shares"), [(1, (0.0, 0.0)), (2, (0.1, 0.3)), (10, (0.5, 0.5)), (10, (0.9, 0.3))]
)
def test_too_few_steps_are_refused(steps: int, shares: Any) -> None:
    one = config()
    with pytest.raises(InputError, match=f"no step of {steps} left .* give more steps"):
        schedule(one, steps, *shares)
    assert one.total_step == 0


def test_the_shortest_run_that_is_accepted_prunes(tmp_path: Path) -> None:
    ranks = Ranks()
    trained(made(SPEC), tmp_path, ranks, max_steps=3, learning_rate=1e-3)
    assert ranks.mean[1:] == [RANK] * 2
    with pytest.raises(InputError, match="no step of 2 left"):
        trained(made(SPEC), tmp_path, max_steps=2)


def test_a_users_own_schedule_has_to_fit_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"total_step is 8, but the run has 3 steps.* set it to 3"):
        trained(naive(), tmp_path, max_steps=3)
    ranks = Ranks()
    model = naive(total_step=4, tfinal=1)
    trained(model, tmp_path, ranks, max_steps=4, learning_rate=1e-3)
    assert ranks.mean[-2:] == [RANK] * 2
    assert model.peft_config["default"].tinit == 1, "it is kept"


# The reference


@pytest.mark.parametrize("family", ["GRPO", "DPO"])
def test_trl_refuses_a_reference_that_adalora_does_not_need(family: str, tmp_path: Path) -> None:
    """TRL adds a second adapter as the reference, and PEFT allows AdaLoRA but one."""
    beta = {"beta": 0.05}
    with pytest.raises(ValueError, match="supports only 1 trainable adapter"):
        make(family, naive(), tmp_path, **beta)
    trainer = trained(made(SPEC), tmp_path, family=family, max_steps=3, learning_rate=0.1, **beta)
    name = "kl" if family == "GRPO" else "rewards/chosen"
    told = column(trainer, name)
    assert told[0] == pytest.approx(0, abs=1e-6)
    assert told[-1] != 0
