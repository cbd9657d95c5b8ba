"""Every parameter of every family has a place, in memory and as saved."""

from __future__ import annotations

from math import prod

import pytest
import torch

import families
from offaxis.names import ROLES, natural_key, pieces, place

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module", params=families.FAMILIES)
def model(request, tmp_path_factory):
    """(family, shapes in memory, shapes as saved, config)."""
    built = families.build(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    built.save_pretrained(directory)
    memory = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    header = families.header_of(directory / "model.safetensors")
    saved = {name: tuple(entry["shape"]) for name, entry in header.items()}
    return request.param, memory, saved, built.config.to_dict()


def expected_roles(family: str) -> set[str]:
    """The roles that a family has, written down by hand."""
    common = LINEAR | {"embed", "norm", "lm_head"}
    return {
        "llama": common,
        "qwen2": common | {"bias"},
        "qwen3": common,
        "qwen3_moe": common | {"router"},
        "gpt2": (common - {"gate_proj"}) | {"bias", "position_embed"},
        "phi3": common,
    }[family]


def test_every_parameter_is_placed_in_memory_and_as_saved(model):
    family, memory, saved, _ = model
    for shapes in (memory, saved):
        parts = pieces(shapes)
        roles = {part.place.role for part in parts}
        tied = "lm_head.weight" not in shapes
        assert roles == expected_roles(family) - ({"lm_head"} if tied else set())
        assert roles <= set(ROLES)
        for part in parts:
            in_layer = any(mark in part.name for mark in ("layers.", ".h."))
            assert (part.place.layer is not None) == in_layer, part


def test_pieces_tile_every_stored_tensor(model):
    _, memory, saved, _ = model
    for shapes in (memory, saved):
        count = dict.fromkeys(shapes, 0)
        covered = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
        for part in pieces(shapes):
            count[part.name] += prod(part.shape)
            where = ... if part.slices is None else tuple(slice(*span) for span in part.slices)
            covered[part.name][where] += 1
        assert count == {name: prod(shape) for name, shape in shapes.items()}
        assert all(bool((cover == 1).all()) for cover in covered.values())


def test_memory_and_saved_pieces_have_the_same_keys(model):
    family, memory, saved, _ = model
    in_memory = {part.key: part.shape for part in pieces(memory)}
    as_saved = {part.key: part.shape for part in pieces(saved)}
    if family in ("qwen2", "gpt2"):  # tied: the head is not saved
        assert in_memory.pop("lm_head.weight") == (96, 32)
    assert in_memory == as_saved


def test_matrices_are_exactly_the_linear_layers_and_routers(model):
    family, memory, _, _ = model
    for part in pieces(memory):
        assert part.is_matrix == (part.place.role in LINEAR | {"router"}), part
        assert part.place.transposed == (family == "gpt2" and part.is_matrix), part


def test_experts_are_numbered(model):
    family, memory, saved, _ = model
    for shapes in (memory, saved):
        experts = {part.place.expert for part in pieces(shapes)}
        assert experts == ({None, 0, 1, 2} if family == "qwen3_moe" else {None})


def test_split_agrees_with_the_attention_shapes():
    heads = {part.label: part.shape for part in pieces(shapes_of("phi3"))}
    assert heads["model.layers.0.self_attn.qkv_proj.weight[q_proj]"] == (32, 32)
    assert heads["model.layers.0.self_attn.qkv_proj.weight[k_proj]"] == (16, 32)
    assert heads["model.layers.0.mlp.gate_up_proj.weight[up_proj]"] == (48, 32)


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in families.build(family).state_dict().items()}


def test_qkv_split_uses_the_config_without_an_output_projection():
    shapes = {"model.layers.0.self_attn.qkv_proj.weight": (64, 32)}
    assert len(pieces(shapes)) == 1
    config = {"num_attention_heads": 4, "hidden_size": 32}
    assert [part.shape[0] for part in pieces(shapes, config=config)] == [32, 16, 16]


