"""An adapter's weights as a model: what the adapted model computes with, rounded once."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

import families
from adapter_states import ALL, RANKED, adapted, base_dir, load, logits, saved, shaken
from offaxis.checkpoint import bind, open_checkpoint
from offaxis.errors import CheckpointError, InputError, OffaxisError, OutputError
from offaxis.kernels.bits import bf16_codes
from offaxis.lab.session import quiet_libraries
from offaxis.train.adapters.effective import effective_tensors, rounded
from offaxis.train.adapters.loading import load_adapted
from offaxis.train.adapters.materialize import materialize
from offaxis.train.reference import prepare_peft_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv1D, biases, a tied head, and norms that compute in float64 if they are asked to."""
    return base_dir("gpt2", tmp_path_factory.mktemp("gpt2") / "base")


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As GPT-2, with linear layers and a head of its own: PEFT's MiSS and OLoRA need them."""
    return base_dir("neox", tmp_path_factory.mktemp("neox") / "base")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, in two shards, one weight −0, with files beside that belong and that do not."""
    out = tmp_path_factory.mktemp("llama") / "base"
    whole = base_dir("llama", out.with_name("whole"), dtype=torch.bfloat16)
    state = load_file(whole / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        state[name][0, 0] = -0.0
    families.save_shards(state, out, [i % 2 for i in range(len(state))])
    for shard in out.glob("*.safetensors"):
        save_file(load_file(shard), shard, metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(whole / name, out / name)
    for name in ("tokenizer.json", "chat_template.jinja", "trainer_state.json", "optimizer.pt"):
        (out / name).write_text("{}")
    return out


def state_of(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = [t.contiguous().flatten().view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and torch.equal(*flat)


@pytest.mark.parametrize("method", ALL)
def test_the_weights_are_what_the_model_computes_with(
    method: str, gpt2: Path, neox: Path, tmp_path: Path
) -> None:
    """From memory and from the directory, in float64 to 1e-9; in bfloat16 rounded once.

    A residual that PiSSA leaves in float32 is rounded; in float64, MiLoRA's and GeoRA's is not.
    """
    base = neox if method == "miss" else gpt2
    wide = torch.float64 if method in ("milora", "geora", "off_principal_lora") else torch.float32
    live = adapted(base, RANKED[method], dtype=wide)
    adapter = saved(live, tmp_path / "adapter")
    whole = materialize(live, tmp_path / "live", base=base, dtype="float64")
    made = materialize(adapter, tmp_path / "made", dtype="float64")
    ours = logits(load(made, dtype="auto"))
    again = load_adapted(load(base, dtype=torch.float64), adapter)
    torch.testing.assert_close(ours, logits(again), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours, logits(load(whole, dtype="auto")), rtol=0, atol=1e-9)
    near = 1e-5 if method == "pissa" else 1e-9
    torch.testing.assert_close(ours, logits(live), rtol=0, atol=near)
    assert (ours - logits(load(base))).abs().max() > 1e-3, "the adapter does something"
    short = state_of(materialize(adapter, tmp_path / "short", dtype="bfloat16"))
    for name, exact in state_of(made).items():
        codes = torch.from_numpy(bf16_codes(exact).view(np.int16)).view(exact.shape)
        assert torch.equal(short[name].view(torch.int16), codes), name


# The directory


def test_what_the_adapter_leaves_is_the_base_byte_for_byte(llama: Path, tmp_path: Path) -> None:
    spec = "lora?rank=4&target_modules=.*0.self_attn.q_proj"
    adapter = saved(adapted(llama, spec, dtype=torch.bfloat16), tmp_path / "adapter")
    out = materialize(adapter, tmp_path / "deep" / "er" / "out", base=llama)
    wide = state_of(materialize(adapter, tmp_path / "wide", base=llama, dtype="float64"))
    before, after = state_of(llama), state_of(out)
    assert list(before) == list(after)
    changed = "model.layers.0.self_attn.q_proj.weight"
    for name, one in before.items():
        assert same_bits(one, after[name]) == (name != changed), name
        assert torch.equal(one.double(), wide[name]) == (name != changed)
    assert same_bits(after[changed], rounded(wide[changed], torch.bfloat16))
    kept = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja",
            "model.safetensors.index.json"}  # fmt: skip
    shards = {path.name for path in llama.glob("*.safetensors")}
    assert {path.name for path in out.iterdir()} == kept | shards
    for name in kept - {"model.safetensors.index.json"}:
        assert (out / name).read_bytes() == (llama / name).read_bytes()
    for name in shards:
        assert (out / name).stat().st_size == (llama / name).stat().st_size
        length = 8 + int.from_bytes((llama / name).read_bytes()[:8], "little")
        assert (out / name).read_bytes()[:length] == (llama / name).read_bytes()[:length]
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float64"
    with quiet_libraries():
        assert load(out, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "milora", "geora", "miss", "ia3"])
def test_an_adapter_at_its_start_is_the_base_bit_for_bit(
    method: str, llama: Path, tmp_path: Path
) -> None:
    """Zeros keep their sign. (DoRA's norm is one in float64, so its weights come near.)"""
    adapter = saved(
        adapted(llama, RANKED[method], dtype=torch.bfloat16, size=0.0), tmp_path / "adapter"
    )
    out = materialize(adapter, tmp_path / "out", base=llama)
    before, after = state_of(llama), state_of(out)
    if method == "dora":
        torch.testing.assert_close(after, before, rtol=2**-7, atol=0)
    else:
        assert all(same_bits(one, after[name]) for name, one in before.items())


def test_a_directory_that_is_not_empty_stays_as_it_is(gpt2: Path, tmp_path: Path) -> None:
    adapter = saved(adapted(gpt2, "ia3"), tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        materialize(adapter, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    materialize(adapter, out, overwrite=True)
    assert (out / "mine").is_file()
    assert (out / "model.safetensors").is_file()


# What stands beside the factors


def lora(**more: Any) -> LoraConfig:
    told = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    return LoraConfig(task_type="CAUSAL_LM", **{**told, **more})


NEOX: dict[str, Any] = {
    "target_modules": ["query_key_value", "dense_h_to_4h"],
    "fan_in_fan_out": False,
    "use_rslora": True,
}


@pytest.mark.parametrize(
    ("more", "untied"),
    [
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["wte", "ln_f"]}, True),
        ({"modules_to_save": ["wte", "lm_head"]}, True),
        ({"target_modules": ["wte", "c_attn"]}, True),
        ({"target_modules": ["lm_head"], "fan_in_fan_out": False}, True),
        ({"bias": "all"}, False),
        ({"bias": "lora_only"}, False),
        ({"lora_bias": True}, False),
        ({"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.0.attn.c_attn": 3}}, False),
        ({"use_dora": True, "use_rslora": True}, False),
        ({"init_lora_weights": "pissa", "use_dora": True}, False),
        ({**NEOX, "init_lora_weights": "olora", "rank_pattern": {"dense_h_to_4h": 2}}, False),
        ({**NEOX, "modules_to_save": ["embed_in"]}, None),
        ({"init_lora_weights": "pissa", "modules_to_save": ["ln_f"]}, False),
    ],
    ids=str,
)
def test_heads_biases_patterns_and_variants(
    more: dict[str, Any], untied: bool | None, gpt2: Path, neox: Path, tmp_path: Path
) -> None:
    """untied: does the head, GPT-2's embedding, get weights of its own? NeoX's always has."""
    base = neox if NEOX.items() <= more.items() else gpt2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = shaken(prepare_peft_model(load(base), lora(**more)))
        adapter = saved(live, tmp_path / "adapter")
        again = load_adapted(load(base, dtype=torch.float64), adapter)
    made = materialize(adapter, tmp_path / "made", dtype="float64")
    whole = materialize(live, tmp_path / "live", dtype="float64", base=base)
    ours = logits(load(made, dtype="auto"))
    torch.testing.assert_close(ours, logits(again), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours, logits(load(whole, dtype="auto")), rtol=0, atol=1e-9)
    if "bias" in more:  # and they are the adapter's where nothing is trained
        model = load_adapted(load(base), adapter).requires_grad_(False)
        frozen = materialize(model, tmp_path / "still", base=base, dtype="float64")
        torch.testing.assert_close(logits(load(frozen, dtype="auto")), ours, rtol=0, atol=1e-9)
    near = 1e-5 if "init_lora_weights" in more else 1e-9
    torch.testing.assert_close(ours, logits(live), rtol=0, atol=near)
    if base == gpt2:
        assert ("lm_head.weight" in state_of(made)) == untied
        tied = json.loads((made / "config.json").read_text())["tie_word_embeddings"]
        assert tied is not untied


