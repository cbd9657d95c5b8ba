"""Recent families: every parameter has the place in `family_tables`, in memory and as saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isclose, prod
from pathlib import Path
from typing import Any

import pytest
import torch

import families
import offaxis
from family_tables import COUNTS, MEMORY, Patterns, saved_patterns
from offaxis.checkpoint import Aligned, Checkpoint, align, open_checkpoint, read_pair
from offaxis.names import MATRIX_EXEMPT, ROLES, Piece, pieces, rename


class Family:
    """One random model (every entry of it random), in memory and as saved."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.model = families.build(name)
        generator = torch.Generator().manual_seed(1)
        for value in self.model.state_dict().values():
            value.normal_(0.0, 0.1, generator=generator)
        self.saved = root / "saved"
        self.model.save_pretrained(self.saved)
        self.memory = families.save(self.model.state_dict(), root / "memory")
        self.root = root

    def tuned(self) -> tuple[Path, Path]:
        """(in memory, as saved) after a step that grows with depth in the file."""
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for number, value in enumerate(self.model.parameters()):
                step = torch.randn(value.shape, generator=generator)
                value.add_(step, alpha=1e-3 * (1 + number))
        self.model.save_pretrained(self.root / "tuned_saved")
        families.save(self.model.state_dict(), self.root / "tuned_memory")
        return self.root / "tuned_memory", self.root / "tuned_saved"


@pytest.fixture(scope="module", params=families.RECENT)
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in open_checkpoint(path).specs.items()}


def pattern(name: str) -> str:
    return ".".join("N" if word.isdigit() else word for word in name.split("."))


def found_patterns(parts: Iterable[Piece]) -> Patterns:
    """Name pattern -> roles of one tensor's pieces, each run of experts counted once."""
    by_name: dict[str, list[str]] = {}
    for part in parts:
        if not part.drop_leading or part.place.expert == 0:
            by_name.setdefault(part.name, []).append(part.place.role)
    return {pattern(name): " ".join(roles) for name, roles in by_name.items()}


def test_the_lists_name_every_family():
    assert set(MEMORY) == set(COUNTS) == set(families.RECENT)


def test_every_parameter_has_the_role_written_down(family):
    for path, expected in (
        (family.memory, MEMORY[family.name]),
        (family.saved, saved_patterns(family.name)),
    ):
        assert found_patterns(pieces(shapes(path))) == expected
    roles = {role.removeprefix("vision.") for r in expected.values() for role in r.split()}
    assert roles <= set(ROLES)


def test_layers_experts_and_matrices_are_counted_by_tower(family):
    expected = COUNTS[family.name]
    for path in (family.memory, family.saved):
        parts = pieces(shapes(path))
        layers = {(part.place.tower, part.place.layer) for part in parts} - {("", None)}
        assert layers - {("vision", None)} == {("", n) for n in range(expected.layers)} | {
            ("vision", n) for n in range(expected.seeing)
        }
        experts = {part.place.expert for part in parts} - {None}
        assert experts == set(range(expected.experts))
        assert sum(part.is_matrix for part in parts) == expected.matrices
        exempt = [part for part in parts if len(part.shape) == 2 and not part.is_matrix]
        assert all(part.place.kind in MATRIX_EXEMPT or 1 in part.shape for part in exempt)


def test_layer_and_role_never_mix_two_towers(family):
    """A cell of a table by layer and role holds parts of one tower."""
    cells: dict[tuple[Any, ...], set[bool]] = {}
    for part in pieces(shapes(family.memory)):
        seen = ".visual." in part.name or ".vision_tower." in part.name
        cells.setdefault((part.place.layer, part.place.role), set()).add(seen)
        assert (part.place.tower == "vision") == seen
    assert all(len(sides) == 1 for sides in cells.values())


def test_pieces_tile_every_stored_tensor(family):
    for path in (family.memory, family.saved):
        stored = shapes(path)
        covered = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in stored.items()}
        for part in pieces(stored):
            where = ... if part.slices is None else tuple(slice(*span) for span in part.slices)
            covered[part.name][where] += 1
            assert prod(part.shape) == covered[part.name][where].numel()
        assert all(bool((cover == 1).all()) for cover in covered.values())


READS = {"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa", "gate_proj", "up_proj"}


