"""Messages over a pipe: four bytes of length, then JSON."""

from __future__ import annotations

import json
import os
import selectors
import time
from typing import Any

__all__ = ["LARGEST", "Closed", "read_frame", "write_frame"]

LARGEST = 1 << 24
"""Bytes of a message; a longer one is taken for damage."""


class Closed(Exception):
    """The other end is gone, or what came from it is no message."""


def write_frame(fd: int, message: Any) -> None:
    """Write one message. Raises Closed where no one reads."""
    body = json.dumps(message).encode("ascii")
    data = memoryview(len(body).to_bytes(4, "big") + body)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise Closed(str(error)) from error


def _read(fd: int, count: int, deadline: float | None) -> bytes:
    pieces = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while len(pieces) < count:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and (left <= 0 or not selector.select(left)):
                raise TimeoutError
            piece = os.read(fd, count - len(pieces))
            if not piece:
                raise Closed("end of file")
            pieces += piece
    return bytes(pieces)


def read_frame(fd: int, *, deadline: float | None = None) -> Any:
    """The next message. Closed at the end of file, TimeoutError past `deadline` (monotonic)."""
    size = int.from_bytes(_read(fd, 4, deadline), "big")
    if size > LARGEST:
        raise Closed(f"{size} bytes announced")
    try:
        return json.loads(_read(fd, size, deadline))
    except ValueError as error:
        raise Closed(str(error)) from error
