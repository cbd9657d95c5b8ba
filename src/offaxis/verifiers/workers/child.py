"""The worker's side: limits first, then one answer for each message until the pipe ends."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import sys
from typing import Any

from offaxis.verifiers.workers.frames import Closed, read_frame, write_frame

__all__ = ["main"]

_LOOK = 5.0  # seconds between two looks at whether the parent still lives
_FILE = 1 << 24  # bytes that the worker may write to any file


def _limit(memory_mib: int) -> None:
    """Bound address space, files and core dumps. What a system refuses to bound stays unbound."""
    import resource

    for kind, value in (
        ("RLIMIT_AS", memory_mib << 20),
        ("RLIMIT_FSIZE", _FILE),
        ("RLIMIT_CORE", 0),
    ):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, kind), (value, value))


def _own_pipes() -> tuple[int, int]:
    """The pipes to the parent under new numbers; what prints or reads by mistake finds nothing."""
    reading, writing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return reading, writing


def _reply(handle: Any, message: Any) -> Any:
    try:
        return {"value": handle(message)}
    except MemoryError:
        return {"failed": "memory"}
    except RecursionError:
        return {"failed": "error"}
    except Exception as error:  # any error of a hostile input is an outcome
        return {"failed": "error", "kind": type(error).__name__}


def main(module: str, function: str, memory_mib: int, parent: int) -> None:
    """Answer messages `{"message": ..., "alarm": seconds}` with `module.function(message)`.

    Ends at the end of file, and within seconds of the parent's death even where another process
    holds the pipe. The alarm is the kernel's and ends the process whatever it is doing: a parent
    that was killed leaves no worker behind.
    """
    _limit(memory_mib)
    reading, writing = _own_pipes()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    loaded = importlib.import_module(module)
    getattr(loaded, "prepare", lambda: None)()
    handle = getattr(loaded, function)
    write_frame(writing, {"ready": os.getpid()})
    with contextlib.suppress(Closed):
        while os.getppid() == parent:
            if not select.select([reading], [], [], _LOOK)[0]:
                continue
            frame = read_frame(reading)
            signal.setitimer(signal.ITIMER_REAL, frame["alarm"])
            reply = _reply(handle, frame["message"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            write_frame(writing, reply)
            if reply.get("failed") == "memory":
                break  # what an allocation failure has left behind is not trusted
    sys.stderr.flush()
    os._exit(0)
