"""A language model small enough for its Fisher matrix to be written out."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.gates.fisher import Move, move_of
from offaxis.gates.fisher.prefixes import Prefixes
from offaxis.live import LiveModel

WORDS, WIDTH, HIDDEN = 5, 4, 6


class _Config:
    vocab_size = WORDS

    def get_text_config(self, **_: Any) -> _Config:
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"tie_word_embeddings": False}


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(WIDTH, HIDDEN)})


class Tiny(torch.nn.Module):
    """Logits = H tanh(W m + b), m the mean of the embeddings so far."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = _Config()
        self.device = torch.device("cpu")
        self.model = torch.nn.ModuleDict(
            {
                "embed_tokens": torch.nn.Embedding(WORDS, WIDTH),
                "layers": torch.nn.ModuleList([_Layer()]),
            }
        )
        self.lm_head = torch.nn.Linear(HIDDEN, WORDS, bias=False)
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        each = self.model["embed_tokens"](input_ids)
        count = torch.arange(1, input_ids.shape[1] + 1, dtype=torch.float64)
        inner = self.model["layers"][0].mlp["up_proj"](each.cumsum(1) / count[:, None])
        return SimpleNamespace(logits=self.lm_head(torch.tanh(inner)))


def changes(model: torch.nn.Module, *, size: float = 0.3, seed: int = 1) -> dict[str, Tensor]:
    """A move of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(one.shape, dtype=torch.float64, generator=generator)
        for name, one in model.named_parameters()
    }


def tiny_move(delta: Mapping[str, Tensor] | None = None) -> Move:
    """The tiny model, and itself moved by `delta`."""
    model = Tiny()
    moved = changes(model) if delta is None else delta
    tuned = {name: one.detach() + moved[name] for name, one in model.named_parameters()}
    live = LiveModel(model, None, "tiny")  # type: ignore[arg-type]
    return move_of(live, MemoryCheckpoint(tuned, source="moved", config=model.config.to_dict()))


def prefixes(count: int = 6, *, samples: int = 1, seed: int = 0) -> Prefixes:
    """Sequences of many lengths, `samples` for each of `count` prompts."""
    rng = np.random.default_rng(seed)
    prompts = [
        tuple(rng.integers(0, WORDS, size=rng.integers(1, 5)).tolist()) for _ in range(count)
    ]
    return Prefixes(
        tuple(one for one in prompts for _ in range(samples)),
        tuple(
            tuple(rng.integers(0, WORDS, size=rng.integers(1, 6)).tolist())
            for _ in range(count * samples)
        ),
        np.repeat(np.arange(count), samples),
    )


def positions(given: Prefixes) -> list[tuple[int, tuple[int, ...]]]:
    """(sequence, prefix) of every token drawn."""
    return [
        (number, (*prompt, *completion[:at]))
        for number, (prompt, completion) in enumerate(
            zip(given.prompts, given.completions, strict=True)
        )
        for at in range(len(completion))
    ]


def _last_logits(model: torch.nn.Module, flat: Tensor, prefix: tuple[int, ...]) -> Tensor:
    """One prefix, no padding, parameters as one vector in the order of `flattened`."""
    parameters, start = {}, 0
    for name, one in model.named_parameters():
        parameters[name] = flat[start : start + one.numel()].reshape(one.shape)
        start += one.numel()
    ids = torch.tensor([prefix])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found: Tensor = torch.func.functional_call(model, parameters, kwargs=given).logits[0, -1]
    return found


def flattened(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name, _ in Tiny().named_parameters()])


def fisher(move: Move, given: Prefixes) -> Tensor:
    """(sequences, n, n): Jᵀ(diag π − ππᵀ)J of each sequence, J by reverse mode, written out."""
    origin = flattened(move.origin)
    found = torch.zeros(len(given.prompts), origin.numel(), origin.numel(), dtype=torch.float64)
    for number, prefix in positions(given):

        def logits(flat: Tensor, prefix: tuple[int, ...] = prefix) -> Tensor:
            return _last_logits(move.base.model, flat, prefix)

        jacobian = torch.func.jacrev(logits)(origin)
        chances = torch.softmax(logits(origin), -1)
        middle = torch.diag(chances) - torch.outer(chances, chances)
        found[number] += jacobian.T @ middle @ jacobian
    return found


def naive_kl(move: Move, given: Prefixes, step: float) -> tuple[list[float], list[float]]:
    """KL(π_t ‖ π) and KL(π ‖ π_t) of each sequence."""
    origin = flattened(move.origin)
    units = zip(move.units, move.delta, strict=True)
    there = origin + step * flattened({unit.name: one for unit, one in units})
    found = ([0.0] * len(given.prompts), [0.0] * len(given.prompts))
    for number, prefix in positions(given):
        p, q = (
            torch.log_softmax(_last_logits(move.base.model, one, prefix), -1)
            for one in (there, origin)
        )
        found[0][number] += float((p.exp() * (p - q)).sum())
        found[1][number] += float((q.exp() * (q - p)).sum())
    return found