def test_orientation_agrees_with_the_width_of_the_tower(family):
    """(out, in) once turned: q, gate and their like read the width; o and down write it."""
    widths = {"": 32, "vision": 24 if family.name == "gemma3" else 32}
    for part in pieces(shapes(family.memory)):
        if not part.is_matrix:
            continue
        out, into = part.shape[::-1] if part.place.transposed else part.shape
        width = widths[part.place.tower]
        assert part.place.kind not in READS | {"router", "gate_up_proj"} or into == width, part
        assert part.place.kind not in ("o_proj", "down_proj") or out == width, part
        bare = part.name.endswith("mm_input_projection_weight")
        stacks = family.name in ("llama4_text", "gpt_oss") and part.drop_leading
        assert part.place.transposed == (bare or stacks), part


@torch.no_grad()
def changed(model: Any, module: str, kind: str, factor: float) -> Any:
    """The module with every piece of one kind below it scaled, weights and biases."""
    state = model.state_dict()
    for part in pieces({name: tuple(value.shape) for name, value in state.items()}):
        if part.name.startswith(module) and (
            part.place.kind == kind or part.label.endswith(f"bias[{kind}]")
        ):
            span = ... if part.slices is None else tuple(slice(*axis) for axis in part.slices)
            state[part.name][span] *= factor
    return model.get_submodule(module.removesuffix("."))


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def run(name: str, module: str, kind: str, factor: float, call: Callable[[Any], Any]) -> Any:
    """Output of a fresh random model's module after one kind of piece was scaled."""
    model = families.build(name, seed=4)
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        value.normal_(0.0, 0.3, generator=generator)
    return first(call(changed(model, module, kind, factor)))


GATED = {
    "glm4": "model.layers.1.mlp.",
    "mixtral": "model.layers.1.mlp.",
    "glm4_moe": "model.layers.1.mlp.",
    "deepseek_v3": "model.layers.1.mlp.",
    "qwen3_next": "model.layers.1.mlp.",
    "llama4_text": "model.layers.1.feed_forward.",
    "qwen3_vl_moe": "model.language_model.layers.1.mlp.",
}


@pytest.mark.parametrize("name", GATED)
def test_the_model_is_linear_in_up_and_not_in_gate(name):
    """Which half of a fused weight is which, asked of the model itself."""
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(5))
    plain = run(name, GATED[name], "up_proj", 1.0, lambda module: module(x))
    up = run(name, GATED[name], "up_proj", 2.0, lambda module: module(x))
    gate = run(name, GATED[name], "gate_proj", 2.0, lambda module: module(x))
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(up, 2 * plain)
    assert not torch.allclose(gate, 2 * plain, rtol=1e-2)


def see(module: Any) -> Any:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(5))
    where = (torch.ones(6, 8), torch.zeros(6, 8))
    return module(x, cu_seqlens=torch.tensor([0, 6], dtype=torch.int32), position_embeddings=where)


def pool(module: Any) -> Any:
    x = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(5))
    return module(x, x, x)[0][0]


FUSED_ATTENTION = {
    "qwen2_5_vl": ("model.visual.blocks.1.attn.", see),
    "qwen3_vl": ("model.visual.blocks.1.attn.", see),
    "gemma3": ("model.vision_tower.head.attention.", pool),
}


@pytest.mark.parametrize("name", FUSED_ATTENTION)
def test_the_model_attends_evenly_without_q_or_k_and_says_nothing_without_v(name):
    """Without q, or without k, every token gets the same mean of v; without v, only o's bias."""
    module, call = FUSED_ATTENTION[name]
    plain, q, k, v = (
        run(name, module, kind, factor, call)
        for kind, factor in (("q_proj", 1.0), ("q_proj", 0.0), ("k_proj", 0.0), ("v_proj", 0.0))
    )
    torch.testing.assert_close(q, k)
    torch.testing.assert_close(q, q[:1].expand_as(q))
    torch.testing.assert_close(v, v[:1].expand_as(v))
    assert not torch.allclose(plain, plain[:1].expand_as(plain), rtol=1e-2)
    assert not torch.allclose(q, v, rtol=1e-2)
    more = run(name, module, "v_proj", 2.0, call)
    torch.testing.assert_close(more - v, 2 * (plain - v))


def whole(aligned: Aligned, base: Checkpoint, tuned: Checkpoint) -> bool:
    """Every row of the plan is a pair of equal values, or the head that is its embedding."""
    pairs = (read_pair(base, tuned, pair) for pair in aligned.pairs)
    equal = all(torch.equal(pair.base, pair.tuned) for pair in pairs)
    return equal and {(row.role, row.status) for row in aligned.mismatches} <= {("lm_head", "tied")}


