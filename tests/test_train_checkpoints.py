"""A run's checkpoints as deltas: real runs of Trainer and TRL, and all that they must give back."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import trainer_runs
from lab_base import DIFFICULTY, TASK
from offaxis import delta
from offaxis.errors import DeltaError, InputError, OutputError
from offaxis.lab import training
from offaxis.lab.session import quiet_libraries
from offaxis.train import DeltaCheckpointCallback, restore_checkpoint
from trainer_runs import STEPS, Aside, StopAt, Told, contents, events, flip, index, train, whole

ALL = range(1, STEPS + 1)


@pytest.fixture(scope="module")
def told(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Eight steps, each saved; anchors at 1, 4 and 7."""
    found = Told(tmp_path_factory.mktemp("told"), DeltaCheckpointCallback(anchor_every=3))
    train(small_base, found.out, Aside(found.aside), found.callback)
    return found


def final(run: Path) -> dict[str, bytes]:
    """Weights, moments and random state after the last step."""
    files = contents(run / f"checkpoint-{STEPS}")
    return {n: files[n] for n in ("model.safetensors", "optimizer.pt", "rng_state.pth")}


def test_the_newest_stays_whole_and_all_are_listed(told: Told) -> None:
    assert whole(told.out) == [STEPS]
    assert index(told.out).steps == list(ALL)
    assert [one.name for one in index(told.out).anchors] == ["anchor-1", "anchor-4", "anchor-7"]
    assert sorted(one.name for one in (told.out / "deltas").iterdir()) == [
        *(f"anchor-{step}" for step in (1, 4, 7)),
        *(f"checkpoint-{step}.delta" for step in (2, 3, 5, 6, 8)),
        *("index.json", "restoring.lock", "training.lock"),
    ]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_every_step_is_given_back_byte_for_byte(
    told: Told, tmp_path: Path, elsewhere: bool
) -> None:
    run = told.copy(tmp_path)
    for step in ALL:
        out = tmp_path / f"{step}" if elsewhere else None
        made = restore_checkpoint(run, step, out=out)
        assert made == (out or run / f"checkpoint-{step}")
        assert contents(made) == told.original(step)
    assert whole(run) == ([STEPS] if elsewhere else list(ALL))


def test_a_run_goes_on_from_a_restored_step_bit_for_bit(
    told: Told, small_base: Path, tmp_path: Path
) -> None:
    resumed = tmp_path / "resumed"
    train(small_base, resumed, resume=restore_checkpoint(told.out, 3, out=tmp_path / "three"))
    assert final(resumed) == final(told.out)
    train(small_base, tmp_path / "fresh", seed=1)
    assert all(final(tmp_path / "fresh")[n] != found for n, found in final(told.out).items())


def test_it_says_what_was_saved(told: Told) -> None:
    found, home = told.callback.summary(), told.out / "deltas"
    state = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
             "training_args.bin"}  # fmt: skip
    sizes = [(name, len(one)) for step in ALL for name, one in told.original(step).items()]
    stored = sum(len(one) for name, one in contents(home).items() if not name.endswith("json") or
                 name.startswith("anchor"))  # fmt: skip
    assert (found["checkpoints"], found["anchors"], found["failed"]) == (STEPS, 3, {})
    assert found["whole"] == [STEPS]
    assert found["resumable"]["bytes"] == sum(size for _, size in sizes)
    assert found["resumable"]["stored"] == stored
    assert found["resumable"]["saved"] == 1 - stored / found["resumable"]["bytes"]
    assert found["export"]["bytes"] == sum(size for name, size in sizes if name not in state)
    assert 0 < found["export"]["saved"] < 1
    assert found["seconds"] > 0
    assert json.loads(json.dumps(found)) == found


def test_one_line_at_the_end(
    small_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "offaxis.train"):
        train(small_base, tmp_path, DeltaCheckpointCallback(), max_steps=2, save_only_model=True)
    (line,) = [one.getMessage() for one in caplog.records]
    assert "2 checkpoints, 1 as anchors; weights alone" in line
    assert "resumable" not in line


