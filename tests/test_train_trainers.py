"""Trainers that differ from TRL's: DAPO's dynamic sampling, REINFORCE++, prompts by epoch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trl.trainer.utils import RepeatSampler

from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.train.trainers import DAPOTrainer, PolicyGRPOTrainer, ReinforcePPTrainer
from offaxis.train.trainers.reinforce_pp import token_returns, whiten
from offaxis.train.trainers.rows import Pick, assemble
from offaxis.train.trainers.sampler import EpochRepeatSampler
from policy_runs import integer, quiet_libraries, same, trainer, weights

GROUP = 4


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with quiet_libraries():
        yield
    torch.set_num_threads(before)


def answers(prompt: str) -> int:
    """The value of an arithmetic prompt, by Python."""
    assert re.fullmatch(r"[\d+*()-]+=", prompt), prompt
    return int(eval(prompt[:-1]))


class Watched(DAPOTrainer):
    """Keeps what it trains on."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("seen", []).append(found)
        return found


def rescored(found: Any, tokenizer: Any) -> torch.Tensor:
    """Rewards of a batch, (groups, rows), read from its tokens alone."""
    rewards = []
    for ids, mask, said, ended in zip(
        found["prompt_ids"], found["prompt_mask"], found["completion_ids"],
        found["completion_mask"], strict=True,
    ):  # fmt: skip
        prompt = tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        text = tokenizer.decode(said[ended.bool()], skip_special_tokens=True)
        rewards += integer(None, [text], [answers(prompt)])
    return torch.tensor(rewards).view(-1, GROUP)


