"""Both edits on a real pretrained model: stories260K of llama2.c, which writes English stories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import intervene_models as models
import llama2c
from offaxis import intervene

FILE = Path(__file__).parents[2] / "shared/data/models/stories260K/stories260K.bin"


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, torch.Tensor]:
    """The model in float64, its directory, and 60 tokens that it writes by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not FILE.is_file():
        pytest.skip(f"no stories260K at {FILE} (local test material)")
    found = llama2c.read(FILE)
    model = LlamaForCausalLM(LlamaConfig(**found.config)).double().eval()
    absent = model.load_state_dict(found.state, strict=False)
    assert absent.missing_keys == ["lm_head.weight"]
    assert not absent.unexpected_keys
    path = models.saved(model, tmp_path_factory.mktemp("stories") / "base")
    ids = torch.tensor([[1]])
    with torch.no_grad(), models.Exact():
        for _ in range(60):
            following = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
    return model, path, ids


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with models.Exact():
        return model(input_ids=ids, use_cache=False).logits


def test_it_was_read_as_it_was_trained(stories):
    """Its own words are likely to it, and not with its rotary channels in the file's order."""
    model, path, ids = stories
    assert written(model, ids) > -1.0
    scrambled = models.reload(model, path)
    with torch.no_grad():
        for name, one in scrambled.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                one.copy_(one.view(-1, 2, 4, 64).transpose(1, 2).reshape(one.shape))
    assert written(scrambled, ids) < written(model, ids) - 3
    angles = torch.arange(512.0)[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
    assert torch.allclose(llama2c.read(FILE).cosines, angles.cos(), atol=2e-4)


def written(model: Any, ids: torch.Tensor) -> float:
    """Mean log-probability of each token after the first, in nats."""
    said = logits(model, ids)[:, :-1].log_softmax(-1)
    return float(said.gather(-1, ids[:, 1:, None]).mean())


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("rotate", {}),
        ("rotate", {"kind": "hadamard"}),
        ("rotate", {"per_head": True}),
        ("permute", {}),
        ("permute", {"within_groups": True}),
    ],
)
def test_what_it_says_stays(stories, tmp_path, verb, settings):
    """Every layer edited at once: logits to 1e-10 of their scale, and every weight elsewhere."""
    model, path, ids = stories
    made = getattr(intervene, verb)(path, "0-4", out=tmp_path / "out", **settings)
    edited = models.reload(model, tmp_path / "out")
    assert models.distance(logits(model, ids), logits(edited, ids)) < 1e-10
    own, other = model.state_dict(), edited.state_dict()
    for name in made.tensors:
        assert (own[name] != other[name]).double().mean() > 0.4