def test_a_step_that_is_not_stored_names_those_that_are(told: Told, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint 9 is not stored; those that are: 1, 2, 3, 4"):
        restore_checkpoint(told.out, 9)
    with pytest.raises(InputError, match=r"has no deltas/index\.json"):
        restore_checkpoint(tmp_path, 1)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(InputError, match=r"has no deltas/index\.json"):
        restore_checkpoint(tmp_path, 1)


def test_what_lies_in_the_old_place_is_not_written_over(told: Told, tmp_path: Path) -> None:
    run = told.copy(tmp_path)
    restore_checkpoint(run, 2)
    (run / "checkpoint-2" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json was changed, unlike the stored"):
        restore_checkpoint(run, 2)
    assert (run / "checkpoint-2" / "config.json").read_text() == "{}"
    (run / "checkpoint-9").mkdir()
    with pytest.raises(InputError, match="never saved to its end"):
        restore_checkpoint(run, 9)
    with pytest.raises(OutputError, match="not empty"):
        restore_checkpoint(run, 3, out=run / "deltas")


@pytest.mark.parametrize(
    ("harm", "steps", "complaint"),
    [
        (lambda home: flip(home / "anchor-4/model.safetensors"), (4, 5, 6), "anchor-4"),
        (lambda home: flip(home / "anchor-4/model.safetensors", 9), (4, 5, 6), "anchor-4"),
        (lambda home: flip(home / "anchor-4/tokenizer.json"), (4, 5, 6), r"tokenizer\.json"),
        (lambda home: flip(home / "anchor-4/optimizer.pt"), (4,), r"optimizer\.pt was changed"),
        (lambda home: shutil.rmtree(home / "anchor-4"), (4, 5, 6), "checkpoints 4, 5, 6 need it"),
        (lambda home: flip(home / "checkpoint-5.delta"), (5,), r"checkpoint-5\.delta"),
        (lambda home: os.truncate(home / "checkpoint-5.delta", 4000), (5,), r"5\.delta"),
        (lambda home: (home / "checkpoint-5.delta").unlink(), (5,), "is gone"),
        (
            lambda home: shutil.copy(home / "checkpoint-6.delta", home / "checkpoint-5.delta"),
            (5,),
            "gives another checkpoint 5",
        ),
    ],
)
def test_damage_is_told_and_harms_no_more_than_it_must(
    told: Told, tmp_path: Path, harm: Any, steps: tuple[int, ...], complaint: str
) -> None:
    run = told.copy(tmp_path)
    harm(run / "deltas")
    for step in ALL:
        out = tmp_path / f"{step}"
        if step in steps:
            with pytest.raises(DeltaError, match=complaint):
                restore_checkpoint(run, step, out=out)
            assert not out.exists()
        else:
            assert contents(restore_checkpoint(run, step, out=out)) == told.original(step)


def test_trainers_rotation_and_weights_alone(small_base: Path, tmp_path: Path) -> None:
    """An anchor outlives `save_total_limit`, which has removed its checkpoint."""
    callback = DeltaCheckpointCallback(anchor_every=3, keep_full=2, codec="small")
    train(small_base, tmp_path / "run", Aside(tmp_path / "aside"), callback,
          save_total_limit=1, save_only_model=True, max_steps=5)  # fmt: skip
    assert whole(tmp_path / "run") == [5]
    for step in range(1, 6):
        made = restore_checkpoint(tmp_path / "run", step, out=tmp_path / f"{step}")
        assert contents(made) == contents(tmp_path / "aside" / f"checkpoint-{step}")
    assert callback.summary()["resumable"] is None
    assert callback.summary()["export"]["saved"] > 0.1


def test_the_base_can_be_the_first_anchor(small_base: Path, tmp_path: Path) -> None:
    base, run = shutil.copytree(small_base, tmp_path / "base"), tmp_path / "run"
    callback = DeltaCheckpointCallback(base=base, anchor_every=2)
    train(base, run, Aside(tmp_path / "aside"), callback, max_steps=3)
    assert [(one.name, one.path) for one in index(run).anchors] == [
        ("base", str(base)),
        ("anchor-3", None),
    ]
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(DeltaError, match=r"base .* gone; say where it lies now \(base=, weights"):
        restore_checkpoint(run, 2)
    with pytest.raises(DeltaError, match="was made from another"):
        restore_checkpoint(run, 2, base=tmp_path / "aside" / "checkpoint-1")
    for step, given in ((1, moved), (2, moved), (3, None)):
        made = restore_checkpoint(run, step, base=given, out=tmp_path / f"{step}")
        assert contents(made) == contents(tmp_path / "aside" / f"checkpoint-{step}")
    with pytest.raises(InputError, match="nowhere"):
        train(moved, tmp_path / "new", DeltaCheckpointCallback(base=tmp_path / "nowhere"))


def test_the_best_checkpoint_stays(
    small_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told that a high loss is good, the first is the best; it is loaded at the end."""
    made = train(small_base, tmp_path, DeltaCheckpointCallback(), max_steps=4,
                 eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
                 metric_for_best_model="eval_loss", greater_is_better=True)  # fmt: skip
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert whole(tmp_path) == [1, 4]
    name = "model.embed_tokens.weight"
    first = trainer_runs.weights(tmp_path / "checkpoint-1")[name]
    assert torch.equal(made.model.state_dict()[name], first)
    restore_checkpoint(tmp_path, 2)
    assert not caplog.records
    shutil.rmtree(tmp_path / "checkpoint-1")
    restore_checkpoint(tmp_path, 3)
    assert "checkpoint-1 as the best checkpoint, which is not there" in caplog.text


class Limit(TrainerCallback):  # type: ignore[misc]
    """No file may grow beyond some bytes, as on a disk that is full, while step 3 is stored."""

    def __init__(self, most: int) -> None:
        self.most = most

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        soft = self.most if state.global_step == 3 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_neither_training_nor_deletes(
    small_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    callback, seen = DeltaCheckpointCallback(), []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            seen.append((whole(tmp_path / "run"), sorted(callback.summary()["failed"])))

    train(small_base, tmp_path / "run", Aside(tmp_path / "aside"), Limit(50_000), callback, Look(),
          max_steps=4)  # fmt: skip
    assert seen == [([1], []), ([2], []), ([2, 3], [3]), ([4], [])]
    assert "checkpoint-3 is left as it is, for it could not be stored" in caplog.text
    assert "File too large" in caplog.text
    for step in range(1, 5):  # what had failed was stored with the next one
        made = restore_checkpoint(tmp_path / "run", step, out=tmp_path / f"{step}")
        assert contents(made) == contents(tmp_path / "aside" / f"checkpoint-{step}")


def test_a_resumed_run_continues_the_index(told: Told, small_base: Path, tmp_path: Path) -> None:
    run, aside = tmp_path / "run", Aside(tmp_path / "aside")
    train(small_base, run, aside, DeltaCheckpointCallback(anchor_every=3), StopAt(5))
    assert index(run).steps == [1, 2, 3, 4, 5]
    callback = DeltaCheckpointCallback(anchor_every=3)
    train(small_base, run, aside, callback, resume=True)
    assert [one.name for one in index(run).anchors] == ["anchor-1", "anchor-4", "anchor-7"]
    assert (index(run).steps, whole(run)) == (list(ALL), [STEPS])
    assert final(run) == final(told.out)
    assert callback.summary()["checkpoints"] == STEPS


def test_going_back_keeps_what_is_stored(told: Told, small_base: Path, tmp_path: Path) -> None:
    """Another branch from step 3 writes over steps; the rest is there, and anchors are no links."""
    run = tmp_path / "run"
    first = DeltaCheckpointCallback(anchor_every=3, keep_full=5)
    train(small_base, run, Aside(tmp_path / "old"), first)
    assert whole(run) == [4, 5, 6, 7, 8]  # 4 and 7 are anchors, too
    back = restore_checkpoint(run, 3)
    again = DeltaCheckpointCallback(anchor_every=3, keep_full=5)
    train(small_base, run, Aside(tmp_path / "new"), again, StopAt(5), resume=back,
          max_grad_norm=0.1)  # fmt: skip
    changed = restore_checkpoint(run, 4, out=tmp_path / "4")
    assert contents(changed)["optimizer.pt"] != told.original(4)["optimizer.pt"]
    for step in ALL:
        made = restore_checkpoint(run, step, out=tmp_path / "out" / f"{step}")
        side = tmp_path / ("new" if step in (4, 5) else "old") / f"checkpoint-{step}"
        assert contents(made) == contents(side)


def test_anchors_are_copies_where_links_cannot_be(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = []
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
        run = tmp_path / f"{links}"
        shutil.copytree(told.aside / "checkpoint-1", run / "checkpoint-1")
        callback = DeltaCheckpointCallback()
        callback.on_save(*events(run, 1))
        places = [run / "checkpoint-1", run / "deltas/anchor-1"]
        shared.append(os.path.samefile(*(one / "optimizer.pt" for one in places)))
        callback.on_train_end(*events(run, 1))
        assert not os.path.samefile(*(one / "optimizer.pt" for one in places))
        assert contents(places[1]) == told.original(1)
    assert shared == [True, False]


@pytest.mark.parametrize("harm", ["weights", "folder"])
def test_a_bad_anchor_gives_way_to_a_new_one(
    told: Told, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, callback = tmp_path / "run", DeltaCheckpointCallback()
    for step in (1, 2, 3):
        shutil.copytree(told.aside / f"checkpoint-{step}", run / f"checkpoint-{step}")
        callback.on_save(*events(run, step))
        if step == 1 and harm == "weights":
            kept = run / "deltas/anchor-1/model.safetensors"
            shutil.copy(told.aside / "checkpoint-5/model.safetensors", tmp_path / "other")
            (tmp_path / "other").replace(kept)
        elif step == 1:
            shutil.rmtree(run / "deltas/anchor-1")
    assert [one.name for one in index(run).anchors] == ["anchor-1", "anchor-2"]
    assert "checkpoint-2 is the new anchor" in caplog.text
    assert contents(restore_checkpoint(run, 2)) == told.original(2)
    assert contents(restore_checkpoint(run, 3)) == told.original(3)
    with pytest.raises(DeltaError, match="anchor-1"):
        restore_checkpoint(run, 1)


def test_what_no_delta_keeps_is_not_removed(
    told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, callback = tmp_path / "run", DeltaCheckpointCallback()
    for step in (1, 2, 3):
        place = shutil.copytree(told.aside / f"checkpoint-{step}", run / f"checkpoint-{step}")
        if step == 2:
            (place / ".hidden").write_text("kept")
        callback.on_save(*events(run, step))
        if step == 3:
            (place / "notes.txt").write_text("written after it was stored")
    assert whole(run) == [2, 3]
    assert list(callback.summary()["failed"]) == [2]
    assert "holds .hidden, and a delta keeps no hidden files" in caplog.text
    shutil.copytree(told.aside / "checkpoint-4", run / "checkpoint-4")
    callback.on_save(*events(run, 4))
    assert whole(run) == [2, 3, 4]
    assert "checkpoint-3 stays: it is not what was stored" in caplog.text


def test_a_delta_that_cannot_be_decoded_costs_nothing(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, callback, pack = tmp_path / "run", DeltaCheckpointCallback(), delta.pack

    def damaged(*given: Any, **settings: Any) -> dict[str, Any]:
        made = pack(*given, **settings)
        flip(settings["out"])
        return made

    monkeypatch.setattr(delta, "pack", damaged)
    for step in (1, 2):
        shutil.copytree(told.aside / f"checkpoint-{step}", run / f"checkpoint-{step}")
        callback.on_save(*events(run, step))
    assert (whole(run), index(run).steps) == ([1, 2], [1])
    assert "digest" in callback.summary()["failed"][2]
    assert not (run / "deltas/checkpoint-2.delta").exists()


def test_settings_and_indexes_that_cannot_be_used(told: Told, tmp_path: Path) -> None:
    for wrong in ({"anchor_every": 0}, {"keep_full": 0}, {"codec": "zip"}):
        with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
            DeltaCheckpointCallback(**wrong)  # type: ignore[arg-type]
    run = told.copy(tmp_path)
    (run / "deltas/index.json").write_text('{"schema": 1, "anchors": []')
    with pytest.raises(InputError, match=r"index\.json: cannot be read"):
        restore_checkpoint(run, 1)
    with pytest.raises(InputError, match=r"index\.json: cannot be read"):
        DeltaCheckpointCallback().on_train_begin(*events(run, STEPS))
    (run / "deltas/index.json").unlink()
    with pytest.raises(InputError, match=r"holds stored checkpoints but no index\.json"):
        DeltaCheckpointCallback().on_train_begin(*events(run, STEPS))
    assert (run / "deltas/checkpoint-2.delta").exists()


def test_trl_goes_on_from_a_restored_step_bit_for_bit(small_base: Path, tmp_path: Path) -> None:
    """GRPO samples, so that the random state must be right, too."""
    method = training.METHODS["grpo"]
    settings = training.TrainingSettings(
        task=TASK, difficulty=DIFFICULTY, steps=4, save_at=(1,), learning_rate=1e-3,
        prompts_per_step=2, completions_per_prompt=4,
    )  # fmt: skip

    def run(out: Path, *callbacks: Any, resume: Path | None = None) -> dict[str, bytes]:
        arguments = training._arguments(method, settings, out)
        arguments |= {"save_strategy": "steps", "save_steps": 1, "save_only_model": False}
        with quiet_libraries():
            made: Any = training._trainer(
                method, small_base, settings, arguments, source=small_base, cache=None
            )
            for callback in callbacks:
                made.add_callback(callback)
            made.train(resume_from_checkpoint=None if resume is None else str(resume))
        return contents(out / "checkpoint-4")

    whole_run = run(tmp_path / "run", Aside(tmp_path / "aside"), DeltaCheckpointCallback())
    assert whole(tmp_path / "run") == [4]
    two = restore_checkpoint(tmp_path / "run", 2)
    assert contents(two) == contents(tmp_path / "aside/checkpoint-2")
    resumed = run(tmp_path / "resumed", DeltaCheckpointCallback(), resume=two)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        assert resumed[name] == whole_run[name]
