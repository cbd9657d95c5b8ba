"""Adapters against PEFT's own merge, in float64."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import families
from offaxis.checkpoint import align, bind, open_checkpoint, read_pair
from offaxis.errors import AlignmentError, CheckpointError

LINEAR = ["q_proj", "v_proj", "down_proj"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": LINEAR}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "dora": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "dora rslora": ("llama", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 5},
            "alpha_pattern": {"down_proj": 3, "^model.layers.1.self_attn.q_proj": 7},
        },
    ),
    "bias": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    "lora bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "dora embedding": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "modules to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 square": ("gpt2", {"target_modules": ["attn.c_proj"]}),
    "gpt2 dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "phi3 fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "gaussian": ("llama", {"target_modules": LINEAR, "init_lora_weights": "gaussian"}),
}


def make(family: str, directory: Path, settings: dict[str, Any], *, merge: bool = True):
    """(base directory, adapter directory, merged float64 state) of a random adapter."""
    from peft import LoraConfig, get_peft_model

    model = families.build(family)
    base = directory / "base"
    model.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**{"r": 4, "lora_alpha": 6, **settings})
        tuned = get_peft_model(model, config)
        torch.manual_seed(1)
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                shift = torch.randn_like(parameter) * 0.1
                parameter.data += shift.abs() if "magnitude" in name else shift
        tuned.save_pretrained(directory / "adapter")
        merged = tuned.double().merge_and_unload(safe_merge=True) if merge else None
    return base, directory / "adapter", merged.state_dict() if merge else None


@pytest.mark.parametrize("case", CASES)
def test_merges_as_peft_does(tmp_path, case):
    family, settings = CASES[case]
    base_dir, adapter_dir, merged = make(family, tmp_path, settings)
    base = open_checkpoint(base_dir)
    bound = bind(open_checkpoint(adapter_dir), base)
    assert list(bound) == list(base)
    changed = 0
    for name in base:
        torch.testing.assert_close(bound[name].double(), merged[name], rtol=1e-12, atol=1e-14)
        assert bound[name].dtype == (
            torch.float64 if bound.specs[name].dtype == "F64" else torch.float32
        )
        changed += not torch.equal(bound[name].double(), base[name].double())
    assert changed == sum(spec.dtype == "F64" for spec in bound.specs.values()) > 0


def test_a_bound_adapter_aligns_with_its_base(tmp_path):
    base_dir, adapter_dir, _ = make("phi3", tmp_path, {"target_modules": ["qkv_proj"]})
    base, adapter = open_checkpoint(base_dir), open_checkpoint(adapter_dir)
    bound = bind(adapter, base)
    aligned = align(base, bound)
    assert aligned.renaming == "identity"
    assert not aligned.mismatches
    for pair in aligned.pairs:
        values = read_pair(base, bound, pair)
        touched = "qkv_proj" in pair.part.tensor
        assert pair.tuned_dtype == ("F64" if touched else "F32")
        assert touched != torch.equal(values.base.double(), values.tuned.double())
    with pytest.raises(AlignmentError, match="lora_A"):
        align(base, adapter)


def test_the_base_may_carry_other_prefixes(tmp_path):
    base_dir, adapter_dir, merged = make("llama", tmp_path, {"target_modules": LINEAR})
    state = load_file(base_dir / "model.safetensors")
    renamed = {f"language_model._orig_mod.{name}": value for name, value in state.items()}
    base = open_checkpoint(families.save(renamed, tmp_path / "renamed"))
    bound = bind(open_checkpoint(adapter_dir), base)
    for name in base:
        expected = merged[name.removeprefix("language_model._orig_mod.")]
        torch.testing.assert_close(bound[name].double(), expected, rtol=1e-12, atol=1e-14)


def test_a_head_trained_on_a_tied_base_is_a_row(tmp_path):
    """Qwen2 here stores no head: the one that the adapter brings has no counterpart."""
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    base_dir, adapter_dir, _ = make("qwen2", tmp_path, settings, merge=False)
    base = open_checkpoint(base_dir)
    aligned = align(base, bind(open_checkpoint(adapter_dir), base))
    assert [(row.tensor, row.status) for row in aligned.mismatches] == [("lm_head.weight", "extra")]


def edit(adapter: Path, **changes: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    base, adapter, _ = make("llama", directory, {"target_modules": LINEAR}, merge=False)
    return base, adapter


@pytest.fixture
def pair(plain, tmp_path):
    """(base checkpoint, a private copy of the adapter directory)."""
    base, adapter = plain
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in adapter.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return open_checkpoint(base), copy


def refusal(base, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        bind(open_checkpoint(adapter), base)
    message = str(caught.value)
    assert str(adapter) in message
    assert ";" in message  # the remedy
    return message


@pytest.mark.parametrize(
    "name", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "PiSSA", "milora", "geora"]
)
def test_initialisations_that_overwrite_the_base_are_refused(pair, name):
    base, adapter = pair
    message = refusal(base, edit(adapter, init_lora_weights=name))
    assert "BA - B0A0" in message
    assert "initial adapter" in message
    assert "subfolder ref" in message
    assert "offaxis.train.adapters.materialize" in message


def with_start(adapter: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Make a PiSSA of a plain LoRA: a subfolder `ref` with an initial adapter. Its tensors."""
    ref = adapter / "ref"
    ref.mkdir()
    path = "adapter_model.safetensors"
    start = {name: value.flip(0).contiguous() for name, value in load_file(adapter / path).items()}
    save_file(start, ref / path)
    (ref / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    edit(ref, **changes)
    return start


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora", "milora", "geora"])
def test_what_the_start_took_out_of_the_base_is_read_from_ref(pair, name):
    base, adapter = pair
    start = with_start(edit(adapter, init_lora_weights=name), init_lora_weights=True)
    last = load_file(adapter / "adapter_model.safetensors")
    bound = bind(open_checkpoint(adapter), base)
    changed = 0
    for tensor in base:
        key = f"base_model.model.{tensor.removesuffix('.weight')}"
        expected = base[tensor].double()
        if f"{key}.lora_A.weight" in last:
            ba, ba0 = (
                one[f"{key}.lora_B.weight"].double() @ one[f"{key}.lora_A.weight"].double()
                for one in (last, start)
            )
            expected = expected + 6 / 4 * (ba - ba0)
            changed += 1
        torch.testing.assert_close(bound[tensor].double(), expected, rtol=1e-12, atol=1e-14)
    assert changed == 6
    assert align(base, bound).pairs


def test_a_start_of_another_adapter_is_refused_and_a_plain_lora_has_none(pair):
    base, adapter = pair
    with_start(adapter, r=3)
    bind(open_checkpoint(adapter), base)
    assert "r differ" in refusal(base, edit(adapter, init_lora_weights="pissa"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "NONE"),
        ({"init_lora_weights": "brand_new"}, "brand_new"),
        ({"init_lora_weights": "loftq"}, "quantised"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"r": 8}, "rank 4"),
        ({"r": "8"}, "'8'"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "None"),
        ({"rank_pattern": {"q_proj": 3}}, "rank 4"),
        ({"rank_pattern": {"(": 3}}, "regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": -1}}, "-1"),
        ({"use_dora": True}, "magnitude"),
    ],
)
def test_configs_that_cannot_be_merged_are_refused(pair, change, word):
    base, adapter = pair
    assert word in refusal(base, edit(adapter, **change))


