"""Exams, divergences and the probe of general ability, on real if tiny models."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lab_base import DIFFICULTY, TASK, untrained_model
from offaxis.lab.pretrain import examples
from offaxis.lab.scoring import Exam, divergences, mixture_losses, sit
from offaxis.lab.tasks import TASKS, split_of
from offaxis.live import LiveModel, load_live

EXAM = Exam(problems=30, samples=6, difficulty=DIFFICULTY, seed=2, task=TASK)


@pytest.fixture(scope="module")
def small(small_base: Path) -> LiveModel:
    return load_live(small_base, device="cpu")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    return load_live(untrained_model(tmp_path_factory.mktemp("other") / "model"), device="cpu")


def test_an_exam_is_held_out_and_the_same_for_every_model(
    small: LiveModel, other: LiveModel
) -> None:
    drawn = EXAM.draw()
    assert len({problem.prompt for problem in drawn}) == 30
    assert {split_of(problem.prompt) for problem in drawn} == {"held_out"}
    ids = [sit(model, EXAM).prompts for model in (small, other)]
    assert ids[0] == ids[1]
    texts = [small.tokenizer.decode(one, skip_special_tokens=True) for one in ids[0]]
    assert texts == [problem.prompt for problem in drawn]


def test_marks_are_the_verifiers(small: LiveModel, small_base: Path) -> None:
    sitting = sit(small, EXAM)
    marks = [
        [TASKS[TASK].reward(one.text, problem.prompt, problem.answer) == 1.0 for one in row]
        for problem, row in zip(EXAM.draw(), sitting.completions, strict=True)
    ]
    assert (sitting.correct == np.array(marks)).all()
    assert sitting.score.metric == "avg@6"
    assert sitting.score.value == pytest.approx(sitting.correct.mean())
    assert 0.05 < sitting.score.value < 0.6
    assert (sit(small_base, EXAM).correct == sitting.correct).all()


def test_a_model_has_not_gone_far_from_itself(small: LiveModel) -> None:
    sitting = sit(small, EXAM)
    found = divergences(small, sitting, small, sitting)
    assert (found.tuned_base, found.base_tuned) == ((0, 0, 0), (0, 0, 0))
    assert found.tuned_base_token == found.base_tuned_token == 0


@pytest.mark.parametrize("samples", [2, 6])
def test_divergences_are_sums_over_what_each_model_says(
    samples: int, small: LiveModel, other: LiveModel
) -> None:
    """Each direction on the samples of its first model, one sequence at a time."""
    sittings = {id(model): sit(model, EXAM) for model in (small, other)}
    found = divergences(other, sittings[id(other)], small, sittings[id(small)], samples=samples)
    directions = (
        (other, small, found.tuned_base, found.tuned_base_token),
        (small, other, found.base_tuned, found.base_tuned_token),
    )
    for p, q, (mean, low, high), per_token in directions:
        total, tokens = 0.0, 0
        sitting = sittings[id(p)]
        for prompt, row in zip(sitting.prompts, sitting.completions, strict=True):
            for one in row[:samples]:
                ids = torch.tensor([[*prompt, *one.tokens]])
                with torch.inference_mode():
                    a, b = (
                        m.model(input_ids=ids).logits[0].double().log_softmax(-1) for m in (p, q)
                    )
                kl = (a.exp() * (a - b)).sum(-1)[len(prompt) - 1 : -1]
                total, tokens = total + float(kl.sum()), tokens + len(one.tokens)
        assert mean == pytest.approx(total / (30 * samples), rel=1e-4)
        assert per_token == pytest.approx(total / tokens, rel=1e-4)
        assert low < mean < high
    assert found.tuned_base[0] != pytest.approx(found.base_tuned[0], rel=0.1)


def test_the_probe_is_the_loss_on_held_out_lines_of_the_mixture(
    small: LiveModel, other: LiveModel
) -> None:
    lines = list(islice(examples(seed=0, split="held_out"), 60))
    assert {split_of(one.problem.prompt) for one in lines} == {"held_out"}
    losses = []
    for one in lines:
        prompt = small.tokenizer(one.problem.prompt)["input_ids"]
        whole = small.tokenizer(one.problem.prompt + one.solution)["input_ids"]
        whole.append(small.tokenizer.eos_token_id)
        labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]])
        with torch.inference_mode():
            out = small.model(input_ids=torch.tensor([whole]), labels=labels)
        losses.append(float(out.loss))
    found = mixture_losses(small, count=60)
    assert found.keys() == {"all", *TASKS}
    assert found["all"][0] == pytest.approx(np.mean(losses), rel=1e-4)
    for task in TASKS:
        own = [loss for loss, one in zip(losses, lines, strict=True) if one.task == task]
        mean, low, high = found[task]
        assert len(own) == 20
        assert mean == pytest.approx(np.mean(own), rel=1e-4)
        assert low < mean < high
    assert mixture_losses(other, count=60)["all"][0] == pytest.approx(np.log(64), rel=0.1)


def test_the_mixture_takes_the_families_in_turn_and_the_seed_decides_it() -> None:
    first = list(islice(examples(seed=1), 90))
    assert [one.task for one in first[:6]] == [*TASKS, *TASKS]
    assert first == list(islice(examples(seed=1), 90))
    assert first != list(islice(examples(seed=2), 90))
    for one in first:
        earned = TASKS[one.task].reward(one.solution, one.problem.prompt, one.problem.answer)
        assert earned == float(one.right)
        assert split_of(one.problem.prompt) == "train"
    clean = list(islice(examples(seed=1, clean=True), 90))
    assert all(one.right for one in clean)
    assert 0.2 < sum(one.right for one in first) / 90 < 0.9
