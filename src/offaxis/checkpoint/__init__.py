"""Open anything readable as a lazy mapping, match two of them, read one pair at a time."""

from offaxis.checkpoint.adapter import AdapterCheckpoint, bind
from offaxis.checkpoint.align import align, read_pair
from offaxis.checkpoint.describing import describe
from offaxis.checkpoint.memory import MemoryCheckpoint
from offaxis.checkpoint.opening import open_checkpoint
from offaxis.checkpoint.types import (
    Aligned,
    Checkpoint,
    Mismatch,
    Part,
    PartPair,
    TensorPair,
    TensorSpec,
    View,
)

__all__ = [
    "AdapterCheckpoint",
    "Aligned",
    "Checkpoint",
    "MemoryCheckpoint",
    "Mismatch",
    "Part",
    "PartPair",
    "TensorPair",
    "TensorSpec",
    "View",
    "align",
    "bind",
    "describe",
    "open_checkpoint",
    "read_pair",
]
