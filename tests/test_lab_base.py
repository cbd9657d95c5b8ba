"""The bundled base, its tokenizer, and that pretraining is a function of its seed."""

import json
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from offaxis.errors import OutputError
from offaxis.evaluate import avg_at_k, pass_at_k
from offaxis.lab import BASE
from offaxis.lab.bundle import CARD_EXAM, pretrain
from offaxis.lab.pretrain import Recipe, tokens_and_labels, train_base
from offaxis.lab.scoring import Exam, mixture_losses, sit
from offaxis.lab.tasks import TASKS
from offaxis.lab.tokenizer import CHARACTERS, Shape, build_tokenizer, model_config
from offaxis.live import load_live

QUICK = Exam(problems=4, samples=2)
TINY = Shape(layers=1, hidden=16, heads=2, intermediate=32, head_dim=8)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_base_often_fails_and_nearly_always_can(task: str) -> None:
    correct = sit(BASE, Exam(problems=60, samples=16, seed=11, task=task)).correct
    assert 0.3 < avg_at_k(correct).value < 0.7
    assert pass_at_k(correct, 16).value >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_the_card_tells_the_bases_scores(task: str) -> None:
    exam = replace(CARD_EXAM, task=task)
    correct = sit(BASE, exam).correct
    card = (BASE / "README.md").read_text()
    found = re.search(
        rf"\| {task} \| 2 \| 500 \| ([\d.]+) .* \| ([\d.]+) \[([\d.]+), [\d.]+\] \|\n", card
    )
    assert found is not None
    told = [float(number) for number in found.groups()]
    assert avg_at_k(correct).value == pytest.approx(told[0], abs=0.02)
    assert pass_at_k(correct, 16).value == pytest.approx(told[1], abs=0.02)
    assert told[2] > 0.93


def test_the_base_is_small_bfloat16_and_of_the_shape_it_claims() -> None:
    tensors = load_file(BASE / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == 1_006_096
    assert "1 006 096 parameters" in (BASE / "README.md").read_text()
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 3_000_000
    stored, expected = AutoConfig.from_pretrained(BASE).to_dict(), model_config().to_dict()
    apart = {key for key in expected if stored[key] != expected[key]}
    assert apart <= {"architectures", "dtype", "transformers_version", "_name_or_path"}


def test_the_base_is_a_better_judge_of_the_mixture_than_chance() -> None:
    found = mixture_losses(load_live(BASE, device="cpu"), count=90)
    assert all(mean < 1.0 for mean, _, _ in found.values())  # chance: ln 54


def test_nothing_in_the_base_names_a_machine() -> None:
    for path in BASE.iterdir():
        content = path.read_bytes()
        for word in (b"/tmp/", b"/home/", b"/root/", b"file:"):
            assert word not in content, path
        if path.suffix != ".safetensors" and len(socket.gethostname()) > 4:
            assert socket.gethostname().encode() not in content, path


def test_the_stored_tokenizer_is_the_one_built_in_code() -> None:
    stored, built = AutoTokenizer.from_pretrained(BASE), build_tokenizer()
    assert stored.get_vocab() == built.get_vocab()
    for tokenizer in (stored, built):
        ids = tokenizer(CHARACTERS)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert len(set(ids)) == len(CHARACTERS) + 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == CHARACTERS
        assert tokenizer("1<eos>")["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer("X")["input_ids"] == [tokenizer.bos_token_id, tokenizer.pad_token_id]
        assert tokenizer.padding_side == "left"


def test_pretraining_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = Recipe(seed, steps=6, clean_steps=3, batch=12, shape=TINY)
        found = pretrain(tmp_path / name, recipe=recipe, exam=QUICK, progress=False)
        assert (found["recipe"]["seed"], found["recipe"]["steps"]) == (seed, 6)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    log = json.loads((tmp_path / "a" / "training_log.json").read_text())
    assert [row["step"] for row in log] == [6]
    assert 0.5 < log[0]["right"] < 1  # three steps on right solutions, three on the mixture


def test_pretraining_learns_right_solutions_first(tmp_path: Path) -> None:
    recipe = Recipe(steps=100, clean_steps=50, batch=36, learning_rate=5e-3, shape=TINY)
    model, log = train_base(recipe, device="cpu", progress=False)
    assert [(row.step, row.right == 1) for row in log] == [(50, True), (100, False)]
    assert log[1].loss < log[0].loss - 0.2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_only_solutions_and_their_end_are_learnt() -> None:
    tokenizer = build_tokenizer()
    tokens, labels = tokens_and_labels(tokenizer, ["1+1=", "12+7*3="], ["#2", "12+21=33#33"])
    assert tokens.shape == labels.shape == (2, 20)
    for ids, wanted, prompt, solution in zip(
        tokens, labels, ["1+1=", "12+7*3="], ["#2", "12+21=33#33"], strict=True
    ):
        assert tokenizer.decode(wanted[wanted != -100]) == solution + "<eos>"
        assert tokenizer.decode(ids).rstrip().startswith(f"<bos>{prompt}{solution}<eos>")
        learnt = wanted != -100
        assert torch.equal(ids[learnt], wanted[learnt])


def test_the_card_tells_every_family_and_what_was_trained(tmp_path: Path) -> None:
    recipe = Recipe(steps=2, clean_steps=1, batch=6, shape=TINY)
    found = pretrain(tmp_path / "a", recipe=recipe, exam=QUICK, progress=False)
    card = (tmp_path / "a" / "README.md").read_text()
    assert len(found["scores"]) == 9
    for one in found["scores"]:
        value = one["scores"][0]["value"]
        assert f"| {one['task']} | {one['difficulty']} | 4 | {value:.3f} [" in card
        assert [score["metric"] for score in one["scores"]] == ["avg@2", "pass@2", "pass@2"]
    assert f"{found['parameters']:,}".replace(",", " ") + " parameters" in card
    assert "1 steps on\nright solutions, then 1 steps on a mixture" in card
    assert "{" not in card


def test_a_full_directory_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        pretrain(tmp_path, recipe=Recipe(steps=10**9))


@pytest.mark.slow
def test_the_command_prints_its_result_alone_on_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "offaxis", "lab", "pretrain", "--out", str(tmp_path / "base")]
    done = subprocess.run(
        [*command, "--steps", "2", "--seed", "5", "--json"], capture_output=True, check=True
    )
    result = json.loads(done.stdout)
    assert (result["recipe"]["steps"], result["recipe"]["seed"]) == (2, 5)
    assert b"step 2/2" in done.stderr
    assert {"model.safetensors", "config.json", "README.md", "training_log.json"} <= {
        path.name for path in (tmp_path / "base").iterdir()
    }
