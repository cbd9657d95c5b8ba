"""How far two models are apart in what they say: exact token-level KL on sampled sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.live import LiveModel

__all__ = ["Divergence", "sequence_kl", "token_losses"]

Tokens = Sequence[int]


@dataclass(frozen=True)
class Divergence:
    """KL of each sequence in nats, and its number of tokens: two vectors of one length."""

    sequence: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def per_token(self) -> float:
        """Σ KL / Σ tokens."""
        return float(self.sequence.sum() / self.tokens.sum())


def sequence_kl(
    p: LiveModel,
    q: LiveModel,
    prompts: Sequence[Tokens],
    completions: Sequence[Tokens],
    *,
    batch_size: int = 512,
) -> Divergence:
    """KL(p ‖ q) over completions that were sampled from p, summed over each one's tokens, in nats.

    For completion y of prompt x: Σ_t Σ_v p(v | x, y_<t) · [ln p(v | x, y_<t) − ln q(v | x, y_<t)],
    the full vocabulary at every position at which p drew a token, end of text included. Its mean
    over samples from p estimates the KL of the two sequence distributions without bias and with
    less noise than the difference of log-probabilities. Logits in the models' dtype, log-softmax
    and sums in float64. Range [0, ∞).

    prompts, completions: token ids without padding, as many of one as of the other.
    Raises InputError where their numbers, or the models' vocabularies, differ.
    """
    if len(prompts) != len(completions) or not prompts:
        raise InputError(f"{len(prompts)} prompts and {len(completions)} completions")
    found: list[torch.Tensor] = []
    with torch.no_grad():  # FSDP2 cannot run in inference mode
        for rows, starts in _batches(prompts, completions, batch_size):
            found.append(_batch_kl(p, q, rows, starts))
    return Divergence(
        torch.cat(found).numpy(), np.array([len(completion) for completion in completions])
    )


def _batches(
    prompts: Sequence[Tokens], completions: Sequence[Tokens], size: int
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Whole sequences and where their completions begin."""
    for at in range(0, len(prompts), size):
        pairs = list(zip(prompts[at : at + size], completions[at : at + size], strict=True))
        yield [[*x, *y] for x, y in pairs], [len(x) for x, _ in pairs]


def _padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right with 0, and their attention mask: (rows, length) each."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return ids, mask


def _logits(live: LiveModel, rows: list[list[int]]) -> torch.Tensor:
    """Logits of every next token, (rows, length − 1, vocabulary), in the model's dtype."""
    ids, mask = _padded(rows, live.model.device)
    logits: torch.Tensor = live.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return logits


def _log_probabilities(live: LiveModel, rows: list[list[int]]) -> torch.Tensor:
    """ln p of every next token, (rows, length − 1, vocabulary), float64 on the CPU."""
    return torch.log_softmax(_logits(live, rows).double(), dim=-1).cpu()


def _drawn(rows: list[list[int]], starts: list[int]) -> torch.Tensor:
    """Where a completion's token is predicted: (rows, length − 1) of booleans."""
    length = max(map(len, rows))
    where = torch.arange(length - 1)[None]
    first = torch.tensor(starts)[:, None] - 1
    last = torch.tensor([len(row) for row in rows])[:, None] - 1
    return (where >= first) & (where < last)


def _batch_kl(p: LiveModel, q: LiveModel, rows: list[list[int]], starts: list[int]) -> torch.Tensor:
    ours, theirs = _logits(p, rows), _logits(q, rows)
    if ours.shape != theirs.shape:
        raise InputError(
            f"{p.source} has a vocabulary of {ours.shape[-1]}, {q.source} one of "
            f"{theirs.shape[-1]}: their distributions cannot be compared"
        )
    each = [
        _row_kl(ours[at, span], theirs[at, span])
        for at, (row, start) in enumerate(zip(rows, starts, strict=True))
        for span in [slice(max(start - 1, 0), len(row) - 1)]
    ]
    return torch.stack(each).cpu()


def _row_kl(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Σ over positions of the KL of two sets of logits, (positions, vocabulary); float64."""
    p = torch.log_softmax(ours.double(), dim=-1)
    q = torch.log_softmax(theirs.to(ours.device).double(), dim=-1)
    kl = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
    return kl.sum().clamp(min=0.0)


def token_losses(
    live: LiveModel,
    prompts: Sequence[Tokens],
    completions: Sequence[Tokens],
    *,
    batch_size: int = 512,
) -> NDArray[np.float64]:
    """Mean −ln p of each completion's tokens, in nats a token: a vector, one number a completion.

    prompts, completions: token ids without padding, no completion empty.
    """
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for rows, starts in _batches(prompts, completions, batch_size):
            ids, _ = _padded(rows, torch.device("cpu"))
            chosen = _log_probabilities(live, rows).gather(-1, ids[:, 1:, None])[..., 0]
            drawn = _drawn(rows, starts)
            found.append(-chosen.masked_fill(~drawn, 0.0).sum(-1) / drawn.sum(-1))
    return torch.cat(found).numpy()
