"""The parent's side: workers that start when needed, are killed past their time, and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

from offaxis.errors import OffaxisError
from offaxis.verifiers.workers.frames import Closed, read_frame, write_frame

__all__ = ["Outcome", "Pool"]

_START = 120.0  # seconds for a worker's imports on a busy machine
_BOOT = (
    "import json,sys;s=json.loads(sys.argv[1]);sys.path[:]=s.pop('path');"
    "from offaxis.verifiers.workers.child import main;main(**s)"
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one message."""

    value: Any = None
    failed: str | None = None
    """`timeout`, `memory`, `error` (the worker died or raised), or None."""


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill and reap a worker, and close its pipes. A fork of the owner only closes its copies."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class _Worker:
    """One process and its pipes."""

    def __init__(self, module: str, function: str, memory_mib: int) -> None:
        settings = {
            "path": sys.path,
            "module": module,
            "function": function,
            "memory_mib": memory_mib,
            "parent": os.getpid(),
        }
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        with tempfile.TemporaryFile() as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent
            )
            self.owner = os.getpid()
            self.end = weakref.finalize(self, _end, self.process, self.owner)
            try:
                read_frame(self._reading, deadline=time.monotonic() + _START)
            except (Closed, TimeoutError) as error:
                self.end()
                raise OffaxisError(_why(said, memory_mib, self.process.returncode)) from error

    @property
    def _reading(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def ask(self, message: Any, timeout_s: float) -> Outcome:
        """The worker's reply. After any outcome but a value, the worker has ended."""
        assert self.process.stdin is not None
        deadline = time.monotonic() + timeout_s
        try:
            alarm = 2 * timeout_s + 5  # a second net, for a worker whose parent is gone
            write_frame(self.process.stdin.fileno(), {"message": message, "alarm": alarm})
            reply = read_frame(self._reading, deadline=deadline)
        except TimeoutError:
            self.end()
            return Outcome(failed="timeout")
        except Closed:
            self.end()
            return Outcome(failed="error")
        failed = reply.get("failed")
        if failed == "memory":
            self.end()
        return Outcome(reply.get("value"), failed)

    @property
    def usable(self) -> bool:
        """Whether it runs, and belongs to this process and not to the one this was forked from."""
        return self.end.alive and self.owner == os.getpid() and self.process.poll() is None


def _why(said: IO[bytes], memory_mib: int, code: int | None) -> str:
    """Why a worker did not start, in words."""
    said.seek(0)
    lines = said.read()[-4000:].decode(errors="replace").strip().splitlines()
    how = f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
    last = f": {lines[-1]}" if lines else ""
    return (
        f"a verifier's worker did not start ({how}{last}); check that offaxis[train] is installed "
        f"and that {memory_mib} MiB of address space are enough"
    )


class Pool:
    """Workers for one function, each in a process of its own.

    Plain children, started when first needed and not forked from this process, so threads and CUDA
    do no harm; each serves many messages. Threads of the caller take turns. Not for Windows.
    """

    def __init__(
        self, module: str, function: str, *, timeout_s: float, memory_mib: int, workers: int
    ) -> None:
        self._made_of = (module, function, memory_mib)
        self._timeout_s = timeout_s
        self._workers: list[_Worker | None] = [None] * workers
        self._lock = threading.Lock()

    def _ask(self, slot: int, message: Any) -> Outcome:
        worker = self._workers[slot]
        if worker is None or not worker.usable:
            if worker is not None:
                worker.end()
            worker = self._workers[slot] = _Worker(*self._made_of)
        return worker.ask(message, self._timeout_s)

    def map(self, messages: Sequence[Any]) -> list[Outcome]:
        """One outcome a message, in order; one that fails leaves the others as they would be."""
        outcomes: list[Outcome] = [Outcome(failed="error")] * len(messages)
        if not messages:
            return outcomes
        waiting = iter(range(len(messages)))

        def serve(slot: int) -> None:
            for index in waiting:
                outcomes[index] = self._ask(slot, messages[index])

        with self._lock:
            count = min(len(self._workers), len(messages))
            if count == 1:
                serve(0)
            else:
                with ThreadPoolExecutor(count) as threads:
                    list(threads.map(serve, range(count)))
        return outcomes

    def close(self) -> None:
        """End all workers. A later `map` starts new ones."""
        with self._lock:
            for slot, worker in enumerate(self._workers):
                if worker is not None:
                    worker.end()
                self._workers[slot] = None

    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [one.process.pid for one in self._workers if one is not None and one.usable]
