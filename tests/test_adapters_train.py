"""Adapters through `offaxis train`: the forms of its key, and the reference that beta pulls to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import load_file

from adapter_runs import base, logits, made
from kl_runs import BUNDLED, column, make, run
from offaxis.errors import InputError
from offaxis.train import read_arguments, train
from offaxis.train.adapters import AdapterSpec
from offaxis.train.adapters.asked import asked_adapter, foretold_adapter
from offaxis.train.adapters.configs import GeometricLoraConfig
from offaxis.train.setup import build_trainer, reward_setup
from policy_runs import quiet_libraries

KEYS: dict[str, Any] = {
    "model_name_or_path": str(BUNDLED), "rewards": ["integer"], "max_steps": 2,
    "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16,
    "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True, "kl_every": 0,
    "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip


def arguments(adapter: Any, out: Path, *, flags: Any = (), **more: Any) -> Any:
    keys = KEYS | {"output_dir": str(out)} | ({} if adapter is None else {"adapter": adapter})
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(keys | more))
    return read_arguments("grpo", path, flags=flags)


def rows() -> Any:
    from offaxis.lab.data import named_data

    return named_data("arithmetic?count=16")


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("milora", AdapterSpec("milora")),
        ("milora?rank=16", AdapterSpec("milora", rank=16)),
        ({"method": "milora", "rank": 16, "target_modules": ["q_proj"]},
         AdapterSpec("milora", rank=16, target_modules=("q_proj",))),
        ({"method": "off_principal_lora", "avoid": "random", "alpha": 8},
         AdapterSpec("off_principal_lora", alpha=8, options={"avoid": "random"})),
        ("full", AdapterSpec("full")),
        ({"method": "full"}, AdapterSpec("full")),
        ({"peft_type": "LORA", "r": 4}, None),
        (None, None),
    ],
)  # fmt: skip
def test_the_key_in_a_file(adapter: Any, expected: Any, tmp_path: Path) -> None:
    assert asked_adapter(arguments(adapter, tmp_path / "out")) == expected


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("dora?rank=2", AdapterSpec("dora", rank=2)),
        (json.dumps({"method": "dora", "rank": 2}), AdapterSpec("dora", rank=2)),
        (json.dumps({"peft_type": "LORA", "r": 4}), None),
    ],
)
def test_the_key_as_a_flag(flag: str, expected: Any, tmp_path: Path) -> None:
    found = arguments("lora", tmp_path / "out", flags=["--adapter", flag])
    assert asked_adapter(found) == expected


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("nora?rank=4", "choose one of full, lora, rslora, lora_plus, .*geora"),
        ("lora?ratio=4", "lora has no ratio; it takes rank, alpha, dropout, target_modules"),
        ({"method": "lora_plus", "rates": 4}, "lora_plus has no rates; it takes .*, ratio"),
        ({"method": "ia3", "dropout": 0.05}, "ia3 has no dropout; it takes target_modules"),
        ({"method": "lora", "target_modules": ["z_proj"]}, "matches no module; the model has"),
        ({"method": "pissa", "rank": 65}, "rank 65: .*k_proj is 64x144"),
        ({"method": "lora", "r": 4}, "lora has no r; it takes rank"),
    ],
)  # fmt: skip
def test_what_the_key_cannot_be_is_refused_with_what_there_is(
    adapter: Any, said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=said), quiet_libraries():
        train("grpo", arguments_keys(adapter, out), data=rows(), tell=lambda text: None)
    assert not out.exists()


def test_what_a_dry_run_tells(tmp_path: Path) -> None:
    def told(adapter: Any) -> Any:
        return foretold_adapter(arguments(adapter, tmp_path / "out"))

    found = told("off_principal_lora?rank=4&avoid=random")
    assert (found["method"], found["rank"], found["alpha"]) == ("off_principal_lora", 4, 8.0)
    assert (found["target_modules"], found["avoid"]) == ("all-linear", "random")
    assert found["trains"] == ["lora_A", "lora_B"]
    norms = told("ln_tuning")
    assert norms["target_modules"] == "all-norms"
    assert not {"rank", "alpha", "dropout"} & set(norms), "what it does not have is not told"
    assert (told("full")["method"], told("full")["trains"]) == ("full", ["all"])
    assert told({"peft_type": "LORA", "r": 4}) is told(None) is None


def test_two_adapters_are_refused(tmp_path: Path) -> None:
    for adapter, more, said in (
        ({"method": "lora", "peft_type": "LORA"}, {}, "method and peft_type"),
        ("lora", {"use_peft": True}, "adapter and use_peft"),
    ):
        with pytest.raises(InputError, match=said):
            asked_adapter(arguments(adapter, tmp_path / "out", **more))


def arguments_keys(adapter: Any, out: Path) -> dict[str, Any]:
    return KEYS | {"output_dir": str(out), "adapter": adapter}


@pytest.mark.parametrize("adapter", ["adalora?rank=4", "lora_fa?rank=4", "vera?rank=4"])
def test_what_is_asked_for_is_what_the_trainer_has_wired(adapter: str, tmp_path: Path) -> None:
    asked = arguments(adapter, tmp_path / "out")
    with quiet_libraries():
        trainer = build_trainer(asked, rows(), None, reward_setup(asked), tell=lambda text: None)
    assert trainer.model.offaxis_adapter == AdapterSpec.parse(adapter)
    kind = trainer.model.peft_config["default"].peft_type.value
    assert kind == {"a": "ADALORA", "l": "LORA", "v": "VERA"}[adapter[0]]
    names = [type(one).__name__ for one in trainer.callback_handler.callbacks]
    assert ("AdaLoraCallback" in names) == adapter.startswith("adalora")
    with quiet_libraries():
        made_by = type(trainer.create_optimizer()).__name__
    assert (made_by == "LoraFaAdamW") == adapter.startswith("lora_fa")


def test_full_is_the_run_without_an_adapter_bit_for_bit(tmp_path: Path) -> None:
    found = []
    for name, adapter in (("full", {"adapter": "full"}), ("bare", {})):
        out = tmp_path / name
        with quiet_libraries():
            train("grpo", KEYS | adapter | {"output_dir": str(out), "learning_rate": 1e-3},
                  data=rows(), tell=lambda text: None)  # fmt: skip
        found.append(load_file(out / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    start = base().state_dict()
    assert any(not torch.equal(one, start[name].to(one.dtype)) for name, one in found[0].items())


# The reference of adapters that take over a part of the base


def start(name: str) -> GeometricLoraConfig:
    return GeometricLoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM",
        init_lora_weights=name,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["milora", pytest.param("geora", marks=pytest.mark.slow)])
def test_beta_pulls_to_the_original_base(name: str, tmp_path: Path) -> None:
    """With TRL alone the reference is what is left of it."""
    naive = run("GRPO", BUNDLED, tmp_path / "naive", peft_config=start(name), beta=0.05)
    assert column(naive, "kl")[0] > 1e-4
    ours = run("GRPO", made(f"{name}?rank=16"), tmp_path / "ours", beta=0.05, max_steps=2,
               learning_rate=1e-3)  # fmt: skip
    assert abs(column(ours, "kl")[0]) < 1e-6
    assert column(ours, "kl")[1] > 1e-6


@pytest.mark.parametrize("name", ["milora", "geora"])
def test_a_wrapped_model_loses_its_base_where_the_part_can_be_taken_twice(
    name: str, tmp_path: Path
) -> None:
    """TRL adds the reference with the same start. MiLoRA's part is gone the second time."""
    original = logits(base())

    def moved(model: Any) -> float:
        found = make("GRPO", model, tmp_path, beta=0.05).model
        return float((logits(found) - original).abs().max())

    wrapped = moved(get_peft_model(base(), start(name)))
    assert wrapped > 1e-3 if name == "geora" else wrapped < 1e-4
    assert moved(made(f"{name}?rank=16")) < 1e-4
