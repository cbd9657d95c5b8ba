"""Scores for the rules `gradient` and `fisher`, against autograd and against torch's own loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lab_base import untrained_model
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.session import quiet_libraries
from offaxis.live import load_live
from offaxis.masks import build
from offaxis.train import fisher_scores, gradient_scores, score_checkpoint
from sparse_runs import WORDS, model

ROWS = [{"q": "12+30=", "a": "42"}, {"q": "7*6=", "a": "42#"}, {"q": "1+1=", "a": "2"}]


def pairs(count: int = 6) -> list[tuple[list[int], list[int]]]:
    drawn = torch.randint(0, WORDS, (count, 9), generator=torch.Generator().manual_seed(5)).tolist()
    return [(row[: 3 + i % 3], row[3 + i % 3 :]) for i, row in enumerate(drawn)]


def by_labels(one: Any, samples: Any) -> list[dict[str, torch.Tensor]]:
    """Each sample's gradient by the model's own loss: labels, and a mean over them."""
    found = []
    for prompt, completion in samples:
        ids = torch.tensor([[*prompt, *completion]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        one.zero_grad()
        (one(input_ids=ids, labels=labels).loss * len(completion)).backward()
        found.append({n: p.grad.clone() for n, p in one.named_parameters()})
    one.zero_grad()
    return found


def test_scores_are_autograds() -> None:
    one, samples = model(), pairs()
    one.get_parameter("model.norm.weight").requires_grad_(False)
    one.train()
    kept = one.model.layers[0].mlp.up_proj.weight
    kept.grad = torch.ones_like(kept)
    gradient, fisher = gradient_scores(one, samples), fisher_scores(one, samples)
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert not one.get_parameter("model.norm.weight").requires_grad
    assert one.training
    one.requires_grad_(True)
    expected = by_labels(one, samples)
    for name in dict(one.named_parameters()):
        total = sum(each[name].double() for each in expected)
        squares = sum(each[name].double() ** 2 for each in expected) / len(samples)
        torch.testing.assert_close(gradient[name].double(), total.abs(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fisher[name].double(), squares, rtol=1e-4, atol=1e-7)


def test_the_gradient_mask_is_autograds_top(tmp_path: Path) -> None:
    untrained_model(tmp_path / "base")
    live = load_live(tmp_path / "base")
    samples = pairs()
    scores = gradient_scores(live.model, samples)
    chosen = build(str(tmp_path / "base"), "gradient(density=0.05)", scores={"gradient": scores})
    for name, flags in chosen.items():
        assert int(flags.sum()) == round(0.05 * flags.numel())
        cut = scores[name][flags].min()
        assert bool((scores[name][~flags] <= cut).all())
    each = by_labels(live.model, samples)
    name = next(iter(chosen))
    top = sum(one[name] for one in each).abs().flatten().topk(int(chosen[name].sum())).indices
    assert float(chosen[name].flatten()[top].float().mean()) > 0.99


@pytest.mark.parametrize("kind", ["gradient", "fisher"])
def test_a_stored_model_is_scored_on_a_file(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    columns = {"prompt_column": "q", "completion_column": "a"}
    with quiet_libraries():
        found = score_checkpoint(str(BASE), kind, path, **columns)
        again = score_checkpoint(str(BASE), kind, path, limit=2, seed=1, **columns)
        live = load_live(BASE)
    tokens = live.tokenizer
    samples = [
        (tokens(row["q"])["input_ids"],
         tokens(row["a"], add_special_tokens=False)["input_ids"] + [tokens.eos_token_id])
        for row in ROWS
    ]  # fmt: skip
    expected = (gradient_scores if kind == "gradient" else fisher_scores)(live.model, samples)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], expected[name])
    assert float(found[name].max()) > 0
    assert not torch.equal(found[name], again[name])
    assert build(str(BASE), f"{kind}(density=0.1)", scores={kind: found}).density == pytest.approx(
        0.1, abs=1e-4
    )


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ('{"prompt": "1+1="}\n', {}, "line 1: has no 'completion', only prompt"),
        ('{"prompt": "1+1=", "completion": ""}\n', {}, "is no text"),
        ('{"prompt": "1+1=", "completion": "2"}\n', {"limit": 0}, "at least 1"),
        ("", {}, "holds no row"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    text: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        score_checkpoint(str(BASE), "gradient", path, **options)
    with pytest.raises(InputError, match="gradient or fisher"):
        score_checkpoint(str(BASE), "hessian", path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no samples"):
        gradient_scores(model(), [])
