"""Ways to make a delta in memory, one interface: offaxis' two codecs, and layouts that others use.

All of them work alike: tensor by tensor over as many workers as there are processors
(`kernels.pool.in_order`, as `offaxis.delta.pack` does), the chunks of a tensor over the same number
of threads, from arrays in memory to bytes in memory and back into arrays that exist already. With
digests, packing takes XXH3-128 of both sides of each tensor, and applying checks the base's and the
result's; a tensor whose digests are equal is not coded at all.

The rivals work on blocks of 2**20 entries (2 MB):

`zstd -3`: the tuned words alone, as they are.
`XOR planes zstd -3`: base XOR tuned, lower bytes, then upper bytes, as one zstd frame.
`PULSE-like`: the values, not the differences, of the changed entries. (1) gap of each changed entry
from the one before (0 for neighbours), as uint8 if all gaps of a block are below 256, else as
LEB128 varints (smaller than uint16 on every pair tried); (2) the new words of the changed entries.
Each of the two is one zstd -1 frame. After arXiv:2602.03839, which has SHA-256 for a digest; here
it is XXH3-128, as for all. Its loops are compiled, as offaxis' are.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numba import njit

from delta_pairs import WORDS, Array, Tensor, load
from offaxis.checkpoint.digest import Digest, checksum
from offaxis.delta.coding import Decoder, encode
from offaxis.delta.compress import squeeze, unsqueeze
from offaxis.delta.side import read_models, write_models
from offaxis.delta.small import Model
from offaxis.kernels.pool import for_each, in_order, threads

_BLOCK = 1 << 20
_PARALLEL_FROM = 8  # chunks, as in offaxis.delta.opened


@dataclass(frozen=True)
class Stream:
    """One coded tensor, and the digests of its sides where they were taken."""

    codec: str
    parts: tuple[bytes, ...]
    digests: tuple[str, str] | None
    model: Model | None = None


@dataclass(frozen=True)
class Packed:
    """A coded model. side: bytes that belong to no single tensor."""

    streams: list[Stream]
    side: bytes = b""
    side_size: int = 0

    @property
    def size(self) -> int:
        return len(self.side) + sum(len(part) for one in self.streams for part in one.parts)


class Method:
    """One way to code tensors. Subclasses say how one tensor goes to a stream and back."""

    name: str

    def encode(self, tensor: Tensor) -> Stream:
        raise NotImplementedError

    def decode(self, stream: Stream, tensor: Tensor, out: Array) -> Iterator[tuple[int, int]]:
        """Fill `out`; yields each span [start, stop) once it is there, in order."""
        raise NotImplementedError

    def close(self, streams: list[Stream]) -> Packed:
        return Packed(streams)

    def reopen(self, packed: Packed) -> list[Stream]:
        return packed.streams

    def pack(self, tensors: Sequence[Tensor], *, digests: bool) -> Packed:
        def one(tensor: Tensor) -> Stream:
            if not digests:
                return self.encode(tensor)
            found = (checksum(tensor.base), checksum(tensor.tuned))
            if found[0] == found[1]:
                return Stream("same", (), found)
            made = self.encode(tensor)
            return Stream(made.codec, made.parts, found, made.model)

        return self.close(list(in_order(one, tensors, threads())))

    def apply(self, packed: Packed, tensors: Sequence[Tensor], outs: Sequence[Array]) -> None:
        """Fill `outs` from the tensors' base sides; digests are checked where there are some."""
        jobs = zip(self.reopen(packed), tensors, outs, strict=True)
        for _ in in_order(lambda job: self._one(*job), jobs, threads()):
            pass

    def _one(self, stream: Stream, tensor: Tensor, out: Array) -> Array:
        if stream.digests is None:
            for _ in self.decode(stream, tensor, out):
                pass
            return out
        if checksum(tensor.base) != stream.digests[0]:
            raise SystemExit(f"{self.name}: {tensor.name}: the base has another digest")
        if stream.codec == "same":
            out[:] = tensor.base
            return out
        found = Digest()
        for start, stop in self.decode(stream, tensor, out):
            found.update(out[start:stop])
        if found.hexdigest() != stream.digests[1]:
            raise SystemExit(f"{self.name}: {tensor.name}: the result has another digest")
        return out

    def pack_files(self, base: Path, tuned: Path, delta: Path) -> None:
        packed = self.pack(load(base, tuned, resident=False), digests=True)
        with delta.open("wb") as file:
            pickle.dump(packed, file, protocol=5)

    def apply_files(self, base: Path, delta: Path, out: Path) -> None:
        """Write the tuned tensors' bytes, without a header, to the file `out`."""
        tensors = load(base, base, resident=False)
        with delta.open("rb") as file:
            packed = pickle.load(file)
        jobs = zip(self.reopen(packed), tensors, strict=True)
        with out.open("wb") as file:
            for array in in_order(lambda j: self._one(*j, np.empty_like(j[1].base)), jobs,
                                  threads()):  # fmt: skip
                file.write(array)


