"""`restrict` on trainers as users have them: TRL's, observed, wrapped ones; and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.masks import build
from offaxis.train.observed import observed
from offaxis.train.sparse import restrict
from offaxis.train.sparse.callback import MaskCallback
from offaxis.train.sparse.engines import innermost
from policy_runs import cpu_threads, quiet_libraries
from policy_runs import trainer as policy_trainer
from sparse_runs import bits, examples, held, mask, model, run, trainer, weights

RULE = "random(density=0.3, seed=1)"


@pytest.mark.parametrize("strategy", ["projected", "compressed"])
def test_grpo_of_the_lab_base_under_a_saved_mask(strategy: str, tmp_path: Path) -> None:
    """TRL's own trainer, observed, with gradient checkpointing over a frozen embedding."""
    from trl import GRPOConfig, GRPOTrainer

    build(str(BASE), "safe(alpha=0.2)").save(tmp_path / "m.mask")
    kind = GRPOTrainer if strategy == "projected" else observed(GRPOTrainer)
    with cpu_threads(1), quiet_libraries():
        made = policy_trainer(kind, GRPOConfig, tmp_path / "out", gradient_checkpointing=True,
                              max_steps=4, learning_rate=1e-3, weight_decay=0.1)  # fmt: skip
        restrict(made, tmp_path / "m.mask", strategy=strategy)
        made.train()
    stored = open_checkpoint(str(BASE))
    after, chosen = weights(made.model), build(stored, "safe(alpha=0.2)")
    for name, one in after.items():
        frozen = ~chosen[name] if name in chosen else torch.ones(one.shape, dtype=torch.bool)
        base = stored[name].float()
        assert torch.equal(bits(one)[frozen], bits(base)[frozen]), name
        if name in chosen:
            assert float((one != base)[~frozen].float().mean()) > 0.9
    rows = [row for row in made.state.log_history if "mask/density" in row]
    assert [row["mask/density"] for row in rows] == [pytest.approx(chosen.density)]
    assert ("loss" in rows[0]) == (kind is not GRPOTrainer), "noted in a row of training"


class Wrapped(torch.nn.Module):
    """A model inside another, with a head of its own, as value heads and wrappers have it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.pretrained_model, self.head = inner, torch.nn.Linear(4, 4)
        self.config = inner.config

    def forward(self, **given: Any) -> Any:
        return self.pretrained_model(**given)


def test_names_of_a_wrapper_are_found(tmp_path: Path) -> None:
    base, chosen = weights(model()), mask(RULE)
    made = trainer(tmp_path, of=Wrapped(model()), max_steps=10, remove_unused_columns=False)
    restrict(made, chosen, others="frozen")
    run(made)
    held(weights(made.model.pretrained_model), chosen, base=base)
    assert not made.model.head.weight.requires_grad


def test_a_stored_mask_of_stacked_experts_fits_the_model_in_memory(tmp_path: Path) -> None:
    """Experts are stored one by one and stacked when transformers loads them."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    with quiet_libraries():
        Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
        one = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    chosen = build(str(tmp_path / "base"), RULE)
    stacked = "model.layers.0.mlp.experts.gate_up_proj"
    assert stacked in weights(one)
    assert stacked not in chosen
    before = weights(one)
    made = trainer(tmp_path, of=one, max_steps=20, learning_rate=1e-2)
    restrict(made, chosen, refresh_every=5)
    after = run(made)
    callback = next(c for c in made.callback_handler.callbacks if isinstance(c, MaskCallback))
    assert callback.density == pytest.approx(0.3, abs=0.01)
    assert 0.3 < float((after[stacked] != before[stacked]).float().mean()) < 0.9


def test_the_trainers_own_groups_and_numbers_reach_the_compressed_optimizer(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6,
                   lr_scheduler_type="constant")  # fmt: skip
    restrict(made, mask("all"), strategy="compressed", others="trained")
    run(made)
    one, two = innermost(made.optimizer).param_groups
    for group in (one, two):
        assert [group["lr"], group["betas"], group["eps"]] == [3e-3, (0.8, 0.95), 1e-6]
    assert [one["weight_decay"], two["weight_decay"]] == [0.1, 0.0]
    norms = sum(p.numel() for n, p in made.model.named_parameters() if "norm" in n)
    assert sum(p.numel() for p in two["params"]) == norms


