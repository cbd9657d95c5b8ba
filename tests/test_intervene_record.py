"""`Intervention`: what lies beside an edited model, and the way back from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import intervene_models as models
import offaxis
from offaxis import intervene, masks
from offaxis.checkpoint import open_checkpoint
from offaxis.checkpoint.digest import checksum
from offaxis.errors import CheckpointError, InputError
from offaxis.intervene import Intervention

V = "model.layers.1.self_attn.v_proj.weight"
O = "model.layers.1.self_attn.o_proj.weight"  # noqa: E741
Q = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases in bfloat16, one file."""
    model = models.build("llama_bias").bfloat16()
    path = tmp_path_factory.mktemp("record") / "base"
    model.config.dtype = torch.bfloat16
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rotated(base: Path) -> Path:
    intervene.rotate(base, "1", out=base.parent / "rotated", seed=3, per_head=True)
    return base.parent / "rotated"


@pytest.fixture(scope="module")
def permuted(base: Path) -> Path:
    intervene.permute(base, "1", out=base.parent / "permuted", seed=3)
    return base.parent / "permuted"


def tuned(source: Path, out: Path) -> Path:
    """`source` after a step that moves about a third of its entries."""
    shutil.copytree(source, out)
    state = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    for name, one in state.items():
        moved = torch.rand(one.shape, generator=generator) < 0.3
        state[name] = torch.where(moved, one * 1.5, one)
    save_file(state, out / "model.safetensors")
    return out


def test_the_record_says_what_was_done(base, rotated, permuted):
    told = json.loads((rotated / "intervention.json").read_text())
    assert told["schema"] == 1
    assert told["source"] == str(base)
    assert (told["edit"], told["kind"], told["per_head"], told["seed"]) == (
        "rotate", "haar", True, 3,
    )  # fmt: skip
    (row,) = told["layers"]
    assert row["layer"] == "1"
    assert (row["query_heads"], row["key_value_heads"], row["value_dim"]) == (4, 2, 8)
    one = told["tensors"][V]
    for key, path in (("before", base), ("after", rotated)):
        raw = open_checkpoint(path)[V].contiguous().view(torch.uint8).numpy()
        assert one[key] == checksum(raw)
    other = json.loads((permuted / "intervention.json").read_text())
    assert other["layers"][0]["key_value_order"] == [1, 0]
    assert other["layers"][0]["query_order"] == [2, 3, 0, 1]
    names = set(open_checkpoint(base))
    assert set(other["tensors"]) | set(other["untouched"]) == names


def test_a_pulled_back_update_is_the_formula(rotated):
    made = Intervention.load(rotated)
    turns = torch.from_numpy(made.steps[0].rotations[0])
    delta = torch.randn(16, 32, dtype=torch.float64)
    expected = torch.cat([turns[0] @ delta[:8], turns[1] @ delta[8:]])
    assert torch.allclose(made.pull_back_update(V, delta), expected, rtol=1e-13)
    delta = torch.randn(32, 32, dtype=torch.float32)
    blocks = delta.double().split(8, dim=1)
    expected = torch.cat([one @ turns[at // 2].T for at, one in enumerate(blocks)], dim=1)
    assert torch.allclose(made.pull_back_update(O, delta), expected, rtol=1e-13)
    assert made.pull_back_update(DOWN, delta) is delta
    assert made.pull_back_update(Q, delta) is delta


def test_an_update_pulled_back_and_added_gives_the_same_model(tmp_path):
    """Training in the edited model's coordinates is the same function as its pull-back's."""
    model, path = models.made("llama_bias", tmp_path / "base")
    intervene.rotate(path, "0,1", out=tmp_path / "out", per_head=True)
    edited = models.reload(model, tmp_path / "out")
    made = Intervention.load(tmp_path / "out")
    generator = torch.Generator().manual_seed(0)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, one in edited.named_parameters():
            step = 0.1 * torch.randn(one.shape, generator=generator, dtype=torch.float64)
            one.add_(step)
            own[name].add_(made.pull_back_update(name, step))
    assert models.distance(models.logits(model), models.logits(edited)) < 1e-10


def test_a_mask_comes_back_to_the_original(base, permuted, tmp_path):
    """The update of the edited model, mapped back, is the mask of the same update of the base."""
    changed = tuned(permuted, tmp_path / "tuned")
    made = Intervention.load(permuted)
    edited = masks.build(permuted, "subnetwork", tuned=str(changed))
    mapped = made.map_mask_back(edited)
    state = {
        name: made.pull_back_update(name, one) for name, one in open_checkpoint(changed).items()
    }
    (tmp_path / "own").mkdir()
    shutil.copy(base / "config.json", tmp_path / "own")
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / "own/model.safetensors")
    expected = masks.build(base, "subnetwork", tuned=str(tmp_path / "own"))
    assert mapped == expected
    assert edited != expected
    mapped.check(open_checkpoint(base))
    mapped.save(tmp_path / "mask")
    assert masks.load(tmp_path / "mask") == expected
    assert mapped.density == edited.density


def test_a_mask_of_rotated_entries_has_no_counterpart(base, rotated):
    made = Intervention.load(rotated)
    with pytest.raises(InputError, match=r"was rotated.*pull_back_update"):
        made.map_mask_back(masks.build(rotated, "random", density=0.5))


def test_a_mask_of_another_model_is_refused(base, permuted):
    made = Intervention.load(permuted)
    with pytest.raises(InputError, match="is not the edited model's"):
        made.map_mask_back(masks.build(base, "random", density=0.5))


def test_both_edits_of_one_layer_are_undone_together(base, rotated, tmp_path):
    """The paper's layer 20: ROTATE and PERMUTE."""
    intervene.permute(rotated, "1", out=tmp_path / "both")
    made = Intervention.load(tmp_path / "both")
    assert [step.verb for step in made.steps] == ["rotate", "permute"]
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "both")
    for name in before:
        found = made.pull_back_update(name, after[name].double())
        assert torch.allclose(found, before[name].double(), rtol=0, atol=0.02), name
        if name not in (V, O, V.replace("weight", "bias")):
            assert torch.equal(found, before[name].double())
    assert made.tensors[V].before == Intervention.load(rotated).tensors[V].before
    assert made.tensors[V].rounding == Intervention.load(rotated).tensors[V].rounding > 0


def test_weights_that_have_changed_since_are_not_edited_in_the_same_record(rotated, tmp_path):
    changed = tuned(rotated, tmp_path / "tuned")
    with pytest.raises(InputError, match=r"is about other weights.*remove"):
        intervene.permute(changed, "0", out=tmp_path / "out")
    (changed / "intervention.json").unlink()
    assert len(intervene.permute(changed, "0", out=tmp_path / "out").steps) == 1


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [("model.layers.1.v.weight", (16, 32), "no such tensor"), (V, (32, 16), "the update")],
)
def test_updates_of_other_tensors_are_refused(rotated, name, shape, what):
    with pytest.raises(InputError, match=what):
        Intervention.load(rotated).pull_back_update(name, torch.zeros(shape))


