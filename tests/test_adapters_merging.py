"""Merging rounds once, and unmerging gives every bit back."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapter_states import ALL, RANKED, adapted, base_dir, load, logits, shaken
from offaxis.errors import InputError
from offaxis.kernels.bits import bf16_codes
from offaxis.train.adapters.effective import effective_tensors, rounded
from offaxis.train.adapters.merging import exact_merges

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
CYCLES = 20


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For MiSS, which PEFT does not put on GPT-2's Conv1D."""
    return base_dir("neox", tmp_path_factory.mktemp("neox") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in bfloat16, as models are that TRL sends to vLLM."""
    return base_dir("gpt2", tmp_path_factory.mktemp("gpt2") / "base", dtype=torch.bfloat16)


def short(base: Path, method: str) -> Any:
    """An adapted model whose base is bfloat16 in memory."""
    if method == "adalora":  # PEFT makes its ranknum trainable in bfloat16, and `adapt` refuses
        return adapted(base, RANKED[method]).to(torch.bfloat16)
    return adapted(base, RANKED[method], dtype=torch.bfloat16)


def bases(model: Any) -> dict[str, torch.Tensor]:
    """The base's parameters as they are now, under their own names."""
    return {
        name.replace(".base_layer.", "."): one.detach().clone()
        for name, one in model.get_base_model().named_parameters()
        if not any(f".{part}" in name for part in ("lora_", "ia3_", "vera_", "miss_", "ranknum",
                                                   "ln_tuning"))
    }  # fmt: skip


def share_changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    pairs = [(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one]
    changed = sum(int((a != b).sum()) for a, b in pairs)
    return changed / sum(a.numel() for a, _ in pairs)


def cycle(model: Any, times: int) -> None:
    for _ in range(times):
        model.merge_adapter()
        model.unmerge_adapter()


def test_peft_drifts_in_bfloat16_and_ours_does_not(gpt2: Path) -> None:
    """TRL merges and unmerges at every step: trl#6688 counted 16.9 % of weights changed."""
    naive, ours = short(gpt2, "lora"), short(gpt2, "lora")
    before = bases(naive)
    cycle(naive, CYCLES)
    assert share_changed(before, bases(naive)) > 0.05
    exact_merges(ours)
    cycle(ours, CYCLES)
    assert share_changed(before, bases(ours)) == 0.0


@pytest.mark.parametrize("method", ALL)
def test_merged_is_the_exact_weight_rounded_once_and_unmerged_the_base(
    method: str, gpt2: Path, neox: Path
) -> None:
    """The exact weight: of the model in memory, so that PiSSA's residual counts as it is stored."""
    model = short(neox if method == "miss" else gpt2, method)
    before = bases(model)
    kept = dict(before)
    plain = copy.deepcopy(model)
    if "ref" in model.peft_config:
        plain.delete_adapter("ref")
    wanted = {
        name: rounded(value, torch.bfloat16)
        for name, value in effective_tensors(plain, lambda name: kept[name])
    }
    exact_merges(model)
    cycle(model, 2)
    model.merge_adapter()
    merged = bases(model)
    assert wanted.keys() <= merged.keys()
    for name, one in merged.items():
        norm = method == "ln_tuning" and name in wanted  # exchanged, in the float32 that is trained
        assert one.dtype == (torch.float32 if norm else torch.bfloat16), name
        stored = rounded(one.double(), torch.bfloat16)
        assert torch.equal(stored, wanted.get(name, before[name])), name
    assert sum(not torch.equal(one, before[name]) for name, one in merged.items()) >= 4
    model.unmerge_adapter()
    assert share_changed(before, bases(model)) == 0.0


def test_a_merged_model_computes_what_the_adapter_does(gpt2: Path) -> None:
    """In float64, where nothing is rounded; and again after a step of training."""
    model = adapted(gpt2, "dora?rank=4", dtype=torch.float32).double()
    exact_merges(model)
    for _ in range(2):
        wanted = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-12)
        with model.disable_adapter():  # unmerges
            torch.testing.assert_close(logits(model), logits(load(gpt2)), rtol=0, atol=1e-12)
        assert not any(getattr(one, "merged", False) for one in model.modules())
        shaken(model)


def test_only_the_model_that_is_given_is_changed(gpt2: Path) -> None:
    ours, other = short(gpt2, "lora"), short(gpt2, "lora")
    exact_merges(ours)
    exact_merges(ours, keep_on="cpu")  # twice is once
    layers = [
        [type(one) for name, one in model.named_modules() if name.endswith("c_fc")]
        for model in (ours, other)
    ]
    assert all(hasattr(kind, "offaxis_plain") for kind in layers[0])
    assert not any(hasattr(kind, "offaxis_plain") for kind in layers[1])
    assert layers[0][0].offaxis_plain is layers[1][0]
    assert layers[0][0].__name__ == layers[1][0].__name__
    before = bases(ours)
    twin = copy.deepcopy(ours)
    twin.merge_adapter()
    assert share_changed(before, bases(ours)) == 0.0
    assert list(dict(effective_tensors(ours, lambda name: before[name]))) == list(
        dict(effective_tensors(other, lambda name: before[name]))
    )
    state = ours.state_dict()
    assert not any("offaxis" in name for name in state)
    merged = ours.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_two_adapters_are_merged_one_after_the_other_and_both_come_off(gpt2: Path) -> None:
    told = {"r": 4, "target_modules": ["c_fc"], "fan_in_fan_out": True}
    model = get_peft_model(load(gpt2, dtype=torch.bfloat16), LoraConfig(**told))
    model.add_adapter("other", LoraConfig(**told))
    model.base_model.set_adapter(["default", "other"])
    shaken(model)
    exact_merges(model)
    before = bases(model)
    model.merge_adapter()
    both = bases(model)
    model.unmerge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells of the second
        model.merge_adapter(["default"])
        model.merge_adapter(["other"])
    assert share_changed(both, bases(model)) == 0.0
    model.unmerge_adapter()
    assert share_changed(before, bases(model)) == 0.0
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_weights_that_are_not_finite_are_refused_and_nothing_changes(gpt2: Path) -> None:
    model = short(gpt2, "lora")
    exact_merges(model)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    before = bases(model)
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert share_changed(before, bases(model)) == 0.0


def test_weights_that_cannot_be_merged_into_are_refused(gpt2: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tied = get_peft_model(load(gpt2), LoraConfig(r=2, target_modules=["wte"]))
    with pytest.raises(InputError, match=r"wte shares its weight with .*lm_head"):
        exact_merges(tied)
    model = short(gpt2, "lora")
    model.merge_adapter()
    with pytest.raises(InputError, match="merged already"):
        exact_merges(model)


def test_rounding_is_done_once() -> None:
    """torch goes through float32 and rounds twice: 1 + 2⁻⁸ + 2⁻⁴⁰ lies above a tie."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(4000) * 10.0 ** rng.integers(-44, 39, 4000)
    ties = [1 + 2.0**-8 + e for e in (0, 2.0**-40, -(2.0**-40))] + [1 + 2.0**-11 + 2.0**-40]
    edges = [0.0, -0.0, np.inf, -np.inf, 3.3961e38, 1e300, 2.0**-134, 2.0**-150, 65519.99999999]
    wide = torch.from_numpy(np.array([*drawn, *ties, *edges, *(-x for x in ties)]))
    codes = torch.from_numpy(bf16_codes(wide).view(np.int16))
    assert torch.equal(rounded(wide, torch.bfloat16).view(torch.int16), codes)
    assert not torch.equal(wide.to(torch.bfloat16).view(torch.int16), codes)
    with np.errstate(over="ignore"):
        half = wide.numpy().astype(np.float16)
    assert rounded(wide, torch.float16).numpy().tobytes() == half.tobytes()
    assert rounded(torch.tensor([np.nan]).double(), torch.bfloat16).isnan().all()
    assert torch.equal(rounded(wide, torch.float32), wide.float())
