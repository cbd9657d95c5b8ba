"""From a pair of words to a token, and back: the alphabet that the *small* codec codes.

For words b (base) and t (tuned) of n bits, d = t - b modulo 2**n, and z = zigzag(d) is
2d for d < 2**(n-1) and 2(2**n - d) - 1 above, so that 0, -1, +1, -2, ... become 0, 1, 2, 3, ...
Integer differences of bit patterns are exact for every pattern, NaN payloads and -0.0 included,
and after a short run nearly all of them are 0 or one ULP.

z < 12 is its own token. Above, with k = floor(log2 z), the token is 12 + 2(k - 3) + the bit of z
below the leading one, and the k - 1 lower bits of z follow as they are, in a separate bit stream.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from offaxis.delta.zigzag import moved, zigzag

__all__ = ["DIRECT", "alphabet", "count_tokens", "tokenise", "tokens_alone", "untokenise"]

DIRECT = 12
"""z below this is its own token."""


def alphabet(bits: int) -> int:
    """How many tokens words of so many bits can need."""
    return DIRECT + 2 * (bits - 3)


@njit(nogil=True, cache=True, inline="always")
def _log2(z: Any) -> Any:
    """floor(log2 z) of a positive word."""
    value = np.uint64(z)
    out = np.uint64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if value >> np.uint64(step):
            value >>= np.uint64(step)
            out += np.uint64(step)
    return out


@njit(nogil=True, cache=True)
def tokenise(base: Any, tuned: Any, tokens: Any, extra: Any) -> int:
    """Tokens of every pair into `tokens` (uint8); their raw bits, lowest first, into `extra`.

    extra: uint32, at least 2 + ceil(n * bits / 32) long. Returns how many of its words are used.
    """
    one = base.dtype.type(1)
    top = base.dtype.type(base.itemsize * 8 - 1)
    zero = base.dtype.type(0)
    held, filled, at = np.uint64(0), np.uint64(0), 0
    word, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    for i in range(base.size):
        d = base.dtype.type(tuned[i] - base[i])
        z = np.uint64(zigzag(d, one, zero, top))
        if z < np.uint64(DIRECT):
            tokens[i] = np.uint8(z)
            continue
        k = _log2(z)
        count = k - np.uint64(1)
        tokens[i] = np.uint8(
            np.uint64(DIRECT) + np.uint64(2) * (k - np.uint64(3)) + ((z >> count) & np.uint64(1))
        )
        rest = z & ((np.uint64(1) << count) - np.uint64(1))
        while count > 0:
            take = min(count, word)
            held |= (rest & ((np.uint64(1) << take) - np.uint64(1))) << filled
            filled += take
            if filled >= word:
                extra[at] = np.uint32(held & low)
                at += 1
                filled -= word
                held >>= word
            rest = rest >> take
            count -= take
    if filled:
        extra[at] = np.uint32(held & low)
        at += 1
    return at


@njit(nogil=True, cache=True)
def _by_table(base: Any, tuned: Any, token_of: Any, tokens: Any) -> None:
    one, zero = base.dtype.type(1), base.dtype.type(0)
    top = base.dtype.type(base.itemsize * 8 - 1)
    for i in range(base.size):
        d = base.dtype.type(tuned[i] - base[i])
        tokens[i] = token_of[zigzag(d, one, zero, top)]


@cache
def _token_of() -> npt.NDArray[np.uint8]:
    """The token of every z of 16 bits."""
    out = np.empty(1 << 16, dtype=np.uint8)
    z = np.arange(out.size)
    d = np.where(z % 2, -(z + 1) // 2, z // 2).astype(np.uint16)
    tokenise(np.zeros_like(d), d, out, np.empty(out.size, dtype=np.uint32))
    return out


def tokens_alone(base: npt.NDArray[Any], tuned: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The tokens of every pair, (n,), without their raw bits."""
    tokens = np.empty(base.size, dtype=np.uint8)
    if base.itemsize <= 2:
        _by_table(base, tuned, _token_of(), tokens)
    else:
        tokenise(base, tuned, tokens, np.empty(2 + base.nbytes // 4, dtype=np.uint32))
    return tokens


@njit(nogil=True, cache=True)
def untokenise(base: Any, tokens: Any, extra: Any, tuned: Any) -> int:
    """The tuned words from the base's, the tokens and their raw bits.

    Returns how many words of `extra` were used, or -1 where it ends too early or bits are left.
    """
    one = base.dtype.type(1)
    zero = base.dtype.type(0)
    held, filled, at = np.uint64(0), np.uint64(0), 0
    word = np.uint64(32)
    for i in range(base.size):
        token = tokens[i]
        if token < DIRECT:
            z = base.dtype.type(token)
        else:
            over = np.uint64(token) - np.uint64(DIRECT)
            count = np.uint64(2) + (over >> np.uint64(1))
            lead = (np.uint64(2) | (over & np.uint64(1))) << count
            rest, done = np.uint64(0), np.uint64(0)
            while done < count:
                if filled == 0:
                    if at >= extra.size:
                        return -1
                    held, filled = np.uint64(extra[at]), word
                    at += 1
                take = min(count - done, filled)
                rest |= (held & ((np.uint64(1) << take) - np.uint64(1))) << done
                held >>= take
                filled -= take
                done += take
            z = base.dtype.type(lead | rest)
        tuned[i] = moved(base[i], z, one, zero)
    return at if held == 0 else -1


@njit(nogil=True, cache=True)
def count_tokens(contexts: Any, tokens: Any, counts: Any) -> None:
    """counts[context, token] += 1 for every symbol. Two rows of counters hide the store's delay."""
    half = contexts.size // 2
    other = np.zeros_like(counts)
    for i in range(half):
        counts[contexts[i], tokens[i]] += 1
        other[contexts[half + i], tokens[half + i]] += 1
    if contexts.size % 2:
        counts[contexts[contexts.size - 1], tokens[contexts.size - 1]] += 1
    counts += other
