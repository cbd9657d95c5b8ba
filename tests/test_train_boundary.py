"""Where a run may be resumed: between two batches of samples."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offaxis.errors import InputError
from offaxis.train.boundary import BoundaryCallback, boundary_period, resume_point


@pytest.mark.parametrize(
    ("generation", "iterations", "accumulation", "period"),
    [(1, 1, 1, 1), (4, 1, 1, 4), (4, 1, 4, 1), (4, 2, 4, 2), (2, 3, 4, 3), (6, 1, 4, 3)],
)
def test_the_period_is_when_samples_are_used_up(
    generation: int, iterations: int, accumulation: int, period: int
) -> None:
    config = SimpleNamespace(
        steps_per_generation=generation,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
    )
    assert boundary_period(config) == period
    # By hand: the first step after which the number of micro-batches is a whole number of uses.
    uses = generation * iterations
    assert next(n for n in range(1, 99) if n * accumulation % uses == 0) == period


def test_training_without_samples_resumes_anywhere() -> None:
    assert boundary_period(SimpleNamespace(gradient_accumulation_steps=4)) == 1


def saved(period: int, wants: set[int], last: int) -> tuple[list[int], list[str]]:
    """Steps at which a run saves when something asks for it at `wants`."""
    told: list[str] = []
    callback = BoundaryCallback(period, tell=told.append)
    found = []
    for step in range(1, last + 1):
        control = SimpleNamespace(should_save=step in wants)
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=last), control)
        if control.should_save:
            found.append(step)
    return found, told


def test_saves_move_to_the_next_boundary_and_the_last_stays() -> None:
    steps, told = saved(4, {2, 3, 8, 9, 11}, 11)
    assert steps == [4, 8, 11]
    assert len(told) == 1
    assert "step 2" in told[0]
    assert "after step 4" in told[0]
    assert saved(1, {2, 3}, 5) == ([2, 3], [])


def checkpoint(folder: Path, step: int, *, optimizer: bool = True, torn: bool = False) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    text = json.dumps({"global_step": step})
    (path / "trainer_state.json").write_text(text[:-4] if torn else text)
    if optimizer:
        (path / "optimizer.pt").touch()
    return path


@pytest.mark.parametrize("nothing", [None, "false", False, "none"])
def test_nothing_asked_nothing_resumed(tmp_path: Path, nothing: Any) -> None:
    checkpoint(tmp_path, 4)
    assert resume_point(tmp_path, nothing, 1) == (None, "")


def test_the_newest_whole_checkpoint_at_a_boundary(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    best = checkpoint(tmp_path, 8)
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 12, torn=True)
    checkpoint(tmp_path, 16, optimizer=False)
    path, told = resume_point(tmp_path, "true", 4)
    assert path == best
    assert "checkpoint-12, checkpoint-16: not saved to the end, left out" in told
    assert "step 10 lies inside a batch of samples" in told
    assert "step 8 instead" in told
    assert resume_point(tmp_path, True, 2)[0] == tmp_path / "checkpoint-10"


def test_a_save_that_was_killed_is_left_out_and_told(tmp_path: Path) -> None:
    """Of a run of ours: Trainer's own files are there, what is written after them is not."""
    whole, cut = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    assert resume_point(tmp_path, "true", 4) == (cut, "")  # a plain Trainer's run marks nothing
    (tmp_path / "train.yaml").touch()
    (whole / "whole.json").touch()
    path, told = resume_point(tmp_path, "true", 4)
    assert path == whole
    assert told == "checkpoint-8: not saved to the end, left out"
    with pytest.raises(InputError, match=r"checkpoint-8: .*whole\.json"):
        resume_point(tmp_path, str(cut), 4)


def test_a_named_checkpoint_inside_a_batch_gives_way_to_an_earlier_one(tmp_path: Path) -> None:
    earlier, inside = checkpoint(tmp_path, 4), checkpoint(tmp_path, 6)
    checkpoint(tmp_path, 8)
    assert resume_point(tmp_path / "elsewhere", str(inside), 4)[0] == earlier
    assert resume_point(tmp_path / "elsewhere", str(inside), 2) == (inside, "")


def test_what_cannot_be_resumed_exactly_is_refused(tmp_path: Path) -> None:
    inside = checkpoint(tmp_path, 3)
    with pytest.raises(InputError, match="step 3 lies inside a batch of samples"):
        resume_point(tmp_path, str(inside), 2)
    with pytest.raises(InputError, match="no such directory"):
        resume_point(tmp_path, str(tmp_path / "none"), 2)
    bare = checkpoint(tmp_path, 5, optimizer=False)
    with pytest.raises(InputError, match="save_only_model"):
        resume_point(tmp_path, str(bare), 1)


def test_nothing_to_resume_starts_from_the_beginning(tmp_path: Path) -> None:
    path, told = resume_point(tmp_path, "latest", 2)
    assert path is None
    assert "from the beginning" in told