def _peft(made: Any) -> None:
    from peft import LoraConfig, get_peft_model

    made.model = get_peft_model(made.model, LoraConfig(r=2, target_modules=["q_proj"]))


def _twice(made: Any) -> None:
    restrict(made, mask(RULE))


def _trained(made: Any) -> None:
    run(made)


def _quantised(made: Any) -> None:
    made.model.is_quantized = True


def _moved(made: Any) -> None:
    with torch.no_grad():
        made.model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6


def _meta(made: Any) -> None:
    made.model.to("meta")


@pytest.mark.parametrize(
    ("before", "options", "said"),
    [
        (_peft, {}, "PEFT adapter"),
        (_twice, {}, "restricted already"),
        (_trained, {}, "before train"),
        (_quantised, {}, "quantised"),
        (_moved, {}, "mlp.up_proj.weight"),
        (_meta, {"check": False}, "meta device"),
        (None, {"strategy": "dense"}, "projected or compressed"),
        (None, {"others": "some"}, "frozen or trained"),
        (None, {"refresh_every": -1}, "0 or more"),
        (None, {"refresh_every": 5, "refresh_rule": "nothing_such"}, "no rule"),
        (None, {"refresh_every": 5, "refresh_rule": "fisher(density=0.1)"}, "needs scores"),
        (None, {"refresh_rule": "safe"}, "without refresh_every"),
    ],
)
def test_what_cannot_be_restricted_is_refused_with_the_reason(
    before: Any, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    chosen, made = mask(RULE), trainer(tmp_path, max_steps=1)
    if before is not None:
        before(made)
    wanted = [one.requires_grad for one in made.model.parameters()]
    callbacks = len(made.callback_handler.callbacks)
    with pytest.raises(InputError, match=said):
        restrict(made, chosen, **options)
    assert [one.requires_grad for one in made.model.parameters()] == wanted
    assert len(made.callback_handler.callbacks) == callbacks


def test_other_models_and_things_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, of=model(seed=1))
    with pytest.raises(InputError, match="not the base of this mask"):
        restrict(made, mask(RULE))
    restrict(made, mask(RULE), check=False)
    with pytest.raises(InputError, match="SimpleNamespace: give a"):
        restrict(SimpleNamespace(model=model()), mask(RULE))
    with pytest.raises(InputError, match="nothing is left to train"):
        restrict(trainer(tmp_path), mask("none"))
    with pytest.raises(InputError, match="absent"):
        restrict(trainer(tmp_path), tmp_path / "absent.mask")
    settings = trainer(tmp_path).args
    made = Trainer(model_init=lambda: model(seed=2), args=settings, train_dataset=examples())
    with pytest.raises(InputError, match="model_init"):
        restrict(made, mask(RULE))


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"optim": "adafactor"}, {"strategy": "compressed"}, "optim adafactor"),
        ({"optim": "sgd"}, {"refresh_every": 5}, "optim sgd"),
        ({"optimizers": "own"}, {"strategy": "compressed"}, "makes its own optimizer"),
        ({"optimizers": "odd"}, {"refresh_every": 5}, "RMSprop"),
    ],
)  # fmt: skip
def test_optimizers_that_a_strategy_cannot_do_with_are_refused(
    settings: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    one = model()
    made = {"own": torch.optim.AdamW, "odd": torch.optim.RMSprop}.get(settings.get("optimizers"))
    if made is not None:
        settings = {"optimizers": (made(one.parameters(), lr=1e-3), None)}
    trained = trainer(tmp_path, of=one, **settings)
    with pytest.raises(InputError, match=said):
        restrict(trained, mask(RULE), **options)
    restrict(trained, mask(RULE))  # projected does with any
