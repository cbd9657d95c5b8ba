"""The KL probe: right numbers, at the right steps, and a run that does not notice it."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from kl_runs import BUNDLED, LENGTH, column, make, prompts, run, same, weights
from offaxis.errors import CheckpointError, InputError
from offaxis.evaluate import sample, sequence_kl
from offaxis.lab.session import quiet_libraries
from offaxis.live import load_live
from offaxis.train.divergence import DivergenceCallback, Ends, draw, prompt_tokens, undisturbed

NAMES = [f"{name}{kind}" for name in ("kl_tuned_base", "kl_base_tuned") for kind in ("", "_token")]
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}


def model(**settings: Any) -> Any:
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32, **settings)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, DivergenceCallback, Path]:
    """A run that went far in 6 steps, and its probe."""
    out = tmp_path_factory.mktemp("trained")
    probe = DivergenceCallback(prompts(40, seed=1), every=2, limit=32, samples=2)
    made = run("GRPO", BUNDLED, out, probe, max_steps=6, learning_rate=3e-4, rows=16,
               save_strategy="steps", save_steps=3, logging_steps=4)  # fmt: skip
    return made, probe, out


# The numbers


def test_both_kls_begin_at_zero_and_are_logged_at_their_steps(trained: Any) -> None:
    made, probe, _ = trained
    rows = [row for row in made.state.log_history if "kl_tuned_base" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert all(rows[0][name] == 0.0 for name in NAMES)
    assert all(rows[-1][name] > rows[1][name] > 0 for name in NAMES)
    assert {name: rows[-1][name] for name in NAMES} == {n: probe.last[n] for n in NAMES}


def test_they_are_what_evaluate_finds_on_samples_of_its_own(trained: Any) -> None:
    """Another sampler, other seeds, the saved weights: within the standard errors."""
    _, probe, out = trained
    tuned, base = load_live(out / "checkpoint-6", device="cpu"), load_live(BUNDLED, device="cpu")
    texts = [row["prompt"] for row in prompts(40, seed=1)][:32]
    ids = [row for row in prompt_tokens(tokenizer(), texts) for _ in range(8)]
    for name, (p, q) in {"tuned_base": (tuned, base), "base_tuned": (base, tuned)}.items():
        drawn = sample(p, texts, k=8, max_new_tokens=LENGTH, seed=9)
        found = sequence_kl(p, q, ids, [list(one.tokens) for row in drawn for one in row])
        error = found.sequence.std() / len(ids) ** 0.5 + probe.last[f"kl_{name}_se"]
        assert abs(probe.last[f"kl_{name}"] - found.sequence.mean()) < 3 * error
        assert probe.last[f"kl_{name}_token"] == pytest.approx(found.per_token, rel=0.5)


def test_they_are_exactly_the_kl_on_their_own_samples(trained: Any) -> None:
    """The probe's prefixes, and models that were loaded apart from the run."""
    _, probe, out = trained
    tuned, base = load_live(out / "checkpoint-6", device="cpu"), load_live(BUNDLED, device="cpu")
    inner: Any = probe._probe
    drawn = inner._draw
    with undisturbed(tuned.model):
        state = np.random.SeedSequence([0, 6, 1]).generate_state(1)[0]
        fresh = drawn(tuned.model, int(state))
    with undisturbed(base.model):
        old = drawn(base.model, 0)
    for name, pair, texts in (
        ("tuned_base", (tuned, base), fresh),
        ("base_tuned", (base, tuned), old),
    ):
        found = sequence_kl(*pair, inner.prompts, texts)
        assert probe.last[f"kl_{name}"] == pytest.approx(found.sequence.mean(), rel=1e-6)
        assert probe.last[f"kl_{name}_token"] == pytest.approx(found.per_token, rel=1e-6)
        error = found.sequence.std(ddof=1) / len(texts) ** 0.5
        assert probe.last[f"kl_{name}_se"] == pytest.approx(error, rel=1e-6)


def test_a_resumed_run_measures_the_same(trained: Any, tmp_path: Path) -> None:
    made, _, out = trained
    probe = DivergenceCallback(prompts(40, seed=1), every=2, limit=32, samples=2)
    again = run("GRPO", BUNDLED, tmp_path, probe, max_steps=6, learning_rate=3e-4, rows=16,
                resume=out / "checkpoint-3")  # fmt: skip
    for name in NAMES:
        assert column(again, name) == column(made, name), "step 0 is in the restored history"


# The run does not notice


@pytest.mark.parametrize(
    ("family", "kind"),
    [("GRPO", "full"), ("GRPO", "lora"), ("SFT", "checkpointing"), ("DPO", "dropout"),
     pytest.param("RLOO", "full", marks=pytest.mark.slow),
     pytest.param("Distillation", "full", marks=pytest.mark.slow)],
)  # fmt: skip
def test_training_goes_on_bit_for_bit(family: str, kind: str, tmp_path: Path) -> None:
    def once(*callbacks: Any) -> Any:
        more: dict[str, Any] = {"max_steps": 3, "rows": 8}
        if kind == "lora":
            more["peft_config"] = LoraConfig(**LORA)
        if kind == "checkpointing":
            more["gradient_checkpointing"] = True
        torch.manual_seed(0)
        base = model(attention_dropout=0.1) if kind != "full" else BUNDLED
        return run(family, base, tmp_path, *callbacks, **more)

    with_probe = once(DivergenceCallback(prompts(4), every=1, max_new_tokens=8))
    without = once()
    assert same(weights(with_probe), weights(without))
    assert column(with_probe, "loss") == column(without, "loss")
    assert len(column(with_probe, "kl_tuned_base")) == 4
    if kind == "dropout":  # else the test would say little of random states
        assert column(without, "loss") != column(
            run(family, BUNDLED, tmp_path, max_steps=3), "loss"
        )


