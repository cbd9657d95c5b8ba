"""How well a model does, and how far it went from another: sampling, avg@k, pass@k, KL."""

from offaxis.evaluate.divergence import Divergence, sequence_kl, token_losses
from offaxis.evaluate.sampling import Completion, correctness, sample, sample_completions
from offaxis.evaluate.statistics import (
    Score,
    avg_at_k,
    bootstrap_mean,
    paired_difference,
    pass_at_k,
)

__all__ = [
    "Completion",
    "Divergence",
    "Score",
    "avg_at_k",
    "bootstrap_mean",
    "correctness",
    "paired_difference",
    "pass_at_k",
    "sample",
    "sample_completions",
    "sequence_kl",
    "token_losses",
]
