"""Sampling from merged weights: the same policy to rounding, and every bit back afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lab_base import untrained_model
from offaxis.errors import InputError
from offaxis.train.adapters import (
    ADAPTERS,
    AdapterSpec,
    adapt,
    exact_merges,
    merged,
    sample_merged,
)
from offaxis.train.precision import give_masters

IDS = torch.arange(3, 40)[None]
NAMES = [name for name in ADAPTERS if name != "full"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model"))


def model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, noise: float = 0.1
) -> Any:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sized = {} if "rank" in ADAPTERS[name].lacks else {"rank": 4}
        made = adapt(base, AdapterSpec(name, **sized), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return made.eval()


@torch.no_grad()
def logits(made: Any) -> torch.Tensor:
    found: torch.Tensor = made(IDS).logits
    return found


@pytest.mark.parametrize("name", NAMES)
def test_merged_is_the_adapters_policy_and_leaves_no_trace(folder: Path, name: str) -> None:
    made = model(folder, name)
    before = {key: (one.data_ptr(), one.clone()) for key, one in made.named_parameters()}
    apart = logits(made)
    with made.disable_adapter():
        base = logits(made)
    with merged(made):
        together = logits(made)
        assert any(one.merged for one in made.modules() if hasattr(one, "merged_adapters"))
    assert torch.allclose(together, apart, atol=1e-4)
    assert (base - apart).abs().max() > 100 * (together - apart).abs().max(), "it does something"
    assert torch.equal(logits(made), apart)
    after = {key: (one.data_ptr(), one) for key, one in made.named_parameters()}
    assert before.keys() == after.keys()
    for key, (place, value) in before.items():
        assert after[key][0] == place, key
        assert torch.equal(after[key][1], value), key


def test_an_error_inside_gives_the_weights_back_too(folder: Path) -> None:
    made = model(folder, "dora")
    apart = logits(made)
    with pytest.raises(RuntimeError, match="within"), merged(made):
        raise RuntimeError("within")
    assert torch.equal(logits(made), apart)


def test_it_goes_with_exact_merges(folder: Path) -> None:
    made = model(folder, "lora")
    before = {key: one.clone() for key, one in made.named_parameters()}
    exact_merges(made)
    apart = logits(made)
    with merged(made):
        assert torch.allclose(logits(made), apart, atol=1e-4)
    assert all(torch.equal(one, before[key]) for key, one in made.named_parameters())
    assert torch.equal(logits(made), apart)


def test_gradients_flow_after_sampling_as_before(folder: Path) -> None:
    made = model(folder, "lora")
    with merged(made):
        logits(made)
    made(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_a_coarse_base_is_refused(folder: Path) -> None:
    made = model(folder, "lora", dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"torch\.bfloat16, whose rounding"), merged(made):
        pass


def test_a_merged_model_is_refused_and_stays_as_it_is(folder: Path) -> None:
    """It would forget that it is merged, and add its adapters twice from then on."""
    made = model(folder, "lora")
    apart = logits(made)
    made.merge_adapter()
    together = logits(made)
    with pytest.raises(InputError, match="merged already"), merged(made):
        pass
    assert torch.equal(logits(made), together)
    made.unmerge_adapter()
    assert torch.allclose(logits(made), apart, atol=1e-4)


def test_a_base_of_codes_is_refused(folder: Path) -> None:
    made = model(folder, "lora")
    layer = next(one for one in made.modules() if hasattr(one, "merged_adapters"))
    codes = torch.zeros(layer.get_base_layer().weight.shape, dtype=torch.int8)
    layer.get_base_layer().weight = torch.nn.Parameter(codes, requires_grad=False)
    with pytest.raises(InputError, match=r"torch\.int8"), merged(made):
        pass


def test_a_trainer_that_does_not_sample_is_refused() -> None:
    with pytest.raises(InputError, match="object does not sample"):
        sample_merged(object())


def test_norms_with_masters_hand_on_what_a_frozen_bfloat16_base_expects(folder: Path) -> None:
    """Without the cast the next linear gets float32, and its bfloat16 weight refuses it."""
    made = model(folder, "ln_tuning", dtype=torch.bfloat16, noise=0.0)
    with made.disable_adapter():
        plain = logits(made)
    assert give_masters(made, learning_rate=1e-4, insist=False) == "", "`adapt` has done it"
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in made.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert torch.allclose(logits(made).float(), plain.float(), atol=0.05)
    made(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
