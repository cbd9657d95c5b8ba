"""Lossless sparse deltas between checkpoints: exact to the bit, a fraction of the bytes."""

from offaxis.delta.applying import apply, verify
from offaxis.delta.info import delta_info as info
from offaxis.delta.opened import Delta
from offaxis.delta.packing import Progress, Step, pack
from offaxis.delta.sparse import FlatBuffers, SparseTensor, SparseUpdate, apply_, diff

__all__ = [
    "Delta",
    "FlatBuffers",
    "Progress",
    "SparseTensor",
    "SparseUpdate",
    "Step",
    "apply",
    "apply_",
    "diff",
    "info",
    "pack",
    "verify",
]
