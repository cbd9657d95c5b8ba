"""One tensor to a stream and back, chunk by chunk, whatever the codec.

A stream is one 32-bit length a chunk, then the chunks. `small` has one chunk more, the first: the
shifts of its rows and columns, empty where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offaxis.delta import fast, planes, small
from offaxis.delta.words import Sequence, Words
from offaxis.kernels.pool import for_each

__all__ = ["Decoder", "Encoded", "encode"]

Array = npt.NDArray[Any]
_CHUNKS = {"small": small.CHUNK, "fast": fast.CHUNK, "planes": planes.CHUNK, "raw": planes.CHUNK}
_WORTH_IT = 0.6  # a stream above this share of the tensor's bytes is held against `planes`


@dataclass(frozen=True)
class Encoded:
    """A coded tensor: its codec, stream in pieces, changed entries, and model (`small` alone)."""

    codec: str
    parts: tuple[bytes, ...]
    changed: int
    model: small.Model | None = None

    @property
    def length(self) -> int:
        return sum(map(len, self.parts))


def _spans(size: int, chunk: int) -> list[tuple[int, int]]:
    return [(at, min(at + chunk, size)) for at in range(0, size, chunk)]


def _stream(chunks: list[bytes]) -> tuple[bytes, ...]:
    return (np.array([len(chunk) for chunk in chunks], dtype="<u4").tobytes(), *chunks)


def encode(
    codec: str, base: Sequence | None, tuned: Array, words: Words, shape: tuple[int, ...]
) -> Encoded:
    """Code a tensor (words, (n,)) with `codec`, or denser where that saves nothing.

    base: the words that the reader has, as many as `tuned`; None where it has none.
    """
    if base is None or tuned.size == 0:
        return _plain(tuned)
    found = _small(base, tuned, words, shape) if codec == "small" else _fast(base, tuned)
    if found.length > _WORTH_IT * tuned.nbytes:
        other = _plain(tuned)
        if other.length < found.length:
            return Encoded(other.codec, other.parts, found.changed)
    return found


def _plain(tuned: Array) -> Encoded:
    spans = _spans(tuned.size, planes.CHUNK)
    parts = _stream(for_each(lambda span: planes.encode(tuned[slice(*span)]), spans))
    found = Encoded("planes", parts, tuned.size)
    return found if found.length < tuned.nbytes else Encoded("raw", (tuned.tobytes(),), tuned.size)


def _small(base: Sequence, tuned: Array, words: Words, shape: tuple[int, ...]) -> Encoded:
    model, changed = small.analyse(base, tuned, words, shape)
    coder = small.Coder(model, words)

    def chunk(span: tuple[int, int]) -> bytes:
        return coder.encode(base[slice(*span)], tuned[slice(*span)], span[0])

    shifts = small.pack_shifts(model.shifts) if model.shifts else b""
    chunks = for_each(chunk, _spans(tuned.size, small.CHUNK))
    return Encoded("small", _stream([shifts, *chunks]), changed, model)


def _fast(base: Sequence, tuned: Array) -> Encoded:
    def chunk(span: tuple[int, int]) -> tuple[bytes, int]:
        return fast.encode(base[slice(*span)], tuned[slice(*span)])

    found = for_each(chunk, _spans(tuned.size, fast.CHUNK))
    return Encoded("fast", _stream([data for data, _ in found]), sum(n for _, n in found))


class Decoder:
    """One stream, checked as far as its chunks' lengths go, to be decoded span by span."""

    def __init__(
        self,
        codec: str,
        stream: memoryview,
        *,
        size: int,
        words: Words,
        shape: tuple[int, ...],
        model: small.Model | None = None,
    ) -> None:
        """size: words of the tensor. Raises ValueError where the stream cannot be one of them."""
        self._codec, self._stream = codec, stream
        self._coder: small.Coder | None = None
        self._check_length(size, words)  # before anything is made of a size that may be a lie
        self.spans = _spans(size, _CHUNKS[codec])
        if codec == "raw":
            return
        self._ends = self._directory()
        if codec == "small":
            if model is None:
                raise ValueError("its tables are missing")
            self._coder = small.Coder(self._shifted(model, shape), words)

    def _check_length(self, size: int, words: Words) -> None:
        """The stream has the bytes of the tensor (`raw`), or room for the lengths of its chunks."""
        found, number = len(self._stream), -(-size // _CHUNKS[self._codec])
        if self._codec == "raw":
            if found != size * words.bits // 8:
                raise ValueError(f"{found} bytes are stored for {size * words.bits // 8}")
        elif found < 4 * (number + (self._codec == "small")):
            raise ValueError(f"a stream of {found} bytes has no room for {number} chunks")

    def _directory(self) -> Array:
        """Where each chunk ends in the stream; the first entry is where the first one starts."""
        number = len(self.spans) + (self._codec == "small")
        lengths = np.frombuffer(self._stream, "<u4", number).astype(np.int64)
        ends = 4 * number + np.concatenate([[0], np.cumsum(lengths)])
        if ends[-1] != len(self._stream):
            raise ValueError(f"its chunks end at byte {ends[-1]} of {len(self._stream)}")
        return ends

    def _shifted(self, model: small.Model, shape: tuple[int, ...]) -> small.Model:
        frame = self._stream[self._ends[0] : self._ends[1]]
        self._ends = self._ends[1:]
        if not len(frame):
            return model
        return small.Model(model.first, model.codes, small.unpack_shifts(frame, shape))

    def decode(self, index: int, base: Sequence | None, out: Array) -> None:
        """Fill `out` with the words of the span `index`. Raises ValueError on damage."""
        start, stop = self.spans[index]
        if self._codec == "raw":
            width = out.itemsize
            out[:] = np.frombuffer(self._stream[start * width : stop * width], dtype=out.dtype)
            return
        chunk = self._stream[self._ends[index] : self._ends[index + 1]]
        if self._codec == "planes":
            planes.decode(chunk, out)
            return
        assert base is not None
        if self._coder is not None:
            self._coder.decode(chunk, base[start:stop], start, out)
        else:
            fast.decode(chunk, base[start:stop], out)
