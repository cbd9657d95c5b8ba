"""Saved adapters loaded again, and turned into plain LoRAs: outputs stay what they were."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from adapter_states import ALL, RANKED, adapted, base_dir, load, logits, saved, shaken
from offaxis.errors import CheckpointError, InputError
from offaxis.train.adapters.export import export_lora
from offaxis.train.adapters.layers import ProjectedLinear
from offaxis.train.adapters.loading import load_adapted
from offaxis.train.adapters.materialize import materialize
from offaxis.train.reference import prepare_peft_model, reference_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_dir("gpt2", tmp_path_factory.mktemp("gpt2") / "base")


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For OLoRA, which fails in PEFT on GPT-2's Conv1D."""
    return base_dir("neox", tmp_path_factory.mktemp("neox") / "base")


def stock(base: Path, adapter: Path, *, dtype: torch.dtype = torch.float64) -> Any:
    """What PEFT makes of the directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base, dtype=dtype), str(adapter))


# Loading


@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "ln_tuning", "pissa", "geora",
                                    "off_principal_lora"])  # fmt: skip
def test_a_loaded_adapter_trains_on_and_is_saved_alike(
    method: str, gpt2: Path, tmp_path: Path
) -> None:
    live = adapted(gpt2, RANKED[method])
    first = saved(live, tmp_path / "first")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = load_adapted(load(gpt2), first, trainable=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.training
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in live.named_parameters() if p.requires_grad
    ]
    projected = [one for one in again.modules() if isinstance(one, ProjectedLinear)]
    assert bool(projected) == (method == "off_principal_lora")
    second = saved(again, tmp_path / "second")
    told = [json.loads((one / "adapter_config.json").read_text()) for one in (first, second)]
    for one in told:
        one["target_modules"] = sorted(one["target_modules"])  # a set in memory
    assert told[0] == told[1]
    names = {"default": "", **({"ref": "ref/"} if method in ("pissa", "geora") else {})}
    for folder in names.values():
        states = [load_file(one / f"{folder}adapter_model.safetensors") for one in (first, second)]
        near = 1e-6 if projected else 0.0
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=near)
    if method in ("pissa", "geora"):
        assert reference_of(again).kind == "ref"
        base = logits(load(gpt2))
        with reference_of(again).model() as model:
            torch.testing.assert_close(logits(model.eval()), base, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(again.eval()), logits(live), rtol=0, atol=1e-5)


def test_peft_alone_draws_another_pissa_and_we_read_the_one_that_was(
    gpt2: Path, tmp_path: Path
) -> None:
    """`pissa_niter_1` is random: PEFT's second SVD takes something else out of the base."""
    live = adapted(gpt2, "pissa?rank=4&niter=1")
    adapter = saved(live, tmp_path / "adapter")
    torch.manual_seed(99)
    naive = logits(stock(gpt2, adapter, dtype=torch.float32))
    ours = logits(load_adapted(load(gpt2), adapter))
    wanted = logits(live)
    assert (naive - wanted).abs().max() > 1e-3
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_peft_reads_off_principal_lora_as_a_lora(gpt2: Path, tmp_path: Path) -> None:
    live = adapted(gpt2, "off_principal_lora?rank=4&avoid_rank=3")
    adapter = saved(live, tmp_path / "adapter")
    found = logits(stock(gpt2, adapter))
    torch.testing.assert_close(found, logits(load_adapted(load(gpt2), adapter)), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, logits(live), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["milora", "geora"])
def test_peft_refuses_what_it_would_misread(method: str, gpt2: Path, tmp_path: Path) -> None:
    adapter = saved(adapted(gpt2, f"{method}?rank=4"), tmp_path / "adapter")
    with pytest.raises(ValueError, match="Unknown initialization"):
        stock(gpt2, adapter)


def test_the_base_in_memory_is_rounded_once(gpt2: Path, tmp_path: Path) -> None:
    """In bfloat16, W₀ − s B₀A₀ is what float64 gives, rounded."""
    adapter = saved(adapted(gpt2, "milora?rank=4"), tmp_path / "adapter")
    short = load_adapted(load(gpt2, dtype=torch.bfloat16), adapter)
    wide = load_adapted(load(gpt2, dtype=torch.bfloat16).double(), adapter)
    name = "base_model.model.transformer.h.0.mlp.c_fc.base_layer.weight"
    exact, found = wide.get_parameter(name), short.get_parameter(name)
    assert found.dtype == torch.bfloat16
    errors = (found.double() - exact).abs() / exact.abs().clamp_min(1e-9)
    assert errors.max() <= 2.0**-8
    assert short.get_parameter(name.replace("base_layer", "lora_A.default")).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["pissa", "pissa?niter=2", "milora"])