def test_a_directory_without_a_record_is_refused(base):
    with pytest.raises(CheckpointError, match=r"holds no intervention.json"):
        Intervention.load(base)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema": 1', '"schema": 2'),
        ('"edit": "rotate"', '"edit": "turn"'),
        ('"value_dim": 8', '"value_dim": 4'),
        ('"rotations_xxh3_128": "', '"rotations_xxh3_128": "0'),
        ('"slots"', '"slot"'),
        ('"layer": "1"', '"layer": "one"'),
        ('"earlier": []', '"earlier": null'),
        ('"query_heads": 4', '"query_heads": 1e400'),
        ('"axis": 0', '"axis": 1'),
        ('"axis": 1', '"axis": 7'),
        ('"size": 8', '"size": 4'),
        ('"per": "query"', '"per": "key_value"'),
        (f'"name": "{V}"', '"name": "model.v"'),
        ('"turns": true', '"turns": false'),
        ('"rounding": ', '"rounding": "much", "was": '),
    ],
)
def test_a_damaged_record_is_refused(rotated, tmp_path, old, new):
    out = tmp_path / "out"
    shutil.copytree(rotated, out)
    text = (out / "intervention.json").read_text()
    assert old in text
    (out / "intervention.json").write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match="is damaged"):
        Intervention.load(out)


@pytest.mark.parametrize(
    ("starts", "what"), [([0, 0], "share channels"), ([0, 12], "beyond its shape")]
)
def test_heads_that_no_tensor_could_hold_are_refused(permuted, tmp_path, starts, what):
    """Found on loading, and not where an update is pulled back."""
    out = tmp_path / "out"
    shutil.copytree(permuted, out)
    told = json.loads((out / "intervention.json").read_text())
    (slot,) = (one for one in told["layers"][0]["slots"] if one["name"] == V)
    slot["starts"] = starts
    (out / "intervention.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=what):
        Intervention.load(out)


def test_an_order_that_is_none_is_refused(permuted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(permuted, out)
    told = json.loads((out / "intervention.json").read_text())
    told["layers"][0]["query_order"] = [0, 0, 1, 1]
    (out / "intervention.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="no order of 4 heads"):
        Intervention.load(out)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 20])
def test_damaged_rotations_are_refused(rotated, tmp_path, content):
    out = tmp_path / "out"
    shutil.copytree(rotated, out)
    (out / "intervention.rotations").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"intervention.rotations: cannot be read"):
        Intervention.load(out)


def test_other_rotations_are_refused(rotated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(rotated, out)
    held = load_file(out / "intervention.rotations")
    save_file({name: one.flip(0) for name, one in held.items()}, out / "intervention.rotations")
    with pytest.raises(CheckpointError, match="not those that were written"):
        Intervention.load(out)


def test_compare_runs_on_an_edited_model(base, rotated, tmp_path):
    """Only layer 1's v and o have moved, and the spectrum of neither has, but for rounding."""
    found = offaxis.compare(base, rotated).measurements.filter(tensor=V, measure="nss", status="ok")
    (drift,) = found["value"]
    assert 0 < drift < 5e-3
    summary = offaxis.compare(base, rotated).summary()
    assert summary["pairs"][0]["unchanged_bf16"] > 0.8
    assert np.isfinite(summary["pairs"][0]["rotation_left_deg"])
