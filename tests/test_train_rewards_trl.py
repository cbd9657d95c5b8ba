"""Rewards inside TRL's GRPO on the bundled base, and the one that asks the model itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offaxis.errors import InputError
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.train.rewards import reward_functions, reward_named, reward_weights
from offaxis.verifiers.certainty import token_certainty

BASE = Path(__file__).parents[1] / "src" / "offaxis" / "lab" / "base"
GROUP, LONGEST = 4, 24


@pytest.fixture(scope="module")
def live() -> Any:
    """The bundled base with its tokenizer, as a trainer would hold it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(BASE)
    accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(model=model, processing_class=tokenizer, accelerator=accelerator)


def train(out: Path, rewards: list[Any], rows: list[dict[str, Any]]) -> Any:
    """Two real steps of TRL's GRPO."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    with quiet_libraries(), cpu_threads(1):
        trainer = trl.GRPOTrainer(
            model=str(BASE),
            processing_class=AutoTokenizer.from_pretrained(BASE),
            reward_funcs=rewards,
            train_dataset=Dataset.from_list(rows),
            args=trl.GRPOConfig(
                output_dir=str(out),
                max_steps=2,
                per_device_train_batch_size=4 * GROUP,
                num_generations=GROUP,
                max_completion_length=LONGEST,
                loss_type="grpo",
                reward_weights=reward_weights(rewards),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=0,
            ),
        )
        for reward in rewards:
            if hasattr(reward, "attach"):
                reward.attach(trainer)
        trainer.train()
    return trainer


def test_two_steps_of_grpo(tmp_path: Path) -> None:
    problems = [("1+1=", "2"), ("2+3=", "5"), ("4+4=", "8"), ("9-2=", "7")] * 2
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in problems]
    rewards = reward_functions(
        [
            "integer",
            {"name": "math", "wrong": -1.0, "timeout_s": 30.0},
            {"name": "overlong", "max_length": LONGEST, "cache": LONGEST - 1, "weight": 0.1},
            {"name": "majority", "num_generations": GROUP, "equality": "text"},
            "self_certainty",
        ]
    )
    trainer = train(tmp_path, rewards, rows)
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == 2
    for row in logs:
        mean = {one.__name__: row[f"rewards/{one.__name__}/mean"] for one in rewards}
        assert 0 <= mean["integer"] <= 1
        assert -1 <= mean["math"] <= 1
        assert -1 <= mean["overlong"] <= 0
        assert mean["majority"] > 0
        assert 0 < mean["self_certainty"] < 20
        weighted = sum(one.weight * mean[one.__name__] for one in rewards)
        assert row["reward"] == pytest.approx(weighted, abs=1e-4)


def test_self_certainty_is_that_of_each_row_alone(live: Any) -> None:
    """Left padding, batches and training mode change nothing; gradients are not made."""
    reward = reward_named("self_certainty", batch_size=3)
    reward.attach(live)  # type: ignore[attr-defined]
    prompts = ["1+1=", "8*9-51=", "2+3=", "9,9,5@36=", "5-4="]
    tokenizer, model = live.processing_class, live.model
    said = [tokenizer(text)["input_ids"] for text in ("#2", "8*9=72;72-51=21#21", "5", "")] + [[]]
    for layer in model.model.layers:  # so that training mode would change the numbers
        layer.self_attn.attention_dropout = 0.5
    model.train()
    found = reward(prompts, [""] * 5, said)
    assert model.training
    assert found[3:] == [None, None] or said[3] != []
    model.eval()
    for prompt, ids, value in zip(prompts, said, found, strict=True):
        if not ids:
            assert value is None
            continue
        whole = torch.tensor([tokenizer(prompt)["input_ids"] + ids])
        with torch.no_grad():
            logits = model(whole).logits[0, -len(ids) - 1 : -1]
        assert value == pytest.approx(float(token_certainty(logits).mean()), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_self_certainty_says_what_it_needs() -> None:
    reward = reward_named("self_certainty")
    with pytest.raises(InputError, match="attach"):
        reward(["p"], ["c"], [[1]])
    with pytest.raises(InputError, match="batch_size"):
        reward_named("self_certainty", batch_size=0)
