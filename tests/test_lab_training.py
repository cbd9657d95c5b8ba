"""Every method trains for real, is what its name says, and leaves what it promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab_base import DIFFICULTY, TASK, small_model
from offaxis.errors import InputError
from offaxis.evaluate import token_losses
from offaxis.lab import training
from offaxis.lab.scoring import Exam, sit
from offaxis.lab.session import quiet_libraries
from offaxis.lab.tasks import TASKS
from offaxis.lab.teacher import TeacherRecipe, make_teacher
from offaxis.lab.training import METHODS, Run, TrainingSettings, train_run
from offaxis.live import load_live

SETTINGS = TrainingSettings(
    task=TASK,
    difficulty=DIFFICULTY,
    steps=2,
    save_at=(1,),
    learning_rate=1e-3,
    prompts_per_step=4,
    completions_per_prompt=8,
)
RL = ("grpo", "dapo", "dr_grpo", "rloo")
methods = pytest.mark.parametrize("name", list(METHODS))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("teacher") / "model", steps=20)


@pytest.fixture(scope="module")
def runs(
    small_base: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Two steps of every method."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: train_run(
            name,
            base=small_base,
            out=root / f"run-{name}",
            settings=SETTINGS,
            teacher=teacher,
            progress=False,
        )
        for name in METHODS
    }


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def trainer(name: str, base: Path, tmp_path: Path, settings: TrainingSettings = SETTINGS) -> Any:
    """TRL's trainer as a run would make it."""
    method = METHODS[name]
    arguments = training._arguments(method, settings, tmp_path)
    with quiet_libraries():
        return training._trainer(method, base, settings, arguments, source=base, cache=None)


@methods
def test_two_steps_move_the_weights(name: str, runs: dict[str, Run], small_base: Path) -> None:
    run, before = runs[name], weights(small_base)
    assert (run.name, run.method) == (f"run-{name}", name)
    assert [step for step, _ in run.checkpoints] == [1, 2]
    first, second = (weights(directory) for _, directory in run.checkpoints)
    assert first.keys() == second.keys() == before.keys()
    assert {tensor.dtype for tensor in second.values()} == {torch.float32}
    for tensor, old in before.items():
        # One Adam step moves each weight by the rate at most, two by twice that and a little.
        step = float((first[tensor] - old.float()).abs().max())
        assert 0.5e-3 < step < 1.01e-3, tensor
        assert 0 < float((second[tensor] - first[tensor]).abs().max()) < 1.5e-3, tensor


