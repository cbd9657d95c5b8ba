"""Observed trainers: what they are told is logged, and a penalty enters each step exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import trl

from kl_runs import FAMILIES, Gradients, column, make, run, same, weights
from offaxis.errors import InputError
from offaxis.train.leash import Leash
from offaxis.train.observed import observed

PULL = 50.0


class Pull(Leash):
    """A penalty whose gradient is known: PULL · θ."""

    name = "pull"

    def prepare(self, trainer: Any) -> None:
        pass

    def penalty(self, model: torch.nn.Module) -> torch.Tensor:
        return 0.5 * PULL * sum(p.square().sum() for p in model.parameters())  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimizer_sees_the_penalty_once_whatever_the_accumulation(
    family: str, steps: int, small_base: Path, tmp_path: Path
) -> None:
    split = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    if family in ("GRPO", "RLOO"):
        split["steps_per_generation"] = steps
    seen = []
    for leash in (None, Pull()):
        gradients = Gradients()
        made = make(family, small_base, tmp_path, gradients, leash=leash, **split)
        start = weights(made)
        made.train()
        seen.append(gradients.found)
    without, leashed = seen
    assert without.keys() == leashed.keys() == start.keys()
    for name, theta in start.items():
        torch.testing.assert_close(
            leashed[name] - without[name], PULL * theta, rtol=1e-3, atol=1e-4 * PULL
        )


@pytest.mark.parametrize("family", ["GRPO", "SFT"])
def test_without_a_leash_nothing_changes(family: str, small_base: Path, tmp_path: Path) -> None:
    bare = run(family, small_base, tmp_path / "a", bare=True, max_steps=2)
    ours = run(family, small_base, tmp_path / "b", max_steps=2)
    assert same(weights(bare), weights(ours))
    assert column(bare, "loss") == column(ours, "loss")


def test_notes_enter_the_next_row_as_means(small_base: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Noting(TrainerCallback):  # type: ignore[misc]
        def attach(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trainer.note("mine", state.global_step)
            self.trainer.note("mine", state.global_step + 1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(logs)

    seen: list[Mapping[str, float]] = []
    made = run("SFT", small_base, tmp_path, Noting(), max_steps=4, logging_steps=2)
    assert column(made, "mine") == [2.0, 4.0]
    assert [row["mine"] for row in seen if "mine" in row] == [2.0, 4.0], "dashboards see it"


def test_an_evaluation_neither_swallows_notes_nor_has_a_penalty(
    small_base: Path, tmp_path: Path
) -> None:
    made = make("SFT", small_base, tmp_path)
    plain = made.evaluate(made.train_dataset)["eval_loss"]
    made.leash = Pull()
    made.note("mine", 1.0)
    assert made.evaluate(made.train_dataset)["eval_loss"] == plain
    made.train()
    assert column(made, "mine") == [1.0]


def test_one_class_for_each_and_the_class_itself_where_it_is_observed() -> None:
    ours = observed(trl.GRPOTrainer)
    assert issubclass(ours, trl.GRPOTrainer)
    assert observed(trl.GRPOTrainer) is ours
    assert observed(ours) is ours
    assert ours.leash is None


@pytest.mark.parametrize("thing", [dict, "GRPOTrainer", torch.nn.Linear])
def test_only_trainers_can_be_observed(thing: Any) -> None:
    with pytest.raises(InputError, match=r"such as trl\.GRPOTrainer"):
        observed(thing)
