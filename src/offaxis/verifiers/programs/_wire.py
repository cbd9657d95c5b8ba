"""Inside the sandbox: values between the program's process and the checker's, as JSON lines.

Standard library alone: this text is handed to a bare interpreter. Only values of exactly the
built-in types travel as values; anything else stays where it is and travels as a handle.
"""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 60
_SCALARS: dict[type, tuple[Any, Any]] = {
    str: (str, str),
    int: (hex, lambda text: int(text, 16)),
    float: (float.hex, float.fromhex),
    complex: (
        lambda value: [value.real.hex(), value.imag.hex()],
        lambda parts: complex(*map(float.fromhex, parts)),
    ),
    bytes: (bytes.hex, bytes.fromhex),
    bytearray: (bytearray.hex, bytearray.fromhex),
}
"""How each built-in type is written, and read."""
_READERS = {kind.__name__: both[1] for kind, both in _SCALARS.items()}
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def pack(value: Any, handles: list[Any], depth: int = 0) -> Any:
    """`value` as JSON: None, True and False as they are, else tagged with its type or `handle`."""
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind in _SCALARS:
        return {kind.__name__: _SCALARS[kind][0](value)}
    if depth < _DEEPEST and kind in _SEQUENCES.values():
        return {kind.__name__: [pack(one, handles, depth + 1) for one in value]}
    if depth < _DEEPEST and kind is dict:
        pairs = (
            [pack(k, handles, depth + 1), pack(v, handles, depth + 1)] for k, v in value.items()
        )
        return {"dict": list(pairs)}
    handles.append(value)
    return {"handle": len(handles) - 1}


def unpack(data: Any, handle: Any) -> Any:
    """The value of `pack`ed data; `handle(number)` makes what stands for a handle."""
    if data is None or data is True or data is False:
        return data
    ((kind, content),) = data.items()
    if kind in _READERS:
        return _READERS[kind](content)
    if kind == "dict":
        return {unpack(k, handle): unpack(v, handle) for k, v in content}
    if kind == "handle":
        return handle(content)
    return _SEQUENCES[kind](unpack(one, handle) for one in content)


def send(pipe: Any, message: Any) -> None:
    """One message as a line."""
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


def receive(pipe: Any, longest: int = 1 << 24) -> Any:
    """The next message. EOFError at the end, or where a line is too long."""
    line = pipe.readline(longest)
    if not line.endswith("\n"):
        raise EOFError
    return json.loads(line)
