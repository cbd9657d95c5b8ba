"""The *small* codec: integer differences of bit patterns, entropy-coded in the entry's context.

The bytes are specified in docs/delta-format.md, "Codec small".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from offaxis.delta import contexts, rans, tables
from offaxis.delta.compress import squeeze, unsqueeze
from offaxis.delta.contexts import Shifts
from offaxis.delta.tokens import (
    alphabet,
    count_tokens,
    tokenise,
    tokens_alone,
    untokenise,
)
from offaxis.delta.words import Sequence, Words
from offaxis.kernels.pool import for_each

__all__ = ["CHUNK", "Coder", "Model", "analyse", "pack_shifts", "unpack_shifts"]

CHUNK = 1 << 18
"""Entries of a chunk. Chunks are coded apart, with the same tables."""

_HEAD = 4 * (1 + rans.STATES)
NARROWEST = 32
"""A matrix with fewer rows or columns has no shifts."""
MOST_SIDES = 1 << 24
"""Nor has one with more rows and columns together."""

_SIDE_LEVEL = 12

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Model:
    """What the reader of one tensor must be told: tables, which contexts use them, and shifts."""

    first: npt.NDArray[np.int64]
    """(tables,): table t serves the contexts from first[t] to first[t + 1] - 1; first[0] is 0."""
    codes: tables.Tables
    shifts: Shifts | None = None


class Coder:
    """A model made ready to code and decode chunks with."""

    def __init__(self, model: Model, words: Words) -> None:
        """Raises ValueError where the model contradicts itself."""
        size = words.exponents * (1 if model.shifts is None else 2)
        first = model.first
        if first[0] != 0 or (np.diff(first) <= 0).any() or first[-1] >= size:
            raise ValueError("the contexts of its tables are not in order")
        if model.codes.shape[1] > alphabet(words.bits):
            raise ValueError(f"it has {model.codes.shape[1]} tokens for {words.bits}-bit words")
        found = tables.frequencies(model.codes)
        if found is None:
            raise ValueError("one of its probability tables is not one")
        self.words = words
        self._offsets = contexts.offsets(model.shifts, words) if model.shifts else None
        self.frequency, self.start = found
        lengths = np.diff(np.append(first, size))
        table_of = np.repeat(np.arange(first.size, dtype=np.uint8), lengths)
        self._table_of = table_of if model.shifts is None else contexts.spread(table_of)
        self._slots: npt.NDArray[np.uint8] | None = None

    def _contexts(self, base: Array, at: int) -> Array:
        if self._offsets is None:
            return contexts.plain(base, self.words, self._table_of)
        return contexts.shifted(base, at, self.words, self._offsets, self._table_of)

    def encode(self, base: Array, tuned: Array, at: int) -> bytes:
        """One chunk: the tensor's words from entry `at` on, both sides (n,)."""
        tokens, extra = _tokens(base, tuned)
        states, words = rans.encode(self._contexts(base, at), tokens, self.frequency, self.start)
        head = np.array([words.size, *states], dtype="<u4")
        return b"".join(part.tobytes() for part in (head, words, extra))

    def decode(self, chunk: Any, base: Array, at: int, out: Array) -> None:
        """Fill `out`, (n,), with the tuned words. Raises ValueError where the chunk is damaged."""
        if len(chunk) < _HEAD:
            raise ValueError(f"a chunk has {len(chunk)} bytes, fewer than its head")
        count, *states = np.frombuffer(chunk, "<u4", 1 + rans.STATES).tolist()
        rest = len(chunk) - _HEAD - 2 * count
        if rest < 0 or rest % 4:
            raise ValueError(f"a chunk of {len(chunk)} bytes announces {count} words")
        words = np.frombuffer(chunk, "<u2", count, _HEAD)
        extra = np.frombuffer(bytes(chunk[_HEAD + 2 * count :]), "<u4")
        if self._slots is None:
            self._slots = rans.lookup(self.frequency)
        coded = (np.array(states, dtype=np.uint32), words)
        tokens = rans.decode(coded, self._contexts(base, at), self.frequency, self.start,
                             self._slots)  # fmt: skip
        if tokens is None or untokenise(base, tokens, extra, out) != extra.size:
            raise ValueError("a chunk does not decode")


def pack_shifts(shifts: Shifts) -> bytes:
    """R, then C, in one zstd frame."""
    return squeeze(b"".join(side.tobytes() for side in shifts), level=_SIDE_LEVEL)


def unpack_shifts(frame: Any, shape: tuple[int, ...]) -> Shifts:
    """R and C of a matrix (of more axes: all but the last are rows). Raises ValueError."""
    width = shape[-1] if len(shape) > 1 else 0
    height = prod(shape[:-1])
    if min(height, width) < NARROWEST or height + width > MOST_SIDES:
        raise ValueError(f"shifts by row and column for the shape {shape!s:.200}")
    found = np.frombuffer(unsqueeze(frame, height + width), dtype=np.int8)
    if max(int(found.max()), -int(found.min())) > contexts.SHIFT_LIMIT:
        raise ValueError(f"a shift lies outside ±{contexts.SHIFT_LIMIT}")
    return found[:height], found[height:]