def test_a_half_precision_start_is_loaded_as_it_was(
    method: str, dtype: torch.dtype, gpt2: Path, tmp_path: Path
) -> None:
    """PEFT takes PiSSA's float32 factors out of the base, and rounds the factors afterwards."""
    live = adapted(gpt2, method, dtype=dtype)
    again = load_adapted(load(gpt2, dtype=dtype), saved(live, tmp_path / "adapter"))
    assert live.offaxis_base == "ref"
    seen = dict(again.named_parameters())
    bases = [name for name, _ in live.named_parameters() if "base_layer.weight" in name]
    assert bases
    assert all(torch.equal(live.get_parameter(name), seen[name]) for name in bases)
    assert torch.equal(logits(again), logits(live.eval()))


def test_a_model_is_no_place_for_another_ones_adapter(gpt2: Path, tmp_path: Path) -> None:
    llama = base_dir("llama", tmp_path / "llama")
    adapter = saved(adapted(gpt2, "ia3"), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="trained on"):
        load_adapted(load(llama), adapter)
    pissa = saved(adapted(gpt2, "pissa?rank=4"), tmp_path / "pissa")
    shutil.rmtree(pissa / "ref")
    with pytest.raises(CheckpointError, match="subfolder ref"):
        load_adapted(load(gpt2), pissa)


# Plain LoRAs


def lora(init: str, **more: Any) -> LoraConfig:
    told = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    return LoraConfig(task_type="CAUSAL_LM", init_lora_weights=init, **{**told, **more})


NEOX = {"target_modules": ["query_key_value", "dense"], "fan_in_fan_out": False}
PATTERNS = {"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.1.attn.c_attn": 5}}


@pytest.mark.parametrize(
    ("init", "more"),
    [("pissa", None), ("milora", None), ("geora", None), ("olora", NEOX),
     ("pissa", {"use_rslora": True}), ("pissa", PATTERNS),
     ("pissa", {"use_rslora": True, **PATTERNS}), ("pissa", {"modules_to_save": ["ln_f"]})],
)  # fmt: skip
def test_the_exported_lora_is_the_materialised_model(
    init: str, more: dict[str, Any] | None, gpt2: Path, neox: Path, tmp_path: Path
) -> None:
    base = neox if more is NEOX else gpt2
    if more is None:
        live = adapted(base, f"{init}?rank=4")
    else:
        live = shaken(prepare_peft_model(load(base), lora(init, **more)))
    adapter = saved(live, tmp_path / "adapter")
    plain = export_lora(adapter, tmp_path / "plain")
    told = json.loads((plain / "adapter_config.json").read_text())
    assert (told["r"], told["init_lora_weights"], told["use_rslora"]) == (8, True, False)
    assert sorted(path.name for path in plain.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    found = logits(stock(base, plain))
    made = materialize(adapter, tmp_path / "made", dtype="float64")
    torch.testing.assert_close(found, logits(load(made, dtype="auto")), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, logits(live), rtol=0, atol=1e-5)
    state, was = (load_file(d / "adapter_model.safetensors") for d in (plain, adapter))
    start = load_file(adapter / "ref" / "adapter_model.safetensors")
    name = next(one for one in was if one.endswith("lora_A.weight"))
    assert torch.equal(state[name], torch.cat([was[name], -start[name]]))


def test_a_model_in_memory_is_exported_as_its_directory_is(gpt2: Path, tmp_path: Path) -> None:
    live = adapted(gpt2, "pissa?rank=4")
    export_lora(live, tmp_path / "live")
    export_lora(saved(live, tmp_path / "adapter"), tmp_path / "stored")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()


def test_a_model_without_an_adapter_is_no_adapter(gpt2: Path, tmp_path: Path) -> None:
    for write in (materialize, export_lora):
        with pytest.raises(CheckpointError, match=r"GPT2LMHeadModel is neither .* save_pretrained"):
            write(load(gpt2), tmp_path / "out")


def test_what_is_a_lora_already_or_never_is_not_exported(gpt2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for method in ("lora", "off_principal_lora", "ia3"):
        assert method in ALL
        adapter = saved(adapted(gpt2, RANKED[method]), tmp_path / method)
        with pytest.raises(InputError, match="never overwritten"):
            export_lora(adapter, out)
    with pytest.raises(InputError, match="has an adapter already"):
        load_adapted(adapted(gpt2, "lora?rank=2"), tmp_path / "lora")
    with pytest.raises(InputError, match="no adapter ref"):
        export_lora(adapted(gpt2, "lora?rank=2"), out)
    dora = shaken(prepare_peft_model(load(gpt2), lora("pissa", use_dora=True)))
    with pytest.raises(InputError, match=r"no LoRA of any rank.*materialize"):
        export_lora(saved(dora, tmp_path / "dora"), out)
    assert not out.exists()
