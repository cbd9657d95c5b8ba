"""The stronger lab model: made by a command, the same as a queue makes, and named in its rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import polars as pl
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lab_base import DIFFICULTY, TASK, small_model
from offaxis.cli.app import build
from offaxis.errors import OutputError
from offaxis.evaluate import token_losses
from offaxis.lab.queue import RunConfig, Store, by_checkpoint
from offaxis.lab.queue.job import execute
from offaxis.lab.queue.store import digest
from offaxis.lab.tasks import TASKS
from offaxis.lab.teacher import TeacherRecipe, make_teacher
from offaxis.live import load_live


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_the_command_makes_the_teacher_that_a_queue_would_make(
    small_base: Path, tmp_path: Path
) -> None:
    given = ["lab", "teacher", "--base", str(small_base), "--steps", "2", "--json"]
    made = CliRunner().invoke(build(), [*given, "--out", str(tmp_path / "a")])
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert [one["task"] for one in told["scores"]] == list(TASKS)
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["recipe"] == told["recipe"]
    make_teacher(small_base, tmp_path / "b", TeacherRecipe(steps=2))
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = CliRunner().invoke(build(), [*given, "--out", str(tmp_path / "a")])
    assert isinstance(again.exception, OutputError)


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


def test_a_queues_row_names_the_teacher_and_counts_right_answers(
    small_base: Path, tmp_path: Path
) -> None:
    config = RunConfig(
        "distill_on_policy", TASK, 1e-3, 0, 2, (2,), DIFFICULTY, 2, 4, problems=6, samples=4
    )
    store = Store.create(tmp_path / "queue", [config], small_base)
    shutil.copytree(small_model(tmp_path / "teacher", steps=20), store.teacher)
    execute(store, config)
    row = pl.read_parquet(store.row(config.identity(store.base_digest)))
    assert config.needs_teacher
    assert row["teacher"].to_list() == [digest(store.teacher)] != [store.base_digest]
    assert (row["sampled"][0], row["revision"][0]) == (2 * 8, 0)
    assert row["train_cpu_seconds"][0] > 0
    (one,) = by_checkpoint(row).to_dicts()
    assert len(one["right"]) == len(one["right_harder"]) == 6
    assert one["avg"] == sum(one["right"]) / 24
    assert one["avg_harder"] == sum(one["right_harder"]) / 24