def _groups(number: int) -> Iterator[range]:
    """Chunks that are decoded at once, as in offaxis.delta.opened."""
    at_once = threads() if number >= _PARALLEL_FROM else 1
    for first in range(0, number, at_once):
        yield range(first, min(first + at_once, number))


class Offaxis(Method):
    """`small` or `fast`, by `offaxis.delta.coding`."""

    def __init__(self, codec: str) -> None:
        self.name, self.codec = f"offaxis {codec}", codec

    def encode(self, tensor: Tensor) -> Stream:
        made = encode(self.codec, tensor.base, tensor.tuned, WORDS, tensor.shape)
        return Stream(made.codec, (b"".join(made.parts),), None, made.model)

    def decode(self, stream: Stream, tensor: Tensor, out: Array) -> Iterator[tuple[int, int]]:
        decoder = Decoder(stream.codec, memoryview(stream.parts[0]), size=out.size, words=WORDS,
                          shape=tensor.shape, model=stream.model)  # fmt: skip

        def chunk(index: int) -> tuple[int, int]:
            start, stop = decoder.spans[index]
            decoder.decode(index, tensor.base, out[start:stop])
            return start, stop

        for group in _groups(len(decoder.spans)):
            yield from for_each(chunk, group)

    def close(self, streams: list[Stream]) -> Packed:
        side = write_models(one.model for one in streams if one.model is not None)
        bare = [Stream(one.codec, one.parts, one.digests) for one in streams]
        return Packed(bare, squeeze(side, level=19), len(side))

    def reopen(self, packed: Packed) -> list[Stream]:
        models = read_models(unsqueeze(packed.side, packed.side_size))
        return [
            Stream(
                one.codec, one.parts, one.digests, next(models) if one.codec == "small" else None
            )
            for one in packed.streams
        ]


_local = threading.local()


def _squeeze(data: Any, level: int) -> bytes:
    held = _local.__dict__.setdefault("compressors", {})
    if level not in held:
        held[level] = zstandard.ZstdCompressor(level=level)
    out: bytes = held[level].compress(data)
    return out


def _unsqueeze(frame: bytes) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    out: bytes = _local.decompressor.decompress(frame)
    return out


