"""Differences of words as words: 0, -1, +1, -2, ... become 0, 1, 2, 3, ..., modulo 2**n."""

from __future__ import annotations

from typing import Any

from numba import njit

__all__ = ["moved", "zigzag"]


@njit(nogil=True, cache=True)
def zigzag(d: Any, one: Any, zero: Any, top: Any) -> Any:
    """z of a difference d. one, zero and top (the index of the highest bit) are of d's type."""
    return type(zero)((d << one) ^ type(zero)(zero - (d >> top)))


@njit(nogil=True, cache=True)
def moved(b: Any, z: Any, one: Any, zero: Any) -> Any:
    """The word that lies z's difference from b; all are words of one type."""
    return type(zero)(b + type(zero)((z >> one) ^ type(zero)(zero - (z & one))))
