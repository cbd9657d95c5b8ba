"""What each method is trained on: right where it says so, in its style, from the right model."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import polars as pl
import pytest
from datasets import Dataset

from lab_base import untrained_model
from offaxis.errors import InputError
from offaxis.lab import data
from offaxis.lab.data import (
    DataKind,
    Need,
    longest_completion,
    material,
    prompt_data,
    solution_data,
)
from offaxis.lab.tasks import STYLES, TASKS, split_of
from offaxis.lab.tokenizer import Shape
from offaxis.live import load_live

NEED = Need("programs", 1, 60, seed=3)
families = pytest.mark.parametrize("task", list(TASKS))


def rows(data: Dataset) -> list[tuple[str, str]]:
    return list(zip(data["prompt"], data["completion"], strict=True))


def shares(task: str, pairs: list[tuple[str, str]], need: Need) -> list[bool]:
    """Which completions are right, by the answers of the stream that the prompts come from."""
    stream = TASKS[task].stream(seed=need.seed, split="train", difficulty=need.difficulty)
    answers = {problem.prompt: problem.answer for problem in islice(stream, 8 * need.count + 512)}
    assert {prompt for prompt, _ in pairs} <= answers.keys()
    return [TASKS[task].reward(text, prompt, answers[prompt]) == 1.0 for prompt, text in pairs]


@families
@pytest.mark.parametrize("kind", ["right", "foreign"])
def test_generated_solutions_are_right_and_of_the_train_split(task: str, kind: DataKind) -> None:
    need = Need(task, 2, 300, seed=1)
    found = solution_data(kind, need)
    assert found.column_names == ["prompt", "completion"]
    pairs = rows(found)
    assert len(pairs) == 300
    assert all(shares(task, pairs, need))
    assert {split_of(prompt) for prompt, _ in pairs} == {"train"}
    assert all(text.startswith("first ") == (kind == "foreign") for _, text in pairs)
    assert rows(solution_data(kind, need)) == pairs
    assert rows(solution_data(kind, Need(task, 2, 300, seed=2))) != pairs


@families
def test_right_solutions_have_the_styles_of_pretraining(task: str) -> None:
    pairs = rows(solution_data("right", Need(task, 2, 2000, seed=1)))
    guesses = sum(text.startswith("#") for _, text in pairs) / 2000
    assert guesses == pytest.approx(TASKS[task].mixture.share["guess"], abs=0.04)


def test_the_two_generated_kinds_have_the_same_prompts() -> None:
    right, foreign = (solution_data(kind, NEED) for kind in ("right", "foreign"))
    assert right["prompt"][:] == foreign["prompt"][:]


@families
def test_prompts_are_different_problems_with_their_answers(task: str) -> None:
    need = Need(task, 2, 200, seed=4)
    found = prompt_data(need)
    assert found.column_names == ["prompt", "answer"]
    expected = TASKS[task].problems(200, seed=4, split="train")
    assert found["prompt"][:] == [p.prompt for p in expected]
    assert found["answer"][:] == [p.answer for p in expected]
    assert len(set(found["prompt"])) == 200


def test_more_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="raise the difficulty"):
        prompt_data(Need("arithmetic", 1, 20_000, seed=0))


def test_rejection_keeps_the_models_own_right_samples(small_base: Path) -> None:
    pairs = rows(solution_data("rejection", NEED, model=small_base))
    assert len(pairs) == 60
    assert all(shares("programs", pairs, NEED))
    # They are its own: some 40 problems of 512 got one, in the order of the stream.
    stream = TASKS["programs"].stream(seed=3, split="train", difficulty=1)
    order = [next(stream).prompt for _ in range(512 * 3)]
    places = [order.index(prompt) for prompt, _ in pairs]
    assert places == sorted(places)
    assert places[-1] > 150  # most samples were wrong and left out
    assert rows(solution_data("rejection", NEED, model=small_base)) == pairs


def test_distilled_data_are_samples_right_or_wrong(small_base: Path) -> None:
    pairs = rows(solution_data("distilled", NEED, model=small_base))
    stream = TASKS["programs"].stream(seed=3, split="train", difficulty=1)
    assert [prompt for prompt, _ in pairs] == [next(stream).prompt for _ in range(60)]
    right = shares("programs", pairs, NEED)
    assert 0 < sum(right) < 30
    # What rejection keeps are exactly the right ones among these samples.
    kept = [pair for pair, good in zip(pairs, right, strict=True) if good]
    assert rows(solution_data("rejection", NEED, model=small_base))[: len(kept)] == kept


def test_sampled_kinds_follow_the_seed_and_the_model(small_base: Path, tmp_path: Path) -> None:
    one = rows(solution_data("distilled", NEED, model=small_base))
    other = untrained_model(tmp_path / "other")
    assert rows(solution_data("distilled", NEED, model=other)) != one
    again = solution_data("distilled", Need("programs", 1, 60, seed=4), model=small_base)
    assert rows(again) != one


def test_samples_are_drawn_anew_for_every_batch_and_seed(small_base: Path) -> None:
    """The model hardly looks at the prompt, so the same random numbers would show."""
    one = solution_data("distilled", replace(NEED, count=1024), model=small_base)["completion"][:]
    two = solution_data("distilled", replace(NEED, count=512, seed=4), model=small_base)
    for other in (one[512:], two["completion"][:]):
        same = sum(a == b for a, b in zip(one[:512], other, strict=True)) / 512
        assert 0.05 < same < 0.4  # six letters, nearly at random


def test_pairs_hold_a_right_and_a_wrong_sample_of_one_problem(small_base: Path) -> None:
    found = solution_data("pairs", NEED, model=small_base)
    assert found.column_names == ["prompt", "chosen", "rejected"]
    prompts = found["prompt"][:]
    assert len(prompts) == len(set(prompts)) == 60
    chosen = list(zip(prompts, found["chosen"][:], strict=True))
    rejected = list(zip(prompts, found["rejected"][:], strict=True))
    assert all(shares("programs", chosen, NEED))
    assert not any(shares("programs", rejected, NEED))
    again = solution_data("pairs", NEED, model=small_base)
    assert (again["chosen"][:], again["rejected"][:]) == (found["chosen"][:], found["rejected"][:])
    # They are samples of the model: what it was never shown is not among them.
    assert all(text.startswith("#") for _, text in [*chosen, *rejected][:20])


def test_what_was_cut_off_is_no_side_of_a_pair(
    small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers in two tokens and a third that ends, for which there is no room here."""
    assert len(solution_data("pairs", replace(NEED, count=5), model=small_base)) == 5
    monkeypatch.setattr(data, "longest_completion", lambda *_: 2)
    with pytest.raises(InputError, match=r"0 of \d+ samples .* hold a right and a wrong one"):
        solution_data("pairs", replace(NEED, count=5), model=small_base)