def test_dapo_trains_on_groups_with_a_signal_alone(tmp_path: Path) -> None:
    made = trainer(Watched, trl.GRPOConfig, tmp_path, loss_type="dapo", max_steps=4)
    made.dynamic_sampling_rounds = 8
    made.train()
    rows = [row for row in made.state.log_history if "dynamic_sampling/rounds" in row]
    assert any(row["dynamic_sampling/signal_before"] < 1 for row in rows), "nothing to refill"
    for found, row in zip(made.seen, rows, strict=True):
        rewards = rescored(found, made.processing_class)
        assert rewards.shape == (4, GROUP)
        assert row["dynamic_sampling/signal_after"] == 1
        assert (rewards.amax(1) > rewards.amin(1)).all()
        # Each row has the advantage of its own reward, wherever it was drawn.
        centred = rewards - rewards.mean(1, keepdim=True)
        expected = centred / (rewards.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(found["advantages"].view(-1, GROUP), expected)
        assert found["num_items_in_batch"] == found["completion_mask"].sum()


def test_without_rounds_dapo_is_trl_bit_for_bit(tmp_path: Path) -> None:
    ours = trainer(DAPOTrainer, trl.GRPOConfig, tmp_path / "a", loss_type="dapo")
    ours.dynamic_sampling_rounds = 0
    ours.train()
    theirs = trainer(trl.GRPOTrainer, trl.GRPOConfig, tmp_path / "b", loss_type="dapo")
    theirs.train()
    assert same(weights(ours.model), weights(theirs.model))


def nothing(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [0.0 for _ in completions]


def test_without_any_signal_the_bound_holds_and_nothing_moves(tmp_path: Path) -> None:
    made = trainer(
        DAPOTrainer, trl.GRPOConfig, tmp_path, rewards=nothing, loss_type="dapo", max_steps=1
    )
    made.dynamic_sampling_rounds = 2
    before = weights(made.model)
    made.train()
    row = made.state.log_history[0]
    assert row["dynamic_sampling/rounds"] == 2
    assert row["dynamic_sampling/signal_after"] == 0
    assert row["dynamic_sampling/drawn_per_used"] == 3
    assert same(before, weights(made.model))


def length(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [0.01 * len(text) for text in completions]


def test_a_length_alone_makes_no_group_informative(tmp_path: Path) -> None:
    def run(metric: str | None) -> float:
        made = trainer(
            DAPOTrainer, trl.GRPOConfig, tmp_path / str(metric), rewards=[nothing, length],
            loss_type="dapo", max_steps=1,
        )  # fmt: skip
        made.dynamic_sampling_rounds = 1
        made.dynamic_sampling_metric = metric
        made.train()
        return float(made.state.log_history[0]["dynamic_sampling/signal_before"])

    assert run(None) == 0  # the first reward's
    assert run("nothing") == 0
    assert run("length") > 0
    assert run("reward") > 0
    with pytest.raises(InputError, match="choose reward, or one of nothing, length"):
        run("accuracy")


def test_the_log_tells_of_the_first_round(tmp_path: Path) -> None:
    """`reward` is the mean over fresh prompts, not over those that were kept."""
    rows = {}
    for rounds in (0, 8):
        made = trainer(
            DAPOTrainer, trl.GRPOConfig, tmp_path / str(rounds), loss_type="dapo", max_steps=1
        )
        made.dynamic_sampling_rounds = rounds
        made.train()
        rows[rounds] = made.state.log_history[0]
    assert rows[8]["dynamic_sampling/rounds"] > 0
    assert rows[8]["reward"] == rows[0]["reward"]
    assert rows[8]["completions/mean_length"] == rows[0]["completions/mean_length"]
    assert rows[8]["num_tokens"] > rows[0]["num_tokens"]


def test_parts_of_groups_are_refused(tmp_path: Path) -> None:
    made = trainer(DAPOTrainer, trl.GRPOConfig, tmp_path, loss_type="dapo")
    with pytest.raises(InputError, match="6 samples a process are no whole groups of 4"):
        made._check({}, 6)


def batch(rows: int, prompt: int, said: int, start: int) -> dict[str, Any]:
    ids = torch.arange(start, start + rows)
    return {
        "prompt_ids": ids[:, None].expand(rows, prompt).clone(),
        "completion_ids": ids[:, None].expand(rows, said).clone(),
        "completion_mask": torch.ones(rows, said, dtype=torch.int),
        "advantages": ids.float(),
        "num_items_in_batch": torch.tensor(7),
    }


def test_rows_of_batches_keep_their_own_and_are_padded_on_the_right_side() -> None:
    batches = [batch(4, 3, 2, 10), batch(2, 5, 1, 50), batch(2, 1, 4, 90)]
    found = assemble(batches, [Pick(2, 0), Pick(0, 1), Pick(1, 0)], 2, pad=99)
    assert found["advantages"].tolist() == [90, 91, 12, 13, 50, 51]
    assert found["prompt_ids"].tolist()[0] == [99, 99, 99, 99, 90]
    assert found["prompt_ids"].tolist()[4] == [50] * 5
    assert found["completion_ids"].tolist()[2] == [12, 12, 99, 99]
    assert found["completion_mask"].sum(1).tolist() == [4, 4, 2, 2, 1, 1]
    assert found["num_items_in_batch"] == 7


def test_a_sampler_that_starts_in_an_epoch_goes_on_as_trls_would() -> None:
    def made(kind: Any) -> Any:
        return kind(list(range(11)), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=5)

    theirs = made(RepeatSampler)
    orders = [list(theirs) for _ in range(3)]
    assert orders[0] != orders[1]
    for epoch, order in enumerate(orders):
        ours = made(EpochRepeatSampler)
        ours.set_epoch(epoch)
        assert list(ours) == order
        assert list(ours) == order  # and again, the same


def test_token_returns_and_whitening_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(5, 7, generator=generator) > 0.3).int().sort(1, descending=True).values
    rewards = torch.rand(5, generator=generator).double()
    kl = torch.randn(5, 7, generator=generator).double()
    found = token_returns(rewards, kl, mask, 0.3)
    for row in range(5):
        for token in range(7):
            later = sum(float(kl[row, s] * mask[row, s]) for s in range(token, 7))
            by_hand = (float(rewards[row]) - 0.3 * later) * float(mask[row, token])
            assert float(found[row, token]) == pytest.approx(by_hand, abs=1e-12)
    totals = torch.stack([found.sum(), found.square().sum(), mask.sum().double()])
    values = whiten(found, mask, totals)[mask.bool()]
    assert float(values.mean()) == pytest.approx(0, abs=1e-7)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-6)


def untied() -> Any:
    """A random Llama with its own output matrix, and the bundled tokenizer's vocabulary."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(BASE), local_files_only=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def test_reinforce_pp_has_the_gradient_that_is_known(tmp_path: Path) -> None:
    """Completions of one token: dL/dW = −(1/N) Σᵢ Aᵢ (e_aᵢ − softmax(W hᵢ)) hᵢᵀ, in closed form."""

    def parity(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        return [float(ids[0] % 3) for ids in completion_ids]

    model, tokenizer = untied()
    config = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=32, num_generations=4,
        max_completion_length=1, loss_type="dapo", use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    data = named_data("arithmetic?count=8")
    made = ReinforcePPTrainer(
        model=model, args=config, reward_funcs=parity, train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    rows = [dict(row) for row in data for _ in range(4)]
    found = made._generate_and_score_completions(rows)
    made.model.zero_grad()
    made._compute_loss(made.model, found).backward()

    said = found["completion_ids"][:, 0]
    rewards = (said % 3).double()
    advantages = (rewards - rewards.mean()) / rewards.std(correction=0)
    ids, mask = found["prompt_ids"], found["prompt_mask"]
    with torch.no_grad():
        hidden = made.model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        hidden = hidden.double()
        chances = (hidden @ made.model.lm_head.weight.double().T).softmax(-1)
    pull = torch.nn.functional.one_hot(said, chances.shape[1]).double() - chances
    known = -(advantages[:, None, None] * pull[:, :, None] * hidden[:, None, :]).mean(0)
    assert known.abs().max() > 1e-3
    torch.testing.assert_close(made.model.lm_head.weight.grad.double(), known, atol=1e-6, rtol=1e-4)


def test_reinforce_pp_has_no_group_baseline_and_puts_kl_in_the_reward(tmp_path: Path) -> None:
    made = trainer(ReinforcePPTrainer, trl.GRPOConfig, tmp_path, loss_type="dapo", beta=0.5)
    made.train()
    rows = [row for row in made.state.log_history if "kl" in row]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl"] != pytest.approx(0, abs=1e-6)
    plain = trainer(ReinforcePPTrainer, trl.GRPOConfig, tmp_path / "b", loss_type="dapo", beta=0.0)
    plain.train()
    assert not same(weights(made.model), weights(plain.model))


def test_share_of_ratios_outside_the_clip() -> None:
    class Told:
        epsilon_low, epsilon_high, importance_sampling_level = 0.2, 0.28, "token"
        notes: dict[str, float]

        class accelerator:
            @staticmethod
            def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
                return values

        def note(self, name: str, value: float) -> None:
            self.notes = {name: value}

    ratio = torch.tensor([[0.79, 1.0, 1.27], [1.29, 0.81, 3.0]])
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "old_per_token_logps": torch.zeros(2, 3),
    }
    told = Told()
    PolicyGRPOTrainer._note_ratio(told, inputs, ratio.log())  # type: ignore[arg-type]
    assert told.notes == {"ratio/outside": pytest.approx(2 / 5)}
    told.importance_sampling_level = "sequence"
    PolicyGRPOTrainer._note_ratio(told, inputs, ratio.log())  # type: ignore[arg-type]
    assert told.notes == {"ratio/outside": 0.0}  # geometric means 1.0011 and 1.0222


def test_a_sampler_of_its_own_is_compared_with_the_trainer() -> None:
    class Told:
        notes: dict[str, float]

        def note(self, name: str, value: float) -> None:
            self.notes[name] = value

    told = Told()
    told.notes = {}
    found = {
        "sampling_per_token_logps": torch.tensor([[-1.0, -2.0, -9.0], [-1.0, torch.nan, 0.0]]),
        "old_per_token_logps": torch.tensor([[-1.5, -2.0, 0.0], [-1.1, -1.0, 0.0]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 0]]),
    }
    PolicyGRPOTrainer._note_mismatch(told, found)
    assert told.notes == {
        "sampling/sampling_logp_difference/mean": pytest.approx(0.2),
        "sampling/sampling_logp_difference/max": pytest.approx(0.5),
    }


def test_more_updates_a_batch_move_ratios_outside(tmp_path: Path) -> None:
    made = trainer(
        PolicyGRPOTrainer, trl.GRPOConfig, tmp_path, loss_type="grpo", num_iterations=3,
        learning_rate=1e-3,
    )  # fmt: skip
    made.train()
    outside = [row["ratio/outside"] for row in made.state.log_history if "ratio/outside" in row]
    assert outside[0] == 0
    assert outside[2] > 0.01
