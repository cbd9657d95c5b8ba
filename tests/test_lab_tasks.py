"""All task families: right answers, disjoint splits, seeds, solutions that are what they say."""

from itertools import islice
from random import Random
from typing import Any

import pytest

from offaxis.errors import InputError
from offaxis.lab.data import longest_completion
from offaxis.lab.scoring import _FOREIGN_WORDS
from offaxis.lab.tasks import (
    DIFFICULTIES,
    STYLES,
    TASKS,
    Problem,
    Style,
    Task,
    split_of,
    task_named,
)
from offaxis.lab.tokenizer import CHARACTERS, CONTEXT

ALL_STYLES: tuple[Style, ...] = (*STYLES, "foreign")

families = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
levels = pytest.mark.parametrize("difficulty", DIFFICULTIES)
styles = pytest.mark.parametrize("style", ALL_STYLES)


def some(task: Task[Any], count: int, *, difficulty: int = 2, seed: int = 5) -> list[Problem]:
    """The first problems of a training stream, repetitions among them."""
    return list(islice(task.stream(seed=seed, split="train", difficulty=difficulty), count))


def earned(task: Task[Any], problem: Problem, text: str) -> float:
    return task.reward(text, problem.prompt, problem.answer)


@families
@levels
@styles
def test_right_solutions_earn_one_and_wrong_ones_nothing(
    task: Task[Any], difficulty: int, style: Style
) -> None:
    rng = Random(0)
    for problem in some(task, 150, difficulty=difficulty):
        right = task.solution(problem, style=style, right=True, rng=rng)
        wrong = task.solution(problem, style=style, right=False, rng=rng)
        assert earned(task, problem, right) == 1.0, (problem, right)
        assert earned(task, problem, wrong) == 0.0, (problem, wrong)


@families
def test_what_is_no_answer_earns_nothing(task: Task[Any]) -> None:
    for problem in some(task, 40):
        right = task.solution(problem, style="guess", right=True, rng=Random(0))
        for text in ("", "#", right[1:], right + right, right + "?", f"#0{right}", "#" * 300):
            assert earned(task, problem, text) == 0.0, (problem, text)
        assert earned(task, problem, f"nonsense {right} \n") == 1.0


@families
@levels
def test_the_longest_right_solution_is_as_long_as_stated(task: Task[Any], difficulty: int) -> None:
    rng = Random(1)
    drawn = some(task, 6000, difficulty=difficulty)
    lengths = {
        style: max(len(task.solution(p, style=style, right=True, rng=rng)) for p in drawn)
        for style in ALL_STYLES
    }
    assert max(lengths[style] for style in STYLES) == task.longest[difficulty]
    # The end of text is a token too; exams leave room for the wordy style.
    room = longest_completion(task.name, difficulty)
    assert task.longest[difficulty] + 1 <= room
    assert lengths["foreign"] + 1 <= room + _FOREIGN_WORDS
    assert max(len(p.prompt) for p in drawn) + room + _FOREIGN_WORDS < CONTEXT


@families
@levels
def test_the_tokenizer_knows_every_character(task: Task[Any], difficulty: int) -> None:
    rng = Random(2)
    for problem in some(task, 400, difficulty=difficulty):
        for style in ALL_STYLES:
            for right in (True, False):
                text = task.solution(problem, style=style, right=right, rng=rng)
                assert set(problem.prompt + text) <= set(CHARACTERS)


@families
def test_the_foreign_style_is_in_no_pretraining_style(task: Task[Any]) -> None:
    rng = Random(3)
    for problem in some(task, 200):
        assert task.solution(problem, style="foreign", right=True, rng=rng).startswith("first ")
        for style in STYLES:
            text = task.solution(problem, style=style, right=True, rng=rng)
            assert " " not in text
            assert text.startswith("#") == (style == "guess")


@families
def test_splits_are_disjoint_whatever_the_seeds(task: Task[Any]) -> None:
    train = {p.prompt for seed in range(3) for p in task.problems(600, seed=seed, split="train")}
    held_out = {
        p.prompt for seed in range(3) for p in task.problems(200, seed=seed, split="held_out")
    }
    assert not train & held_out
    assert {split_of(prompt) for prompt in held_out} == {"held_out"}
    assert {split_of(prompt) for prompt in train} == {"train"}