def test_memory_and_saved_align_whole(family):
    memory, saved = open_checkpoint(family.memory), open_checkpoint(family.saved)
    for base, tuned in ((memory, saved), (saved, memory)):
        aligned = align(base, tuned)
        assert whole(aligned, base, tuned)
        assert sum(pair.part.is_matrix for pair in aligned.pairs) == COUNTS[family.name].matrices
        for pair in aligned.pairs:
            assert (".vis" in f".{pair.base.name}") == (".vis" in f".{pair.tuned.name}")


def table(base: Path, tuned: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The pair's numbers, and (layer, role, expert, measure, value) of every defined measure."""
    found = offaxis.compare(base, tuned, rounding_null=False)
    rows = found.measurements.filter(found.measurements["value"].is_not_null())
    columns = rows.select("layer", "role", "expert", "measure", "value").rows()
    ordered = sorted(columns, key=lambda row: (*map(str, row[:4]), row[4]))
    return found.summary()["pairs"][0], ordered


MEASURED = ("mixtral", "glm4", "gemma3", "deepseek_v3", "qwen2_5_vl", "llama4_text", "qwen3_5")


@pytest.mark.parametrize("name", MEASURED)
def test_memory_and_saved_give_the_same_measures(name, tmp_path):
    built = Family(name, tmp_path)
    memory, saved = built.tuned()
    pair, rows = table(built.memory, memory)
    assert pair["matrices"] == COUNTS[name].matrices
    assert pair["nss"] > 0
    for base, tuned in ((built.saved, saved), (built.saved, memory), (built.memory, saved)):
        other, others = table(base, tuned)
        assert [row[:4] for row in others] == [row[:4] for row in rows]
        assert all(
            isclose(one[4], two[4], rel_tol=1e-9, abs_tol=1e-12)
            for one, two in zip(rows, others, strict=True)
        )
        for key in ("parameters", "matrices", "nss", "principal_overlap", "relative_update_norm"):
            assert isclose(other[key], pair[key], rel_tol=1e-9), key


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen3-VL-MoE as its authors publish it: experts (in, out), which transformers turns."""
    return {n: v.transpose(1, 2) if ".experts." in n else v for n, v in state.items()}


def test_experts_stored_the_other_way_round_are_turned(tmp_path):
    """A published base against what `save_pretrained` makes of it after a step."""
    built = Family("qwen3_vl_moe", tmp_path)
    state = {name: value.clone() for name, value in built.model.state_dict().items()}
    base = open_checkpoint(families.save(published(state), tmp_path / "published"))
    saved = open_checkpoint(built.saved)
    for one, other in ((base, saved), (saved, base)):
        aligned = align(one, other)
        assert whole(aligned, one, other)
        assert aligned.renaming == "turned experts"
        stacked = [pair.part for pair in aligned.pairs if ".experts." in pair.part.tensor]
        assert len(stacked) == 2 * 4 * 3
        assert all(part.transposed == (one is base) for part in stacked)
    tuned, _ = built.tuned()
    straight, turned = table(built.saved, tuned)[0], table(tmp_path / "published", tuned)[0]
    for key in ("matrices", "unchanged_bf16", "nss", "relative_update_norm", "rank1_energy"):
        assert isclose(straight[key], turned[key], rel_tol=1e-9), key


def test_square_experts_are_turned_too():
    """Where the width equals the experts' width, the fused stack beside them tells."""
    one = pieces({"m.experts.gate_up_proj": (2, 8, 16), "m.experts.down_proj": (2, 8, 8)})
    two = pieces({"m.experts.gate_up_proj": (2, 16, 8), "m.experts.down_proj": (2, 8, 8)})
    for here, there in zip(one, two, strict=True):
        assert here.key == there.key
        assert there.facing(here).turned
        assert there.facing(here).place == here.place
        assert not here.facing(here).turned


def test_a_turned_piece_reads_its_transpose(tmp_path):
    joint, down = torch.randn(2, 12, 8), torch.randn(2, 8, 6)
    stacks = {"m.experts.gate_up_proj": joint, "m.experts.down_proj": down}
    base = open_checkpoint(families.save(stacks, tmp_path / "a"))
    turned = {f"within.{name}": value.transpose(1, 2) for name, value in stacks.items()}
    tuned = open_checkpoint(families.save(turned, tmp_path / "b"))
    aligned = align(base, tuned)
    assert aligned.renaming == "strip within.; turned experts"
    assert len(aligned.pairs) == 6
    assert whole(aligned, base, tuned)


def test_conv1d_is_never_turned(tmp_path):
    """Only the base proves its layout here; the tuned square weight is compared as stored."""
    square = {"h.0.attn.c_proj.weight": torch.randn(8, 8)}
    proof = {"h.0.attn.c_attn.weight": torch.randn(8, 24)}
    base = open_checkpoint(families.save(square | proof, tmp_path / "a"))
    tuned = open_checkpoint(families.save(square, tmp_path / "b"))
    (pair,) = align(base, tuned).pairs
    assert pair.part.transposed
    values = read_pair(base, tuned, pair)
    assert torch.equal(values.base, values.tuned)


def test_published_files_of_gemma3_align(tmp_path):
    """They have one segment more in the vision tower."""
    built = Family("gemma3", tmp_path)
    saved = open_checkpoint(built.saved)
    longer = ("vision_tower.", "vision_tower.vision_model.")
    old = families.save({name.replace(*longer): saved[name] for name in saved}, tmp_path / "old")
    older, memory = open_checkpoint(old), open_checkpoint(built.memory)
    assert whole(align(older, memory), older, memory)
    assert found_patterns(pieces(shapes(old))) == {
        name.replace(*longer): roles for name, roles in saved_patterns("gemma3").items()
    }


def test_a_vision_block_is_never_taken_for_a_text_layer():
    """Blocks of the same shapes and numbers as layers that the tuned side lacks."""
    mlp = {f"mlp.{word}_proj.weight": (8, 8) for word in ("gate", "up", "down")}
    base = {f"model.layers.{n}.{name}": shape for n in range(4) for name, shape in mlp.items()}
    tuned = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in mlp.items()}
    sight = {f"visual.blocks.{n}.{name}": shape for n in range(4) for name, shape in mlp.items()}
    assert sorted(rename(base, tuned | sight).names) == sorted(tuned)
    alone = {name.removeprefix("visual."): shape for name, shape in sight.items()}
    assert len(rename(base | sight, alone).names) == len(sight)


