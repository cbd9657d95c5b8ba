"""Training under a mask: what is frozen stays to the bit, what is not moves as AdamW moves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from offaxis.train.sparse import Projection, restrict
from offaxis.train.sparse.engines import innermost
from offaxis.train.sparse.packed import Packed
from policy_runs import cpu_threads
from sparse_runs import MATRIX, Poison, bits, held, mask, model, run, same, trainer, weights

RULE = "random(density=0.3, seed=1)"
LIFT = "lift(budget_rank=8)"

Runs = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of 100 steps by what they differ in, each made once."""
    made: dict[Any, Any] = {}

    def get(strategy: str | None, rule: str = RULE, **more: Any) -> Any:
        key = (strategy, rule, *sorted(more.items()))
        if key not in made:
            options = {k: more.pop(k) for k in ("others", "refresh_every") if k in more}
            chosen = mask(rule)  # seeds torch, as the base is made from
            trained = trainer(tmp_path_factory.mktemp("run"), **more)
            if strategy is not None:
                restrict(trained, chosen, strategy=strategy, **options)
            with cpu_threads(1):
                made[key] = run(trained), trained
        return made[key]

    return get


@pytest.mark.parametrize(
    ("strategy", "optim"),
    [
        ("projected", "adamw_torch"),
        pytest.param("compressed", "adamw_torch_fused", marks=pytest.mark.slow),
    ],
)
def test_frozen_entries_stay_whatever_their_gradients(
    strategy: str, optim: str, tmp_path: Path
) -> None:
    """Weight decay, accumulation, active clipping, a linear schedule; infinities planted."""
    base, chosen = weights(model()), mask(RULE)
    poison = Poison(chosen)
    made = trainer(tmp_path, poison, optim=optim, max_grad_norm=0.2, max_steps=200)
    restrict(made, chosen, strategy=strategy)
    after = run(made)
    held(after, chosen, base=base)
    assert poison.planted > 20_000
    others = set(base) - set(chosen)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= others
    assert all(torch.equal(bits(after[name]), bits(base[name])) for name in others)
    kept = [name for name in chosen if bool((base[name] == 0).logical_and(~chosen[name]).any())]
    assert kept, "no frozen zero that could lose its sign"
    norms = [row["grad_norm"] for row in made.state.log_history if "grad_norm" in row]
    assert len(norms) == 200
    assert all(0.2 < norm < 2 for norm in norms), "the norm is not that of what is trained"


def test_an_empty_and_a_full_tensor_in_one_mask(tmp_path: Path) -> None:
    base = weights(model())
    full = mask("all")
    none = ~full
    mixed = {name: (full if "up_proj" in name else none).bits[name] for name in full}
    chosen = type(full)(mixed, full.shapes, full.origins, "mixed")
    for strategy in ("projected", "compressed"):
        made = trainer(tmp_path, max_steps=20)
        restrict(made, chosen, strategy=strategy)
        after = run(made)
        held(after, chosen, base=base)
        assert not made.model.get_parameter("model.layers.0.mlp.down_proj.weight").requires_grad


@pytest.mark.parametrize(
    "optim", ["adamw_torch_fused", pytest.param("adamw_torch", marks=pytest.mark.slow)]
)
def test_the_full_mask_is_no_mask(optim: str, runs: Runs) -> None:
    plain, one = runs(None, optim=optim)
    for strategy in ("projected", "compressed"):
        if (strategy, optim) == ("compressed", "adamw_torch_fused"):
            continue  # torch's fused kernel rounds a tensor's last entries in another way
        after, other = runs(strategy, "all", others="trained", optim=optim)
        assert same(plain, after), strategy
        rows = [{k: v for k, v in row.items() if "runtime" not in k and "second" not in k}
                for t in (one, other) for row in t.state.log_history if "loss" in row]  # fmt: skip
        assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]


@pytest.mark.parametrize(
    ("refresh", "others"),
    [(0, "trained"), pytest.param(20, "frozen", marks=pytest.mark.slow)],
)
def test_both_strategies_give_the_same_bits(refresh: int, others: str, runs: Runs) -> None:
    one, _ = runs("projected", others=others, refresh_every=refresh)
    two, compressed = runs("compressed", others=others, refresh_every=refresh)
    assert same(one, two)
    assert type(innermost(compressed.optimizer)).__name__ == "SparseAdamW"


@pytest.mark.slow
def test_both_strategies_agree_with_fused_kernels(runs: Runs) -> None:
    """To the bit but for an ULP of v in tails; with a refresh, but for the root's rounding."""
    for refresh, apart in ((0, 1e-5), (20, 1e-4)):
        one, two = (runs(strategy, refresh_every=refresh, optim="adamw_torch_fused")[0]
                    for strategy in ("projected", "compressed"))  # fmt: skip
        base = weights(model())
        moved = max(float((one[name] - base[name]).abs().max()) for name in one)
        assert moved > 0.1
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < apart * moved


