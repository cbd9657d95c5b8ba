"""What a measure returns: a value, its error estimate, and why it is undefined if it is."""

from typing import NamedTuple

__all__ = ["Number", "undefined"]


class Number(NamedTuple):
    """A measured number. `value` is None where it is undefined, and `status` then says why.

    error: an estimate of |value − true value| from rounding (or the standard error of a sampled
    quantity), in the unit of the value; None where the value is exact.
    """

    value: float | None
    error: float | None = None
    status: str = "ok"


def undefined(reason: str) -> Number:
    """A number that does not exist, with the reason."""
    return Number(None, None, reason)
