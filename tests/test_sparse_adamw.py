"""SparseAdamW against torch.optim.AdamW: the same numbers, frozen entries kept, small state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from offaxis.errors import InputError
from offaxis.train.sparse.layout import index_bytes, lay_out, layout_fault, mask_in, positions
from offaxis.train.sparse.optimizer import SparseAdamW
from sparse_adamw import BLOCK, FUSED, Vector, bits, draw, gradients, padded

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
DENSITIES = (0.001, 0.04, 0.3, 0.9)
HALVES = (torch.bfloat16, torch.float16)


def trained(
    p: torch.Tensor, mask: torch.Tensor | None, grads: list[torch.Tensor], *, fused: bool | None
) -> tuple[Parameter, SparseAdamW]:
    parameter = Parameter(p.clone())
    made = SparseAdamW(
        [parameter], **SETTINGS, masks={} if mask is None else {parameter: mask}, fused=fused
    )
    for gradient in grads:
        parameter.grad = gradient
        made.step()
    return parameter, made


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("density", DENSITIES)
def test_a_mask_is_adamw_on_the_vector_that_it_selects(
    density: float, dtype: torch.dtype, fused: bool | None
) -> None:
    """fused=False equals torch's loop; else float32 and bfloat16 equal torch's fused kernel."""
    compiled = fused is None and dtype in (torch.float32, torch.bfloat16)
    if compiled and not FUSED:
        pytest.skip("torch here has no fused multiply-add")
    p, mask = draw((300, 500), density, dtype)
    grads = gradients((300, 500), 25, dtype)
    found, made = trained(p, mask, grads, fused=fused)
    vector = Vector(p[mask], fused=compiled, **SETTINGS)
    for gradient in grads:
        vector.step(gradient[mask])
    assert torch.equal(found.detach()[mask], vector.values.to(dtype))
    assert torch.equal(bits(found)[~mask], bits(p)[~mask])
    assert torch.equal(made.mask_of(found), mask)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_all_trainable_is_torchs_adamw(masked: bool, fused: bool) -> None:
    """Two groups, a schedule, decay, hundreds of steps."""
    if fused and not FUSED:
        pytest.skip("torch here has no fused multiply-add")
    shapes = [(64, 48), (32,), (16, 5, 4), ()] if not fused else [(64, 48), (32,), (16, 5, 4)]
    start = [draw(shape, 1.0, torch.float32)[0] for shape in shapes]
    runs = []
    for kind in ("ours", "theirs"):
        ours = [Parameter(one.clone()) for one in start]
        groups = [{"params": ours[:2], "weight_decay": 0.2}, {"params": ours[2:], "lr": 3e-3}]
        masks = {one: torch.ones_like(one, dtype=torch.bool) for one in ours} if masked else {}
        made = (
            SparseAdamW(groups, **SETTINGS, masks=masks, fused=fused)
            if kind == "ours"
            else torch.optim.AdamW(groups, **SETTINGS, fused=fused, foreach=False)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, 300)
        generator = torch.Generator().manual_seed(1)
        for _ in range(300):
            for one in ours:
                one.grad = torch.randn(one.shape, generator=generator)
            made.step()
            schedule.step()
        runs.append(ours)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], start[0])


@pytest.mark.skipif(not FUSED, reason="torch here has no fused multiply-add")
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_compressed_is_projected(density: float) -> None:
    """torch's dense optimizer on masked gradients, frozen weights put back, gives the same bits."""
    p, mask = draw((256, 320), density, torch.float32)
    grads = gradients((256, 320), 200, torch.float32)
    found, _ = trained(p, mask, grads, fused=None)
    dense = Parameter(p.clone())
    made = torch.optim.AdamW([dense], **SETTINGS, fused=True)
    for gradient in grads:
        dense.grad = gradient * mask
        made.step()
        dense.detach()[~mask] = p[~mask]
    assert torch.equal(found, dense)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_frozen_entries_keep_their_bits(dtype: torch.dtype, fused: bool | None) -> None:
    p, mask = draw((70, 1000), 0.4, dtype)
    frozen = (~mask).reshape(-1).nonzero().reshape(-1)
    words = bits(p).view(-1)
    low, high = torch.iinfo(words.dtype).min, torch.iinfo(words.dtype).max
    words[frozen] = torch.randint(low, high, frozen.shape, dtype=words.dtype)  # NaNs of all kinds
    p.view(-1)[frozen[::3]] = -0.0
    before = bits(p).clone()
    assert p.isnan().any()
    grads = gradients((70, 1000), 200, dtype)
    for gradient in grads:
        gradient[~mask] = float("nan")
        gradient.view(-1)[frozen[::2]] = float("inf")
    found, _ = trained(p, mask, grads, fused=fused)
    assert torch.equal(bits(found)[~mask], before[~mask])
    assert found[mask].isfinite().all()
    assert (found[mask] != p[mask]).float().mean() > 0.95


