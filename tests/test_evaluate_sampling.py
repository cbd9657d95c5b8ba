"""Sampling from the bundled base, and the one loader of runnable models."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lab_base import untrained_model
from offaxis.errors import CheckpointError, InputError
from offaxis.evaluate import avg_at_k, correctness, sample, sample_completions
from offaxis.lab import BASE
from offaxis.lab.tasks import TASKS
from offaxis.live import LiveModel, load_live, pick_device
from offaxis.verifiers import integer_reward


@pytest.fixture(scope="module")
def base() -> LiveModel:
    return load_live(BASE, device="cpu")


def test_it_loads_in_float32_ready_to_run(base: LiveModel) -> None:
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert not base.model.training
    assert base.source == str(BASE)


def test_completions_come_in_the_order_of_the_prompts(base: LiveModel) -> None:
    drawn = TASKS["arithmetic"].problems(12, seed=7, split="held_out")
    texts = sample_completions(
        base, [p.prompt for p in drawn], k=8, max_new_tokens=28, batch_size=30
    )
    assert [len(row) for row in texts] == [8] * 12
    answers = [int(p.answer) for p in drawn]
    right = correctness(texts, answers, reward=integer_reward)
    shuffled = correctness(texts, answers[::-1], reward=integer_reward)
    assert avg_at_k(right).value > 0.3 > avg_at_k(shuffled).value


def test_padding_on_the_left_changes_no_probability(base: LiveModel) -> None:
    tokenizer, model = base.tokenizer, base.model
    both = tokenizer(["12+7*3=", "(10+2)*2=1"], return_tensors="pt", padding=True)
    alone = tokenizer(["12+7*3="], return_tensors="pt")
    with torch.inference_mode():
        padded = model.generate(**both, do_sample=False, max_new_tokens=20)[0]
        single = model.generate(**alone, do_sample=False, max_new_tokens=20)[0]
    assert both["attention_mask"][0, 0] == 0
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (padded, single)]
    assert texts[0] == texts[1]


def test_the_seed_decides_the_samples_and_the_global_state_is_kept(base: LiveModel) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample_completions(base, ["12+7*3="], k=6, max_new_tokens=28, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert first == sample_completions(base, ["12+7*3="], k=6, max_new_tokens=28, seed=3)
    assert first != sample_completions(base, ["12+7*3="], k=6, max_new_tokens=28, seed=4)


def test_samples_come_from_the_whole_softmax(base: LiveModel) -> None:
    with torch.inference_mode():
        logits = base.model(**base.tokenizer("12+7*3=", return_tensors="pt")).logits[0, -1]
    expected = logits.double().softmax(-1)
    texts = sample_completions(
        base, ["12+7*3="], k=4000, max_new_tokens=1, temperature=1.0, batch_size=4000
    )[0]
    for character in "#712":
        chance = float(expected[base.tokenizer.convert_tokens_to_ids(character)])
        error = 4 * np.sqrt(chance * (1 - chance) / 4000)
        assert texts.count(character) / 4000 == pytest.approx(chance, abs=error + 1e-3)
    cold = sample_completions(base, ["12+7*3="], k=50, max_new_tokens=1, temperature=1e-3)[0]
    assert set(cold) == {base.tokenizer.decode([int(expected.argmax())])}


def test_tokens_end_at_the_first_end_of_text_and_agree_with_the_text(tmp_path: Path) -> None:
    live = load_live(untrained_model(tmp_path / "model"), device="cpu")
    end, special = live.tokenizer.eos_token_id, set(live.tokenizer.all_special_ids)
    # A model of chance: it says the end, padding and unused numbers in the middle of a text.
    rows = sample(live, ["12+7*3=", "1"], k=100, max_new_tokens=30, seed=1, batch_size=70)
    drawn = [one for row in rows for one in row]
    for one in drawn:
        assert len(one.tokens) == 30 if end not in one.tokens else one.tokens.index(end) >= 0
        assert one.tokens.count(end) == (one.tokens[-1] == end)
        assert one.text == live.tokenizer.decode(list(one.tokens), skip_special_tokens=True)
    assert 20 < sum(one.tokens[-1] == end for one in drawn) < 150
    assert any(special & set(one.tokens[:-1]) for one in drawn)
    texts = sample_completions(
        live, ["12+7*3=", "1"], k=100, max_new_tokens=30, seed=1, batch_size=70
    )
    assert texts == [[one.text for one in row] for row in rows]


def test_bad_sampling_settings_are_refused(base: LiveModel) -> None:
    for bad in ({"k": 0}, {"temperature": 0.0}, {"batch_size": 0}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match="positive"):
            sample_completions(base, ["1+1="], **{"k": 1, "max_new_tokens": 1} | bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 problems sampled"):
        correctness([["#1"]], [1, 2], reward=integer_reward)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load_live(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_live(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_live(tmp_path)
    with pytest.raises(InputError, match="a file"):
        load_live(tmp_path / "config.json")
    with pytest.raises(InputError, match="float13"):
        load_live(BASE, dtype="float13")
    with pytest.raises(InputError, match="nonsense"):
        pick_device("nonsense")


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors .* model\.layers\.2\.mlp\.up_proj"):
        load_live(tmp_path / "model")
