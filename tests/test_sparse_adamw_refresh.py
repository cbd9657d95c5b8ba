"""A refreshed mask: survivors go on, newcomers start at age 0, the dropped stay where they are."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from offaxis.errors import InputError
from offaxis.train.sparse import cohorts
from offaxis.train.sparse.optimizer import SparseAdamW
from sparse_adamw import FUSED, Vector, bits, draw, gradients

SHAPE = (48, 100)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def masks_of(count: int, density: float = 0.4) -> list[torch.Tensor]:
    return [draw(SHAPE, density, torch.float32, seed=10 + i)[1] for i in range(count)]


def expected(
    p: torch.Tensor, masks: list[torch.Tensor], grads: list[torch.Tensor], every: int, **how: object
) -> torch.Tensor:
    """By the definition: entries with one history share a torch AdamW, new at each admission."""
    after = p.clone()
    histories = torch.stack(masks).reshape(len(masks), -1).t()
    for history in histories.unique(dim=0):
        mine = (histories == history).all(1).reshape(p.shape)
        running = None
        for number, trainable in enumerate(history.tolist()):
            if not trainable:
                running = None
                continue
            if running is None:
                running = Vector(after[mine], **how)
            for gradient in grads[number * every : (number + 1) * every]:
                running.step(gradient[mine])
            after[mine] = running.values.to(p.dtype)
    return after


def refreshed(
    p: torch.Tensor,
    masks: list[torch.Tensor],
    grads: list[torch.Tensor],
    every: int,
    *,
    fused: bool | None,
    **settings: object,
) -> tuple[Parameter, SparseAdamW]:
    parameter = Parameter(p.clone())
    made = SparseAdamW([parameter], masks={parameter: masks[0]}, fused=fused, **settings)
    for step, gradient in enumerate(grads):
        if step and step % every == 0:
            made.refresh({parameter: masks[step // every]})
        parameter.grad = gradient
        made.step()
    return parameter, made


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.03, 0.4])
def test_every_entry_has_its_own_age(
    density: float, dtype: torch.dtype, fused: bool | None
) -> None:
    compiled = fused is None and dtype != torch.float16
    if compiled and not FUSED:
        pytest.skip("torch here has no fused multiply-add")
    p, _ = draw(SHAPE, 0.5, dtype)
    masks = masks_of(5, density)
    grads = gradients(SHAPE, 35, dtype)
    found, made = refreshed(p, masks, grads, 7, fused=fused, **SETTINGS)
    reference = expected(p, masks, grads, 7, fused=compiled, **SETTINGS)
    assert torch.equal(bits(found), bits(reference))
    assert torch.equal(made.mask_of(found), masks[-1])
    never = ~torch.stack(masks).any(0)
    assert torch.equal(bits(found)[never], bits(p)[never])


def test_an_age_of_its_own_is_not_the_parameters() -> None:
    """What starting newcomers at the parameter's step would give is something else."""
    p, _ = draw(SHAPE, 0.5, torch.float32)
    masks, grads = masks_of(2), gradients(SHAPE, 8, torch.float32)
    found, made = refreshed(p, masks, grads, 7, fused=None, **SETTINGS)
    old, _ = refreshed(p, [masks[0] | masks[1]], grads[:7], 7, fused=None, **SETTINGS)
    assert made.state[found]["births"] == (0, 7)
    new = masks[1] & ~masks[0]
    moved = (found.detach() - p)[new].abs()
    assert torch.allclose(moved, torch.tensor(1e-2), rtol=0.2), "a first step has the rate's size"
    assert not torch.equal(found[new], old[new])


def test_the_reference_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ages of all entries taken to be the parameter's step, the test above fails."""
    from offaxis.train.sparse import update

    monkeypatch.setattr(update, "ages", lambda state: [state["step"]] * len(state["births"]))
    p, _ = draw(SHAPE, 0.5, torch.float32)
    masks, grads = masks_of(5), gradients(SHAPE, 35, torch.float32)
    found, _ = refreshed(p, masks, grads, 7, fused=False, **SETTINGS)
    assert not torch.equal(found, expected(p, masks, grads, 7, fused=False, **SETTINGS))


def test_bytes_after_a_refresh() -> None:
    p, _ = draw(SHAPE, 0.5, torch.bfloat16)
    masks, grads = masks_of(2), gradients(SHAPE, 14, torch.bfloat16)
    _, made = refreshed(p, masks, grads, 7, fused=None, **SETTINGS)
    trainable = int(masks[1].sum())
    assert made.state_bytes() == {
        "moments": 8 * trainable,
        "masters": 4 * trainable,
        "indices": -(-p.numel() // 8) + 16,
        "cohorts": 2 * trainable,
    }


@pytest.mark.parametrize("fused", [None, False])
def test_ages_that_no_longer_matter_are_merged(fused: bool | None) -> None:
    """β = (0.5, 0.6): both corrections are 1 from age 54 on, in what float32 arithmetic sees."""
    if fused is None and not FUSED:
        pytest.skip("torch here has no fused multiply-add")
    settings = SETTINGS | {"betas": (0.5, 0.6)}
    p, _ = draw(SHAPE, 0.5, torch.float32)
    masks, grads = masks_of(6, 0.6), gradients(SHAPE, 120, torch.float32)
    found, made = refreshed(p, masks, grads, 20, fused=fused, **settings)
    assert torch.equal(found, expected(p, masks, grads, 20, fused=fused is None, **settings))
    assert made.state[found]["births"] == (0, 60, 80, 100), "older than 54 at step 100: merged"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.6), (0.95, 0.9), (0.0, 0.0)])
