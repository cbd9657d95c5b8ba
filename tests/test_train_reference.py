"""The base that KL is measured to and that beta pulls to, for weights and for every adapter."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, KasaConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import offaxis
from kl_runs import BUNDLED, column, make, prompts, run, same, weights
from offaxis.errors import InputError
from offaxis.evaluate import sequence_kl
from offaxis.lab.session import quiet_libraries
from offaxis.live import LiveModel
from offaxis.train.divergence import DivergenceCallback, prompt_tokens
from offaxis.train.leash import leash_named
from offaxis.train.reference import overwrites_base, prepare_peft_model, reference_of


def adapter(init: Any = True, **more: Any) -> LoraConfig:
    settings = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoraConfig(init_lora_weights=init, **(settings | more))


def base(path: Path = BUNDLED) -> Any:
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def prepared(init: Any = "pissa", *, path: Path = BUNDLED, **more: Any) -> Any:
    return prepare_peft_model(base(path), adapter(init, **more), seed=0)


class AsItIs:
    """In the place of a reference: the model without any care."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def model(self) -> Any:
        return contextlib.nullcontext(self._model)


def distance(reference: Any, original: Any = None) -> float:
    """KL, in nats a token, of what `reference` yields to a base that was loaded apart."""
    original = original or base()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ids = prompt_tokens(tokenizer, prompts(8))
    completions = [[5, 6, 7, 8, 9, 10] for _ in ids]
    with reference.model() as found:
        apart = LiveModel(original.eval(), tokenizer, "base")
        return sequence_kl(LiveModel(found.eval(), tokenizer, "reference"), apart, ids,
                           completions).per_token  # fmt: skip


# Which initialisations overwrite the base


@pytest.mark.parametrize(
    ("init", "more", "expected"),
    [
        (True, {}, False),
        (False, {}, False),
        ("gaussian", {}, False),
        ("eva", {"eva_config": EvaConfig()}, False),
        ("orthogonal", {}, False),
        ("mica", {}, False),
        ("olora", {}, True),
        ("pissa", {}, True),
        ("pissa_niter_4", {}, True),
        ("lora_ga", {"lora_ga_config": LoraGAConfig()}, True),
        (True, {"kasa_config": KasaConfig()}, True),
        (True, {"use_dora": True}, False),
        ("pissa", {"use_dora": True}, True),
        ("pissa", {"use_rslora": True, "rank_pattern": {"q_proj": 4}}, True),
    ],
)
def test_which_loras_overwrite_the_base(init: Any, more: dict[str, Any], expected: bool) -> None:
    config = adapter(init, **more)
    before = config.to_dict()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert overwrites_base(config) is expected
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", ["corda", "loftq"])
def test_initialisations_that_need_more_libraries_are_tried_or_told(init: str) -> None:
    """CorDA needs `attrs` and LoftQ bitsandbytes, which offaxis does not install."""
    corda = init == "corda"
    more = {"corda_config": CordaConfig()} if corda else {"loftq_config": {"loftq_bits": 4}}
    if importlib.util.find_spec("attr" if corda else "bitsandbytes"):
        assert overwrites_base(adapter(init, **more))
    else:
        with pytest.raises(InputError, match="cannot be tried on a single layer"):
            overwrites_base(adapter(init, **more))


