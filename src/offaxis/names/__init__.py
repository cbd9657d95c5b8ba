"""What a tensor's name and shape say about it: layer, role, expert, pieces, and renamings.

Everything here is text and integers: no tensor is read, no framework imported. `place` says what
one parameter is; `pieces` cuts fused and stacked ones into the parts that are measured by
themselves; `rename` finds how the names of one checkpoint became those of another.
"""

from offaxis.names.pieces import Piece, natural_key, pieces
from offaxis.names.place import MATRIX_EXEMPT, ROLES, Place, is_matrix, place, unwrap
from offaxis.names.renaming import Renaming, Rule, rename

__all__ = [
    "MATRIX_EXEMPT",
    "ROLES",
    "Piece",
    "Place",
    "Renaming",
    "Rule",
    "is_matrix",
    "natural_key",
    "pieces",
    "place",
    "rename",
    "unwrap",
]
