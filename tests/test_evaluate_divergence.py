"""KL between models: planted answers, another way to compute it, padding, unbiasedness, edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import inf, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lab_base import untrained_model
from offaxis.errors import InputError
from offaxis.evaluate import sequence_kl, token_losses
from offaxis.live import LiveModel, load_live

END = 2


class Bigram(torch.nn.Module):
    """The next token depends on the last one alone: row i of the table is its logits after i."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table, dtype=torch.float64)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def bigram(table: Sequence[Sequence[float]], name: str = "bigram") -> LiveModel:
    return LiveModel(Bigram(table), None, name)  # type: ignore[arg-type]


def categorical(*probabilities: float) -> LiveModel:
    """Every token is drawn from one distribution."""
    logits = [log(p) if p else -inf for p in probabilities]
    return bigram([logits] * len(logits))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveModel, LiveModel]:
    """Two random transformers in float64, far apart."""
    root = tmp_path_factory.mktemp("two")
    made: list[LiveModel] = []
    for seed in (0, 1):
        live = load_live(untrained_model(root / str(seed), seed=seed), device="cpu")
        torch.manual_seed(seed)
        for parameter in live.model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        made.append(LiveModel(live.model.double(), live.tokenizer, live.source))
    return made[0], made[1]


def ragged(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of many lengths."""
    rng = np.random.default_rng(0)
    prompts = [[1, *rng.integers(3, 40, size=rng.integers(0, 9)).tolist()] for _ in range(count)]
    return prompts, [rng.integers(0, 40, size=rng.integers(1, 14)).tolist() for _ in range(count)]


# Planted


def test_the_kl_of_two_categoricals_is_known() -> None:
    p, q = (0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)
    each = sum(a * log(a / b) for a, b in zip(p, q, strict=True))
    found = sequence_kl(
        categorical(*p), categorical(*q), [[1], [1, 3, 3], [1]], [[0, 3, 2], [2], [3] * 9]
    )
    assert found.sequence == pytest.approx([3 * each, each, 9 * each], rel=1e-12)
    assert found.tokens.tolist() == [3, 1, 9]
    assert found.per_token == pytest.approx(each, rel=1e-12)


def test_losses_under_a_categorical_are_known() -> None:
    found = token_losses(categorical(0.5, 0.25, 0.25), [[1], [1, 0]], [[0, 0, 1], [2]])
    assert found == pytest.approx([(2 * log(2) + log(4)) / 3, log(4)], rel=1e-12)


def test_only_the_completions_own_positions_count() -> None:
    """After 0 the models agree, after 1 they do not."""
    same, half = [log(0.5)] * 2, [log(0.9), log(0.1)]
    p, q = bigram([same, same]), bigram([same, half])
    apart = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)
    # What predicts a completion's tokens: the prompt's last token, and all its own but the last.
    prompts, completions = [[1, 1, 0], [0, 1], [1, 0]], [[0, 1], [0, 0, 0], [1, 1, 0]]
    found = sequence_kl(p, q, prompts, completions)
    assert found.sequence == pytest.approx([0, apart, 2 * apart], abs=1e-15)


# Against other code


def naive_kl(p: LiveModel, q: LiveModel, prompt: list[int], completion: list[int]) -> float:
    """One sequence, one position at a time, without padding."""
    total = 0.0
    for at in range(len(completion)):
        ids = torch.tensor([prompt + completion[:at]])
        with torch.inference_mode():
            a, b = (one.model(input_ids=ids).logits[0, -1].numpy() for one in (p, q))
        a, b = a - np.logaddexp.reduce(a), b - np.logaddexp.reduce(b)
        total += float((np.exp(a) * (a - b)).sum())
    return total


def test_it_agrees_with_a_loop_over_positions(two: tuple[LiveModel, LiveModel]) -> None:
    prompts, completions = ragged(12)
    found = sequence_kl(*two, prompts, completions).sequence
    expected = [naive_kl(*two, *pair) for pair in zip(prompts, completions, strict=True)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found.min() > 0.1
    back = sequence_kl(*two[::-1], prompts, completions).sequence
    assert not np.allclose(found, back, rtol=0.01)


def test_losses_agree_with_the_library(two: tuple[LiveModel, LiveModel]) -> None:
    prompts, completions = ragged(12)
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.inference_mode():
            expected.append(float(two[0].model(input_ids=ids, labels=labels).loss))
    assert token_losses(two[0], prompts, completions) == pytest.approx(expected, rel=1e-5)


def test_padding_and_batch_size_change_nothing(two: tuple[LiveModel, LiveModel]) -> None:
    prompts, completions = ragged(12)
    kl = sequence_kl(*two, prompts, completions).sequence
    losses = token_losses(two[0], prompts, completions)
    for size in (1, 5, 12):
        again = sequence_kl(*two, prompts, completions, batch_size=size)
        assert again.sequence == pytest.approx(kl, rel=1e-9)
        assert token_losses(two[0], prompts, completions, batch_size=size) == pytest.approx(
            losses, rel=1e-9
        )


def test_a_model_is_nowhere_from_itself(tmp_path: Path) -> None:
    live = load_live(untrained_model(tmp_path / "model"), device="cpu")
    prompts, completions = ragged(8)
    assert (sequence_kl(live, live, prompts, completions).sequence == 0).all()
    assert (sequence_kl(live, live, prompts, completions, batch_size=3).sequence == 0).all()


# The estimator


def chains(length: int) -> list[tuple[int, ...]]:
    """Every completion over {0, 1, END} that ends at the first END or at `length` tokens."""
    short = [(*body, END) for size in range(length) for body in product((0, 1), repeat=size)]
    return [*short, *product((0, 1), repeat=length)]


def log_probability(table: list[list[float]], completion: tuple[int, ...]) -> float:
    total, last = 0.0, 1
    for token in completion:
        total += table[last][token] - float(np.logaddexp.reduce(table[last]))
        last = token
    return total


TABLES = (
    [[0.3, 1.1, -0.4], [0.9, -0.2, 0.1], [0.0, 0.0, 0.0]],
    [[0.8, 0.2, 0.0], [0.1, 0.4, -0.9], [0.0, 0.0, 0.0]],
)


def test_its_mean_over_samples_is_the_kl_of_the_sequence_distributions() -> None:
    p, q = TABLES
    every = chains(6)
    chance = np.exp([log_probability(p, y) for y in every])
    ratios = np.array([log_probability(p, y) - log_probability(q, y) for y in every])
    assert chance.sum() == pytest.approx(1)
    exact = float(chance @ ratios)
    found = sequence_kl(bigram(p), bigram(q), [[1]] * len(every), every).sequence
    assert chance @ found == pytest.approx(exact, rel=1e-12)

    chosen = np.random.default_rng(0).choice(len(every), size=4000, p=chance)
    drawn = found[chosen]
    assert drawn.mean() == pytest.approx(exact, abs=4 * drawn.std() / 4000**0.5)
    assert drawn.std() < 0.7 * ratios[chosen].std()  # less noise than the log-ratio


# Edges


def test_impossible_tokens() -> None:
    p, q, narrow = categorical(0, 0.5, 0.5), categorical(0.5, 0.25, 0.25), categorical(0, 1, 0)
    found = sequence_kl(p, q, [[1], [1]], [[1, 2], [2, 2, 1, 1, 1]]).sequence
    assert found == pytest.approx([2 * log(2), 5 * log(2)], rel=1e-12)
    assert (sequence_kl(p, p, [[1], [1]], [[1, 2], [2]]).sequence == 0).all()
    assert sequence_kl(p, narrow, [[1]], [[1]]).sequence.tolist() == [inf]


def test_a_padding_token_that_is_impossible_spoils_no_loss() -> None:
    found = token_losses(categorical(0, 0.5, 0.5), [[1], [1]], [[1], [2, 2, 2]])
    assert found == pytest.approx([log(2)] * 2)
    assert token_losses(categorical(0, 0.5, 0.5), [[1]], [[0]]).tolist() == [inf]


def test_models_that_cannot_be_compared_are_refused() -> None:
    p, q = categorical(0.5, 0.5), categorical(0.5, 0.25, 0.25)
    with pytest.raises(InputError, match="vocabulary of 2, bigram one of 3"):
        sequence_kl(p, q, [[1]], [[1]])
    with pytest.raises(InputError, match="2 prompts and 1 completions"):
        sequence_kl(p, p, [[1], [1]], [[1]])
    with pytest.raises(InputError, match="0 prompts"):
        sequence_kl(p, p, [], [])
