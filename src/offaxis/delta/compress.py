"""zstd frames whose sizes are known from elsewhere, one compressor a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import zstandard

__all__ = ["PIECE", "squeeze", "squeeze_file", "unsqueeze", "unsqueeze_file", "worth_it"]

PIECE = 1 << 22
"""Bytes of a file that are compressed together."""

_FILES = 3  # level for files that are no tensors

_local = threading.local()


def squeeze(data: Any, *, level: int) -> bytes:
    """One zstd frame without content size and checksum: the container holds both."""
    held = _local.__dict__.setdefault("compressors", {})
    if level not in held:
        held[level] = zstandard.ZstdCompressor(
            level=level, write_content_size=False, write_checksum=False, write_dict_id=False
        )
    out: bytes = held[level].compress(data)
    return out


def unsqueeze(frame: Any, size: int) -> bytes:
    """The `size` bytes of a frame. Raises ValueError where it is damaged or holds another number.

    Never allocates more than `size` bytes for them.
    """
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        # a size that the frame tells itself would be allocated whatever the limit is
        if zstandard.frame_content_size(frame) not in {-1, size}:
            raise ValueError(f"a compressed stream announces another size than {size} bytes")
        out: bytes = _local.decompressor.decompress(
            frame, max_output_size=max(size, 1), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed stream is damaged ({error})") from error
    if len(out) != size:
        raise ValueError(f"a compressed stream holds {len(out)} bytes, not {size}")
    return out


def worth_it(sample: bytes) -> bool:
    """Whether compressing more of what begins like this saves at least 3 %."""
    return bool(sample) and len(squeeze(sample, level=_FILES)) < 0.97 * len(sample)


def squeeze_file(stream: Any) -> Iterator[bytes]:
    """The pieces of an open file, each as a 32-bit length and a zstd frame of at most 4 MiB."""
    while block := stream.read(PIECE):
        frame = squeeze(block, level=_FILES)
        yield len(frame).to_bytes(4, "little") + frame


def unsqueeze_file(stream: memoryview, size: int) -> Iterator[bytes]:
    """The pieces of a file of `size` bytes. Raises ValueError as `unsqueeze`."""
    at = 0
    for start in range(0, size, PIECE):
        length = int.from_bytes(stream[at : at + 4], "little")
        at += 4
        if at + length > len(stream):
            raise ValueError(f"a piece ends at byte {at + length} of {len(stream)}")
        yield unsqueeze(stream[at : at + length], min(PIECE, size - start))
        at += length
    if at != len(stream):
        raise ValueError(f"its pieces end at byte {at} of {len(stream)}")