def test_settled_is_when_nothing_changes_any_more(
    betas: tuple[float, float], dtype: torch.dtype
) -> None:
    first = next(age for age in range(1, 10_000) if cohorts.settled(age, betas, dtype))
    for age in (first, first + 1, first + 50):
        assert 1 - betas[0] ** age == 1.0
        assert float(torch.tensor((1 - betas[1] ** age) ** 0.5, dtype=dtype)) == 1.0
    assert not cohorts.settled(max(1, first - 1), betas, dtype) or first == 1


def test_one_age_again_needs_no_cohorts() -> None:
    p, _ = draw(SHAPE, 0.5, torch.float32)
    old, new = masks_of(2)
    parameter = Parameter(p.clone())
    made = SparseAdamW([parameter], masks={parameter: old}, **SETTINGS)
    for mask in (old, old | new, new & ~old):
        made.refresh({parameter: mask})
        parameter.grad = torch.ones(SHAPE)
        made.step()
    assert made.state[parameter]["births"] == (1,)
    assert made.state_bytes()["cohorts"] == 0


def test_a_whole_parameter_may_be_admitted_and_dropped() -> None:
    p, mask = draw(SHAPE, 0.3, torch.float32)
    none = torch.zeros_like(mask)
    grads = gradients(SHAPE, 9, torch.float32)
    masks = [none, mask, none]
    found, made = refreshed(p, masks, grads, 3, fused=False, **SETTINGS)
    assert torch.equal(found, expected(p, masks, grads, 3, fused=False, **SETTINGS))
    assert set(made.state_bytes().values()) == {0}
    everything = torch.ones_like(mask)
    masks = [none, mask, everything]
    found, made = refreshed(p, masks, grads, 3, fused=False, **SETTINGS)
    assert torch.equal(found, expected(p, masks, grads, 3, fused=False, **SETTINGS))
    assert made.state_bytes()["indices"] == 0


def test_a_refresh_before_the_first_step_or_to_the_same_mask_changes_nothing() -> None:
    p, mask = draw(SHAPE, 0.3, torch.bfloat16)
    grads = gradients(SHAPE, 6, torch.bfloat16)
    plain, _ = refreshed(p, [mask], grads, 10, fused=None, **SETTINGS)
    same, made = refreshed(p, [mask] * 3, grads, 2, fused=None, **SETTINGS)
    assert torch.equal(plain, same)
    assert made.state_bytes()["cohorts"] == 0
    parameter = Parameter(p.clone())
    early = SparseAdamW([parameter], masks={}, **SETTINGS)
    early.refresh({parameter: mask})
    for gradient in grads:
        parameter.grad = gradient
        early.step()
    assert torch.equal(plain, parameter)


def test_several_refreshes_at_one_step_are_one() -> None:
    p, _ = draw(SHAPE, 0.5, torch.float32)
    first, second, third = masks_of(3)
    parameter = Parameter(p.clone())
    made = SparseAdamW([parameter], masks={parameter: first}, **SETTINGS)
    parameter.grad = torch.ones(SHAPE)
    made.step()
    made.refresh({parameter: second})
    made.refresh({parameter: third})
    made.step()
    state = made.state[parameter]
    assert state["births"] == (0, 1)
    kept = first & second & third
    assert torch.equal(state["cohort"] == 0, kept[third])


def test_other_parameters_are_left_alone_and_bad_masks_change_nothing() -> None:
    one, other = (Parameter(torch.ones(SHAPE)) for _ in range(2))
    old, new = masks_of(2)
    made = SparseAdamW([one, other], masks={one: old, other: old}, **SETTINGS)
    for parameter in (one, other):
        parameter.grad = torch.ones(SHAPE)
    made.step()
    made.refresh({one: new})
    assert torch.equal(made.mask_of(one), new)
    assert torch.equal(made.mask_of(other), old)
    with pytest.raises(InputError, match="parameter 1 of group 0"):
        made.refresh({one: old, other: old.t()})
    assert torch.equal(made.mask_of(one), new)


def test_more_ages_than_int16_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "_MOST", 3)
    p, _ = draw(SHAPE, 0.5, torch.float32)
    masks, grads = masks_of(5, 0.7), gradients(SHAPE, 5, torch.float32)
    with pytest.raises(InputError, match=r"4 ages .* of at most 3; refresh its mask less often"):
        refreshed(p, masks, grads, 1, fused=None, **SETTINGS)