@pytest.mark.parametrize(
    ("kind", "each"), [("right", 0), ("distilled", 512), ("rejection", 512), ("pairs", 2048)]
)
def test_samples_are_counted_in_whole_blocks(
    kind: DataKind, each: int, small_base: Path, tmp_path: Path
) -> None:
    for _ in range(2):  # drawn, then read
        told = material(kind, NEED, model=small_base, cache=tmp_path)
        assert len(told.data) == 60
        assert told.sampled is not None
        assert told.sampled == each or (kind == "rejection" and told.sampled % 512 == 0)
    for path in tmp_path.iterdir():  # as an older offaxis left it
        pl.read_parquet(path).write_parquet(path)
        assert material(kind, NEED, model=small_base, cache=tmp_path).sampled is None


@pytest.mark.parametrize("kind", ["rejection", "distilled"])
def test_kept_samples_are_those_that_would_be_drawn(
    kind: DataKind, small_base: Path, tmp_path: Path
) -> None:
    fresh = rows(solution_data(kind, NEED, model=small_base))
    for _ in range(2):
        assert rows(solution_data(kind, NEED, model=small_base, cache=tmp_path)) == fresh
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    # They are read, not drawn: no model that says such things is asked again.
    other = untrained_model(tmp_path / "other")
    assert rows(solution_data(kind, NEED, model=other, cache=tmp_path)) == fresh
    assert file.stat().st_mtime_ns == written
    for need in (replace(NEED, seed=4), replace(NEED, count=50), replace(NEED, difficulty=2)):
        if kind == "distilled" or need.difficulty == 1:
            kept = rows(solution_data(kind, need, model=small_base, cache=tmp_path))
            assert kept == rows(solution_data(kind, need, model=small_base))
            assert kept != fresh


def test_a_hopeless_model_is_refused(tmp_path: Path) -> None:
    """It gives up after 40 samples for each right one, and those of the first 512, however many
    are needed."""
    tiny = Shape(layers=1, hidden=16, heads=2, intermediate=16, head_dim=8)
    model = untrained_model(tmp_path / "model", shape=tiny)
    with pytest.raises(InputError, match="0 of 20992 samples on countdown are right") as caught:
        solution_data("rejection", Need("countdown", 2, 6144, seed=0), model=model)
    assert "a model that solves more" in str(caught.value)


def test_sampled_kinds_need_a_model() -> None:
    with pytest.raises(InputError, match="distilled data are sampled from a model"):
        solution_data("distilled", NEED)


@families
def test_completions_have_room_for_the_longest_right_one(task: str, small_base: Path) -> None:
    tokenizer = load_live(small_base, device="cpu").tokenizer
    rng = Random(0)
    for problem in TASKS[task].problems(300, seed=0, split="train"):
        for style in STYLES:
            text = TASKS[task].solution(problem, style=style, right=True, rng=rng)
            ids = tokenizer(text + tokenizer.eos_token)["input_ids"][1:]
            assert len(ids) <= longest_completion(task, 2)