def test_linear_attention_splits_beside_its_gate():
    """Qwen3.5: torch.split(mixed_qkv, [key_dim, key_dim, value_dim]), the gate z as wide as v."""
    beside = {"l.0.linear_attn.in_proj_z.weight": (32, 8)}
    fused = {"l.0.linear_attn.in_proj_qkv.weight": (64, 8)}
    rows = [part.slices[0] for part in pieces(fused | beside) if part.slices]
    assert rows == [(0, 16), (16, 32), (32, 64)]
    (alone,) = pieces(fused)
    assert (alone.place.role, alone.slices) == ("qkv_proj", None)


@pytest.mark.parametrize(
    ("name", "shape", "role", "layer"),
    [
        ("model.layers.61.shared_head.head.weight", (9, 8), "lm_head", 61),
        ("model.layers.61.eh_proj.weight", (8, 16), "other", 61),
        ("model.layers.61.enorm.weight", (8,), "norm", 61),
        ("thinker.audio_tower.layers.3.self_attn.q_proj.weight", (8, 8), "audio.q_proj", 3),
        ("vision_tower.vision_model.encoder.layers.3.mlp.fc2.bias", (8,), "vision.bias", 3),
        ("visual.merger.mlp.0.weight", (8, 8), "vision.other", None),
        ("backbone.layers.0.mixer.in_proj.weight", (24, 8), "other", 0),
        ("transformer.h.0.self_attention.query_key_value.weight", (24, 8), "qkv_proj", 0),
    ],
)
def test_further_places(name, shape, role, layer):
    (part,) = pieces({name: shape})
    assert (part.place.role, part.place.layer, part.label) == (role, layer, name)
    assert part.is_matrix == (len(shape) == 2 and role != "lm_head")
    assert part.place.named("norm").role == role.replace(part.place.kind, "norm")


def test_names_that_memory_and_files_spell_differently():
    """Mixtral's words become those of memory; experts alone have w1, w2 and w3 rewritten."""
    saved = {
        "model.layers.0.block_sparse_moe.experts.10.w1.weight": (6, 4),
        "model.layers.0.block_sparse_moe.experts.10.w2.weight": (4, 6),
        "model.layers.0.block_sparse_moe.experts.10.w3.weight": (6, 4),
        "model.layers.0.feed_forward.w1.weight": (6, 4),
    }
    assert [part.key for part in pieces(saved)] == [
        "model.layers.0.mlp.experts.10.gate_proj.weight",
        "model.layers.0.mlp.experts.10.down_proj.weight",
        "model.layers.0.mlp.experts.10.up_proj.weight",
        "model.layers.0.feed_forward.w1.weight",
    ]