@methods
def test_a_checkpoint_is_a_model_that_runs(name: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    _, last = run.checkpoints[-1]
    sitting = sit(last, Exam(4, 2, DIFFICULTY, task=TASK))
    assert sitting.correct.shape == (4, 2)
    assert not list(last.parent.glob("**/*.bin")), "a pickle"
    assert not list(last.parent.glob("**/README.md"))


@methods
def test_the_record_says_what_was_done_and_names_no_place(name: str, runs: dict[str, Run]) -> None:
    directory = runs[name].checkpoints[0][1].parent
    record = json.loads((directory / "run.json").read_text())
    assert record["method"] == name
    assert record["settings"]["steps"] == record["arguments"]["max_steps"] == 2
    assert record["arguments"]["learning_rate"] == 1e-3
    assert record["arguments"]["weight_decay"] == 0.0
    assert record["versions"]["trl"]
    log = json.loads((directory / "log.json").read_text())
    assert [row["step"] for row in log if "loss" in row] == [1, 2]
    assert log == list(runs[name].log)
    for file in ("run.json", "log.json"):
        assert str(directory.parent) not in (directory / file).read_text()


def test_methods_differ_in_their_updates(runs: dict[str, Run]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    moved = [weights(run.checkpoints[-1][1])[name] for run in runs.values()]
    for index, one in enumerate(moved):
        assert not any(torch.equal(one, other) for other in moved[:index])


def test_reinforcement_learning_logs_its_reward(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        rewards = [row["reward"] for row in run.log if "reward" in row]
        assert len(rewards) == (2 if name in RL else 0)
        assert all(0 < reward < 1 for reward in rewards), "no group would have a signal"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", {"loss_type": "grpo", "scale_rewards": "group", "epsilon_high": 0.2}),
        ("dapo", {"loss_type": "dapo", "scale_rewards": "group", "epsilon_high": 0.28}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon_high": 0.2}),
        ("rloo", {"normalize_advantages": False, "epsilon_high": 0.2}),
    ],
)
def test_the_trainer_is_what_the_method_says(
    name: str, expected: dict[str, Any], small_base: Path, tmp_path: Path
) -> None:
    made = trainer(name, small_base, tmp_path)
    assert type(made).__name__ == ("RLOOTrainer" if name == "rloo" else "GRPOTrainer")
    assert {key: getattr(made, key) for key in expected} == expected
    assert made.epsilon_low == 0.2
    assert made.mask_truncated_completions == (name == "dapo")
    # No KL term, the whole softmax, one update for each batch of samples.
    assert (made.beta, made.temperature, made.top_p, made.top_k) == (0.0, 1.0, 1.0, 0)
    assert (made.num_iterations, made.args.steps_per_generation) == (1, 1)
    assert made.num_generations == 8
    assert made.ref_model is None
    assert made.args.per_device_train_batch_size == 32
    assert len(made.train_dataset) == 2 * 4


@pytest.mark.parametrize("name", ["sft", "sft_foreign", "rejection_sft", "distill"])
def test_fine_tuning_learns_completions_and_their_end_alone(
    name: str, small_base: Path, tmp_path: Path
) -> None:
    made = trainer(name, small_base, tmp_path)
    assert type(made).__name__ == "SFTTrainer"
    assert (made.args.loss_type, made.args.packing) == ("nll", False)
    assert len(made.train_dataset) == 2 * 32
    tokenizer = made.processing_class
    batch = next(iter(made.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 32
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = tokenizer.decode(labels[labels != -100])
        whole = tokenizer.decode(ids)
        assert learnt.startswith("first ") == (name == "sft_foreign")
        assert learnt.count("<eos>") == 1
        assert learnt.endswith("<eos>")
        assert whole.count("<bos>") == 1
        assert whole.replace("<pad>", "").endswith(":" + learnt)


def test_it_learns(teacher: Path, tmp_path: Path) -> None:
    """From a model that hardly knows the format: SFT lowers the loss, RL raises the reward."""
    settings = TrainingSettings(
        task=TASK, difficulty=DIFFICULTY, steps=30, save_at=(), learning_rate=3e-3
    )
    sft, rl = (
        train_run(name, base=teacher, out=tmp_path / name, settings=settings, progress=False)
        for name in ("sft", "grpo")
    )
    losses = [row["loss"] for row in sft.log if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    rewards = [row["reward"] for row in rl.log if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.03


@pytest.mark.parametrize("name", ["grpo", "rejection_sft"])
def test_a_run_is_a_function_of_its_seed(
    name: str, runs: dict[str, Run], small_base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(12345)  # whatever came before
    first = [weights(directory) for _, directory in runs[name].checkpoints]
    for out, seed in (("same", 0), ("other", 1)):
        settings = replace(SETTINGS, seed=seed)
        run = train_run(
            name, base=small_base, out=tmp_path / out, settings=settings, progress=False
        )
        again = [weights(directory) for _, directory in run.checkpoints]
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a) == (seed == 0)


@pytest.mark.parametrize(
    ("save_at", "expected"), [((), [3]), ((1,), [1, 3]), ((2, 3), [2, 3]), ((1, 2), [1, 2, 3])]
)
def test_checkpoints_are_saved_where_asked_and_at_the_end(
    save_at: tuple[int, ...], expected: list[int], small_base: Path, tmp_path: Path
) -> None:
    settings = TrainingSettings(
        task=TASK,
        difficulty=DIFFICULTY,
        steps=3,
        save_at=save_at,
        prompts_per_step=1,
        completions_per_prompt=2,
    )
    run = train_run("sft", base=small_base, out=tmp_path / "run", settings=settings, progress=False)
    assert [step for step, _ in run.checkpoints] == expected
    found = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert found == {f"checkpoint-{step}" for step in expected}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"steps": 0, "save_at": ()}, "steps 0"),
        ({"steps": 5, "save_at": (6,)}, r"save_at \[6\]"),
        ({"save_at": (0,)}, r"save_at \[0\]"),
        ({"prompts_per_step": 0}, "prompts_per_step 0"),
        ({"completions_per_prompt": 1}, "completions_per_prompt 1"),
        ({"task": "chess"}, "chess"),
        ({"difficulty": 4}, "difficulty 4"),
        ({"difficulty": 0}, "difficulty 0"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainingSettings(**bad)


def test_bad_runs_are_refused_before_anything_is_written(small_base: Path, tmp_path: Path) -> None:
    for name, words in (("ppo", "choose one of grpo"), ("distill", "needs a teacher")):
        with pytest.raises(InputError, match=words):
            train_run(name, base=small_base, out=tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_distillation_learns_from_the_teacher_and_not_from_the_base(
    runs: dict[str, Run], small_base: Path, tmp_path: Path
) -> None:
    run = train_run(
        "distill",
        base=small_base,
        out=tmp_path / "run",
        settings=SETTINGS,
        teacher=small_base,
        progress=False,
    )
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = (weights(one.checkpoints[-1][1])[name] for one in (run, runs["distill"]))
    assert not torch.equal(a, b)


def test_a_teacher_is_a_function_of_its_seed(small_base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = TeacherRecipe(seed=seed, steps=3, batch=12)
        make_teacher(small_base, tmp_path / name, recipe)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert weights(tmp_path / "a").keys() == weights(small_base).keys()


def test_a_teacher_learns_to_show_every_step_in_every_family(
    small_base: Path, tmp_path: Path
) -> None:
    recipe = TeacherRecipe(steps=60, batch=24, learning_rate=5e-3, difficulty=DIFFICULTY)
    make_teacher(small_base, tmp_path / "teacher", recipe)
    teacher, base = (load_live(path, device="cpu") for path in (tmp_path / "teacher", small_base))
    for task in TASKS.values():
        drawn = task.problems(20, seed=0, split="held_out", difficulty=DIFFICULTY)
        prompts = base.tokenizer([problem.prompt for problem in drawn])["input_ids"]
        texts = [task.solution(p, style="steps", right=True, rng=Random(0)) for p in drawn]
        steps = [ids[1:] for ids in base.tokenizer(texts)["input_ids"]]
        after, before = (token_losses(live, prompts, steps).mean() for live in (teacher, base))
        assert after < before - 1, task.name
        guess = [base.tokenizer("#")["input_ids"][1:]] * 20
        assert token_losses(teacher, prompts, guess).mean() > 2, task.name  # it does not begin so
