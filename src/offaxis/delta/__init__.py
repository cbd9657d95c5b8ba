"""Lossless sparse deltas between checkpoints: exact to the bit, a fraction of the bytes."""

from offaxis.delta.applying import apply, verify
from offaxis.delta.info import delta_info as info
from offaxis.delta.opened import Delta
from offaxis.delta.packing import Progress, Step, pack

__all__ = ["Delta", "Progress", "Step", "apply", "info", "pack", "verify"]
