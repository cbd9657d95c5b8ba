"""Self-certainty: how far a model's next-token distributions are from uniform."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offaxis.errors import InputError

__all__ = ["self_certainty", "token_certainty"]

_CHUNK = 1 << 22  # logits held in float64 at a time: 32 MiB


def token_certainty(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(uniform ‖ p) of each distribution, in nats, from 0 (uniform) upwards; float64.

    p = softmax(logits) over |V| entries: −(1/|V|) Σ_j log(|V|·p_j) = logsumexp(z) − mean(z) −
    log |V|. A logit of −inf makes it infinite. Computed in chunks, in float64 throughout.
    """
    vocab = logits.shape[-1]
    rows = logits.reshape(-1, vocab)
    out = torch.empty(len(rows), dtype=torch.float64, device=logits.device)
    step = max(1, _CHUNK // vocab)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].double()
        spread = block.logsumexp(-1) - block.mean(-1) - math.log(vocab)
        out[start : start + step] = spread.clamp_min(0.0)
    return out.reshape(logits.shape[:-1])


def self_certainty(
    logits: Float[Tensor, "*batch tokens vocab"], mask: Bool[Tensor, "*batch tokens"]
) -> Float[Tensor, "*batch"]:
    """Mean of `token_certainty` over the tokens that `mask` selects; NaN where it selects none.

    Of a response's tokens, by the logits that predict them (Kang et al., arXiv 2502.18581;
    Intuitor's reward, arXiv 2505.19590). In nats; larger is more certain.
    """
    if logits.shape[:-1] != mask.shape:
        raise InputError(
            f"logits {tuple(logits.shape)}, mask {tuple(mask.shape)}: one mask entry a token is "
            "needed"
        )
    selected = torch.zeros(mask.shape, dtype=torch.float64, device=logits.device)
    selected[mask] = token_certainty(logits[mask])
    return selected.sum(-1) / mask.sum(-1)
