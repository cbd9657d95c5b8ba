"""The AdamW kernels against torch's own optimizer, entry by entry and bit by bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from offaxis.kernels import BLOCK, adam_bits, adam_offsets, adam_rule, adam_whole, pack

LR, EPS, DECAY = 1e-2, 1e-8, 0.1
KINDS = ("lanes", "bits", "offsets")
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
exactly = pytest.mark.skipif(not FUSED, reason="torch here has no fused multiply-add")


def codes(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as the kernels take it, sharing memory."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass
class Run:
    """A parameter under a mask, its compact state, and its gradients."""

    p: torch.Tensor
    mask: torch.Tensor
    gradients: list[torch.Tensor]
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        trainable = int(self.mask.sum())
        self.m, self.v = torch.zeros(trainable), torch.zeros(trainable)
        half = self.p.dtype == torch.bfloat16
        self.masters = self.p[self.mask].float() if half else torch.empty(0)
        self.births = np.zeros(1, np.int64)
        self.cohort = np.empty(0, np.int16)

    def rule(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = self.betas
        found = [(LR / (1 - first**t), (1 - second**t) ** 0.5) for t in step - self.births]
        return adam_rule(found, self.betas, decay=1 - LR * DECAY, eps=EPS)

    def ours(self, kind: str) -> torch.Tensor:
        """The parameter after all gradients."""
        after = self.p.clone()
        state = (self.m.numpy(), self.v.numpy(), self.masters.numpy(), self.cohort)
        for step, gradient in enumerate(self.gradients, 1):
            p, g, rule = codes(after), codes(gradient), self.rule(step)
            if kind == "whole":
                adam_whole(p, g, state, rule)
            elif kind == "offsets":
                offsets = (self.mask.nonzero().reshape(-1) % BLOCK).numpy().astype(np.uint16)
                counts = [int(part.sum()) for part in self.mask.split(BLOCK)]
                starts = np.cumsum([5, *counts])  # the first need not be 0
                adam_offsets(p, g, offsets, starts, state, rule)
            else:
                adam_bits(p, g, pack(self.mask), state, rule, lanes=kind == "lanes")
        return after

    def theirs(self, **settings: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same by torch.optim.AdamW on float32 p[mask], and its state."""
        values = torch.nn.Parameter(self.p[self.mask].float())
        made = torch.optim.AdamW(
            [values], lr=LR, betas=self.betas, eps=EPS, weight_decay=DECAY, **settings
        )
        for gradient in self.gradients:
            values.grad = gradient[self.mask].float()
            made.step()
        after = self.p.clone()
        after[self.mask] = values.detach().to(after.dtype)
        return after, made.state[values]


def some(
    entries: int, density: float, dtype: torch.dtype, *, steps: int = 3, **more: object
) -> Run:
    """A run whose count of trainable entries is a multiple of 16: torch's kernel has no tail."""
    generator = torch.Generator().manual_seed(entries)
    mask = torch.zeros(entries, dtype=torch.bool)
    count = int(density * entries) // 16 * 16
    mask[torch.randperm(entries, generator=generator)[:count]] = True
    p = (torch.randn(entries, generator=generator) * 0.1).to(dtype)
    scale = torch.logspace(-12, 2, entries)[torch.randperm(entries, generator=generator)]
    gradients = [
        (torch.randn(entries, generator=generator) * scale).to(dtype) for _ in range(steps)
    ]
    gradients[0][::7] = 0.0
    return Run(p, mask, gradients, **more)


@exactly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.001, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kernel_is_torchs_fused_adamw(kind: str, density: float, dtype: torch.dtype) -> None:
    run = some(3 * BLOCK + 4567, density, dtype)
    found = run.ours(kind)
    expected, state = run.theirs(fused=True)
    assert torch.equal(found, expected)
    assert torch.equal(run.m, state["exp_avg"])
    assert torch.equal(run.v, state["exp_avg_sq"])
    if dtype == torch.bfloat16:
        assert torch.equal(run.masters.to(dtype), expected[run.mask])


@exactly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_parameter_is_torchs_fused_adamw(dtype: torch.dtype) -> None:
    run = some(BLOCK + 4096, 1.0, dtype)
    assert torch.equal(run.ours("whole"), run.theirs(fused=True)[0])


