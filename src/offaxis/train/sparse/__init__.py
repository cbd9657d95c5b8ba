"""Train only where a mask says: masked gradients, or an optimizer that keeps no more state."""

from offaxis.train.sparse.optimizer import SparseAdamW
from offaxis.train.sparse.projected import Projection
from offaxis.train.sparse.restricting import restrict
from offaxis.train.sparse.scores import KINDS, fisher_scores, gradient_scores, score_checkpoint

__all__ = [
    "KINDS",
    "Projection",
    "SparseAdamW",
    "fisher_scores",
    "gradient_scores",
    "restrict",
    "score_checkpoint",
]
