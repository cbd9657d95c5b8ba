"""Which modules an adapter is put on: what was asked for, or a reason why not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from adapter_runs import base, layers, linear, made, norms
from families import build
from offaxis.errors import InputError
from offaxis.train.adapters import AdapterSpec, adapt, adapter_config
from offaxis.train.adapters.targets import targets_of


@pytest.mark.parametrize(
    ("asked", "count", "ends"),
    [
        ("all-linear", 14, None),
        (None, 14, None),
        (("q_proj",), 2, {"q_proj"}),
        (("self_attn.q_proj", "down_proj"), 4, {"q_proj", "down_proj"}),
        (("model.layers.1.mlp.up_proj",), 1, {"up_proj"}),
        (r".*layers\.0\..*_proj", 7, None),
        (r"model\.layers\.[0-9]+\.self_attn\.(q|v)_proj", 4, {"q_proj", "v_proj"}),
    ],
)
def test_names_regular_expressions_and_all(asked: Any, count: int, ends: set[str] | None) -> None:
    model = made(AdapterSpec("lora", rank=2, target_modules=asked), "llama")
    found = layers(model)
    assert len(found) == count
    assert list(found) == list(model.offaxis_adapted.modules)
    assert ends is None or {name.rpartition(".")[2] for name in found} == ends


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        ("lora", ("lm_head",), "matches lm_head, which is no linear module that this method"),
        ("lora", ("input_layernorm",), "is no linear module .* choose among q_proj, k_proj"),
        ("lora", ("embed_tokens",), "which is no linear module"),
        ("lora", ("q_proj", "z_proj"), "'z_proj' matches no module; the model has q_proj, k_proj"),
        ("lora", "q_proj", r"'q_proj' matches no module.* regular expression .* are a list, \["),
        ("lora", r".*(", "no regular expression"),
        ("lora", "all-norms", "adapts linear modules; give 'all-linear'"),
        ("lora", ".*_proj|.*norm", "which is no linear module"),
        ("ln_tuning", ("q_proj",), "is no norm module .* choose among input_layernorm"),
        ("ln_tuning", "all-linear", "adapts norm modules; give 'all-norms'"),
        ("milora?rank=20", ("k_proj",), r"rank 20: model.layers.0.self_attn.k_proj is 16x32"),
        ("pissa?rank=20", ("k_proj",), "pissa takes 20 directions of it; choose a lower rank"),
        ("miss?rank=33", ("k_proj",), "rank 33: .*k_proj is 16x32"),
        ("off_principal_lora?avoid_rank=16", ("v_proj",), "avoid_rank 16: .*v_proj is 16x32"),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_the_reason(
    method: str, asked: Any, said: str
) -> None:
    given = AdapterSpec.parse(method)
    spec = AdapterSpec(given.method, rank=given.rank, target_modules=asked, options=given.options)
    model = base("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match=said):
        adapt(model, spec)
    assert [name for name, _ in model.named_modules()] == before, "nothing has been put on it"


def test_ia3_needs_no_mlp() -> None:
    model = made(AdapterSpec("ia3", target_modules=("q_proj",)), "llama")
    assert model.offaxis_adapted.trainable == 2 * 32


def test_a_rank_above_a_weights_is_fine_where_nothing_is_taken_from_it() -> None:
    assert made("lora?rank=40", "llama").offaxis_adapted.trainable > 0
    assert made("miss?rank=32", "llama").offaxis_adapted.trainable > 0


def test_paths_are_not_taken_for_the_ends_of_others() -> None:
    """`layers.1` is no end of `layers.11`, and PEFT is told whole paths."""
    import transformers

    small = {"vocab_size": 96, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**small, num_hidden_layers=12)
    model = transformers.AutoModelForCausalLM.from_config(config)
    asked = ("layers.1.input_layernorm",)
    found = adapt(model, AdapterSpec("ln_tuning", target_modules=asked))
    assert list(layers(found)) == ["model.layers.1.input_layernorm"]


@pytest.mark.parametrize("family", ["bundled", "qwen2", "gpt2"])
def test_a_tied_head_is_left_alone(family: str) -> None:
    model = made("lora?rank=2", family)
    assert list(layers(model)) == linear(family)
    inner = model.get_base_model()
    assert inner.get_output_embeddings().weight is inner.get_input_embeddings().weight
    assert sorted(targets_of(base(family), None, "norm").modules) == sorted(norms(family))


# Experts that are stacked into one parameter


def experts(family: str) -> int:
    return sum(p.numel() for n, p in build(family).named_parameters() if p.ndim == 3)


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "milora", "adalora", "vera", "ia3"])
def test_stacked_experts_are_left_out_by_every_method_alike_and_said(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT's all-linear adapts them for LoRA, and silently not for the others."""
    with caplog.at_level(logging.WARNING, logger="offaxis.train"):
        model = made(AdapterSpec(method, **({} if method == "ia3" else {"rank": 4})), "qwen3_moe")
    assert list(layers(model)) == linear("qwen3_moe")
    assert model.offaxis_adapted.experts == experts("qwen3_moe") > 0
    said = f"{experts('qwen3_moe')} of {model.offaxis_adapted.total} parameters stay frozen"
    assert [said in one.message for one in caplog.records] == [True]


def test_other_models_have_no_such_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="offaxis.train"):
        assert made("lora?rank=2", "llama").offaxis_adapted.experts == 0
    assert not caplog.records


def test_experts_by_name_are_refused() -> None:
    spec = AdapterSpec("miss", rank=2, target_modules=("experts",))
    with pytest.raises(InputError, match=r"its experts are stacked, as .*, and not adapted"):
        adapt(base("qwen3_moe"), spec)
    spec = AdapterSpec("miss", rank=2, target_modules=("gate_up_proj",))
    with pytest.raises(InputError, match=r"matches no module .its experts are stacked"):
        adapt(base("qwen3_moe"), spec)


@pytest.mark.parametrize("method", ["lora", "milora", "off_principal_lora"])
def test_where_peft_would_reach_them_after_all_it_is_refused(method: str) -> None:
    """DeepSeek-V3 has dense MLPs beside its experts, under the same names."""
    model = build("deepseek_v3")
    with pytest.raises(InputError, match=r"stacked experts \(.*down_proj.* in no MLP"):
        adapter_config(AdapterSpec(method, rank=2), model)
    asked = ("q_a_proj", "o_proj")
    found = adapt(model, AdapterSpec(method, rank=2, target_modules=asked), seed=0)
    assert len(layers(found)) == 4


def test_a_regular_expression_that_names_them_is_refused() -> None:
    spec = AdapterSpec("lora", rank=2, target_modules=r".*(q_proj|down_proj)")
    with pytest.raises(InputError, match="PEFT takes target_modules for its stacked experts"):
        adapt(base("qwen3_moe"), spec)