def test_stacked_orientation_is_read_off_the_shapes():
    """(E, h, 2i) with (E, i, h), as Llama 4 stores its experts, is (in, out)."""
    shapes = {"l.0.experts.gate_up_proj": (2, 6, 8), "l.0.experts.down_proj": (2, 4, 6)}
    cut = {part.label: part for part in pieces(shapes)}
    assert cut["l.0.experts.gate_up_proj[1,up_proj]"].slices == ((1, 2), (0, 6), (4, 8))
    assert all(part.place.transposed for part in cut.values())


def test_interleaved_gate_up_stays_whole():
    """gpt-oss interleaves gate and up; a bias stack beside them gives it away."""
    shapes = {
        "m.experts.gate_up_proj": (2, 6, 8),
        "m.experts.gate_up_proj_bias": (2, 8),
        "m.experts.down_proj": (2, 4, 6),
    }
    labels = [part.label for part in pieces(shapes)]
    assert "m.experts.gate_up_proj[0]" in labels
    assert "m.experts.gate_up_proj[0,gate_proj]" not in labels


@pytest.mark.parametrize(
    ("name", "shape", "role", "layer", "expert"),
    [
        ("model.layers.11.self_attn.q_proj.weight", (8, 8), "q_proj", 11, None),
        ("model.layers.3.mlp.experts.7.w1.weight", (8, 8), "gate_proj", 3, 7),
        ("model.layers.3.block_sparse_moe.gate.weight", (4, 8), "router", 3, None),
        ("model.layers.3.mlp.shared_expert_gate.weight", (1, 8), "router", 3, None),
        ("transformer.h.2.attn.c_proj.weight", (8, 8), "o_proj", 2, None),
        ("transformer.h.2.mlp.c_proj.weight", (8, 8), "down_proj", 2, None),
        ("bert.encoder.layer.4.attention.self.query.weight", (8, 8), "q_proj", 4, None),
        ("bert.encoder.layer.4.attention.output.dense.weight", (8, 8), "o_proj", 4, None),
        ("model.layers.0.self_attn.q_norm.weight", (8,), "norm", 0, None),
        ("model.layers.0.self_attn.q_proj.bias", (8,), "bias", 0, None),
        ("transformer.h.0.ln_1.bias", (8,), "norm", 0, None),
        ("score.weight", (2, 8), "classifier", None, None),
        ("v_head.summary.weight", (1, 8), "value_head", None, None),
        ("v_head.summary.bias", (1,), "bias", None, None),
        ("output.weight", (9, 8), "lm_head", None, None),
        ("backbone.layers.5.mixer.in_proj.weight", (9, 8), "other", 5, None),
        ("model._orig_mod.layers.5.mlp.up_proj._orig_mod.weight", (9, 8), "up_proj", 5, None),
        ("projector.0.weight", (9, 8), "other", None, None),
    ],
)
def test_places(name, shape, role, layer, expert):
    found = place(name, shape)
    assert (found.role, found.layer, found.expert) == (role, layer, expert)


def test_unknown_architectures_are_measured_as_other():
    (part,) = pieces({"backbone.layers.5.mixer.in_proj.weight": (9, 8)})
    assert part.place.role == "other"
    assert part.is_matrix


def test_causal_masks_are_buffers():
    assert place("h.0.attn.bias", (1, 1, 8, 8)).buffer
    assert not place("h.0.attn.c_attn.bias", (24,)).buffer
    assert place("model.rotary_emb.inv_freq", (8,)).buffer


def test_a_linear_named_c_attn_is_not_transposed():
    """nanoGPT uses Linear (out, in) under GPT-2's names."""
    shapes = {"h.0.attn.c_attn.weight": (24, 8), "h.0.attn.c_proj.weight": (8, 8)}
    assert not any(part.place.transposed for part in pieces(shapes))
    assert len(pieces(shapes)) == 2
    turned = {"h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_proj.weight": (8, 8)}
    assert all(part.place.transposed for part in pieces(turned))


def test_absurd_numbers_are_text():
    assert place("layers." + "9" * 5000 + ".mlp.up_proj.weight", (2, 2)).layer is None
    assert natural_key("layers." + "9" * 5000)


def test_layers_sort_by_number():
    names = ["layers.10.a", "layers.9.a", "layers.9.b", "embed"]
    assert sorted(names, key=natural_key) == ["embed", "layers.9.a", "layers.9.b", "layers.10.a"]