def test_in_a_probe_the_model_evaluates_and_afterwards_is_as_it_was(small_base: Path) -> None:
    live = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    live.train()
    live.model.layers[1].eval()
    live.model.norm.weight.grad = torch.ones(32)
    modes = [one.training for one in live.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with undisturbed(live):
        assert not any(one.training for one in live.modules())
        assert not torch.is_grad_enabled()
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
    assert [one.training for one in live.modules()] == modes
    assert torch.is_grad_enabled()
    assert bool((live.model.norm.weight.grad == 1).all())
    with pytest.raises(KeyError), undisturbed(live):
        raise KeyError
    assert [one.training for one in live.modules()] == modes


def test_samples_come_from_the_softmax_whatever_the_models_own_settings() -> None:
    base = model()
    ids = prompt_tokens(tokenizer(), prompts(6))
    ends = Ends.of(tokenizer())
    with undisturbed(base):
        plain = draw(base, ids, ends=ends, max_new_tokens=12, seed=1)
    changed = base.generation_config
    changed.repetition_penalty, changed.top_k, changed.temperature = 5.0, 1, 0.1
    changed.min_p, changed.no_repeat_ngram_size = 0.5, 1
    with undisturbed(base):
        assert draw(base, ids, ends=ends, max_new_tokens=12, seed=1) == plain
    assert base.generation_config is changed
    assert len({tuple(one) for one in plain}) > 1


def test_first_tokens_have_the_models_probabilities() -> None:
    base = model()
    ids = prompt_tokens(tokenizer(), prompts(1))
    with undisturbed(base):
        expected = torch.softmax(base(torch.tensor(ids)).logits[0, -1], -1)
        drawn = draw(base, ids * 2000, ends=Ends.of(tokenizer()), max_new_tokens=1, seed=0,
                     batch_size=500)  # fmt: skip
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(expected)) / 2000
    assert float((counts - expected).abs().sum()) / 2 < 0.05


# Where it is asked for


class StopLate(TrainerCallback):  # type: ignore[misc]
    """Ends a run from behind the probe."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 2


def test_the_last_step_is_measured_whoever_ends_the_run(small_base: Path, tmp_path: Path) -> None:
    probe = DivergenceCallback(prompts(2), every=50, max_new_tokens=4)
    made = run("SFT", small_base, tmp_path, probe, StopLate(), max_steps=9)
    found = [row["step"] for row in made.state.log_history if "kl_tuned_base" in row]
    assert found == [0, 2]


def test_mixed_precision_begins_at_zero_too(small_base: Path, tmp_path: Path) -> None:
    probe = DivergenceCallback(prompts(3), every=1, max_new_tokens=6)
    made = run("SFT", small_base, tmp_path, probe, bf16=True)
    assert column(made, "kl_tuned_base")[0] == 0.0
    assert column(made, "kl_base_tuned")[0] == 0.0


def test_another_base_is_told_of_before_the_first_step(
    small_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lab_base import untrained_model

    other = untrained_model(tmp_path / "other")
    probe = DivergenceCallback(prompts(2), max_new_tokens=4, base=other)
    with caplog.at_level(logging.WARNING, "offaxis.train"):
        made = run("SFT", small_base, tmp_path / "run", probe)
    assert column(made, "kl_tuned_base")[0] > 0.1
    assert "does not start at the base" in caplog.text
    probe = DivergenceCallback(prompts(2), max_new_tokens=4, base=tmp_path / "none")
    with pytest.raises(CheckpointError, match="give base="):
        run("SFT", small_base, tmp_path / "run", probe)


def test_a_model_that_was_built_in_memory_is_its_own_base(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(BUNDLED, num_hidden_layers=1)
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config)
    built.config.name_or_path = ""
    probe = DivergenceCallback(prompts(2), max_new_tokens=4, every=1)
    made = run("SFT", built, tmp_path, probe, learning_rate=1e-2)
    kls = column(made, "kl_tuned_base")
    assert kls[0] == 0.0
    assert kls[1] > 1e-6


# Prompts


CHAT = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def test_prompts_are_texts_conversations_or_rows() -> None:
    words = tokenizer()
    plain = words("1+2=")["input_ids"]
    rows = [{"prompt": "1+2=", "answer": "3"}]
    assert prompt_tokens(words, ["1+2="]) == prompt_tokens(words, rows) == [plain]
    words.chat_template = CHAT
    message = [{"role": "user", "content": "1+2"}]
    chat = prompt_tokens(words, [message, {"prompt": message}])
    assert words.decode(chat[0], skip_special_tokens=True) == "1+2="
    assert chat[0] == chat[1]
    given = SimpleNamespace(chat_template=CHAT.replace("=", "*"), chat_template_kwargs={})
    found = prompt_tokens(words, [message], trainer=given)
    assert words.decode(found[0], skip_special_tokens=True) == "1+2*"


@pytest.mark.parametrize("bad", [[], [7], [{"question": "1+2"}], [[]]])
def test_what_is_no_prompt(bad: list[Any]) -> None:
    with pytest.raises(InputError, match=r"give a text|give at least one"):
        prompt_tokens(tokenizer(), bad)


@pytest.mark.parametrize("name", ["every", "samples", "limit", "max_new_tokens"])
def test_settings_are_positive(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(InputError, match="at least 1 each"):
        DivergenceCallback(["1+2="], **settings)


def test_a_bare_trainer_is_told_what_to_do(small_base: Path, tmp_path: Path) -> None:
    made = make("SFT", small_base, tmp_path, DivergenceCallback(["1+2="]), bare=True)
    with pytest.raises(InputError, match=r"observed\(TRAINER\)"):
        made.train()