def _tokens(base: Array, tuned: Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Tokens, (n,), and the words of their raw bits."""
    tokens = np.empty(base.size, dtype=np.uint8)
    extra = np.empty(2 + base.nbytes // 4, dtype=np.uint32)
    used = tokenise(base, tuned, tokens, extra)
    return tokens, extra[:used]


class _Analysis:
    """The passes over one tensor that find its model."""

    def __init__(self, base: Sequence, tuned: Array, words: Words, shape: tuple[int, ...]) -> None:
        self.base, self.tuned, self.words = base, tuned, words
        self.width = shape[-1] if len(shape) > 1 else 0
        self.height = base.size // self.width if self.width else 0
        step = CHUNK if not self.width else max(1, CHUNK // self.width) * self.width
        self.spans = [(at, min(at + step, base.size)) for at in range(0, base.size, step)]

    @property
    def wide(self) -> bool:
        """Whether shifts by row and column are worth trying."""
        sides = min(self.height, self.width) >= NARROWEST and self.height + self.width <= MOST_SIDES
        return sides and self.words.exponent_bits > 0

    def _over(self, function: Callable[[int, Array, Array], tuple[Array, ...]]) -> list[Array]:
        """The sums of what `function(start, base, tuned)` returns, over spans of whole rows."""
        totals: list[Array] = []
        lock = threading.Lock()

        def add(span: tuple[int, int]) -> None:
            found = function(span[0], self.base[slice(*span)], self.tuned[slice(*span)])
            with lock:
                if not totals:
                    totals.extend(found)
                else:
                    for total, part in zip(totals, found, strict=True):
                        np.add(total, part, out=total)

        for_each(add, self.spans)
        return totals

    def plain(self) -> npt.NDArray[np.int64]:
        """Counts by exponent and token; the way that rows and columns moved is kept."""
        own = np.arange(self.words.exponents, dtype=np.uint8)
        self._moved = (np.zeros(self.height, np.int64), np.zeros(self.width, np.int64))

        def count(start: int, base: Array, tuned: Array) -> tuple[Array, Array]:
            tokens = tokens_alone(base, tuned)
            columns = np.zeros_like(self._moved[1])
            if self.wide:
                contexts.add_moved(tokens, (self._moved[0][self._rows(start, base)], columns))
            return self._count(contexts.plain(base, self.words, own), tokens, own.size), columns

        counts, columns = self._over(count)
        self._moved[1][:] = columns
        return counts

    def shifted(self, shifts: Shifts) -> npt.NDArray[np.int64]:
        """Counts by shifted context and token."""
        own = np.arange(2 * self.words.exponents, dtype=np.uint16)
        table = contexts.spread(own)
        where = contexts.offsets(shifts, self.words)

        def count(start: int, base: Array, tuned: Array) -> tuple[Array]:
            found = contexts.shifted(base, start, self.words, where, table)
            return (self._count(found, tokens_alone(base, tuned), own.size),)

        return self._over(count)[0]

    def shifts(self, counts: npt.NDArray[np.int64]) -> Shifts:
        """How far each row and each column moved beside what its exponents let expect."""
        rows = np.zeros(self.height, dtype=np.int64)

        def add(start: int, base: Array, _: Array) -> tuple[Array]:
            columns = np.zeros(self.width, dtype=np.int64)
            contexts.add_expected(
                base, self.words, counts, (rows[self._rows(start, base)], columns)
            )
            return (columns,)

        (columns,) = self._over(add)
        moved = self._moved
        return contexts.shifts_of(moved[0], rows), contexts.shifts_of(moved[1], columns)

    def _rows(self, start: int, base: Array) -> slice:
        return slice(start // self.width, start // self.width + base.size // self.width)

    def _count(self, found: Array, tokens: Array, size: int) -> npt.NDArray[np.int64]:
        out = np.zeros((size, alphabet(self.words.bits)), dtype=np.int64)
        count_tokens(found, tokens, out)
        return out


def analyse(
    base: Sequence, tuned: Array, words: Words, shape: tuple[int, ...]
) -> tuple[Model, int]:
    """The model that codes a tensor in the fewest bytes, and how many entries differ.

    base, tuned: the words of the whole tensor, (n,), n > 0. Shifts by row and column are tried on
    matrices (of more axes: all but the last are rows) and kept where they pay for themselves.
    """
    found = _Analysis(base, tuned, words, shape)
    counts = found.plain()
    first, codes, bits = tables.fit(counts)
    model, changed = Model(first, codes), int(counts[:, 1:].sum())
    if found.wide and changed:
        shifts = found.shifts(counts)
        first, codes, shifted_bits = tables.fit(found.shifted(shifts))
        if shifted_bits + sum(map(_bits, shifts)) < bits:
            model = Model(first, codes, shifts)
    return model, changed


def _bits(shifts: npt.NDArray[np.int8]) -> int:
    """About 2**16 times the bits of rows' or columns' shifts: their entropy, and a frame's head."""
    seen = np.bincount(shifts.astype(np.int64) + contexts.SHIFT_LIMIT)
    return int(tables.entropy(seen)) + (64 << 16)