class Noisy(torch.optim.Optimizer):
    """Moves every entry, gradient or not, and mixes neighbours."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    noise = torch.randn(one.shape, generator=self._generator)
                    one.mul_(-1).add_(noise, alpha=0.01).sub_(one.roll(1, 0), alpha=0.1)


ODD: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, maximize=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0, amsgrad=True),
    "noisy": Noisy,
}


@pytest.mark.parametrize("name", ODD)
def test_no_optimizer_moves_a_frozen_entry(name: str, tmp_path: Path) -> None:
    base, chosen, one = weights(model()), mask(RULE), model()
    optimizers = (ODD[name](list(one.parameters())), None)
    made = trainer(tmp_path, Poison(chosen), of=one, optimizers=optimizers, max_steps=60)
    restrict(made, chosen)
    held(run(made), chosen, base=base)


def test_clipping_sees_what_is_trained_alone(tmp_path: Path) -> None:
    chosen, seen = mask(RULE), []

    class See(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            frozen = max(float(grads[n][~flags].abs().max()) for n, flags in chosen.items())
            norm = torch.stack([grads[n][flags].norm() for n, flags in chosen.items()]).norm()
            seen.append((frozen, float(norm)))

    made = trainer(tmp_path, See(), max_steps=20, max_grad_norm=0.2)
    restrict(made, chosen)
    run(made)
    logged = [row["grad_norm"] for row in made.state.log_history if "grad_norm" in row]
    assert len(logged) == len(seen) == 20
    for before, (frozen, norm) in zip(logged, seen, strict=True):
        assert frozen == 0
        assert norm == pytest.approx(min(before, 0.2), rel=1e-4)


def test_a_nan_among_what_is_trained_does_not_reach_what_is_frozen(tmp_path: Path) -> None:
    """The norm is then NaN, and clipping multiplies every gradient by it."""
    base, chosen = weights(model()), mask(RULE)

    class Spoil(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            at = chosen[MATRIX].nonzero()[0].tolist()
            model.get_parameter(MATRIX).register_hook(
                lambda grad: grad.index_put((torch.tensor(at[0]), torch.tensor(at[1])),
                                            torch.tensor(float("nan"))))  # fmt: skip

    for strategy, decay in (("projected", 0.0), ("projected", 0.1), ("compressed", 0.1)):
        made = trainer(tmp_path, Spoil(), max_steps=3, weight_decay=decay, max_grad_norm=0.5)
        restrict(made, chosen, strategy=strategy)
        after = run(made)
        assert bool(after[MATRIX][chosen[MATRIX]].isnan().any())
        for name, flags in chosen.items():
            assert torch.equal(bits(after[name])[~flags], bits(base[name])[~flags])


def test_half_precision_keeps_masters_of_what_is_trained(tmp_path: Path) -> None:
    """A learning rate that bfloat16 alone would lose: the masters add it up."""
    base, chosen = weights(model(dtype=torch.bfloat16)), mask(RULE)
    made = trainer(tmp_path, of=model(dtype=torch.bfloat16), learning_rate=2e-5, max_steps=100)
    restrict(made, chosen, strategy="compressed")
    after = run(made)
    assert {one.dtype for one in after.values()} == {torch.bfloat16}
    moved = sum(int((bits(after[n]) != bits(base[n])).sum()) for n in chosen)
    assert 0.2 * chosen.selected < moved < chosen.selected
    for name, flags in chosen.items():
        assert torch.equal(bits(after[name])[~flags], bits(base[name])[~flags])
    held_bytes = innermost(made.optimizer).state_bytes()
    assert held_bytes["masters"] == 4 * chosen.selected
    assert held_bytes["moments"] == 8 * chosen.selected


def test_packed_flags_do_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        for shape in ((1,), (3, 5), (7, 9), (64, 130), (0, 4)):
            flags = torch.rand(shape, generator=generator) < 0.4
            packed = Packed(flags)
            assert torch.equal(packed.flags(), flags)
            assert packed.count == int(flags.sum())
            old = torch.randn(shape, generator=generator).to(dtype)
            new = torch.where(torch.rand(shape, generator=generator) < 0.2, float("nan"), -old)
            new = new.to(dtype)
            for turned in (False, True):
                one = new.T.contiguous().T if turned and new.dim() == 2 else new.clone()
                packed.restore(one, old)
                expected = torch.where(flags, new, old)
                assert torch.equal(one.nan_to_num(7), expected.nan_to_num(7))
                packed.clear(one)
                assert torch.equal(one.nan_to_num(7), torch.where(flags, new, 0).nan_to_num(7))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_projection_alone_masks_a_hand_written_loop(decay: float) -> None:
    one = torch.nn.Parameter(torch.randn(6, 7, generator=torch.Generator().manual_seed(0)))
    flags = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    odd = (~flags).nonzero()[0].tolist()
    bits(one.detach())[odd[0], odd[1]] = 0x7F800001  # a signalling NaN: any sum would quiet it
    before, optimizer = one.detach().clone(), torch.optim.AdamW([one], lr=0.1, weight_decay=decay)
    projection = Projection({one: Packed(flags)})
    projection.attach(optimizer)
    for _ in range(3):
        one.grad = torch.full((6, 7), float("inf")).where(~flags, torch.ones(6, 7))
        optimizer.step()
    assert torch.equal(bits(one.detach())[~flags], bits(before)[~flags])
    assert bool((one.detach() != before)[flags].all())
    projection.detach()
    one.grad = torch.ones(6, 7)
    optimizer.step()
    assert bool((bits(one.detach()) != bits(before)).all())
