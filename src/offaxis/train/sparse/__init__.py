"""Train only where a mask says: masked gradients, or an optimizer that keeps no more state."""

from offaxis.train.sparse.projected import Projection
from offaxis.train.sparse.restricting import restrict

__all__ = ["Projection", "restrict"]
