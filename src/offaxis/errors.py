"""Errors of offaxis. Every message names what was wrong, the numbers, and the remedy."""

__all__ = [
    "AlignmentError",
    "CheckpointError",
    "DeltaError",
    "InputError",
    "OffaxisError",
    "OutputError",
]


class OffaxisError(Exception):
    """Root of all errors that offaxis raises on purpose. The command line exits with 1."""


class InputError(OffaxisError):
    """A path, an id or a setting that cannot be used."""


class CheckpointError(InputError):
    """A checkpoint that is missing, truncated, corrupt, quantised or otherwise unreadable."""


class AlignmentError(InputError):
    """Two checkpoints whose tensors cannot be matched."""


class DeltaError(InputError):
    """A delta that is damaged, not a delta, or made against another base."""


class OutputError(OffaxisError):
    """A result that cannot be written where it was asked for."""