@pytest.mark.parametrize("fused", [None, False])
def test_layouts_in_memory_do_not_matter(fused: bool | None) -> None:
    p, mask = draw((40, 60), 0.3, torch.float32)
    grads = gradients((40, 60), 5, torch.float32)
    expected, _ = trained(p, mask, grads, fused=fused)
    turned = [gradient.t().contiguous().t() for gradient in grads]
    assert torch.equal(trained(p, mask, turned, fused=fused)[0], expected)
    odd = Parameter(p.t().contiguous().t())
    assert not odd.is_contiguous()
    made = SparseAdamW([odd], **SETTINGS, masks={odd: mask.t().contiguous().t()}, fused=False)
    for gradient in grads:
        odd.grad = gradient
        made.step()
    assert torch.equal(odd, trained(p, mask, grads, fused=False)[0])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    shapes = [(1000, 700), (3,), (500, 500), (90_000,)]
    start = [draw(shape, 0.1 * i, dtype) for i, shape in enumerate(shapes, 1)]
    grads = [gradients(shape, 3, dtype) for shape in shapes]

    def run() -> list[Parameter]:
        made = [Parameter(p.clone()) for p, _ in start]
        masks = {one: mask for one, (_, mask) in zip(made, start, strict=True)}
        optimizer = SparseAdamW(made, **SETTINGS, masks=masks)
        for step in range(3):
            for one, mine in zip(made, grads, strict=True):
                one.grad = mine[step]
            optimizer.step()
        return made

    several = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(several, run(), strict=True))


def test_nothing_trainable_costs_nothing() -> None:
    p, _ = draw((30, 30), 0.5, torch.float32)
    grads = [torch.full((30, 30), float("nan"))] * 3
    found, made = trained(p, torch.zeros(30, 30, dtype=torch.bool), grads, fused=None)
    assert torch.equal(found, p)
    assert set(made.state_bytes().values()) == {0}


