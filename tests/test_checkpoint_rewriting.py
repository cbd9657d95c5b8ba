"""A stored model written again: the rest stays byte for byte, what changes is rounded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import families
import models
from offaxis.checkpoint import open_checkpoint
from offaxis.checkpoint.rewriting import Rewriting, check_target, rounded
from offaxis.errors import InputError, OutputError

V = "model.layers.1.self_attn.v_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


def rewritten(source: Path, out: Path, changes, *, untied=False, new=None, **settings) -> Path:
    base = open_checkpoint(source)
    out.mkdir()
    files = Rewriting(base, out, changed=set(changes) - set(new or {}), new=new, **settings)
    files.begin()
    for name, value in changes.items():
        files.put(name, value)
    files.finish(untied=untied)
    return out


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.fixture
def state() -> models.State:
    return models.tiny()


@pytest.mark.parametrize("shards", [1, 3])
def test_nothing_changed_gives_every_file_back(tmp_path, state, shards):
    source = models.write(tmp_path / "base", state, shards=shards)
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("hello")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("tool")
    out = rewritten(source, tmp_path / "out", {})
    files = sorted(one.relative_to(source) for one in source.rglob("*") if one.is_file())
    assert sorted(one.relative_to(out) for one in out.rglob("*") if one.is_file()) == files
    assert all((out / one).read_bytes() == (source / one).read_bytes() for one in files)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_changed_tensor_takes_its_place_and_the_rest_stays(tmp_path, state, shards):
    source = models.write(tmp_path / "base", state, shards=shards)
    value = torch.linspace(-1, 1, state[V].numel(), dtype=torch.float64).view(state[V].shape)
    out = rewritten(source, tmp_path / "out", {V: value})
    before, after = tensors(source), tensors(out)
    assert same(after[V], rounded(value, torch.bfloat16))
    assert all(same(before[name], after[name]) for name in before if name != V)
    assert families.header_of(next(iter(out.glob("*.safetensors")))) == families.header_of(
        next(iter(source.glob("*.safetensors")))
    )


def test_rounding_is_to_nearest_even_once():
    """1 + 2⁻⁸ + 2⁻⁴⁰ lies above the middle of two bfloat16 values, in float32 on it."""
    value = torch.tensor([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8], dtype=torch.float64)
    assert rounded(value, torch.bfloat16).tolist() == [1 + 2**-7, 1.0, 1 + 2**-6]
    assert value.to(torch.bfloat16)[0] == 1.0, "torch rounds twice; then this needs no care"
    assert torch.equal(rounded(-value, torch.bfloat16), -rounded(value, torch.bfloat16))


def test_another_dtype_casts_every_float_and_says_so(tmp_path, state):
    state = {**state, "steps": torch.tensor([3])}
    source = models.write(tmp_path / "base", state)
    out = rewritten(source, tmp_path / "out", {Q: state[Q].double() * 2}, dtype="float32")
    after = tensors(out)
    assert same(after["steps"], state["steps"])
    assert same(after[Q], state[Q].float() * 2)
    assert all(same(after[name], state[name].float()) for name in state if name not in (Q, "steps"))
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    entries = open_checkpoint(out).headers[0].entries
    assert all(one.start % 8 == 0 for one in entries if one.dtype == "I64")


def test_a_new_tensor_goes_into_the_last_file_and_the_index(tmp_path, state):
    source = models.write(tmp_path / "base", state, shards=2)
    head = torch.randn(40, 32, dtype=torch.float64)
    out = rewritten(
        source,
        tmp_path / "out",
        {"lm_head.weight": head},
        new={"lm_head.weight": ((40, 32), "BF16")},
        untied=True,
    )
    assert same(tensors(out)["lm_head.weight"], rounded(head, torch.bfloat16))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == "model-00002-of-00002.safetensors"
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    before, after = tensors(source), tensors(open_checkpoint(out).root)
    assert all(same(before[name], after[name]) for name in before)


def test_state_of_training_and_strange_indexes_stay_behind(tmp_path, state):
    source = models.write(tmp_path / "base", state)
    for name in ("trainer_state.json", "scheduler.txt"):
        (source / name).write_text("{}")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    out = rewritten(source, tmp_path / "out", {})
    assert sorted(one.name for one in out.iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_not_announced_is_refused(tmp_path, state):
    base = open_checkpoint(models.write(tmp_path / "base", state))
    with pytest.raises(InputError, match="stores no tensor 'x'"):
        Rewriting(base, tmp_path, changed=["x"])
    with pytest.raises(InputError, match="already"):
        Rewriting(base, tmp_path, new={V: ((1,), "F32")})
    (tmp_path / "out").mkdir()
    files = Rewriting(base, tmp_path / "out", changed=[V])
    files.begin()
    with pytest.raises(InputError, match=r"not put: .*v_proj"):
        files.finish()
    with pytest.raises(InputError, match="not announced"):
        files.put(Q, base[Q])
    with pytest.raises(InputError, match=r"its shape is \(16, 32\), not \(32, 16\)"):
        files.put(V, base[V].T)
    files.put(V, base[V])
    with pytest.raises(InputError, match="twice"):
        files.put(V, base[V])
    files.finish()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "base" / "model.safetensors"
    ).read_bytes()


def test_weights_that_would_stay_beside_the_new_ones_are_refused(tmp_path, state):
    """transformers and `open_checkpoint` take `model.safetensors` before an index."""
    whole = models.write(tmp_path / "whole", state)
    parts = models.write(tmp_path / "parts", state, shards=2)
    for source, out in ((parts, whole), (whole, parts)):
        with pytest.raises(OutputError, match=r"holds weights of another model \(model"):
            check_target(open_checkpoint(source), out)
    for name in ("pytorch_model.bin", "adapter_config.json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_bytes(b"")
        with pytest.raises(OutputError, match=name):
            check_target(open_checkpoint(whole), tmp_path / "other")
        (tmp_path / "other" / name).unlink()
    (tmp_path / "other" / "training_args.bin").write_bytes(b"")
    for out in ("whole", "other", "missing"):
        check_target(open_checkpoint(whole), tmp_path / out)


def test_each_tensor_is_told_once(tmp_path, state):
    seen: list[str] = []
    source = models.write(tmp_path / "base", state, shards=2)
    rewritten(source, tmp_path / "out", {V: state[V], Q: state[Q]}, told=seen.append)
    assert sorted(seen) == sorted(state)
    assert seen[-2:] == [V, Q]