def rewrite(adapter: Path, change) -> Path:
    path = adapter / "adapter_model.safetensors"
    state = {name: value.clone() for name, value in load_file(path).items()}
    save_file(change(state), path)
    return adapter


@pytest.mark.parametrize("method", ["ADALORA", "VERA", "MISS", "IA3", "LN_TUNING"])
def test_other_methods_are_told_how_they_are_read(pair, method):
    base, adapter = pair
    assert "offaxis.train.adapters.materialize" in refusal(base, edit(adapter, peft_type=method))


def test_a_factor_without_its_partner_is_refused(pair):
    base, adapter = pair
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(adapter, lambda s: {name: value for name, value in s.items() if name != first})
    assert "not both factors" in refusal(base, adapter)


def test_a_module_that_the_base_lacks_is_refused(pair):
    base, adapter = pair
    rewrite(adapter, lambda s: {n.replace("q_proj", "z_proj"): v for n, v in s.items()})
    message = refusal(base, adapter)
    assert "z_proj" in message
    assert base.source in message


def test_another_base_is_refused_with_both_shapes(pair, tmp_path):
    base, adapter = pair
    rewrite(adapter, lambda s: {n: v[:, :-2].clone() if "lora_A" in n else v for n, v in s.items()})
    message = refusal(base, adapter)
    assert "(32, 46)" in message
    assert "(32, 48)" in message


def test_factors_of_two_ranks_are_refused(pair):
    base, adapter = pair
    rewrite(adapter, lambda s: {n: v[:-1].clone() if "lora_A" in n else v for n, v in s.items()})
    assert "of one rank" in refusal(base, adapter)


def test_a_whole_tensor_without_a_home_is_refused_but_a_new_head_is_extra(pair):
    base, adapter = pair
    prefix = "base_model.model."
    rewrite(adapter, lambda s: {**s, f"{prefix}score.weight": torch.ones(2, 32)})
    aligned = align(base, bind(open_checkpoint(adapter), base))
    assert [(row.tensor, row.status) for row in aligned.mismatches] == [("score.weight", "extra")]
    rewrite(adapter, lambda s: {**s, f"{prefix}model.strange.weight": torch.ones(2, 32)})
    assert "strange" in refusal(base, adapter)


def test_only_adapters_are_bound(pair):
    base, _ = pair
    with pytest.raises(CheckpointError, match="not a PEFT adapter"):
        bind(base, base)


def test_the_adapter_file_may_be_given_itself(pair):
    base, adapter = pair
    bound = bind(open_checkpoint(adapter / "adapter_model.safetensors"), base)
    assert len(bound) == len(base)