class Blocks(Method):
    """A rival that codes each block of a tensor by itself, into `pieces` byte strings."""

    pieces = 1

    def encode_block(self, base: Array, tuned: Array) -> tuple[bytes, ...]:
        raise NotImplementedError

    def decode_block(self, parts: tuple[bytes, ...], base: Array, out: Array) -> None:
        raise NotImplementedError

    def encode(self, tensor: Tensor) -> Stream:
        def block(at: int) -> tuple[bytes, ...]:
            return self.encode_block(tensor.base[at : at + _BLOCK], tensor.tuned[at : at + _BLOCK])

        found = for_each(block, range(0, tensor.base.size, _BLOCK))
        return Stream(self.name, tuple(part for parts in found for part in parts), None)

    def decode(self, stream: Stream, tensor: Tensor, out: Array) -> Iterator[tuple[int, int]]:
        def block(index: int) -> tuple[int, int]:
            start, stop = index * _BLOCK, min((index + 1) * _BLOCK, out.size)
            parts = stream.parts[self.pieces * index : self.pieces * (index + 1)]
            self.decode_block(parts, tensor.base[start:stop], out[start:stop])
            return start, stop

        for group in _groups(-(-out.size // _BLOCK)):
            yield from for_each(block, group)


class Zstd(Blocks):
    name = "zstd -3"

    def encode_block(self, base: Array, tuned: Array) -> tuple[bytes, ...]:
        return (_squeeze(tuned, 3),)

    def decode_block(self, parts: tuple[bytes, ...], base: Array, out: Array) -> None:
        out[:] = np.frombuffer(_unsqueeze(parts[0]), dtype=out.dtype)


class Xor(Blocks):
    name = "XOR planes zstd -3"

    def encode_block(self, base: Array, tuned: Array) -> tuple[bytes, ...]:
        both = base ^ tuned
        planes = np.concatenate([both.astype(np.uint8), (both >> 8).astype(np.uint8)])
        return (_squeeze(planes, 3),)

    def decode_block(self, parts: tuple[bytes, ...], base: Array, out: Array) -> None:
        planes = np.frombuffer(_unsqueeze(parts[0]), dtype=np.uint8)
        np.left_shift(planes[out.size :], np.uint16(8), out=out, dtype=np.uint16)
        out |= planes[: out.size]
        out ^= base


@njit(nogil=True, cache=True)
def _gather(base: Any, tuned: Any, gaps: Any, values: Any) -> int:
    """Gaps and new words of the changed entries, without a branch. Returns how many changed."""
    count, last = 0, 0
    for i in range(base.size):
        gaps[count], values[count] = i - last, tuned[i]
        moved = base[i] != tuned[i]
        count += moved
        last = i + 1 if moved else last
    return count


@njit(nogil=True, cache=True)
def _to_leb128(gaps: Any, out: Any) -> int:
    at = 0
    for gap in gaps:
        rest = gap
        while rest >= 128:
            out[at] = np.uint8(rest & 127 | 128)
            at += 1
            rest >>= 7
        out[at] = np.uint8(rest)
        at += 1
    return at


@njit(nogil=True, cache=True)
def _scatter(gaps: Any, values: Any, varints: bool, out: Any) -> None:
    at, count, held, shift = 0, 0, 0, 0
    for byte in gaps:
        if varints:
            held |= (int(byte) & 127) << shift
            shift += 7
            if byte & 128:
                continue
        else:
            held = int(byte)
        at += held
        out[at] = values[count]
        at, count, held, shift = at + 1, count + 1, 0, 0


class Pulse(Blocks):
    name, pieces = "PULSE-like", 2

    def encode_block(self, base: Array, tuned: Array) -> tuple[bytes, ...]:
        gaps, values = np.empty(base.size, dtype=np.uint32), np.empty_like(tuned)
        count = _gather(base, tuned, gaps, values)
        gaps, values = gaps[:count], values[:count]
        varints = bool(gaps.max(initial=0) > 255)
        written = np.empty(3 * count if varints else count, dtype=np.uint8)  # gaps are below 2**20
        if varints:
            written = written[: _to_leb128(gaps, written)]
        else:
            written[:] = gaps
        return bytes([varints]) + _squeeze(written, 1), _squeeze(values, 1)

    def decode_block(self, parts: tuple[bytes, ...], base: Array, out: Array) -> None:
        gaps = np.frombuffer(_unsqueeze(parts[0][1:]), dtype=np.uint8)
        values = np.frombuffer(_unsqueeze(parts[1]), dtype=np.uint16)
        out[:] = base
        _scatter(gaps, values, bool(parts[0][0]), out)


def methods() -> list[Method]:
    return [Offaxis("small"), Offaxis("fast"), Zstd(), Xor(), Pulse()]
