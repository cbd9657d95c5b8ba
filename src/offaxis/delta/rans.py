"""The entropy coder: rANS with four interleaved states and a table for each context.

A state x lies in [2**16, 2**32). Coding a token of frequency f and start s (in units of 2**-14)
turns x into (x div f) * 2**14 + (x mod f) + s; before that, if x >= f * 2**18, its low 16 bits are
written out as a word. Decoding undoes this: the slot x mod 2**14 names the token, x becomes
f * (x div 2**14) + slot - s, and if x < 2**16 a word is read into its low bits. Symbol i belongs to
state i mod 4; coding goes from the last symbol to the first, so that decoding goes forwards.
J. Duda, Asymmetric numeral systems (arXiv:1311.2540); interleaving after F. Giesen
(arXiv:1402.3392).

Why not a kept coder: contexts change from symbol to symbol here, which libraries want grouped
first; `benchmarks/delta.py` prints both side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["PRECISION", "STATES", "Coded", "decode", "encode", "lookup"]

PRECISION = 14
"""Frequencies of a context sum to 2**14."""
STATES = 4
_UNITS = 1 << PRECISION
_LOW = 1 << 16
_SHIFT = np.uint64(PRECISION)
_WORD = np.uint64(16)
_FULL = np.uint64(32 - PRECISION)
_MASK = np.uint64(_UNITS - 1)
_LAST = np.uint64(0xFFFF)
_LOWEST = np.uint64(_LOW)

Coded = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]


@njit(nogil=True, cache=True)
def _limit(f: Any) -> Any:
    """The state at which a word goes out before a token of frequency f is coded."""
    return np.uint64(f) << _FULL


@njit(nogil=True, cache=True)
def _coded(x: Any, f: Any, s: Any) -> Any:
    quotient = np.uint64(np.uint32(x) // np.uint32(f))
    return (quotient << _SHIFT) + (x - quotient * np.uint64(f)) + np.uint64(s)


@njit(nogil=True, cache=True)
def _decoded(x: Any, slot: Any, f: Any, s: Any) -> Any:
    return np.uint64(f) * (x >> _SHIFT) + slot - np.uint64(s)


@njit(nogil=True, cache=True)
def _encode(contexts: Any, tokens: Any, frequency: Any, start: Any, out: Any, states: Any) -> int:
    """Code all symbols; words go to the end of `out`, backwards. Returns where they begin.

    The lanes are written out: a helper that returns state and position halves the speed.
    """
    at = out.size
    n = tokens.size
    whole = n - n % 4
    for i in range(n - 1, whole - 1, -1):
        c, t = contexts[i], tokens[i]
        x = states[i % 4]
        if x >= _limit(frequency[c, t]):
            at -= 1
            out[at] = np.uint16(x & _LAST)
            x >>= _WORD
        states[i % 4] = _coded(x, frequency[c, t], start[c, t])
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    i = whole - 4
    while i >= 0:
        c, t = contexts[i + 3], tokens[i + 3]
        if x3 >= _limit(frequency[c, t]):
            at -= 1
            out[at] = np.uint16(x3 & _LAST)
            x3 >>= _WORD
        x3 = _coded(x3, frequency[c, t], start[c, t])
        c, t = contexts[i + 2], tokens[i + 2]
        if x2 >= _limit(frequency[c, t]):
            at -= 1
            out[at] = np.uint16(x2 & _LAST)
            x2 >>= _WORD
        x2 = _coded(x2, frequency[c, t], start[c, t])
        c, t = contexts[i + 1], tokens[i + 1]
        if x1 >= _limit(frequency[c, t]):
            at -= 1
            out[at] = np.uint16(x1 & _LAST)
            x1 >>= _WORD
        x1 = _coded(x1, frequency[c, t], start[c, t])
        c, t = contexts[i], tokens[i]
        if x0 >= _limit(frequency[c, t]):
            at -= 1
            out[at] = np.uint16(x0 & _LAST)
            x0 >>= _WORD
        x0 = _coded(x0, frequency[c, t], start[c, t])
        i -= 4
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return int(at)


@njit(nogil=True, cache=True)
def _decode(
    words: Any, states: Any, contexts: Any, frequency: Any, start: Any, table: Any, tokens: Any
) -> int:
    """Tokens of all symbols. Returns how many words were read, or -1 where they end too early.

    The caller gives four more words than there are, so that four lanes may read at once.
    """
    n = tokens.size
    last = words.size - 4
    at, i = 0, 0
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    while i + 3 < n and at <= last:
        c, slot = contexts[i], x0 & _MASK
        t = table[c, slot]
        tokens[i] = t
        x0 = _decoded(x0, slot, frequency[c, t], start[c, t])
        if x0 < _LOWEST:
            x0 = (x0 << _WORD) | np.uint64(words[at])
            at += 1
        c, slot = contexts[i + 1], x1 & _MASK
        t = table[c, slot]
        tokens[i + 1] = t
        x1 = _decoded(x1, slot, frequency[c, t], start[c, t])
        if x1 < _LOWEST:
            x1 = (x1 << _WORD) | np.uint64(words[at])
            at += 1
        c, slot = contexts[i + 2], x2 & _MASK
        t = table[c, slot]
        tokens[i + 2] = t
        x2 = _decoded(x2, slot, frequency[c, t], start[c, t])
        if x2 < _LOWEST:
            x2 = (x2 << _WORD) | np.uint64(words[at])
            at += 1
        c, slot = contexts[i + 3], x3 & _MASK
        t = table[c, slot]
        tokens[i + 3] = t
        x3 = _decoded(x3, slot, frequency[c, t], start[c, t])
        if x3 < _LOWEST:
            x3 = (x3 << _WORD) | np.uint64(words[at])
            at += 1
        i += 4
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    while i < n and at <= last:
        c, slot = contexts[i], states[i % 4] & _MASK
        t = table[c, slot]
        tokens[i] = t
        x = _decoded(states[i % 4], slot, frequency[c, t], start[c, t])
        if x < _LOWEST:
            x = (x << _WORD) | np.uint64(words[at])
            at += 1
        states[i % 4] = x
        i += 1
    return int(at) if i == n and at <= last else -1


@njit(nogil=True, cache=True)
def lookup(frequency: Any) -> Any:
    """table[context, slot]: the token whose interval holds the slot. Rows sum to 2**14."""
    table = np.empty((frequency.shape[0], _UNITS), dtype=np.uint8)
    for c in range(frequency.shape[0]):
        at = 0
        for t in range(frequency.shape[1]):
            for _ in range(frequency[c, t]):
                table[c, at] = t
                at += 1
    return table


def encode(
    contexts: npt.NDArray[np.uint8],
    tokens: npt.NDArray[np.uint8],
    frequency: npt.NDArray[np.uint32],
    start: npt.NDArray[np.uint32],
) -> Coded:
    """The four final states, which a reader starts from, and the words in reading order.

    contexts, tokens: (n,), indices into `frequency`, (contexts, tokens), whose rows sum to 2**14
    with a frequency above 0 for every symbol that occurs; `start` is its cumulative sum before.
    """
    out = np.empty(tokens.size + 4, dtype=np.uint16)  # a symbol writes at most one word
    states = np.full(STATES, _LOW, dtype=np.uint64)
    at = _encode(contexts, tokens, frequency, start, out, states)
    return states.astype(np.uint32), out[at:]


def decode(
    coded: Coded,
    contexts: npt.NDArray[np.uint8],
    frequency: npt.NDArray[np.uint32],
    start: npt.NDArray[np.uint32],
    table: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8] | None:
    """The tokens, (n,), or None where states and words are not what `encode` gives.

    A sound stream ends with every word read and all states back at 2**16.
    """
    states = coded[0].astype(np.uint64)
    if (states < _LOW).any():
        return None
    words = np.concatenate([coded[1], np.zeros(4, dtype=np.uint16)])
    tokens = np.empty(contexts.size, dtype=np.uint8)
    used = _decode(words, states, contexts, frequency, start, table, tokens)
    if used != coded[1].size or (states != _LOW).any():
        return None
    return tokens
