"""zstd frames whose sizes are known from elsewhere, one compressor a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import zstandard

__all__ = ["squeeze", "squeeze_file", "unsqueeze", "unsqueeze_file", "worth_it"]

_FILES = 3  # level for files that are no tensors
_BLOCK = 1 << 22

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
    """All bytes of an open file as one zstd frame, in pieces."""
    found = zstandard.ZstdCompressor(level=_FILES, write_content_size=False).compressobj()
    while block := stream.read(_BLOCK):
        yield found.compress(block)
    yield found.flush()


def unsqueeze_file(frame: Any, size: int) -> Iterator[bytes]:
    """The `size` bytes of a frame, in pieces. Raises ValueError as `unsqueeze`."""
    seen = 0
    source = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        with source.stream_reader(frame, read_across_frames=False) as reader:
            while block := reader.read(_BLOCK):
                seen += len(block)
                if seen > size:
                    raise ValueError(f"a compressed file holds more than {size} bytes")
                yield block
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed file is damaged ({error})") from error
    if seen != size:
        raise ValueError(f"a compressed file holds {seen} bytes, not {size}")