def test_no_gradient_no_step() -> None:
    parameters = [Parameter(torch.ones(20)) for _ in range(2)]
    made = SparseAdamW(parameters, masks={parameters[0]: torch.arange(20) < 5})
    parameters[1].grad = torch.ones(20)
    made.step()
    assert [made.state[one]["step"] for one in parameters] == [0, 1]
    assert torch.equal(parameters[0], torch.ones(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("shape", [(1000, 200), (1 << 17,), (65537,), (5,)])
def test_bytes_are_the_laws(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for density in (0.0, 0.001, 0.0624, 0.0626, 0.2, 0.5, 1.0):
        p, mask = draw(shape, density, dtype)
        entries, trainable = p.numel(), int(mask.sum())
        _, made = trained(p, mask, gradients(shape, 1, dtype), fused=None)
        wide = 8 if dtype == torch.float64 else 4
        index = min(-(-entries // 8), 2 * trainable) + 8 * (-(-entries // 65536) + 1)
        assert made.state_bytes() == {
            "moments": 2 * wide * trainable,
            "masters": 4 * trainable if dtype in HALVES else 0,
            "indices": 0 if trainable in (0, entries) else index,
            "cohorts": 0,
        }
        assert index_bytes(entries, trainable) == made.state_bytes()["indices"]
        held = [t for t in made.state[next(iter(made.state))].values() if torch.is_tensor(t)]
        assert sum(t.untyped_storage().nbytes() for t in held) == sum(made.state_bytes().values())


@given(
    shape=st.sampled_from([(1,), (8,), (9, 7), (3, 5, 11), (2, BLOCK), (BLOCK + 3,)]),
    density=st.sampled_from([0.0, 0.001, 0.05, 0.0625, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 1 << 20),
)
@settings(max_examples=60, deadline=None)
def test_the_index_gives_the_mask_back(shape: tuple[int, ...], density: float, seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random(shape) < density)
    state = lay_out(mask, torch.empty(shape))
    assert torch.equal(mask_in(state), mask)
    assert layout_fault(state) is None
    found = positions(state)
    if found is None:
        assert mask.all() or not mask.any()
    else:
        assert torch.equal(found, mask.reshape(-1).nonzero().reshape(-1))


def test_the_mask_is_not_kept() -> None:
    parameter, mask = Parameter(torch.zeros(64)), torch.arange(64) < 20
    made = SparseAdamW([parameter], masks={parameter: mask})
    expected = mask.clone()
    mask.fill_(True)
    assert torch.equal(made.mask_of(parameter), expected)
    made.mask_of(parameter).fill_(True)
    assert torch.equal(made.mask_of(parameter), expected)


@pytest.mark.parametrize("fused", [None, False])
def test_a_tensor_as_the_rate(fused: bool | None) -> None:
    p, mask = draw((50, 50), 0.4, torch.float32)
    grads = gradients((50, 50), 10, torch.float32)
    one = Parameter(p.clone())
    settings_ = {**SETTINGS, "lr": torch.tensor(1e-2)}
    made = SparseAdamW([one], **settings_, masks={one: mask}, fused=fused)
    vector = Vector(p[mask], fused=False, **settings_)
    for gradient in grads:
        one.grad = gradient
        made.step()
        vector.step(gradient[mask])
    close = 0 if fused is False else 1e-5
    assert (one.detach()[mask] - vector.values).abs().max() <= close


def test_closures_autograd_and_names() -> None:
    layer = torch.nn.Linear(12, 7)
    mask = torch.rand(7, 12) < 0.5
    made = SparseAdamW(layer.named_parameters(), lr=0.05, masks={layer.weight: mask})
    before, data = layer.weight.detach().clone(), torch.randn(20, 12)

    def closure() -> torch.Tensor:
        made.zero_grad()
        loss = layer(data).square().mean()
        loss.backward()
        return loss

    losses = [float(made.step(closure).detach()) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert torch.equal(layer.weight[~mask], before[~mask])
    assert made.param_groups[0]["param_names"] == ["weight", "bias"]
    loss = layer(torch.randn(2, 12).requires_grad_()).square().mean()
    layer.weight.grad = torch.ones_like(layer.weight)
    made.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def broken(change: Callable[[Parameter], dict[str, object]]) -> None:
    parameter = Parameter(torch.zeros(4, 6))
    SparseAdamW([("layer.weight", parameter)], **{"masks": {}, **change(parameter)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p: {"masks": {p: torch.ones(6, 4, dtype=torch.bool)}},
            r"layer.weight.*\(6, 4\).*\(4, 6\)",
        ),
        (lambda p: {"masks": {p: torch.ones(4, 6)}}, "layer.weight is torch.float32"),
        (lambda p: {"masks": {Parameter(torch.zeros(3)): torch.ones(3) > 0}}, r"\(3,\).*not among"),
        (lambda p: {"lr": -1.0}, "lr is -1.0; give"),
        (lambda p: {"lr": float("nan")}, "lr is nan"),
        (lambda p: {"eps": -1e-8}, "eps is -1e-08"),
        (lambda p: {"weight_decay": -0.1}, "weight_decay is -0.1"),
        (lambda p: {"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
    ],
)
def test_what_cannot_be_is_refused(
    change: Callable[[Parameter], dict[str, object]], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        broken(change)


def test_parameters_that_cannot_be_are_refused() -> None:
    made = SparseAdamW([Parameter(torch.zeros(3))], masks={})
    with pytest.raises(InputError, match=r"complex64; SparseAdamW trains"):
        made.add_param_group({"params": [Parameter(torch.zeros(3, dtype=torch.complex64))]})
    with pytest.raises(InputError, match="no amsgrad"):
        made.add_param_group({"params": [Parameter(torch.zeros(3))], "amsgrad": True})
    assert len(made.param_groups) == 1
    with pytest.raises(InputError, match="not among"):
        made.mask_of(Parameter(torch.zeros(3)))


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    table, other = torch.nn.Embedding(10, 4, sparse=True), Parameter(torch.ones(5))
    made = SparseAdamW([other, table.weight], masks={})
    other.grad = torch.ones(5)
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(InputError, match="parameter 1 of group 0 has a sparse gradient"):
        made.step()
    assert torch.equal(other, torch.ones(5))


def test_sharded_parameters_are_refused(tmp_path: object) -> None:
    from torch.distributed.tensor import DTensor, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = Parameter(DTensor.from_local(torch.zeros(4, 4), mesh))
        with pytest.raises(InputError, match=r"sharded \(DTensor\).*projected"):
            SparseAdamW([sharded], masks={})
    finally:
        torch.distributed.destroy_process_group()


def test_padding_changes_nothing() -> None:
    """What the vectors of these tests rest on: entries are stepped apart from each other."""
    vector = Vector(torch.ones(5), fused=FUSED, **SETTINGS)
    longer = Vector(torch.ones(16), fused=FUSED, **SETTINGS)
    vector.step(torch.full((5,), 0.3))
    longer.step(torch.full((16,), 0.3))
    assert torch.equal(vector.values, longer.values[:5])
    assert padded(torch.ones(5)).shape == (16,)
