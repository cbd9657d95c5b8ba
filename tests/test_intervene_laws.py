"""Laws of both edits: they undo, keep spectra or entries, spare the rest, and are drawn fairly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import intervene_models as models
from offaxis import intervene
from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError
from offaxis.intervene import Intervention, Layer
from offaxis.intervene.blocks import Heads
from offaxis.intervene.drawing import draw_order, draw_rotations, generator, haar, hadamard

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases, float64, in three shards."""
    model = models.build("llama_bias")
    path = tmp_path_factory.mktemp("laws") / "base"
    model.config.dtype = torch.float64
    model.save_pretrained(path, max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as bfloat16."""
    model = models.build("llama_bias").bfloat16()
    path = tmp_path_factory.mktemp("laws") / "narrow"
    model.config.dtype = torch.bfloat16
    model.save_pretrained(path)
    return path


def plain(query: int, shared: int, dim: int, layer: int = 0) -> Heads:
    return Heads(Layer("", layer), query, shared, dim, ())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(open_checkpoint(path))


def whose(name: str, layer: int, *parts: str) -> bool:
    return any(f"layers.{layer}.self_attn.{part}." in name for part in parts)


def test_rotate_changes_v_and_o_of_its_layers_alone(base, tmp_path):
    intervene.rotate(base, "1", out=tmp_path / "out")
    before, after = weights(base), weights(tmp_path / "out")
    for name, one in before.items():
        edited = whose(name, 1, "v_proj", "o_proj") and not name.endswith("o_proj.bias")
        assert torch.equal(one, after[name]) != edited, name


def test_permute_changes_q_k_v_and_o_of_its_layers_alone(base, tmp_path):
    intervene.permute(base, "0", out=tmp_path / "out")
    before, after = weights(base), weights(tmp_path / "out")
    for name, one in before.items():
        edited = whose(name, 0, *PARTS) and not name.endswith("o_proj.bias")
        assert torch.equal(one, after[name]) != edited, name


def test_files_besides_the_edited_tensors_are_the_same(base, tmp_path):
    """Shards, headers, index, configuration: byte for byte but for the tensors' own bytes."""
    made = intervene.rotate(base, "0", out=tmp_path / "out")
    for path in base.iterdir():
        raw, other = path.read_bytes(), (tmp_path / "out" / path.name).read_bytes()
        assert len(raw) == len(other)
        changed = np.flatnonzero(np.frombuffer(raw, np.uint8) != np.frombuffer(other, np.uint8))
        spans = [
            open_checkpoint(base).extent(name)[1:]
            for name in made.tensors
            if open_checkpoint(base).extent(name)[0] == path
        ]
        inside = np.zeros(len(raw), bool)
        for start, stop in spans:
            inside[start:stop] = True
        assert inside[changed].all()


def test_rotate_keeps_singular_values(base, tmp_path):
    intervene.rotate(base, "0-1", out=tmp_path / "out", per_head=True)
    before, after = weights(base), weights(tmp_path / "out")
    for layer in (0, 1):
        for part in ("v_proj", "o_proj"):
            name = f"model.layers.{layer}.self_attn.{part}.weight"
            one, other = (torch.linalg.svdvals(it[name]) for it in (before, after))
            assert torch.allclose(one, other, rtol=1e-13)
            assert (before[name] - after[name]).abs().max() > 0.1


def test_rotate_is_the_formula(base, tmp_path):
    """Two KV heads, four query heads of eight channels, written out."""
    made = intervene.rotate(base, "1", out=tmp_path / "out", per_head=True)
    before, after = weights(base), weights(tmp_path / "out")
    block = "model.layers.1.self_attn"
    for head, turn in enumerate(torch.from_numpy(made.steps[0].rotations[0])):
        rows = slice(8 * head, 8 * head + 8)
        for leaf in ("weight", "bias"):
            v = f"{block}.v_proj.{leaf}"
            assert torch.allclose(after[v][rows], turn.T @ before[v][rows], rtol=1e-12)
        for query in (2 * head, 2 * head + 1):
            columns = slice(8 * query, 8 * query + 8)
            o = f"{block}.o_proj.weight"
            assert torch.allclose(
                after[o][:, columns], before[o][:, columns] @ turn, rtol=1e-12, atol=1e-15
            )


def test_one_rotation_serves_a_layer_unless_each_head_has_its_own(base, tmp_path):
    one = intervene.rotate(base, "0", out=tmp_path / "one").steps[0].rotations[0]
    two = intervene.rotate(base, "0", out=tmp_path / "two", per_head=True).steps[0].rotations[0]
    assert one.shape == (1, 8, 8)
    assert two.shape == (2, 8, 8)
    assert not np.allclose(two[0], two[1])


def test_permute_keeps_entries(base, tmp_path):
    made = intervene.permute(base, "0-1", out=tmp_path / "out", within_groups=True)
    before, after = weights(base), weights(tmp_path / "out")
    for name in made.tensors:
        assert torch.equal(before[name].flatten().sort()[0], after[name].flatten().sort()[0])


def test_permute_is_the_formula(base, tmp_path):
    """Head i of the edited model is head order[i] of the base, in each of its tensors."""
    made = intervene.permute(base, "0", out=tmp_path / "out")
    query, shared = made.steps[0].orders[0]
    assert shared == (1, 0)
    assert query == (2, 3, 0, 1)
    before, after = weights(base), weights(tmp_path / "out")
    for part, order in (("q", query), ("k", shared), ("v", shared)):
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        heads = before[name].view(len(order), 8, -1)
        assert torch.equal(after[name].view(len(order), 8, -1), heads[list(order)])
    name = "model.layers.0.self_attn.o_proj.weight"
    heads = before[name].view(-1, 4, 8)
    assert torch.equal(after[name].view(-1, 4, 8), heads[:, list(query)])


@pytest.mark.parametrize("verb", ["rotate", "permute"])
def test_pulled_back_weights_are_the_base(base, tmp_path, verb):
    getattr(intervene, verb)(base, "0,1", out=tmp_path / "out", seed=5)
    made = Intervention.load(tmp_path / "out")
    before, after = weights(base), weights(tmp_path / "out")
    for name, one in before.items():
        found = made.pull_back_update(name, after[name])
        assert torch.allclose(found, one, rtol=1e-13, atol=1e-14)
        assert torch.equal(found, one) or verb == "rotate"


def test_the_stored_dtype_is_rounded_to_once(narrow, tmp_path):
    made = intervene.rotate(narrow, "0", out=tmp_path / "out")
    before, after = weights(narrow), weights(tmp_path / "out")
    (turn,) = torch.from_numpy(made.steps[0].rotations[0])
    name = "model.layers.0.self_attn.v_proj.weight"
    exact = torch.cat([turn.T @ before[name][rows].double() for rows in (slice(8), slice(8, 16))])
    assert after[name].dtype == torch.bfloat16
    half_ulp = exact.abs() * 2**-8
    assert ((after[name].double() - exact).abs() <= half_ulp).all()
    loss = float((after[name].double() - exact).norm() / exact.norm())
    assert made.tensors[name].rounding == pytest.approx(loss, rel=1e-9)
    assert 1e-4 < loss < 2**-8


def test_a_seed_gives_the_same_model_and_another_another(base, tmp_path):
    outs = [tmp_path / one for one in "abc"]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        intervene.rotate(base, "1", out=out, seed=seed)
    files = [
        b"".join(one.read_bytes() for one in sorted(out.iterdir()) if one.suffix != ".json")
        for out in outs
    ]
    assert files[0] == files[1] != files[2]


def test_a_layer_gets_the_same_whatever_else_is_edited(base, tmp_path):
    alone = intervene.rotate(base, "1", out=tmp_path / "alone").steps[0].rotations[0]
    with_0 = intervene.rotate(base, "0,1", out=tmp_path / "both").steps[0].rotations
    assert np.array_equal(alone, with_0[1])
    assert not np.allclose(with_0[0], with_0[1])


# What is drawn


@given(st.integers(1, 6), st.integers(1, 5), st.integers(-5, 10**12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_order_of_heads_moves_groups_whole_and_is_never_the_identity(shared, each, seed, within):
    if shared * each == 1:
        return
    query, groups = draw_order(plain(shared * each, shared, 4), seed=seed, within_groups=within)
    assert sorted(query) == list(range(shared * each))
    assert sorted(groups) == list(range(shared))
    assert query != tuple(range(shared * each))
    for place, head in enumerate(query):
        assert head // each == groups[place // each]
    assert groups != tuple(range(shared)) or shared == 1
    if shared > 1 and not within:
        assert [head % each for head in query] == list(range(each)) * shared


def test_every_order_but_the_identity_is_drawn_alike():
    """The 23 others of 4 heads, 2300 draws: χ² of 22 degrees, 1 in 10⁵ above 64."""
    found = [draw_order(plain(4, 4, 2), seed=s, within_groups=False)[1] for s in range(2300)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 23
    assert ((counts - 100.0) ** 2 / 100).sum() < 64


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
@pytest.mark.parametrize("dim", [2, 8, 64])
def test_rotations_are_orthogonal(kind, dim):
    drawn = draw_rotations(plain(4, 2, dim), kind=kind, seed=0, per_head=True)
    for one in drawn:
        assert np.abs(one.T @ one - np.eye(dim)).max() < 1e-14
    if kind == "hadamard":
        assert np.allclose(np.abs(drawn), dim**-0.5)


def test_haar_is_haar():
    """E tr = 0, E tr² = 1, E R₁₁ = 0, both signs of the determinant: 4 standard errors of 3000.

    Without the signs of R's diagonal, R₁₁ is never positive.
    """
    rng = generator(0, "test")
    drawn = np.stack([haar(5, rng) for _ in range(3000)])
    trace = np.trace(drawn, axis1=1, axis2=2)
    error = 4 / np.sqrt(len(drawn))
    assert abs(trace.mean()) < error
    assert abs((trace**2).mean() - 1) < error * np.sqrt(2)
    assert np.abs(drawn.mean(axis=0)).max() < error / np.sqrt(5) * 1.2
    assert abs(np.sign(np.linalg.det(drawn)).mean()) < error
    turned = drawn @ haar(5, rng)
    assert abs((np.trace(turned, axis1=1, axis2=2) ** 2).mean() - 1) < error * np.sqrt(2)


def test_a_hadamard_matrix_has_a_power_of_two(tmp_path):
    with pytest.raises(InputError, match=r"power of two for its width, not 12.*choose haar"):
        hadamard(12, generator(0, "test"))


def test_a_drawn_rotation_is_the_same_on_every_machine():
    """PCG64 gives the same bits everywhere; LAPACK may differ in the last ones."""
    drawn = draw_rotations(plain(4, 2, 3), kind="haar", seed=7, per_head=False)[0]
    signs = draw_rotations(plain(4, 2, 4), kind="hadamard", seed=7, per_head=False)[0]
    assert np.allclose(drawn, GOLDEN, atol=1e-8)
    assert (np.sign(signs[:, 0]) == GOLDEN_SIGNS).all()


GOLDEN = [
    [-0.56077224, -0.40574026, 0.72174049],
    [-0.64667345, -0.32973504, -0.68781411],
    [0.51705701, -0.85243747, -0.0774752],
]
GOLDEN_SIGNS = [1, 1, -1, -1]
