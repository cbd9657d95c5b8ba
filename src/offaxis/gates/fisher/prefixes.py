"""Prefixes: completions drawn from a model, and the positions at which it drew a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offaxis.errors import InputError
from offaxis.evaluate.problems import Problem, ProblemSet, load_problems
from offaxis.evaluate.prompts import Prompt, Style, render
from offaxis.evaluate.samplers import Sampling
from offaxis.evaluate.transformers_sampler import TransformersSampler
from offaxis.gates.fisher.exact import Tensors
from offaxis.live import LiveModel

__all__ = ["Batch", "Prefixes", "problem_set", "sampled"]


@dataclass(frozen=True)
class Prefixes:
    """Sequences in order of their prompts: token ids without padding."""

    prompts: tuple[tuple[int, ...], ...]
    """One for each completion: a prompt of k samples k times."""
    completions: tuple[tuple[int, ...], ...]
    owners: NDArray[np.int64]
    """Which prompt each sequence belongs to, from 0."""

    @property
    def count(self) -> int:
        """Prompts."""
        return int(self.owners.max()) + 1

    @property
    def positions(self) -> int:
        """Tokens drawn, in all."""
        return sum(map(len, self.completions))

    def over_prompts(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., sequences) → (..., prompts): the mean over each prompt's samples."""
        own = (self.owners[:, None] == np.arange(self.count)).astype(np.float64)
        means: NDArray[np.float64] = values @ (own / own.sum(0))
        return means

    def batches(self, positions: int) -> Iterator[Batch]:
        """Whole sequences of about `positions` positions a batch, padding and prompts counted."""
        rows: list[int] = []
        for at in range(len(self.prompts)):
            longest = max(len(self.prompts[i]) + len(self.completions[i]) for i in (*rows, at))
            if rows and longest * (len(rows) + 1) > positions:
                yield self.batch(rows)
                rows = []
            rows.append(at)
        yield self.batch(rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The named sequences, padded on the right."""
        whole = [[*self.prompts[at], *self.completions[at]] for at in rows]
        length = max(map(len, whole))
        ids = torch.tensor([[*one, *[0] * (length - len(one))] for one in whole])
        mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in whole])
        where = [
            (number, at)
            for number, (row, one) in enumerate(zip(rows, whole, strict=True))
            for at in range(max(len(self.prompts[row]) - 1, 0), len(one) - 1)
        ]
        line, column = torch.tensor(where).T
        return Batch(ids, mask, line, column, tuple(rows))


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded sequences, and the P positions that predict a drawn token."""

    ids: Tensor
    mask: Tensor
    line: Tensor
    """(P,): the row in the batch of each position."""
    column: Tensor
    rows: tuple[int, ...]
    """Which sequences these are."""

    def logits(self, live: LiveModel) -> Callable[[Tensors], Tensor]:
        """Parameters by name (those left out keep their values) → logits, (P, vocabulary)."""
        from torch.func import functional_call

        device = live.model.device
        given = {
            "input_ids": self.ids.to(device),
            "attention_mask": self.mask.to(device),
            "use_cache": False,
        }
        line, column = self.line.to(device), self.column.to(device)

        def of(parameters: Tensors) -> Tensor:
            found = functional_call(live.model, dict(parameters), kwargs=given).logits
            picked: Tensor = found[line, column]
            return picked

        return of


def problem_set(
    data: str | Path | ProblemSet | Sequence[Problem] | Sequence[str], limit: int | None
) -> ProblemSet:
    """The first `limit` problems of what `evaluate` takes, or of plain prompts."""
    if isinstance(data, str | Path):
        return load_problems(data, limit=limit)
    if isinstance(data, ProblemSet):
        return ProblemSet(data.problems[:limit], data.source, data.preset)
    given: Sequence[Problem | str] = data
    made = [
        Problem(str(number), one, "") if isinstance(one, str) else one
        for number, one in enumerate(given, 1)
    ]
    return ProblemSet(tuple(made[:limit]), "prompts")


def sampled(live: LiveModel, problems: ProblemSet, style: Style, sampling: Sampling) -> Prefixes:
    """k completions of every problem from the model as it is now, as `evaluate` draws them.

    InputError where a prompt and `max_new_tokens` do not fit into the model's positions.
    """
    prompts = render(live.tokenizer, problems.problems, style)
    sampler = TransformersSampler(live)
    _check_lengths(sampler.context, prompts, problems, sampling)
    drawn = sampler.sample(prompts, sampling)
    return Prefixes(
        tuple(prompt.tokens for prompt in prompts for _ in range(sampling.k)),
        tuple(one.tokens for row in drawn for one in row),
        np.repeat(np.arange(len(prompts)), sampling.k),
    )


def _check_lengths(
    context: int | None, prompts: Sequence[Prompt], problems: ProblemSet, sampling: Sampling
) -> None:
    longest = max(range(len(prompts)), key=lambda at: len(prompts[at].tokens))
    length = len(prompts[longest].tokens)
    if context is not None and length + sampling.max_new_tokens > context:
        raise InputError(
            f"problem {problems.problems[longest].id}: its prompt has {length} tokens, and "
            f"{length} + {sampling.max_new_tokens} do not fit into the model's {context} "
            f"positions; lower max_new_tokens to {max(1, context - length)} or less"
        )
