"""Rewards of length alone."""

from __future__ import annotations

from offaxis.errors import InputError

__all__ = ["overlong"]


def overlong(length: int, *, max_length: int, cache: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), in [−1, 0].

    0 up to max_length − cache tokens, then ((max_length − cache) − length) / cache, which is −1 at
    max_length, and −1 beyond. `length` counts the completion's tokens, its end token included.
    """
    if not 0 < cache <= max_length:
        raise InputError(f"cache {cache}, max_length {max_length}: choose 0 < cache <= max_length")
    if length < 0:
        raise InputError(f"length {length}: a number of tokens is 0 or more")
    if length > max_length:
        return -1.0
    return min(0.0, (max_length - cache - length) / cache)
