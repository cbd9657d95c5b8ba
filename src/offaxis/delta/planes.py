"""The *planes* codec, for tensors without a base worth knowing: byte planes under zstd.

The bytes of the words are sorted by significance, so that exponents, which compress, lie apart from
mantissas, which do not. Specified in docs/delta-format.md, "Codec planes".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from offaxis.delta.compress import squeeze, unsqueeze

__all__ = ["CHUNK", "decode", "encode", "merge_planes", "split_planes"]

CHUNK = 1 << 20
"""Words of a chunk."""

_LEVEL = 3

Array = npt.NDArray[Any]


def split_planes(words: Array) -> npt.NDArray[np.uint8]:
    """The bytes of the words by significance, lowest first: (itemsize, n)."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T)


def merge_planes(planes: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> Array:
    """The words, (n,), from their lowest planes, (k, n); planes above the k-th are zero."""
    out = np.zeros((planes.shape[1], dtype.itemsize), dtype=np.uint8)
    for index, plane in enumerate(planes):
        out[:, index] = plane
    return out.view(dtype).reshape(-1)


def encode(words: Array) -> bytes:
    """One chunk of words, (n,), n <= CHUNK."""
    return squeeze(split_planes(words).data, level=_LEVEL)


def decode(chunk: Any, out: Array) -> None:
    """Fill `out`, (n,), with the words. Raises ValueError where the chunk is damaged."""
    raw = np.frombuffer(unsqueeze(chunk, out.nbytes), dtype=np.uint8)
    out[:] = merge_planes(raw.reshape(out.itemsize, -1), out.dtype)
