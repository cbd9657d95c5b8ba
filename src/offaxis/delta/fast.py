"""The *fast* codec: where entries changed and by how many ULPs, as bytes for zstd.

The bytes are specified in docs/delta-format.md, "Codec fast". A chunk is *sparse* (the gaps between
changed entries, and their differences) or *full* (the differences of all entries). Differences are
the zig-zag words of `tokens`, cut into byte planes: for 16-bit words nearly all of the upper plane
is zero, and most of the lower is 1 or 2.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from offaxis.delta.compress import squeeze, unsqueeze
from offaxis.delta.planes import merge_planes, split_planes
from offaxis.delta.zigzag import moved, zigzag

__all__ = ["CHUNK", "decode", "encode"]

CHUNK = 1 << 20
"""Entries of a chunk."""

_LEVEL = 1
_FULL_FROM = 0.5  # share of changed entries above which all differences are written
_BLOCK = 4096  # entries that are looked through at once
_LONG = 255  # a gap byte that says: 255 unchanged entries, and the gap goes on
_SPARSE, _FULL = 0, 1
_HEAD = struct.Struct("<BIIB")  # kind, words, gap bytes, planes

Array = npt.NDArray[Any]


@njit(nogil=True, cache=True)
def _count(base: Any, tuned: Any) -> int:
    total = 0
    for i in range(base.size):
        total += base[i] != tuned[i]
    return total


@njit(nogil=True, cache=True)
def _find(base: Any, tuned: Any, found: Any) -> int:
    """Where entries differ, into `found`. Every position is written and kept or overwritten, which
    costs less than a branch that nobody can predict."""
    count = np.uint32(0)
    for i in range(base.size):
        found[count] = i
        count += np.uint32(base[i] != tuned[i])
    return int(count)


@njit(nogil=True, cache=True)
def _sparse(base: Any, tuned: Any, gaps: Any, words: Any) -> int:
    """Gaps and zig-zag differences of the changed entries. Returns how many gap bytes there are."""
    one, zero = base.dtype.type(1), base.dtype.type(0)
    top = base.dtype.type(base.itemsize * 8 - 1)
    found = np.empty(_BLOCK, dtype=np.uint16)
    used, count, last = 0, 0, 0
    for start in range(0, base.size, _BLOCK):
        stop = min(start + _BLOCK, base.size)
        b, t = base[start:stop], tuned[start:stop]
        for k in range(_find(b, t, found)):
            i = found[k]
            gap = start + i - last
            last = start + i + 1
            while gap >= _LONG:
                gaps[used] = _LONG
                used += 1
                gap -= _LONG
            gaps[used] = gap
            used += 1
            d = base.dtype.type(t[i] - b[i])
            words[count] = zigzag(d, one, zero, top)
            count += 1
    return used


@njit(nogil=True, cache=True)
def _full(base: Any, tuned: Any, words: Any) -> None:
    one, zero = base.dtype.type(1), base.dtype.type(0)
    top = base.dtype.type(base.itemsize * 8 - 1)
    for i in range(base.size):
        d = base.dtype.type(tuned[i] - base[i])
        words[i] = zigzag(d, one, zero, top)


@njit(nogil=True, cache=True)
def _apply_sparse(base: Any, gaps: Any, words: Any, tuned: Any) -> bool:
    """False where the gaps leave the chunk or their number is not that of the words."""
    one, zero = base.dtype.type(1), base.dtype.type(0)
    at, count = 0, 0
    for i in range(base.size):
        tuned[i] = base[i]
    for g in range(gaps.size):
        at += int(gaps[g])
        if gaps[g] == _LONG:
            continue
        if at >= base.size or count >= words.size:
            return False
        tuned[at] = moved(base[at], words[count], one, zero)
        at += 1
        count += 1
    return bool(count == words.size)


@njit(nogil=True, cache=True)
def _apply_full(base: Any, words: Any, tuned: Any) -> None:
    one, zero = base.dtype.type(1), base.dtype.type(0)
    for i in range(base.size):
        tuned[i] = moved(base[i], words[i], one, zero)


def _planes(words: Array) -> list[Array]:
    """The planes of the words, lowest first; planes of zeros at the top are left out."""
    kept = list(split_planes(words))
    while kept and not kept[-1].any():
        kept.pop()
    return kept


def encode(base: Array, tuned: Array) -> tuple[bytes, int]:
    """One chunk of words, (n,) on both sides, n <= CHUNK, and how many of them differ."""
    count = _count(base, tuned)
    sparse = count < _FULL_FROM * base.size
    gaps = np.empty(count + base.size // _LONG if sparse else 0, dtype=np.uint8)
    words = np.empty(count if sparse else base.size, dtype=base.dtype)
    if sparse:
        gaps = gaps[: _sparse(base, tuned, gaps, words)]
    else:
        _full(base, tuned, words)
    planes = _planes(words)
    streams = [gaps, *planes] if gaps.size else planes
    frames = [squeeze(stream.data, level=_LEVEL) for stream in streams]
    head = _HEAD.pack(_SPARSE if sparse else _FULL, words.size, gaps.size, len(planes))
    sizes = np.array([len(frame) for frame in frames], dtype="<u4")
    return b"".join([head, sizes.tobytes(), *frames]), count


def _streams(chunk: Any, base: Array) -> tuple[bool, list[bytes], list[bytes]]:
    """Whether the chunk is full, its gap stream (none or one) and its planes."""
    if len(chunk) < _HEAD.size:
        raise ValueError(f"a chunk has {len(chunk)} bytes, fewer than its head")
    kind, count, gap_bytes, planes = _HEAD.unpack_from(chunk)
    full = kind == _FULL
    gaps = int(gap_bytes > 0)
    sound = kind in {_SPARSE, _FULL} and planes <= base.itemsize and count <= base.size
    if full:
        sound &= count == base.size and not gaps
    else:
        sound &= count <= gap_bytes <= count + base.size // _LONG
    at = _HEAD.size + 4 * (gaps + planes)
    if not sound or len(chunk) < at:
        raise ValueError("the head of a chunk contradicts itself")
    sizes = np.frombuffer(chunk, "<u4", gaps + planes, _HEAD.size).tolist()
    if at + sum(sizes) != len(chunk):
        raise ValueError(f"a chunk of {len(chunk)} bytes announces {at + sum(sizes)}")
    streams = []
    for index, size in enumerate(sizes):
        streams.append(unsqueeze(chunk[at : at + size], gap_bytes if index < gaps else count))
        at += size
    return full, streams[:gaps], streams[gaps:]


def decode(chunk: Any, base: Array, out: Array) -> None:
    """Fill `out`, (n,), with the tuned words. Raises ValueError where the chunk is damaged."""
    full, gaps, found = _streams(memoryview(chunk), base)
    count = len(found[0]) if found else 0
    planes = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(len(found), count)
    if full:
        words = merge_planes(planes, base.dtype) if found else np.zeros_like(base)
        _apply_full(base, words, out)
        return
    words = merge_planes(planes, base.dtype)
    if not _apply_sparse(base, np.frombuffer(b"".join(gaps), dtype=np.uint8), words, out):
        raise ValueError("the gaps of a chunk do not fit it")