@exactly
@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.3, 0.5), (0.0, 0.0), (0.51, 0.99)])
def test_the_first_moment_starts_from_the_nearer_end(betas: tuple[float, float]) -> None:
    run = some(4096, 0.5, torch.float32, betas=betas)
    assert torch.equal(run.ours("bits"), run.theirs(fused=True)[0])


@pytest.mark.parametrize("entries", [1, 7, 8, 15, 17, 2047, 2048, 2049, 2056, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_agree_at_every_size(entries: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(entries)
    mask = torch.rand(entries, generator=generator) < 0.4
    mask[-1] = True
    gradients = [torch.randn(entries, generator=generator).to(dtype) for _ in range(3)]
    p = torch.randn(entries, generator=generator).to(dtype)
    results = [Run(p, mask, gradients).ours(kind) for kind in KINDS]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0][~mask], p[~mask])
    alone = Run(
        p[mask], torch.ones(int(mask.sum()), dtype=torch.bool), [g[mask] for g in gradients]
    )
    assert torch.equal(results[0][mask], alone.ours("whole"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_that_are_all_or_nothing(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(40, generator=generator) < 0.5
    mask = rows.repeat_interleave(4096)
    p = torch.randn(mask.numel(), generator=generator).to(dtype)
    gradients = [torch.randn(mask.numel(), generator=generator).to(dtype)]
    alone = Run(
        p[mask], torch.ones(int(mask.sum()), dtype=torch.bool), [g[mask] for g in gradients]
    )
    found = Run(p, mask, gradients).ours(kind)
    assert torch.equal(found[mask], alone.ours("whole"))
    assert torch.equal(found[~mask], p[~mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_bits_stay_whatever_they_are_and_whatever_their_gradient(
    kind: str, dtype: torch.dtype
) -> None:
    integers = torch.int16 if dtype == torch.bfloat16 else torch.int32
    odd = [-0.0, float("inf"), float("nan"), 1e-40, float("-inf")]
    p = torch.tensor(odd * 1000).to(dtype)
    info = torch.iinfo(integers)
    quiet = info.max - 5, -7, 0x7F81 if integers == torch.int16 else 0x7F800001  # NaNs, one signals
    for i, payload in enumerate(quiet):
        p.view(integers)[i::997] = payload
    mask = torch.rand(p.numel(), generator=torch.Generator().manual_seed(1)) < 0.3
    p[mask] = 0.5
    gradient = torch.where(mask, 0.1, float("nan")).to(dtype)
    found = Run(p, mask, [gradient, gradient]).ours(kind)
    assert torch.equal(found.view(integers)[~mask], p.view(integers)[~mask])
    assert found[mask].isfinite().all()
    assert (found[mask] < 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_has_its_cohorts_age(kind: str, dtype: torch.dtype) -> None:
    entries = 5000
    run = some(entries, 0.4, dtype, steps=1)
    together = [some(entries, 0.4, dtype, steps=1) for _ in range(3)]
    births = np.array([0, -3, -400])  # ages 1, 4 and 401 at the step
    run.births, run.cohort = births, (np.arange(run.m.numel()) % 3).astype(np.int16)
    found = run.ours(kind)[run.mask]
    for number, one in enumerate(together):
        one.births = births[number : number + 1]
        mine = torch.from_numpy(run.cohort == number)
        assert torch.equal(found[mine], one.ours(kind)[run.mask][mine])
    assert not torch.equal(together[0].ours(kind), together[1].ours(kind))


@exactly
def test_torchs_loop_has_the_same_moments() -> None:
    run = some(BLOCK, 0.5, torch.float32, steps=30)
    run.ours("bits")
    _, state = run.theirs(foreach=False)
    assert torch.equal(run.m, state["exp_avg"])
    assert torch.equal(run.v, state["exp_avg_sq"])


def test_torchs_loop_differs_by_an_ulp_of_the_weight_and_few_of_its_step() -> None:
    """MKL's square root is not correctly rounded, so torch's loop is not its fused kernel."""
    run = some(BLOCK, 0.5, torch.float32, steps=1)
    found, (expected, _) = run.ours("bits"), run.theirs(foreach=False)
    ulp = torch.from_numpy(np.spacing(expected.abs().numpy()))
    bound = ulp + 4 * 2.0**-23 * (expected - run.p).abs()
    assert ((found - expected).abs() <= bound).all()
