"""Each rule against a planted answer or a float64 reference, and what must not change a mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest
import torch

from models import nudged, read, roles_of, tiny, write
from offaxis.checkpoint import MemoryCheckpoint, open_checkpoint
from offaxis.errors import CheckpointError, InputError
from offaxis.kernels import scan
from offaxis.lab import BASE
from offaxis.linalg import principal_rank
from offaxis.masks import RULES, Mask, Progress, build, building, load

Flags = np.ndarray[Any, np.dtype[np.bool_]]

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rules") / "base", tiny())


def memory(**matrices: torch.Tensor) -> MemoryCheckpoint:
    """Layers `a`, `b`, ... each an up-projection."""
    return MemoryCheckpoint({f"layers.{n}.up_proj.weight": w for n, w in matrices.items()})


def only(mask: Mask) -> list[list[int]]:
    """The flags of a mask of one tensor."""
    (flags,) = (mask[name].int().tolist() for name in mask)
    return flags


def most(sizes: np.ndarray[Any, Any], count: int) -> Flags:
    """The `count` largest entries, ties to the lower row-major index, by a stable sort."""
    order = np.argsort(-sizes.reshape(-1), kind="stable")
    flags = np.zeros(sizes.size, np.bool_)
    flags[order[:count]] = True
    return flags.reshape(sizes.shape)


def reconstruction(w: np.ndarray[Any, Any], rank: int | None) -> np.ndarray[Any, Any]:
    u, s, v = np.linalg.svd(w, full_matrices=False)
    r = min(rank or principal_rank(*w.shape), *w.shape)
    return np.abs((u[:, :r] * s[:r]) @ v[:r])


def reference(rule: str, w: np.ndarray[Any, Any]) -> Flags:
    """The rules once more, in float64 numpy with a full SVD."""
    size, half = np.abs(w), round(0.5 * w.size)
    principal, low = most(reconstruction(w, None), half), most(-size, half)
    return {
        "principal": principal,
        "principal(alpha=0.1, rank=3)": most(reconstruction(w, 3), round(0.1 * w.size)),
        "non_principal": ~principal,
        "low_magnitude": low,
        "low_magnitude(alpha=0.2)": most(-size, round(0.2 * w.size)),
        "low_magnitude(threshold='mean')": size <= size.mean(),
        "safe": low | ~principal,
        "safe(threshold='mean')": (size <= size.mean()) | ~principal,
        "low_magnitude - principal": low & ~principal,
        "lift(budget_rank=5)": most(reconstruction(w, None), 5 * sum(w.shape)),
        "lift(budget_rank=2, filter_rank=7)": most(reconstruction(w, 7), 2 * sum(w.shape)),
        "lift(budget_rank=999)": np.ones_like(low),
        "all": np.ones_like(low),
        "none": np.zeros_like(low),
    }[rule]


@pytest.mark.parametrize(
    "rule",
    [
        "principal", "principal(alpha=0.1, rank=3)", "non_principal", "low_magnitude",
        "low_magnitude(alpha=0.2)", "low_magnitude(threshold='mean')", "safe",
        "safe(threshold='mean')", "low_magnitude - principal", "lift(budget_rank=5)",
        "lift(budget_rank=2, filter_rank=7)", "lift(budget_rank=999)", "all", "none",
    ],
)  # fmt: skip
def test_a_rule_is_its_float64_reference(rule: str, base: Path) -> None:
    mask, state = build(base, rule), read(base)
    assert set(mask) == set(roles_of(state))  # every matrix, and no embedding or norm
    for name in mask:
        expected = reference(rule, state[name].double().numpy())
        assert mask[name].shape == state[name].shape
        assert np.array_equal(mask[name].numpy(), expected), name
        assert mask.count(name) == expected.sum()


def test_principal_finds_a_planted_block() -> None:
    weak = 0.01 * torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    weak[2:5, 3:9] += 10.0
    mask = build(memory(a=weak), "principal", alpha=18 / 96, rank=1)
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[2:5, 3:9] = True
    assert torch.equal(mask["layers.a.up_proj.weight"], expected)


def test_ties_go_to_the_lower_index_and_halves_to_even() -> None:
    assert only(build(memory(a=-torch.ones(3, 3)), "low_magnitude")) == [
        [1, 1, 1],
        [1, 0, 0],
        [0] * 3,
    ]
    fifteen = build(memory(a=torch.ones(3, 5)), "low_magnitude")
    assert only(fifteen) == [[1] * 5, [1, 1, 1, 0, 0], [0] * 5]  # 7.5 -> 8
    mixed = torch.tensor([[0.0, 2.0, -2.0], [2.0, -0.0, 1.0]])
    assert only(build(memory(a=mixed), "low_magnitude", alpha=4 / 6)) == [[1, 1, 0], [0, 1, 1]]


def test_ties_in_a_fused_and_in_a_turned_tensor_follow_what_is_stored() -> None:
    """GPT-2's c_attn (in, 3·out): each of q, k, v is a block of columns with its own share."""
    names = {
        f"h.0.attn.c_{n}.weight": torch.ones(s) for n, s in (("attn", (4, 12)), ("proj", (4, 4)))
    }
    mask = build(MemoryCheckpoint(names), "low_magnitude", alpha=6 / 16)
    piece = [[1, 1, 1, 1], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert mask["h.0.attn.c_attn.weight"].int().tolist() == [row * 3 for row in piece]
    assert mask["h.0.attn.c_proj.weight"].int().tolist() == piece


@pytest.mark.parametrize("turned", [False, True])
def test_ties_in_a_stack_of_experts_follow_what_is_stored(turned: bool) -> None:
    """Odd extents: the experts' bits begin and end inside of bytes."""
    joint, down = ((3, 5, 6), (3, 3, 5)) if turned else ((3, 6, 5), (3, 5, 3))
    names = {"mlp.experts.gate_up_proj": joint, "mlp.experts.down_proj": down}
    mask = build(MemoryCheckpoint({n: torch.ones(s) for n, s in names.items()}), "low_magnitude",
                 alpha=4 / 15)  # fmt: skip
    assert mask.shapes == names
    for expert in range(3):
        whole = mask["mlp.experts.gate_up_proj"][expert]
        halves = whole.chunk(2, dim=1 if turned else 0)
        for flags in (*halves, mask["mlp.experts.down_proj"][expert]):
            assert flags.reshape(-1).int().tolist() == [1] * 4 + [0] * 11


def test_the_mean_threshold_takes_entries_at_the_mean() -> None:
    assert (
        only(build(memory(a=torch.full((3, 4), -0.5)), "low_magnitude", threshold="mean"))
        == [[1] * 4] * 3
    )
    assert only(build(memory(a=torch.tensor([[1.0, 2.0], [-3.0, 2.0]])),
                      "low_magnitude", threshold="mean")) == [[1, 1], [0, 1]]  # fmt: skip


def test_a_rank_above_a_small_matrix_is_its_own() -> None:
    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mask = build(memory(a=w, b=torch.randn(64, 48)), "principal", rank=32)
    assert np.array_equal(mask["layers.a.up_proj.weight"].numpy(), most(w.abs().numpy(), 12))


@pytest.mark.parametrize("density", [None, 0.05])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_subnetwork_is_what_the_scan_sees(
    dtype: torch.dtype, density: float | None, tmp_path: Path
) -> None:
    state = dict(open_checkpoint(BASE))
    tuned = write(tmp_path / "tuned", nudged(state, seed=1, dtype=dtype), shards=2)
    mask = build(BASE, "subnetwork", tuned=str(tuned), density=density)
    after = open_checkpoint(tuned)
    for name in mask:
        if density is None:
            found = scan(state[name], after[name])
            assert np.array_equal(mask.bits[name], found.mask)
            assert 0 < mask.count(name) == found.changed
        else:
            update = (after[name].double() - state[name].double()).abs().numpy()
            moved = np.count_nonzero(update)
            assert np.array_equal(
                mask[name].numpy(), most(update, min(round(0.05 * update.size), moved))
            )
    assert str(tuned) in mask.rule


def test_scores_are_ranked_by_size(base: Path) -> None:
    state = read(base)
    drawn = {name: torch.randn(state[name].shape) for name in roles_of(state)}
    scores = {kind: MemoryCheckpoint(drawn) for kind in ("gradient", "fisher")}
    for kind in scores:
        mask = build(base, kind, scores=scores, density=0.1)
        for name in mask:
            expected = most(drawn[name].abs().numpy(), round(0.1 * drawn[name].numel()))
            assert np.array_equal(mask[name].numpy(), expected)
    with pytest.raises(InputError, match="needs scores"):
        build(base, "fisher", density=0.1)
    drawn[UP][3, 4] = torch.nan
    with pytest.raises(InputError, match=f"{UP}: 1 of .* scores"):
        build(base, "gradient", scores=scores, density=0.1)


def broken(base: Path, value: float) -> MemoryCheckpoint:
    state = read(base)
    state[UP][1, 2] = value
    return MemoryCheckpoint(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "rule",
    ["principal", "low_magnitude", "low_magnitude(threshold='mean')", "safe", "lift(budget_rank=1)",
     "magnitude_random(like=all)"],
)  # fmt: skip
def test_a_rule_that_asks_for_sizes_names_the_tensor_without(
    rule: str, value: float, base: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"{UP}: 1 of 1536 entries are NaN or infinite"):
        build(broken(base, value), rule)


@pytest.mark.parametrize("rule", ["random(density=0.1)", "all", "none", "random(like=all)"])
def test_other_rules_do_not_mind(rule: str, base: Path) -> None:
    assert build(broken(base, float("nan")), rule).shapes


def test_neither_sharding_nor_order_nor_workers_change_a_mask(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "magnitude_random(like=safe, seed=7) ^ random(density=0.3)"
    mask = build(base, rule)
    assert build(write(tmp_path / "sharded", read(base), shards=3), rule) == mask
    assert build(MemoryCheckpoint(dict(reversed(read(base).items()))), rule) == mask
    for workers in (1, 3):
        monkeypatch.setattr(building, "_workers", lambda parts, n=workers: (n, 1))
        assert build(base, rule) == mask
    assert build(base, mask.rule) == mask  # the rule that is recorded makes it again
    assert build(base, rule.replace("7", "8")) != mask


@pytest.mark.parametrize("sharded", [False, True])
def test_sharded_tensors_are_read_in_order_on_the_calling_thread(sharded: bool) -> None:
    """All processes take part in reading one: a deadlock if two read in different orders."""
    read_by: list[tuple[str, bool]] = []

    class Watched(MemoryCheckpoint):
        def __getitem__(self, name: str) -> torch.Tensor:
            read_by.append((name, current_thread() is main_thread()))
            return super().__getitem__(name)

    base, scores = Watched(tiny()), Watched({n: w.float() for n, w in tiny(seed=1).items()})
    base.collective = sharded
    mask = build(base, "gradient", density=0.1, scores={"gradient": scores})
    if sharded:
        assert read_by == [(name, True) for name in mask for _ in range(2)]
    else:
        assert {here for _, here in read_by} == {False}


def test_a_sharded_model_is_read_whole(tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        shards = {n: distribute_tensor(w, mesh, [Shard(0)]) for n, w in tiny().items()}
        model = MemoryCheckpoint(shards)
        assert model.collective
        mask = build(model, "safe")
        assert mask == build(MemoryCheckpoint(tiny()), "safe")
        mask.check(model)
    finally:
        destroy_process_group()


def test_another_process_draws_the_same(base: Path, tmp_path: Path) -> None:
    rule, file = "random(density=0.2, seed=5) | magnitude_random(like=principal)", tmp_path / "m"
    code = f"from offaxis import masks; masks.build({str(base)!r}, {rule!r}).save({str(file)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load(file) == build(base, rule)


def test_float8_weights_are_selected_as_the_values_they_hold(tmp_path: Path) -> None:
    wide = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    narrow = wide.to(torch.float8_e4m3fn)
    for rule in ("low_magnitude", "principal", "magnitude_random(like=principal)"):
        one, two = build(memory(a=narrow), rule), build(memory(a=narrow.float()), rule)
        assert only(one) == only(two)


def test_progress_counts_entries(base: Path) -> None:
    told: list[Progress] = []
    mask = build(base, "all", progress=told.append)
    assert [one.tensor for one in told] == list(mask)
    assert told[-1].done == told[-1].total == mask.selected


def test_like_may_be_a_mask_and_follows_it_matrix_by_matrix(base: Path, tmp_path: Path) -> None:
    safe = build(base, "safe")
    safe.save(tmp_path / "safe.mask")
    by_rule, by_mask = (
        build(base, "random", like="safe", seed=3),
        build(base, "random", like=safe, seed=3),
    )
    file = f"random(like=file(path={str(tmp_path / 'safe.mask')!r}), seed=3)"
    assert by_rule == by_mask == build(base, file)
    assert by_rule.rule == by_mask.rule
    assert [by_rule.count(name) for name in safe] == [safe.count(name) for name in safe]
    other = build(MemoryCheckpoint(tiny(seed=1)), "safe")
    with pytest.raises(InputError, match="is not the base of this mask"):
        build(base, "random", like=other)


def test_what_cannot_be_masked_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no matrices"):
        build(MemoryCheckpoint({"norm.weight": torch.ones(4)}), "all")
    fewer = {name: tensor for name, tensor in read(base).items() if name != UP}
    tuned = write(tmp_path / "fewer", fewer)
    with pytest.raises(InputError, match=f"nothing to match {UP}"):
        build(base, "subnetwork", tuned=str(tuned))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write(adapter / "x", {"base_model.model.q.lora_A.weight": torch.ones(2, 4)})
    (adapter / "x" / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    with pytest.raises(InputError, match="is an adapter"):
        build(adapter, "all")


def test_every_rule_says_what_it_selects() -> None:
    assert all(rule.says for rule in RULES.values())
