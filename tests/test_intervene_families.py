"""Both edits on every family with attention: logits to 1e-10 in float64, or a refusal with reason.

Each tensor that an edit changes is also put back alone: then the logits must differ, so that
whatever an edit forgot would have been seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import families
import intervene_models as models
from offaxis import intervene
from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError
from offaxis.intervene.families import FAMILIES, SEEING

EXACT = 1e-10
GATED = ("qwen3_next", "qwen3_5")
SLOPED = ("bloom", "mpt", "falcon_rw")
CLIPPED = ("olmo_clipped",)
LAYERS = {"gemma3n_text": "0", "qwen3_next": "3", "qwen3_5": "3", "lfm2": "1", "jamba": "1"}
"""Layers with an attention of their own, where they are not 0 and 1."""
EVERY = (*families.FAMILIES, *families.RECENT, *models.MORE)
WITH_SIGHT = ("gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen2_vl")


@pytest.fixture(scope="module", params=EVERY)
def family(request, tmp_path_factory) -> tuple[str, Any, Path]:
    model, path = models.made(request.param, tmp_path_factory.mktemp("family") / "base")
    return request.param, model, path


def holds(model: Any, name: str) -> torch.Tensor:
    """The parameter of `model` that a file holds under `name`, whatever stands before its layer."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    tail, seen = "." + ".".join(parts[at - 1 :]), "vis" in name
    (found,) = (
        one
        for own, one in model.named_parameters()
        if f".{own}".endswith(tail) and ("vis" in own) == seen
    )
    return found


def unseen(name: str) -> bool:
    """A bias of keys without rotary positions adds one number to all scores of a query."""
    return name.endswith("k_proj.bias") and ("decoder.layers" in name or "vision_tower" in name)


def check_each_tensor_counts(model: Any, edited: Any, made: Any, run: Any) -> None:
    expected = run(model)
    for name in made.tensors:
        own, other = holds(edited, name), holds(model, name)
        kept = own.detach().clone()
        with torch.no_grad():
            own.copy_(other)
            far = models.distance(expected, run(edited))
            own.copy_(kept)
        assert (far > 1e-6) != unseen(name), f"{name} may be left out: {far}"


@pytest.mark.parametrize("verb", ["rotate", "permute"])
def test_logits_are_kept_or_the_edit_is_refused(family, verb, tmp_path):
    name, model, path = family
    layers = LAYERS.get(name, "0,1")
    refused = (*GATED, *CLIPPED) if verb == "rotate" else SLOPED
    if name in refused:
        with pytest.raises(InputError, match=r"gate|clipped|ALiBi"):
            getattr(intervene, verb)(path, layers, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    made = getattr(intervene, verb)(path, layers, out=tmp_path / "out", seed=1)
    edited = models.reload(model, tmp_path / "out")
    assert models.distance(models.logits(model), models.logits(edited)) < EXACT
    check_each_tensor_counts(model, edited, made, models.logits)


@pytest.mark.parametrize("verb", ["rotate", "permute"])
@pytest.mark.parametrize("name", WITH_SIGHT)
def test_a_vision_tower_is_edited_like_a_language_model(name, verb, tmp_path):
    model, path = models.made(name, tmp_path / "base")
    made = getattr(intervene, verb)(path, "vision.0-1", out=tmp_path / "out")
    edited = models.reload(model, tmp_path / "out")
    assert models.distance(models.vision(model), models.vision(edited)) < EXACT
    assert {str(heads.layer) for heads in made.steps[0].heads} == {"vision.0", "vision.1"}
    check_each_tensor_counts(model, edited, made, models.vision)


@pytest.mark.parametrize(
    ("name", "layer", "what"),
    [
        ("qwen3_next", "0", "no softmax attention .*linear_attn"),
        ("qwen3_5", "1", "no softmax attention .*linear_attn"),
        ("lfm2", "0", "no softmax attention .*conv"),
        ("jamba", "0", "no softmax attention .*mamba"),
        ("gemma3n_text", "1", "from 3 on take their keys and values from layer 1"),
        ("gemma3n_text", "2", "from 3 on take their keys and values from layer 2"),
        ("gemma3n_text", "3", "takes its keys and values from layer 2"),
        ("gemma3n_text", "4", "takes its keys and values from layer 1"),
    ],
)
def test_layers_that_have_no_attention_of_their_own_are_refused(name, layer, what, tmp_path):
    path = models.saved(models.build(name), tmp_path / "base")
    for verb in (intervene.rotate, intervene.permute):
        with pytest.raises(InputError, match=what):
            verb(path, layer, out=tmp_path / "out")


def test_every_family_in_the_table_is_tested(tmp_path):
    """`model_type` of what the tests build; those left out share an architecture with one."""
    told, seen = set(), set()
    for name in EVERY:
        config = models.build(name).config
        inner = getattr(config, "text_config", config)
        told.add(inner.model_type)
        if inner is not config:
            seen.add(config.model_type)
    alike = {"qwen2_vl", "qwen2_5_vl", "qwen3_5_moe_text"}
    assert set(FAMILIES) - told == alike
    assert set(SEEING) - seen == {"qwen3_5_moe"}


def test_heads_are_as_many_as_the_configuration_says(tmp_path):
    """Widths come from the shapes: a configuration of another model does not fit them."""
    path = models.saved(models.build("qwen3"), tmp_path / "base")
    config = path / "config.json"
    config.write_text(config.read_text().replace('"head_dim": 16', '"head_dim": 8'))
    with pytest.raises(InputError, match="not of one model"):
        intervene.rotate(path, 0, out=tmp_path / "out")
    assert open_checkpoint(path)["model.layers.0.self_attn.q_proj.weight"].shape[0] == 64
