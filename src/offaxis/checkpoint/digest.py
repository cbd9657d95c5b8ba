"""XXH3-128: fast enough to check every byte, and enough to tell damage from soundness.

It is no signature: whoever can write the file can also write a digest that fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

__all__ = ["DIGEST_BYTES", "Digest", "checksum", "content_digest", "file_digest"]

DIGEST_BYTES = 16
_BLOCK = 1 << 22

Digest = xxhash.xxh3_128
"""An incremental digest, seed 0; `.digest()` is big-endian (xxHash's canonical form)."""


def checksum(data: Any) -> str:
    """The digest of some bytes, as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def file_digest(path: Path, *, stop: int | None = None) -> bytes:
    """The digest of a file's bytes, or of the first `stop` of them."""
    found = Digest()
    left = path.stat().st_size if stop is None else stop
    with path.open("rb") as file:
        while left and (block := file.read(min(_BLOCK, left))):
            found.update(block)
            left -= len(block)
    return bytes(found.digest())


def content_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """One digest for a model, whatever its sharding: of its tensors (name, dtype, shape, checksum).

    Of the lines `name TAB dtype TAB extents joined by commas TAB checksum LF`, sorted as UTF-8.
    """
    lines = sorted(
        f"{name}\t{dtype}\t{','.join(map(str, shape))}\t{found}\n".encode()
        for name, dtype, shape, found in tensors
    )
    return checksum(b"".join(lines))
