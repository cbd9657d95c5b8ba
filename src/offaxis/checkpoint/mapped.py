"""Tensors as views of a mapped file: no copy, no anonymous memory until something writes.

The map is private (copy on write), so torch may treat it as writable, the file never changes, and
its pages count as file pages (RssFile), which the kernel may drop at any time.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import torch

from offaxis.checkpoint.dtypes import torch_dtype
from offaxis.checkpoint.header import Entry
from offaxis.errors import CheckpointError

__all__ = ["MappedFile"]

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE: a private map of a file larger than memory is not refused as overcommitment."""


class MappedFile:
    """One file, mapped when its first tensor is read."""

    def __init__(self, path: Path, *, size: int) -> None:
        self.path = path
        self._size = size
        self._map: mmap.mmap | None = None

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = _map(file.fileno())
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.path}: cannot be mapped ({error}); check that it is still there"
                ) from error
        if len(self._map) != self._size:
            raise CheckpointError(
                f"{self.path}: {len(self._map)} bytes, but {self._size} when it was opened; "
                "open it again once nothing writes to it"
            )
        return self._map

    def tensor(self, entry: Entry) -> torch.Tensor:
        """The tensor of `entry`, in its stored dtype and shape.

        A view of the map where the bytes are aligned to the element (writers pad the header so
        that they are), else a copy.
        """
        dtype = torch_dtype(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name!r} is {entry.dtype}, which torch cannot hold; "
                "dequantise the checkpoint first"
            )
        length = entry.stop - entry.start
        if length == 0:
            return torch.empty(entry.shape, dtype=dtype)
        raw = torch.frombuffer(self._mapped(), dtype=torch.uint8, count=length, offset=entry.start)
        if entry.start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)


def _map(descriptor: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(
        descriptor,
        0,
        flags=mmap.MAP_PRIVATE | _NORESERVE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
    )
