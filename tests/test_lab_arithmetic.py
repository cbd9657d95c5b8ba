"""The task family: right answers, disjoint splits, seeds, and solutions that are what they say."""

from itertools import islice
from random import Random

import pytest

from offaxis.errors import InputError
from offaxis.lab.arithmetic import (
    MIXTURE,
    STYLES,
    Style,
    draw_example,
    problems,
    split_of,
    stream,
    worked_solution,
)
from offaxis.verifiers import final_integer


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_answers_agree_with_python(difficulty: int) -> None:
    for problem in islice(stream(seed=5, split="train", difficulty=difficulty), 500):
        assert problem.prompt.endswith("=")
        assert problem.answer == eval(problem.prompt[:-1]) >= 0


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    train = {p.prompt for seed in range(3) for p in problems(800, seed=seed, split="train")}
    held_out = {p.prompt for seed in range(3) for p in problems(300, seed=seed, split="held_out")}
    assert not train & held_out
    assert {split_of(prompt) for prompt in held_out} == {"held_out"}


def test_one_problem_in_ten_is_held_out() -> None:
    prompts = [f"{a}+{b}*{c}=" for a in range(1, 100) for b in range(2, 10) for c in range(2, 10)]
    share = sum(split_of(prompt) == "held_out" for prompt in prompts) / len(prompts)
    assert share == pytest.approx(0.1, abs=0.015)


def test_the_seed_decides_the_problems() -> None:
    first = problems(50, seed=1, split="train")
    assert first == problems(50, seed=1, split="train")
    assert first != problems(50, seed=2, split="train")
    assert len({p.prompt for p in first}) == 50


def test_the_seed_means_the_same_problems_on_every_machine() -> None:
    prompts = [p.prompt for p in problems(3, seed=1, split="held_out")]
    assert prompts == ["42-7*4=", "(10+2)*2=", "48+7*2="]


@pytest.mark.parametrize("style", STYLES)
def test_right_solutions_are_right_and_wrong_ones_wrong(style: Style) -> None:
    rng = Random(0)
    for problem in problems(300, seed=3, split="train"):
        right = worked_solution(problem, style=style, right=True, rng=rng)
        wrong = worked_solution(problem, style=style, right=False, rng=rng)
        assert final_integer(right) == problem.answer
        assert final_integer(wrong) not in (None, problem.answer)


def test_every_line_of_a_right_solution_holds() -> None:
    rng = Random(0)
    for problem in problems(200, seed=4, split="train"):
        working, _, _ = worked_solution(problem, style="steps", right=True, rng=rng).partition("#")
        for line in working.split(";"):
            left, _, result = line.partition("=")
            assert eval(left) == int(result)


def test_the_mixture_has_the_shares_it_names() -> None:
    rng = Random(0)
    drawn = [draw_example(p, rng=rng) for p in islice(stream(seed=0, split="train"), 6000)]
    expected = sum(MIXTURE.share[style] * MIXTURE.right[style] for style in STYLES)
    assert sum(right for _, right in drawn) / len(drawn) == pytest.approx(expected, abs=0.025)
    guesses = sum(text.startswith("#") for text, _ in drawn) / len(drawn)
    assert guesses == pytest.approx(MIXTURE.share["guess"], abs=0.025)


def test_a_split_that_is_too_small_says_so() -> None:
    with pytest.raises(InputError, match="raise the difficulty"):
        problems(5000, seed=0, split="held_out", difficulty=1)
    with pytest.raises(InputError, match="difficulty 4"):
        problems(1, seed=0, split="train", difficulty=4)
