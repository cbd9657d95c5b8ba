"""The bundled base, its tokenizer, and that pretraining is a function of its seed."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from offaxis.errors import OutputError
from offaxis.evaluate import avg_at_k, pass_at_k
from offaxis.lab import BASE
from offaxis.lab.bundle import pretrain
from offaxis.lab.pretrain import Recipe
from offaxis.lab.scoring import Exam, sit
from offaxis.lab.tokenizer import CHARACTERS, build_tokenizer, model_config

SMALL = Exam(problems=4, samples=2)


def test_the_base_often_fails_and_nearly_always_can() -> None:
    correct = sit(BASE, Exam(problems=150, samples=16, seed=11))
    assert 0.45 < avg_at_k(correct).value < 0.65
    assert pass_at_k(correct, 16).low > 0.95


def test_the_base_is_small_bfloat16_and_of_the_shape_it_claims() -> None:
    tensors = load_file(BASE / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == 796_032
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 2_000_000
    stored, expected = AutoConfig.from_pretrained(BASE).to_dict(), model_config().to_dict()
    apart = {key for key in expected if stored[key] != expected[key]}
    assert apart <= {"architectures", "dtype", "transformers_version", "_name_or_path"}


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
        assert tokenizer("x")["input_ids"] == [tokenizer.bos_token_id, tokenizer.pad_token_id]
        assert tokenizer.padding_side == "left"


def test_pretraining_is_a_function_of_its_seed(tmp_path: Path) -> None:
    recipe = Recipe(steps=6, batch=16)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        found = pretrain(tmp_path / name, recipe=Recipe(seed, 6, 16), exam=SMALL, progress=False)
        assert found["recipe"]["steps"] == recipe.steps
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    log = json.loads((tmp_path / "a" / "training_log.json").read_text())
    assert [row["step"] for row in log] == [6]


def test_pretraining_learns(tmp_path: Path) -> None:
    found = pretrain(tmp_path / "a", recipe=Recipe(steps=60, batch=64), exam=SMALL, progress=False)
    first, last = json.loads((tmp_path / "a" / "training_log.json").read_text())
    assert last["loss"] < first["loss"] - 0.5
    assert found["final_loss"] == pytest.approx(last["loss"], abs=1e-4)


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