def test_what_is_trained_beside_an_adapter_is_written(gpt2: Path, tmp_path: Path) -> None:
    live = adapted(gpt2, "lora?rank=2&target_modules=.*c_fc", size=0.0)
    live.get_parameter("base_model.model.transformer.h.0.ln_1.weight").requires_grad_(True)
    shaken(live)
    whole = materialize(live, tmp_path / "live", base=gpt2, dtype="float64")
    torch.testing.assert_close(logits(load(whole, dtype="auto")), logits(live), rtol=0, atol=1e-9)


def test_adalora_that_peft_pruned_and_saved(gpt2: Path, tmp_path: Path) -> None:
    """PEFT cuts what `rank_pattern` has pruned out of the file."""
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, total_step=8, tinit=1, tfinal=2, fan_in_fan_out=True,
        target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM",
    )  # fmt: skip
    live = shaken(get_peft_model(load(gpt2), config))
    for step in range(7):
        live(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        live.base_model.update_and_allocate(step)
    adapter = saved(live, tmp_path / "adapter")
    ranks = {tuple(v.shape) for n, v in state_of(adapter).items() if "lora_E" in n}
    assert len(ranks) > 1, "some module was pruned more than another"
    made = materialize(adapter, tmp_path / "made", dtype="float64")
    torch.testing.assert_close(logits(load(made, dtype="auto")), logits(live), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "qwen3_vl", "gpt2"])