def test_no_other_method_overwrites_the_base() -> None:
    """Every method of peft that runs on a linear layer with its default settings."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kept = []
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = overwrites_base(config(total_step=9) if kind == "ADALORA" else config())
        except (InputError, TypeError, ValueError):
            continue
        assert not found, kind
        kept.append(str(kind.value))
    assert len(kept) >= 25, kept
    assert {"LORA", "ADALORA", "VERA", "IA3", "MISS", "OSF", "SHIRA", "BOFT"} <= set(kept)


# TRL by itself, and with what is prepared here


@pytest.mark.parametrize(
    ("family", "init"),
    [
        ("GRPO", "pissa"),
        ("RLOO", "olora"),
        pytest.param("GRPO", "olora", marks=pytest.mark.slow),
        pytest.param("RLOO", "pissa", marks=pytest.mark.slow),
    ],
)
def test_trl_alone_pulls_to_the_residual_and_ours_to_the_base(
    family: str, init: str, tmp_path: Path
) -> None:
    """The KL that TRL logs in its first step is far from 0; prepared, it is 0 but for rounding."""
    torch.manual_seed(0)
    naive = run(family, BUNDLED, tmp_path, peft_config=adapter(init), beta=0.05)
    assert column(naive, "kl")[0] > 1.0, "nats a token, before the first step"
    ours = run(family, prepared(init), tmp_path, beta=0.05, max_steps=3)
    kls = column(ours, "kl")
    assert abs(kls[0]) < 1e-6
    assert 0 < abs(kls[-1]) < 0.1


def test_trl_overwrites_a_wrapped_pissa_twice_and_a_prepared_one_never(tmp_path: Path) -> None:
    """Given a PeftModel, TRL adds `ref` with the same initialisation: the model is another then."""
    original = base()
    wrapped = make("GRPO", get_peft_model(base(), adapter("pissa")), tmp_path, beta=0.05)
    assert distance(AsItIs(wrapped.model), original) > 1.0
    ours = make("GRPO", prepared(), tmp_path, beta=0.05)
    assert distance(reference_of(ours), original) < 1e-8


@pytest.mark.parametrize("init", ["pissa", pytest.param("olora", marks=pytest.mark.slow)])
def test_dpo_begins_at_its_reference(init: str, tmp_path: Path) -> None:
    """All implicit rewards are 0 in the first step, where TRL alone has them far away."""
    naive = run("DPO", BUNDLED, tmp_path, peft_config=adapter(init))
    ours = run("DPO", prepared(init), tmp_path, max_steps=3)
    names = ("rewards/chosen", "rewards/rejected")
    assert max(abs(column(naive, name)[0]) for name in names) > 0.1
    assert max(abs(column(ours, name)[0]) for name in names) < 1e-4
    assert column(ours, "loss")[0] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(
    "init",
    [
        "pissa",
        pytest.param("olora", marks=pytest.mark.slow),
        pytest.param("pissa_niter_4", marks=pytest.mark.slow),
    ],
)
def test_the_reference_is_the_original_base_before_training_and_after(
    init: str, tmp_path: Path
) -> None:
    model = prepared(init)
    assert model.offaxis_base == "ref"
    reference = reference_of(model)
    assert reference.kind == "ref"
    assert distance(reference) < 1e-9
    with model.disable_adapter():
        assert distance(AsItIs(model)) > 0.3
    probe = DivergenceCallback(prompts(4), every=1, max_new_tokens=8)
    made = run("GRPO", model, tmp_path, probe, max_steps=3, learning_rate=1e-3)
    assert distance(reference_of(made)) < 1e-9
    assert column(made, "kl_tuned_base")[0] == 0.0
    assert column(made, "kl_tuned_base")[-1] > 1e-4


def test_the_copy_is_neither_trained_nor_the_main_adapter_and_is_saved_apart(
    tmp_path: Path,
) -> None:
    model = prepared()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if ".ref." in n}
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    made = run("GRPO", model, tmp_path, beta=0.05, max_steps=2, save_strategy="steps", save_steps=1)
    assert model.active_adapter == "default"
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    total = sum(p.numel() for group in made.optimizer.param_groups for p in group["params"])
    assert total == sum(p.numel() for n, p in model.named_parameters() if n in trained)
    saved = tmp_path / "checkpoint-2"
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["init_lora_weights"] == "pissa"
    initial = json.loads((saved / "ref" / "adapter_config.json").read_text())
    assert initial["init_lora_weights"] is True
    main = (saved / "adapter_model.safetensors").read_bytes()
    assert main != (saved / "ref" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("init", ["pissa_niter_4", pytest.param("pissa", marks=pytest.mark.slow)])
def test_a_resumed_run_keeps_its_reference_and_its_trajectory(init: str, tmp_path: Path) -> None:
    def settings() -> dict[str, Any]:
        return {"beta": 0.05, "max_steps": 3, "leash": leash_named("fixed", beta=0.05)}

    whole = run("GRPO", prepared(init), tmp_path, **settings(), save_strategy="steps", save_steps=1)
    again = run("GRPO", prepared(init), tmp_path, **settings(), resume=tmp_path / "checkpoint-1")
    assert same(weights(whole), weights(again))
    assert column(again, "kl") == column(whole, "kl")
    assert distance(reference_of(again)) < 1e-9


def test_another_initialisation_cannot_be_resumed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"beta": 0.05, "max_steps": 2}
    run(
        "GRPO", prepared("pissa_niter_0"), tmp_path, **settings, save_strategy="steps", save_steps=1
    )
    other = prepare_peft_model(base(), adapter("pissa_niter_0"), seed=1)
    with pytest.raises(InputError, match="give the seed and the libraries"):
        run("GRPO", other, tmp_path, **settings, resume=tmp_path / "checkpoint-1")


# Other models and adapters


@pytest.mark.parametrize(
    "config",
    [
        adapter(),
        adapter(False),
        adapter("orthogonal"),
        adapter(use_dora=True),
        adapter(modules_to_save=["norm"], target_modules=["q_proj"]),
    ],
    ids=["lora", "random", "orthogonal", "dora", "saved"],
)
def test_other_adapters_are_disabled(config: LoraConfig) -> None:
    model = prepare_peft_model(base(), config)
    assert model.offaxis_base == "kept"
    assert "ref" not in model.peft_config
    reference = reference_of(model)
    assert reference.kind == "disabled"
    frozen = next(p for p in model.parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    assert distance(reference) < 1e-12
    assert not frozen.requires_grad, "what the user froze stays frozen"
    assert any(p.requires_grad for p in model.parameters())


def test_weights_of_their_own_have_trls_reference_or_one_copy(tmp_path: Path) -> None:
    made = make("GRPO", BUNDLED, tmp_path, beta=0.05)
    found = reference_of(made)
    with found.model() as model:
        assert model is made.ref_model
    bare = make("SFT", BUNDLED, tmp_path)
    found = reference_of(bare)
    assert reference_of(bare) is found, "made once"
    with found.model() as model, torch.no_grad():
        assert not any(p.requires_grad for p in model.parameters())
        assert model.dtype == bare.model.dtype
        next(bare.model.parameters()).add_(1.0)
    assert distance(found) == 0.0


def test_nothing_is_loaded_where_nobody_asks(tmp_path: Path, monkeypatch: Any) -> None:
    calls = []
    monkeypatch.setattr(offaxis.train.reference.base, "_load", lambda *a: calls.append(a))
    run("SFT", BUNDLED, tmp_path, leash=leash_named("none"))
    assert calls == []


def test_an_adapter_that_lost_its_base_is_refused(tmp_path: Path) -> None:
    lost = get_peft_model(base(), adapter("olora"))
    with pytest.raises(InputError, match="prepare_peft_model"):
        reference_of(lost)
    torch.manual_seed(0)
    leash = leash_named("fixed", beta=0.1)
    made = make("GRPO", BUNDLED, tmp_path, peft_config=adapter("pissa"), beta=0.1, leash=leash)
    with pytest.raises(InputError, match="prepare_peft_model"):
        made.train()
    probe = DivergenceCallback(prompts(2), max_new_tokens=4)
    made = make("SFT", BUNDLED, tmp_path, probe, peft_config=adapter("pissa"))
    with pytest.raises(InputError, match="what is left of it"):
        made.train()


def test_a_base_that_no_adapter_gives_back_is_loaded_to_measure_by(tmp_path: Path) -> None:
    """KaSA drops the smallest singular values of the base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepared(True, kasa_config=KasaConfig())
    assert model.offaxis_base == "copy"
    probe = DivergenceCallback(prompts(4), every=1, max_new_tokens=8)
    made = run("GRPO", model, tmp_path, probe)
    assert reference_of(made).kind == "copy"
    assert distance(reference_of(made)) == 0.0
    assert column(made, "kl_tuned_base")[0] > 1e-3, "the model does not start at its base"
    with pytest.raises(InputError, match="changed the base for good"):
        run("GRPO", model, tmp_path, beta=0.1, leash=leash_named("fixed", beta=0.1))


def test_bfloat16_bases_are_given_back_up_to_their_rounding() -> None:
    with quiet_libraries():
        stored = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.bfloat16)
        original = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.bfloat16)
    model = prepare_peft_model(stored, adapter("pissa"))
    reference = reference_of(model)
    assert reference.kind == "ref"
    assert distance(reference, original) < 1e-2, "float32 is better: 1e-9"
