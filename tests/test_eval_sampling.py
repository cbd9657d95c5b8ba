"""The sampler: its distribution, its random numbers, and what it does not depend on."""

from __future__ import annotations

import shutil
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab_base import untrained_model
from offaxis.errors import CheckpointError, InputError
from offaxis.evaluate import Completion, Problem, Prompt, Sampling, Style, plan, render
from offaxis.evaluate.models import identify, load_model, load_tokenizer
from offaxis.evaluate.samplers import batches
from offaxis.evaluate.transformers_sampler import TransformersSampler, uniforms
from offaxis.evaluate.vllm_sampler import VllmSampler
from offaxis.lab import BASE
from offaxis.lab.tasks import TASKS
from offaxis.live import LiveModel, load_live

SHORT = Sampling(k=4, max_new_tokens=30)


@pytest.fixture(scope="module")
def base() -> LiveModel:
    return load_live(BASE, device="cpu")


def prompts(live: LiveModel, *texts: str) -> list[Prompt]:
    problems = [Problem(str(at), text, "0") for at, text in enumerate(texts)]
    return render(live.tokenizer, problems, Style())


def held_out(count: int) -> list[str]:
    return [p.prompt for p in TASKS["arithmetic"].problems(count, seed=3, split="held_out")]


def drawn(live: LiveModel, texts: list[str], settings: Sampling) -> dict[str, list[Completion]]:
    """Samples of every text, in batches as an evaluation makes them."""
    given, sampler = prompts(live, *texts), TransformersSampler(live)
    found = {}
    for batch in batches(given, sampler.together(settings)):
        rows = sampler.sample([given[at] for at in batch], settings)
        found |= {texts[at]: row for at, row in zip(batch, rows, strict=True)}
    return found


def test_a_problem_draws_the_same_whatever_else_is_in_the_run(base: LiveModel) -> None:
    texts = held_out(12)
    alone = replace(SHORT, batch_size=4)  # a problem a batch, without padding
    whole = drawn(base, texts, alone)
    part = drawn(base, texts[7:3:-1], alone)
    assert part == {text: whole[text] for text in texts[7:3:-1]}
    together = drawn(base, texts, replace(SHORT, batch_size=64))
    assert sum(together[text] != whole[text] for text in texts) <= 1, "rounding of the logits alone"


def test_more_samples_begin_with_the_fewer(base: LiveModel) -> None:
    texts = held_out(2)
    few = drawn(base, texts, replace(SHORT, k=3, batch_size=3))
    many = drawn(base, texts, replace(SHORT, k=9, batch_size=3))
    assert {text: row[:3] for text, row in many.items()} == few
    assert len({one.text for one in many[texts[0]]}) > 3


def test_the_seed_decides_and_the_global_state_is_kept(base: LiveModel) -> None:
    texts = held_out(2)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = drawn(base, texts, SHORT)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == drawn(base, texts, SHORT)
    assert first != drawn(base, texts, replace(SHORT, seed=1))
    assert first[texts[0]] != first[texts[1]]


def test_samples_follow_the_softmax(base: LiveModel) -> None:
    text, k = "12+7*3=", 1500
    with torch.inference_mode():
        logits = base.model(**base.tokenizer(text, return_tensors="pt")).logits[0, -1].double()
    one = Sampling(k=k, max_new_tokens=1, batch_size=k)
    settings = {
        "all": (one, logits.softmax(-1)),
        "hot": (replace(one, temperature=2.0), (logits / 2).softmax(-1)),
        "three": (replace(one, top_k=3), _kept(logits.softmax(-1), 3)),
        "nucleus": (replace(one, top_p=0.5), _nucleus(logits.softmax(-1), 0.5)),
    }
    for name, (setting, expected) in settings.items():
        row = TransformersSampler(base).sample(prompts(base, text), setting)[0]
        counts = torch.bincount(torch.tensor([c.tokens[0] for c in row]), minlength=len(expected))
        error = 4 * (expected * (1 - expected) / k).sqrt() + 1e-3
        assert ((counts / k - expected).abs() <= error).all(), name
        assert counts[expected == 0].sum() == 0, name


