"""A mask and its base: the same weights, under whatever names and stacking they are held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families
from models import read, roles_of, tiny, write
from offaxis.checkpoint import Checkpoint, MemoryCheckpoint, open_checkpoint
from offaxis.comparison.base import BaseSide, Settings
from offaxis.errors import AlignmentError, InputError
from offaxis.kernels import pack
from offaxis.masks import Mask, build
from offaxis.masks.building import matrices
from offaxis.masks.fitting import check_base, fitted
from offaxis.masks.mask import origin_of

GATE = "model.layers.1.mlp.gate_proj.weight"


def positive(base: Checkpoint) -> Mask:
    """Where each weight is above zero, which shows in any layout."""
    names = list(matrices(base))
    return Mask(
        {name: pack(base[name] > 0) for name in names},
        {name: base.specs[name].shape for name in names},
        {name: origin_of(base[name], base.specs[name].dtype) for name in names},
        "positive",
    )


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    model = families.build(request.param)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("saved", [*families.FAMILIES, *families.RECENT], indirect=True)
def test_a_stored_mask_fits_the_model_that_transformers_loads(saved: tuple[Any, Path]) -> None:
    """Names, fused and stacked layouts of 23 architectures, disk against memory."""
    model, path = saved
    mask = positive(open_checkpoint(path))
    live = dict(model.named_parameters())
    mask.check(MemoryCheckpoint(live))
    seen = 0
    for name, flags in fitted(mask, MemoryCheckpoint(live)):
        assert torch.equal(flags, live[name].detach() > 0), name
        seen += flags.numel()
    assert seen == sum(map(mask.entries, mask))


@pytest.mark.parametrize("saved", ["qwen3_moe", "gpt2", "phi3", "gpt_oss"], indirect=True)
def test_and_the_other_way_round(saved: tuple[Any, Path]) -> None:
    """A mask of the model in memory, fitted to the file, where single experts are stored apart."""
    model, path = saved
    mask = positive(MemoryCheckpoint(dict(model.named_parameters())))
    stored = open_checkpoint(path)
    mask.check(stored)
    assert {
        n: bool(torch.equal(f, stored[n] > 0)) for n, f in fitted(mask, stored)
    } == dict.fromkeys(matrices(stored), True)


@pytest.mark.parametrize("turned", [False, True])
def test_stacks_in_both_orientations_fit_single_experts(turned: bool) -> None:
    drawn = torch.Generator().manual_seed(0)
    single = {
        f"mlp.experts.{e}.{role}.weight": torch.randn(shape, generator=drawn)
        for e in range(3)
        for role, shape in (("gate_proj", (6, 5)), ("up_proj", (6, 5)), ("down_proj", (5, 6)))
    }

    def stack(*roles: str) -> torch.Tensor:
        whole = [
            torch.cat([single[f"mlp.experts.{e}.{role}.weight"] for role in roles])
            for e in range(3)
        ]
        return torch.stack([one.T if turned else one for one in whole])

    stacked = {
        "mlp.experts.gate_up_proj": stack("gate_proj", "up_proj"),
        "mlp.experts.down_proj": stack("down_proj"),
    }
    for ours, theirs in ((single, stacked), (stacked, single)):
        mask = positive(MemoryCheckpoint(ours))
        check_base(mask, MemoryCheckpoint(theirs))
        found = dict(fitted(mask, MemoryCheckpoint(theirs)))
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[name], theirs[name] > 0) for name in theirs)


def test_a_config_that_says_how_a_fused_tensor_is_cut_is_heard() -> None:
    """No o_proj beside it: only the config tells that 32 of 64 rows are queries."""
    config = {"num_attention_heads": 4, "head_dim": 8}
    fused = {"self_attn.qkv_proj.weight": torch.randn(64, 32), "mlp.up_proj.weight": torch.eye(9)}
    base = MemoryCheckpoint(fused, config=config)
    mask = build(base, "low_magnitude", alpha=0.25)
    parts = mask["self_attn.qkv_proj.weight"].split([32, 16, 16])
    assert [int(part.sum()) for part in parts] == [256, 128, 128]
    mask.check(base)
    mask.check(MemoryCheckpoint(fused))
    apart = dict(zip("qkv", fused["self_attn.qkv_proj.weight"].split([32, 16, 16]), strict=True))
    split = {f"self_attn.{name}_proj.weight": one for name, one in apart.items()}
    model = MemoryCheckpoint(split | {"mlp.up_proj.weight": torch.eye(9)}, config=config)
    mask.check(model)
    found = dict(fitted(mask, model))
    for name, part in zip("qkv", parts, strict=True):
        assert torch.equal(found[f"self_attn.{name}_proj.weight"], part)


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.", "_orig_mod."])
def test_prefixes_and_wider_copies_pass(prefix: str) -> None:
    state = tiny()
    mask = build(MemoryCheckpoint(state), "safe")
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = MemoryCheckpoint({f"{prefix}{n}": w.to(dtype) for n, w in state.items()})
        mask.check(model)
        found = dict(fitted(mask, model))
        assert found.keys() == {f"{prefix}{name}" for name in mask}
        assert all(torch.equal(found[f"{prefix}{name}"], mask[name]) for name in mask)


def refused(mask: Mask, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(InputError) as error:
        mask.check(MemoryCheckpoint(state))
    return str(error.value)


def test_a_changed_bit_is_refused_with_the_tensors_name() -> None:
    state = tiny()
    mask = build(MemoryCheckpoint(state), "low_magnitude")
    for dtype in (torch.bfloat16, torch.float32):
        copied = {name: w.to(dtype, copy=True) for name, w in state.items()}
        raw = copied[GATE].view(torch.uint16 if dtype == torch.bfloat16 else torch.uint32)
        raw.view(torch.uint8)[0, 0 if dtype == torch.bfloat16 else 2] ^= 1
        words = refused(mask, copied)
        assert GATE in words
        assert mask.origins[GATE].checksum in words
        assert "low_magnitude" in words


def test_a_wider_base_that_lost_bits_is_refused() -> None:
    """A mask of a float32 base, and its bfloat16 copy."""
    state = {n: w.float() * (1 + 2**-12) for n, w in tiny().items()}
    mask = build(MemoryCheckpoint(state), "low_magnitude")
    assert "has checksum" in refused(mask, {n: w.bfloat16() for n, w in state.items()})


def test_a_missing_reshaped_or_quantised_tensor_is_refused() -> None:
    state = tiny()
    mask = build(MemoryCheckpoint(state), "low_magnitude")
    assert GATE in refused(mask, {n: w for n, w in state.items() if n != GATE})
    assert "(48, 32), the model (47, 32)" in refused(mask, state | {GATE: state[GATE][:-1]})
    quantised = refused(mask, state | {GATE: torch.zeros(48, 32, dtype=torch.int8)})
    assert GATE in quantised
    assert "I8" in quantised
    with pytest.raises(InputError, match=GATE):
        list(fitted(mask, MemoryCheckpoint(state | {GATE: torch.zeros(48, 32, dtype=torch.int8)})))
    with pytest.raises(AlignmentError):
        mask.check(MemoryCheckpoint({"x.weight": torch.ones(2, 2)}))


def test_tensors_that_the_mask_does_not_cover_may_differ() -> None:
    state = tiny()
    mask = build(MemoryCheckpoint(state), "low_magnitude")
    mask.check(MemoryCheckpoint(state | {"model.norm.weight": torch.zeros(32), "x": torch.ones(3)}))


def test_a_base_keeps_its_digest_whatever_its_sharding(tmp_path: Path) -> None:
    state = tiny()
    one = build(write(tmp_path / "one", state), "all")
    two = build(write(tmp_path / "two", state, shards=3), "none")
    assert one.base_digest == two.base_digest
    assert build(MemoryCheckpoint(tiny(seed=1)), "all").base_digest != one.base_digest
    assert set(one) == set(roles_of(read(tmp_path / "one")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", ["llama", "gpt2", "phi3", "qwen3_moe", "gpt_oss"], indirect=True)
def test_the_fixed_masks_are_those_of_compare_to_the_bit(
    saved: tuple[Any, Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Fused, turned and stacked layouts; the default and another rank and share."""
    model, _ = saved
    model.to(dtype).save_pretrained(tmp_path / "again")
    base = open_checkpoint(tmp_path / "again")
    for alpha, rank in ((0.5, None), (0.3, 5)):
        principal = build(base, "principal", alpha=alpha, rank=rank)
        low = build(base, "low_magnitude", alpha=alpha)
        settings = Settings(alpha=alpha, principal_rank=rank)
        for pairs in matrices(base).values():
            for pair in pairs:
                side = BaseSide(pair.part, cut_of(base, pair), settings)
                for mask, measure in (
                    (principal, "principal_overlap"),
                    (low, "low_magnitude_overlap"),
                ):
                    ours = pack(cut_of({pair.base.name: mask[pair.base.name]}, pair))
                    assert np.array_equal(ours, side.fixed[measure].bits), pair.part.tensor


def cut_of(tensors: Any, pair: Any) -> torch.Tensor:
    """The part that a pair's base view names, without offaxis' own `cut`."""
    view = pair.base
    found: torch.Tensor = tensors[view.name]
    for axis, (start, stop) in enumerate(view.slices or ()):
        found = found.narrow(axis, start, stop - start)
    return (found.squeeze(0) if view.drop_leading else found).contiguous()
