"""Refreshing a mask while it trains, and resuming from the middle of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import CheckpointError, InputError
from offaxis.masks import build
from offaxis.train.sparse import restrict
from offaxis.train.sparse.callback import MaskCallback
from offaxis.train.sparse.engines import innermost
from offaxis.train.sparse.refreshing import check_rule, renewed
from sparse_runs import MATRIX, bits, mask, model, run, same, trainer, weights

RULE = "random(density=0.3, seed=1)"


def the_mask(made: Any) -> MaskCallback:
    found = [c for c in made.callback_handler.callbacks if isinstance(c, MaskCallback)]
    return found[0]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Each step's weights and the masks that were present."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.flags: list[torch.Tensor] = []
        self.trainer: Any = None

    def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.weights.append(model.get_parameter(MATRIX).detach().clone())
        self.flags.append(the_mask(self.trainer).flags(MATRIX))


@pytest.mark.parametrize("strategy", ["projected", "compressed"])
def test_what_leaves_a_mask_stays_and_what_enters_starts_anew(
    strategy: str, tmp_path: Path
) -> None:
    """Each entry follows an AdamW of its own, whose moments and steps begin at its admission."""
    watch, grads = Watch(), []

    class Grads(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            grads.append(model.get_parameter(MATRIX).grad.clone())

    start = model().get_parameter(MATRIX).detach().clone()
    made = trainer(tmp_path, watch, Grads(), max_steps=24, lr_scheduler_type="constant")
    watch.trainer = made
    restrict(made, mask(RULE), strategy=strategy, refresh_every=6)
    run(made)
    assert [the_mask(made).refreshes, len(watch.flags)] == [4, 24]
    assert len({flags.numpy().tobytes() for flags in watch.flags}) == 4

    value, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    age = torch.zeros_like(value)
    for step in range(24):
        flags = watch.flags[step]
        dropped = ~flags
        m[dropped], v[dropped], age[dropped] = 0, 0, 0
        g = grads[step].double()
        age[flags] += 1
        m = torch.where(flags, 0.9 * m + 0.1 * g, m)
        v = torch.where(flags, 0.999 * v + 0.001 * g * g, v)
        hat = (m / (1 - 0.9**age)) / ((v / (1 - 0.999**age)).sqrt() + 1e-8)
        value = torch.where(flags, value * (1 - 3e-3 * 0.1) - 3e-3 * hat, value)
        torch.testing.assert_close(watch.weights[step].double(), value, rtol=0, atol=2e-6)
        before = start if step == 0 else watch.weights[step - 1]
        assert torch.equal(bits(watch.weights[step])[dropped], bits(before)[dropped])
    assert len(set(age[watch.flags[-1]].tolist())) == 4, "entries of four ages at the end"


def test_every_kind_of_rule_is_computed_from_present_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=4)
    saved = mask("random(density=0.2, seed=9)")
    saved.save(tmp_path / "saved.mask")
    file = f"file(path='{tmp_path / 'saved.mask'}')"
    with torch.no_grad():
        for one in made.model.parameters():
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(2)), alpha=0.02)
    now = MemoryCheckpoint(dict(made.model.named_parameters()), config=made.model.config.to_dict())
    for rule in ("safe(alpha=0.4)", "lift(budget_rank=3)", "low_magnitude | ~principal(rank=4)"):
        expected = build(now, rule)
        assert same_bits(renewed(rule, made, refreshes=3), expected.bits), rule
        assert not same_bits(mask(rule).bits, expected.bits), "the weights do not matter"
    drawn = renewed("random(density=0.2, seed=6)", made, refreshes=3)
    assert same_bits(drawn, saved.bits), "seed + refreshes"
    assert same_bits(renewed(file, made, refreshes=5), saved.bits), "a saved mask stays"
    low = build(now, "low_magnitude")
    for rule, expected in (
        (f"{file} | low_magnitude", {n: saved.bits[n] | low.bits[n] for n in saved}),
        (f"~{file}", (~saved).bits),
        (f"{file} - low_magnitude", {n: saved.bits[n] & ~low.bits[n] for n in saved}),
        (f"{file} ^ low_magnitude", {n: saved.bits[n] ^ low.bits[n] for n in saved}),
    ):
        assert same_bits(renewed(rule, made, refreshes=1), expected), rule
    counted = renewed(f"magnitude_random(like={file}, seed=0)", made, refreshes=2)
    assert sum(int(torch.from_numpy(b).bitwise_and(1).sum()) for b in counted.values()) > 0
    with pytest.raises(InputError, match="needs scores of data"):
        check_rule("gradient(density=0.1) | safe")


def same_bits(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize(
    ("strategy", "optim", "refresh"),
    [
        ("projected", "adamw_torch", 20),
        pytest.param("projected", "adamw_torch_fused", 0, marks=pytest.mark.slow),
        pytest.param("compressed", "adamw_torch", 20, marks=pytest.mark.slow),
        ("compressed", "adamw_torch_fused", 20),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    strategy: str, optim: str, refresh: int, tmp_path: Path
) -> None:
    """From step 50 of 100, ten steps after a refresh, inside an epoch, with clipping."""
    settings = {"save_strategy": "steps", "save_steps": 50, "optim": optim, "max_grad_norm": 0.2}

    def make(out: Path) -> Any:
        made = trainer(out, **settings)
        restrict(made, mask("lift(budget_rank=8)"), strategy=strategy, refresh_every=refresh)
        return made

    whole = make(tmp_path / "whole")
    expected = run(whole)
    middle = tmp_path / "whole/checkpoint-50"
    assert (middle / "sparse.offaxis").is_file()
    again = make(tmp_path / "again")
    assert same(run(again, resume_from_checkpoint=str(middle)), expected)
    assert (
        the_mask(again).refreshes == the_mask(whole).refreshes == (100 // refresh if refresh else 0)
    )
    if refresh:
        kept = [row["mask/kept"] for row in whole.state.log_history if "mask/kept" in row]
        assert len(kept) == 5
        assert all(0.3 < one < 1 for one in kept)
    size = (middle / "sparse.offaxis").stat().st_size
    assert size < 0.4 * (tmp_path / "whole/checkpoint-50/model.safetensors").stat().st_size


def test_other_terms_are_not_resumed(tmp_path: Path) -> None:
    def make(rule: str | None, **options: Any) -> Any:
        made = trainer(tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=2)
        if rule is not None:
            restrict(made, mask(rule), **options)
        return made

    run(make(RULE))
    folder = tmp_path / "run/checkpoint-2"
    kept = shutil.copytree(folder, tmp_path / "checkpoint-2")
    for rule, options, said in (
        ("random(density=0.3, seed=2)", {}, "began with mask"),
        (RULE, {"others": "trained"}, "began with others frozen"),
    ):
        with pytest.raises((InputError, ValueError), match=said):
            run(make(rule, **options), resume_from_checkpoint=str(kept))
    (kept / "sparse.offaxis").write_bytes(b"\x08" * 30)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(make(RULE), resume_from_checkpoint=str(kept))
    (kept / "sparse.offaxis").unlink()
    with pytest.raises(CheckpointError, match="run without a mask"):
        run(make(RULE), resume_from_checkpoint=str(kept))


def test_a_second_train_goes_on_with_the_same_mask(tmp_path: Path) -> None:
    base, chosen = weights(model()), mask(RULE)
    made = trainer(tmp_path, max_steps=5)
    restrict(made, chosen)
    first = run(made)
    second = run(made)
    assert not same(first, second)
    for name, flags in chosen.items():
        assert torch.equal(bits(second[name])[~flags], bits(base[name])[~flags])
    assert type(innermost(made.optimizer)) is torch.optim.AdamW


def test_a_checkpoint_stored_as_a_delta_is_given_back_with_its_mask(tmp_path: Path) -> None:
    from offaxis.train import DeltaCheckpointCallback, restore_checkpoint

    def make(out: Path, *callbacks: Any) -> Any:
        made = trainer(out, *callbacks, max_steps=12, save_strategy="steps", save_steps=4)
        restrict(made, mask(RULE), refresh_every=4)
        return made

    whole = run(make(tmp_path / "whole"))
    stored = make(tmp_path / "run", DeltaCheckpointCallback())
    assert same(run(stored), whole)
    folder = restore_checkpoint(tmp_path / "run", 8, out=tmp_path / "checkpoint-8")
    assert (folder / "sparse.offaxis").is_file()
    again = make(tmp_path / "again")
    assert same(run(again, resume_from_checkpoint=str(folder)), whole)
