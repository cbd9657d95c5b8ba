"""How well a model does: sampling, avg@k and pass@k, with intervals."""

from offaxis.evaluate.sampling import correctness, sample_completions
from offaxis.evaluate.statistics import (
    Score,
    avg_at_k,
    bootstrap_mean,
    paired_difference,
    pass_at_k,
)

__all__ = [
    "Score",
    "avg_at_k",
    "bootstrap_mean",
    "correctness",
    "paired_difference",
    "pass_at_k",
    "sample_completions",
]