def _kept(p: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.where(p >= p.topk(count).values[-1], p, 0.0)
    return kept / kept.sum()


def _nucleus(p: torch.Tensor, mass: float) -> torch.Tensor:
    """The fewest likeliest tokens that hold at least `mass`."""
    order = p.argsort(descending=True)
    count = int((p[order].cumsum(0) < mass).sum()) + 1
    return _kept(p, count)


def test_greedy_takes_the_likeliest(base: LiveModel) -> None:
    texts = held_out(3)
    greedy = Sampling(k=1, temperature=0, max_new_tokens=30)
    cold = drawn(base, texts, replace(greedy, temperature=1e-4))
    assert drawn(base, texts, greedy) == cold
    encoded = base.tokenizer(texts[0], return_tensors="pt")
    with torch.inference_mode():
        out = base.model.generate(**encoded, do_sample=False, max_new_tokens=30)[0]
    text = base.tokenizer.decode(out[encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert cold[texts[0]][0].text == text


def test_completions_say_whether_they_ended(tmp_path: Path) -> None:
    live = load_live(untrained_model(tmp_path / "model"), device="cpu")
    end = live.tokenizer.eos_token_id
    settings = Sampling(k=100, batch_size=50, max_new_tokens=30)
    row = TransformersSampler(live).sample(prompts(live, "1+1="), settings)[0]
    for one in row:
        assert one.ended == (one.tokens[-1] == end)
        assert one.ended or len(one.tokens) == 30
        assert end not in one.tokens[:-1]
    assert 10 < sum(one.ended for one in row) < 90


def test_a_models_own_generation_settings_do_not_leak_in(tmp_path: Path) -> None:
    texts = held_out(3)
    plain = load_live(BASE, device="cpu")
    expected = drawn(plain, texts, SHORT)
    shutil.copytree(BASE, tmp_path / "model")
    leaky = load_live(tmp_path / "model", device="cpu")
    leaky.model.generation_config.update(
        repetition_penalty=5.0, no_repeat_ngram_size=2, temperature=0.1, top_k=1, num_beams=3,
        min_new_tokens=25,
    )  # fmt: skip
    assert drawn(leaky, texts, SHORT) == expected


def test_every_end_that_the_model_names_ends_a_completion() -> None:
    live = load_live(BASE, device="cpu")
    hash_sign = live.tokenizer.convert_tokens_to_ids("#")
    live.model.generation_config.eos_token_id = [live.tokenizer.eos_token_id, hash_sign]
    for one in drawn(live, held_out(1), SHORT)[held_out(1)[0]]:
        assert one.ended
        assert one.tokens[-1] == hash_sign


def test_random_numbers_are_uniform_and_different() -> None:
    one, other = Prompt("a", (1,), 1), Prompt("b", (1,), 2)
    settings = Sampling(max_new_tokens=4000)
    rows = [uniforms(one, 0, settings), uniforms(one, 1, settings), uniforms(other, 0, settings),
            uniforms(one, 0, replace(settings, seed=1))]  # fmt: skip
    table = np.stack(rows)
    assert abs(table.mean(axis=1) - 0.5).max() < 0.02
    assert abs(np.corrcoef(table) - np.eye(4)).max() < 0.06
    assert np.array_equal(uniforms(one, 0, Sampling(max_new_tokens=9)), rows[0][:9])


def test_batches_are_long_first_and_cover_all() -> None:
    given = [Prompt("", (1,) * length, 0) for length in (3, 9, 1, 9, 5)]
    assert batches(given, 2) == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k 0"),
        ({"k": 2, "temperature": 0.0}, "pass k 1"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_settings_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sampling(**settings)


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_prompts_are_rendered_as_asked() -> None:
    tokenizer = load_tokenizer(str(BASE))
    problems = [Problem("1", "1+1={x}", "2"), Problem("2", "2+2=", "4"), Problem("3", "2+2=", "4")]
    bare = render(tokenizer, problems, Style())
    assert bare[0].text == "1+1={x}"
    assert list(bare[1].tokens) == tokenizer("2+2=")["input_ids"]
    assert len({one.key for one in bare}) == 3, "copies of a problem draw other numbers"
    assert bare[0].key == render(tokenizer, problems[:1], Style("Solve: {problem}"))[0].key
    assert render(tokenizer, problems, Style("a {problem} b"))[1].text == "a 2+2= b"
    with pytest.raises(InputError, match="a system message needs a chat template"):
        render(tokenizer, problems, Style(system="s"))
    tokenizer.chat_template = CHAT
    chat = render(tokenizer, problems, Style(system="s"))[1]
    assert chat.text == "<system>s<user>2+2=<assistant>"
    assert list(chat.tokens) == tokenizer(chat.text, add_special_tokens=False)["input_ids"]
    assert render(tokenizer, problems, Style(chat_template="none"))[1].text == "2+2="
    with pytest.raises(InputError, match=r"has no \{problem\}"):
        Style("no slot")
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(InputError, match="no system"):
        render(tokenizer, problems, Style())


def adapter(out: Path, base: str, seed: int = 0) -> LiveModel:
    """A LoRA with random B, saved as PEFT saves it; the model that it was saved from."""
    from peft import LoraConfig, get_peft_model

    live = load_live(BASE, device="cpu")
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(live.model, config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(out)
    return LiveModel(model.eval(), live.tokenizer, str(out))


def test_an_adapter_is_put_on_its_base(tmp_path: Path) -> None:
    expected = adapter(tmp_path / "lora", str(BASE))
    live = load_model(str(tmp_path / "lora"), device="cpu")
    ids = live.tokenizer("12+7*3=", return_tensors="pt")
    with torch.inference_mode():
        ours, theirs = live.model(**ids).logits, expected.model(**ids).logits
        plain = load_live(BASE, device="cpu").model(**ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert drawn(live, held_out(2), SHORT)
    with pytest.raises(InputError, match="merge it"):
        plan(str(tmp_path / "lora"), [Problem("1", "x", "1")], sampler="vllm").open_sampler(None)


def test_an_adapter_without_its_base_or_weights_says_so(tmp_path: Path) -> None:
    adapter(tmp_path / "lora", str(BASE))
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be put on"):
        load_model(str(tmp_path / "lora"), device="cpu")
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="base_model_name_or_path"):
        load_model(str(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_identity_follows_the_weights_not_the_place(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "a")
    shutil.copytree(BASE, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("other words")
    assert identify(str(tmp_path / "a")).digest == identify(str(tmp_path / "b")).digest
    weights = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "b" / "model.safetensors").write_bytes(weights)
    assert identify(str(tmp_path / "a")).digest != identify(str(tmp_path / "b")).digest
    adapter(tmp_path / "lora", str(tmp_path / "a"))
    first = identify(str(tmp_path / "lora"))
    assert first.base == str(tmp_path / "a")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    assert identify(str(tmp_path / "lora")).digest != first.digest, "its base counts"
    with pytest.raises(InputError, match=r"no config\.json"):
        identify(str(tmp_path))


def test_without_vllm_the_remedy_is_named() -> None:
    if "vllm" in sys.modules or shutil.which("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(InputError, match=r"pip install vllm .*--sampler transformers"):
        VllmSampler("model")


def test_vllm_is_asked_for_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the documented names: vLLM itself was not run."""
    asked: dict[str, object] = {}

    @dataclass
    class SamplingParams:
        n: int
        seed: int
        temperature: float
        top_p: float
        top_k: int
        max_tokens: int

    class LLM:
        def __init__(self, **options: object) -> None:
            asked["llm"] = options

        def generate(self, requests: list, params: list, use_tqdm: bool) -> list:
            asked["requests"], asked["params"] = requests, params
            one = types.SimpleNamespace(text="a", token_ids=[7, 8], finish_reason="stop")
            cut = types.SimpleNamespace(text="b", token_ids=[9], finish_reason="length")
            return [types.SimpleNamespace(outputs=[one, cut]) for _ in requests]

    module = types.ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampler = VllmSampler("org/name@main", dtype="bfloat16")
    settings = Sampling(k=2, temperature=0.7, top_p=0.9, max_new_tokens=5, seed=3)
    given = [Prompt("x", (1, 2), 10), Prompt("y", (3,), 11)]
    rows = sampler.sample(given, settings)
    assert rows == [[Completion("a", (7, 8), ended=True), Completion("b", (9,), ended=False)]] * 2
    assert asked["requests"] == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    first, second = asked["params"]  # type: ignore[misc]
    assert first.seed != second.seed
    assert (first.n, first.temperature, first.top_p, first.top_k, first.max_tokens) == (
        2, 0.7, 0.9, -1, 5,
    )  # fmt: skip
    assert asked["llm"] == {
        "model": "org/name", "dtype": "bfloat16", "generation_config": "vllm", "revision": "main",
    }  # fmt: skip
    assert sampler.together(settings) == 2048