@families
def test_one_problem_in_ten_is_held_out(task: Task[Any]) -> None:
    rng = Random(0)
    prompts = {task.draw(rng, 3).prompt for _ in range(6000)}
    share = sum(split_of(prompt) == "held_out" for prompt in prompts) / len(prompts)
    assert share == pytest.approx(0.1, abs=0.02)


@families
@levels
def test_streams_are_functions_of_their_seed(task: Task[Any], difficulty: int) -> None:
    first = some(task, 60, difficulty=difficulty, seed=1)
    Random(9).random()
    assert first == some(task, 60, difficulty=difficulty, seed=1)
    assert first != some(task, 60, difficulty=difficulty, seed=2)
    assert first != list(islice(task.stream(seed=1, split="held_out", difficulty=difficulty), 60))


@families
def test_problems_are_the_streams_first_different_ones(task: Task[Any]) -> None:
    found = task.problems(50, seed=1, split="train", difficulty=1)
    assert len({p.prompt for p in found}) == 50
    seen: dict[str, Problem] = {}
    for problem in task.stream(seed=1, split="train", difficulty=1):
        seen.setdefault(problem.prompt, problem)
        if len(seen) == 50:
            break
    assert found == list(seen.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arithmetic", ["34+33-38=", "76-8*2=", "(18+8)*4="]),
        ("programs", ["2343>6567,8911>8801:", "0379>0841,5796>7086:", "6771>788,6850>796:"]),
        ("countdown", ["5,4,6@6=", "2,7,2@10=", "4,3,6@1="]),
    ],
)
def test_the_seed_means_the_same_problems_on_every_machine(name: str, expected: list[str]) -> None:
    assert [p.prompt for p in TASKS[name].problems(3, seed=1, split="held_out")] == expected


@families
def test_the_mixture_has_the_shares_it_names(task: Task[Any]) -> None:
    rng, mixture = Random(0), task.mixture
    assert sum(mixture.share.values()) == pytest.approx(1)
    drawn = [(p, *task.example(p, rng=rng)) for p in some(task, 5000, difficulty=2)]
    assert all(earned(task, p, text) == float(right) for p, text, right in drawn)
    expected = sum(mixture.share[style] * mixture.right[style] for style in STYLES)
    assert sum(right for _, _, right in drawn) / 5000 == pytest.approx(expected, abs=0.025)
    guesses = [(text, right) for _, text, right in drawn if text.startswith("#")]
    assert len(guesses) / 5000 == pytest.approx(mixture.share["guess"], abs=0.025)
    right = sum(right for _, right in guesses) / len(guesses)
    assert right == pytest.approx(mixture.right["guess"], abs=0.06)


@families
def test_the_clean_mixture_is_all_right_in_the_same_styles(task: Task[Any]) -> None:
    rng = Random(0)
    drawn = [(p, *task.example(p, rng=rng, clean=True)) for p in some(task, 2000)]
    assert all(right and earned(task, p, text) == 1.0 for p, text, right in drawn)
    guesses = sum(text.startswith("#") for _, text, _ in drawn) / len(drawn)
    assert guesses == pytest.approx(task.mixture.share["guess"], abs=0.04)


@pytest.mark.parametrize("name", ["arithmetic", "countdown"])
def test_a_split_that_is_too_small_says_so(name: str) -> None:
    with pytest.raises(InputError, match=r"only \d+ different .* raise the difficulty"):
        TASKS[name].problems(5000, seed=0, split="held_out", difficulty=1)


@families
def test_unknown_difficulties_are_refused(task: Task[Any]) -> None:
    with pytest.raises(InputError, match="difficulty 4"):
        task.problems(1, seed=0, split="train", difficulty=4)


def test_unknown_families_are_refused() -> None:
    assert task_named("countdown") is TASKS["countdown"]
    with pytest.raises(InputError, match=r"chess.*arithmetic, programs, countdown"):
        task_named("chess")
