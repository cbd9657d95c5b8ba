"""Alignment: what is renamed is the same model; what cannot be matched becomes a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from offaxis.checkpoint import align, open_checkpoint, read_pair
from offaxis.errors import AlignmentError
from offaxis.names import Rule, rename

BLOCK = {
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.gate_proj.weight": (12, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
    "input_layernorm.weight": (8,),
}
SHAPES = {
    "model.embed_tokens.weight": (20, 8),
    **{f"model.layers.{n}.{k}": shape for n in range(3) for k, shape in BLOCK.items()},
    "model.norm.weight": (8,),
    "lm_head.weight": (20, 8),
}
STATE = families.random_state(SHAPES)


def opened(state, directory: Path, config=None):
    return open_checkpoint(families.save(state, directory, config))


def renamed(rule) -> dict[str, torch.Tensor]:
    return {rule(name): value for name, value in STATE.items()}


def same_values(base, tuned, aligned) -> bool:
    pairs = (read_pair(base, tuned, pair) for pair in aligned.pairs)
    return all(torch.equal(pair.base, pair.tuned) for pair in pairs)


RENAMINGS = {
    "identity": lambda n: n,
    "strip _orig_mod.": lambda n: "_orig_mod." + n,
    "strip module.": lambda n: "module." + n,
    "strip base_model.model.": lambda n: "base_model.model." + n,
    "strip _orig_mod.; strip module.": lambda n: "module._orig_mod." + n,
    "strip _fsdp_wrapped_module.": lambda n: n.replace(
        "self_attn.", "_fsdp_wrapped_module.self_attn."
    ),
    "strip anything.at.all.": lambda n: "anything.at.all." + n,
    "model.language_model. -> model.": lambda n: (
        n.replace("model.", "model.language_model.", 1) if n.startswith("model.") else n
    ),
    "strip language_model.": lambda n: "language_model." + n,
    "backbone. -> model.": lambda n: (
        n.replace("model.", "backbone.") if n.startswith("model.") else n
    ),
    "transformer.h. -> model.layers.": lambda n: n.replace("model.layers.", "transformer.h."),
    "strip 0.auto_model.": lambda n: "0.auto_model." + n,
}


@pytest.mark.parametrize("words", RENAMINGS)
def test_renamed_copies_align_whole(tmp_path, words):
    base = opened(STATE, tmp_path / "base")
    tuned = opened(renamed(RENAMINGS[words]), tmp_path / "tuned")
    aligned = align(base, tuned)
    assert aligned.renaming == words
    assert len(aligned.pairs) == len(STATE)
    assert not aligned.mismatches
    assert same_values(base, tuned, aligned)
    assert aligned.renamed == {
        RENAMINGS[words](name): name for name in STATE if RENAMINGS[words](name) != name
    }


def test_prefixes_may_be_missing_on_the_tuned_side(tmp_path):
    base = opened(STATE, tmp_path / "base")
    bare = {name.removeprefix("model."): value for name, value in STATE.items()}
    aligned = align(base, opened(bare, tmp_path / "tuned"))
    assert aligned.renaming == "add model."
    assert len(aligned.pairs) == len(STATE)


def test_a_language_model_inside_a_vision_model(tmp_path):
    """Both kinds of nesting of one vision-language model, each part finding its own."""
    vision = {f"blocks.{n}.attn.proj.weight": (8, 8) for n in range(3)}
    one = {f"model.visual.{name}": shape for name, shape in vision.items()}
    two = {f"visual.{name}": shape for name, shape in vision.items()}
    for name, shape in SHAPES.items():
        if name.startswith("model."):
            one["model.language_model." + name.removeprefix("model.")] = shape
            two["language_model.model." + name.removeprefix("model.")] = shape
        else:
            one[name], two["language_model." + name] = shape, shape
    found = rename(one, two)
    assert len(found.names) == len(two)
    assert all(old.split(".")[-2:] == new.split(".")[-2:] for old, new in found.names.items())
    assert len(found.rules) == 3


def test_the_answer_does_not_depend_on_the_order_of_names():
    tuned = {"x." + name: shape for name, shape in SHAPES.items()}
    turned = dict(reversed(tuned.items()))
    assert rename(SHAPES, tuned) == rename(dict(reversed(SHAPES.items())), turned)


def test_one_layer_is_never_taken_for_another(tmp_path):
    """A tuned model with a single, differently numbered layer matches nothing of layer 0."""
    base = opened(STATE, tmp_path / "base")
    layer = {n: v for n, v in STATE.items() if ".layers.0." in n}
    moved = {n.replace(".layers.0.", ".layers.7."): v for n, v in layer.items()}
    with pytest.raises(AlignmentError, match="no tensor in common"):
        align(base, opened(moved, tmp_path / "tuned"))


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ("mlp.0.proj.weight", "mlp.1.proj.weight"),
        ("blocks.2.layers.3.up.weight", "layers.3.up.weight"),
        ("experts.1.layers.3.up.weight", "layers.3.up.weight"),
        ("a.weight", "b.weight"),
    ],
)
def test_unlike_places_are_not_matched(base, tuned):
    assert not rename({base: (2, 2)}, {tuned: (2, 2)}).names


def test_a_base_tensor_is_taken_once():
    """An actor and a critic of one shape: one of them lands, the other is left over."""
    tuned = {
        f"{who}.{name}": shape for who in ("critic", "actor") for name, shape in SHAPES.items()
    }
    found = rename(SHAPES, tuned)
    assert found.rules == (Rule("actor.", ""),)
    assert sorted(found.names.values()) == sorted(SHAPES)


def test_a_rule_does_not_take_a_name_that_matched_as_it_is():
    tuned = {name.removeprefix("model."): shape for name, shape in SHAPES.items()}
    found = rename(SHAPES, {**tuned, "model.norm.weight": (8,)})
    assert found.names["model.norm.weight"] == "model.norm.weight"
    assert "norm.weight" not in found.names
    assert len(set(found.names.values())) == len(found.names) == len(SHAPES)


def test_the_largest_group_is_found_among_many_small_ones():
    base = {f"b{n}.x{n}.weight": (1,) for n in range(40)} | SHAPES
    tuned = {f"t{n}.x{n}.weight": (1,) for n in range(40)}
    tuned |= {"deep." + name: shape for name, shape in SHAPES.items()}
    assert rename(base, tuned).rules[0] == Rule("deep.", "")


@settings(max_examples=25, deadline=None)
@given(assignment=st.lists(st.integers(0, 3), min_size=len(STATE), max_size=len(STATE)))
def test_sharding_changes_nothing(tmp_path_factory, assignment):
    directory = tmp_path_factory.mktemp("sharded")
    base = opened(STATE, directory / "base")
    shards = open_checkpoint(families.save_shards(STATE, directory / "shards", assignment))
    assert list(shards) == list(base)
    assert all(torch.equal(shards[name], base[name]) for name in base)
    whole, split = align(base, base), align(base, shards)
    assert (whole.pairs, whole.mismatches) == (split.pairs, split.mismatches)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["module", "model", "language_model", "a", "_orig_mod"]), max_size=4),
    st.booleans(),
)
def test_any_common_prefix_is_found(prefix, swap):
    lead = "".join(f"{segment}." for segment in prefix)
    other = {lead + name: shape for name, shape in SHAPES.items()}
    found = rename(other, SHAPES) if swap else rename(SHAPES, other)
    pairs = ((b, a) if swap else (a, b) for a, b in found.names.items())
    assert dict(pairs) == {lead + name: name for name in SHAPES}


def fuse(state) -> dict[str, torch.Tensor]:
    """The same model with qkv and gate_up fused, as Phi-3 stores them."""
    out = {
        n: v
        for n, v in state.items()
        if not any(r in n for r in ("q_proj", "k_proj", "v_proj", "gate_", "up_"))
    }
    for layer in range(3):
        at = f"model.layers.{layer}."
        out[at + "self_attn.qkv_proj.weight"] = torch.cat(
            [state[f"{at}self_attn.{role}_proj.weight"] for role in "qkv"]
        )
        out[at + "mlp.gate_up_proj.weight"] = torch.cat(
            [state[f"{at}mlp.{role}_proj.weight"] for role in ("gate", "up")]
        )
    return out


@pytest.mark.parametrize("base_fused", [True, False])
def test_fused_and_split_projections_align(tmp_path, base_fused):
    sides = [opened(STATE, tmp_path / "split"), opened(fuse(STATE), tmp_path / "fused")]
    tuned, base = sides if base_fused else sides[::-1]
    aligned = align(base, tuned)
    assert not aligned.mismatches
    assert len(aligned.pairs) == len(STATE)
    assert same_values(base, tuned, aligned)
    assert aligned.renaming == (
        "split -> fused projections" if base_fused else "fused -> split projections"
    )
    label = "model.layers.0.self_attn.qkv_proj.weight[q_proj]"
    assert (label in {pair.part.tensor for pair in aligned.pairs}) == base_fused
    assert sum(pair.part.is_matrix for pair in aligned.pairs) == 21


def test_stacked_and_single_experts_align(tmp_path):
    """Qwen3-MoE in memory against the same model as transformers saves it."""
    model = families.build("qwen3_moe")
    model.save_pretrained(tmp_path / "saved")
    single = open_checkpoint(tmp_path / "saved")
    stacked = opened(model.state_dict(), tmp_path / "memory")
    for base, tuned, words in (
        (single, stacked, "stacked -> single experts"),
        (stacked, single, "single -> stacked experts"),
    ):
        aligned = align(base, tuned)
        assert aligned.renaming == words
        assert not aligned.mismatches
        assert same_values(base, tuned, aligned)
    labels = {pair.part.tensor for pair in aligned.pairs}
    assert "model.layers.0.mlp.experts.gate_up_proj[2,up_proj]" in labels
    assert "model.layers.1.mlp.experts.down_proj[0]" in labels


def rows(aligned) -> dict[str, tuple[str, str]]:
    return {row.tensor: (row.status, row.detail) for row in aligned.mismatches}


def test_everything_unmatched_is_a_row(tmp_path):
    buffers = {"model.position_ids": torch.arange(4), "model.rotary_emb.inv_freq": torch.ones(4)}
    base = opened({**STATE, **buffers, "only.base.weight": torch.ones(3, 3)}, tmp_path / "base")
    tuned_state = {**STATE, **buffers, "only.tuned.weight": torch.ones(2, 2)}
    tuned_state["model.embed_tokens.weight"] = torch.ones(24, 8)
    tuned_state["lm_head.weight"] = torch.ones(24, 8) * 2
    tuned = opened(tuned_state, tmp_path / "tuned")
    aligned = align(base, tuned)
    assert rows(aligned) == {
        "model.embed_tokens.weight": ("reshaped", "base (20, 8), tuned (24, 8)"),
        "lm_head.weight": ("reshaped", "base (20, 8), tuned (24, 8)"),
        "model.position_ids": ("not_float", "I64 in both"),
        "model.rotary_emb.inv_freq": ("buffer", "a constant of the model, not a parameter"),
        "only.base.weight": ("missing", "base (3, 3), not in tuned"),
        "only.tuned.weight": ("extra", "tuned (2, 2), not in base"),
    }
    measured = {pair.part.tensor for pair in aligned.pairs}
    assert measured | set(rows(aligned)) == set(base) | set(tuned)
    assert not measured & set(rows(aligned))


class TestTied:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"

    def without_head(self):
        return {name: value for name, value in STATE.items() if name != self.head}

    def with_tied_head(self, shift: float = 0.0):
        state = {name: value + shift for name, value in STATE.items()}
        return {**state, self.head: state[self.embedding].clone()}

    def status(self, aligned):
        found = {row.tensor: row.status for row in aligned.mismatches}
        return found.get(self.head, "measured" if len(aligned.pairs) == len(STATE) else "absent")

    @pytest.mark.parametrize("swap", [False, True])
    def test_a_head_saved_on_one_side_only(self, tmp_path, swap):
        sides = [
            opened(self.with_tied_head(), tmp_path / "a"),
            opened(self.without_head(), tmp_path / "b"),
        ]
        assert self.status(align(*sides[:: -1 if swap else 1])) == "tied"

    def test_an_untied_head_that_is_missing_is_missing(self, tmp_path):
        base = opened(STATE, tmp_path / "a")
        assert self.status(align(base, opened(self.without_head(), tmp_path / "b"))) == "missing"
        untied = {"tie_word_embeddings": False}
        base = opened(self.with_tied_head(), tmp_path / "c")
        lost = opened(self.without_head(), tmp_path / "d", untied)
        assert self.status(align(base, lost)) == "missing"

    def test_equal_bytes_on_both_sides_count_once(self, tmp_path):
        base = opened(self.with_tied_head(), tmp_path / "a")
        tuned = opened(self.with_tied_head(1.0), tmp_path / "b")
        aligned = align(base, tuned)
        assert rows(aligned)[self.head] == ("tied", f"same tensor as {self.embedding}")
        assert len(aligned.pairs) == len(STATE) - 1

    def test_a_head_that_moved_away_is_measured(self, tmp_path):
        """One entry apart, at the very end, is enough."""
        moved = self.with_tied_head(1.0)
        moved[self.head][-1, -1] += 1
        base, tuned = opened(self.with_tied_head(), tmp_path / "a"), opened(moved, tmp_path / "b")
        assert self.status(align(base, tuned)) == "measured"

    def test_a_difference_between_the_sampled_windows_is_seen(self, tmp_path):
        embedding = torch.randn(256, 256)
        head = embedding.clone()
        head.view(-1)[2000] += 1  # byte 8000 of 262144: after the first window, before the second
        state = {self.embedding: embedding, self.head: head}
        base = opened(state, tmp_path / "a")
        assert len(align(base, base).pairs) == 2
        tied = opened({**state, self.head: embedding.clone()}, tmp_path / "b")
        assert len(align(tied, tied).pairs) == 1

    def test_the_config_decides_where_it_speaks(self, tmp_path):
        config = {"tie_word_embeddings": True}
        base, tuned = opened(STATE, tmp_path / "a", config), opened(STATE, tmp_path / "b", config)
        assert self.status(align(base, tuned)) == "tied"

    def test_neither_side_has_a_head(self, tmp_path):
        base = opened(self.without_head(), tmp_path / "a")
        assert self.status(align(base, base)) == "absent"


class TestRefusals:
    def message(self, base, tuned) -> str:
        with pytest.raises(AlignmentError) as caught:
            align(base, tuned)
        text = str(caught.value)
        assert base.source in text
        assert tuned.source in text
        assert text.endswith("give the base that the tuned checkpoint was trained from")
        return text

    def test_no_common_tensor(self, tmp_path):
        base = opened(STATE, tmp_path / "a")
        other = opened({"x.y.weight": torch.ones(5, 7)}, tmp_path / "b")
        text = self.message(base, other)
        assert "'x.y.weight' (5, 7)" in text
        assert "(20, 8)" in text

    def test_other_sizes(self, tmp_path):
        base = opened(STATE, tmp_path / "a")
        wide = {n: torch.ones([2 * extent for extent in v.shape]) for n, v in STATE.items()}
        text = self.message(base, opened(wide, tmp_path / "b"))
        assert "base (20, 8)" in text
        assert "tuned (40, 16)" in text

    def test_other_architectures(self, tmp_path):
        """GPT-2 against Llama, real headers of both."""
        for family in ("gpt2", "llama"):
            families.build(family).save_pretrained(tmp_path / family)
        self.message(open_checkpoint(tmp_path / "llama"), open_checkpoint(tmp_path / "gpt2"))

    def test_other_model_type_with_little_in_common(self, tmp_path):
        base = opened(STATE, tmp_path / "a", {"model_type": "one"})
        embedding = {"model.embed_tokens.weight": torch.ones(20, 8)}
        text = self.message(base, opened(embedding, tmp_path / "b", {"model_type": "two"}))
        assert "different architectures" in text
        same = opened(embedding, tmp_path / "c", {"model_type": "one"})
        assert len(align(base, same).pairs) == 1

    def test_wrapped_and_unwrapped_twins(self, tmp_path):
        twins = {**STATE, "_orig_mod.model.norm.weight": torch.ones(8)}
        tuned = opened(twins, tmp_path / "b")
        with pytest.raises(AlignmentError, match="are the same parameter"):
            align(opened(STATE, tmp_path / "a"), tuned)