@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_two_ways_to_read_an_adapter_agree(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """`bind` knows no PEFT. Names in memory differ from those on disk (experts, towers)."""
    base = tmp_path / "base"
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "v_proj"]
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family == "gpt2":
            model = load(base_dir(family, base))
        else:
            model = families.build(family)
            model.save_pretrained(base)
        told = LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=True, **more)
        told.base_model_name_or_path = str(base)
        adapter = saved(shaken(prepare_peft_model(model, told)), tmp_path / "adapter")
    made = open_checkpoint(materialize(adapter, tmp_path / "made", base=base, dtype="float64"))
    opened = open_checkpoint(base)
    bound = bind(open_checkpoint(adapter), opened)
    assert list(made) == list(bound) == list(opened)
    for name in made:
        torch.testing.assert_close(made[name], bound[name].double(), rtol=1e-12, atol=1e-14)
    assert sum(not torch.equal(made[name], opened[name].double()) for name in made) >= 4


# Refusals


@pytest.fixture(scope="module")
def pissa(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(adapted(gpt2, "pissa?rank=4"), tmp_path_factory.mktemp("pissa") / "adapter")


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_ref(adapter: Path) -> None:
    shutil.rmtree(adapter / "ref")


def other_ref(adapter: Path) -> None:
    edit(adapter / "ref", r=3)


def cut(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def one_less(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    state.pop(sorted(state)[0])
    save_file(state, path)


def narrower(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({n: v[:, :-1].clone() if "lora_A" in n else v for n, v in load_file(path).items()},
              path)  # fmt: skip
    shutil.copyfile(path, adapter / "ref" / "adapter_model.safetensors")


def strange(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    state["base_model.model.transformer.h.0.mlp.c_new.lora_A.weight"] = torch.ones(4, 32)
    save_file(state, path)
    shutil.copyfile(path, adapter / "ref" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_ref, ["pissa", "subfolder ref", "prepare_peft_model"]),
        (other_ref, ["ref", "r differ"]),
        (cut, ["truncated"]),
        (one_less, ["the tensors differ"]),
        (narrower, ["does not fit the base", "mismatch", "trained on"]),
        (strange, ["c_new", "fits no module"]),
        (lambda a: edit(a, peft_type="BRAND_NEW"), ["BRAND_NEW", "not known"]),
        (lambda a: edit(a, peft_type=None), ["none named"]),
        (lambda a: edit(a, brand_new=3), ["brand_new = 3", "upgrade"]),
        (lambda a: edit(a, target_modules=["q_proj"]), ["cannot be put on", "q_proj"]),
        (lambda a: edit(a, base_model_name_or_path=None), ["does not name its base", "base="]),
        (lambda a: edit(a, base_model_name_or_path="no/such/place"), ["no/such/place"]),
        (lambda a: (a / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors"]),
        (lambda a: (a / "adapter_config.json").write_text("{"), ["adapter_config.json"]),
        (lambda a: edit(a, layer_replication=[[0, 2]]), ["layer_replication"]),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    harm: Any, words: list[str], pissa: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(pissa, adapter)
    harm(adapter)
    with pytest.raises(OffaxisError) as caught:
        materialize(adapter, tmp_path / "out")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_other_bases_methods_and_settings_are_refused(
    gpt2: Path, llama: Path, pissa: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="dtype 'int8'"):
        materialize(pissa, out, dtype="int8")
    with pytest.raises(CheckpointError, match="an adapter, not a base"):
        materialize(pissa, out, base=pissa)
    with pytest.raises(CheckpointError, match="trained on"):
        materialize(pissa, out, base=llama)
    with pytest.raises(CheckpointError, match="not a PEFT adapter"):
        materialize(gpt2, out)
    live = adapted(gpt2, "lora?rank=2")
    with pytest.raises(CheckpointError, match=r"the adapter changes transformer\.h"):
        materialize(live, out, base=llama)
    live.merge_adapter()
    with pytest.raises(InputError, match="unmerge the adapter first"):
        materialize(live, out, base=gpt2)
    prompts = get_peft_model(
        load(gpt2), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        materialize(prompts, out, base=gpt2)
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        materialize(saved(prompts, tmp_path / "prompts"), out, base=gpt2)
    assert isinstance(load_adapted(load(gpt2), tmp_path / "prompts"), PeftModel)
    with pytest.raises(InputError, match="no adapter 'other'"):
        list(effective_tensors(live, lambda name: torch.ones(1), adapter="other"))
    assert not out.exists()


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_compared_and_written(tmp_path: Path) -> None:
    """GRPO on PiSSA: `compare` reads the checkpoint and its weights alike."""
    import offaxis
    from kl_runs import BUNDLED, run

    model = adapted(BUNDLED, "pissa?rank=4", size=0.0)
    run("GRPO", model.train(), tmp_path / "run", save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    made = materialize(checkpoint, tmp_path / "made", base=BUNDLED, dtype="float64")
    found = offaxis.compare(BUNDLED, [checkpoint, made]).summary()["pairs"]
    one, other = (pair["relative_update_norm"] for pair in found)
    assert 0 < one < 0.1
    assert one == pytest.approx(other, rel=1e-9)
