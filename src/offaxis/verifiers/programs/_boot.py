"""Inside the sandbox: limits and refusals first, then the program or the checker.

The last part of the text that a bare interpreter (`python -I -S -c`) is handed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

if "offaxis" in __name__:  # in the bare interpreter one text holds all
    from offaxis.verifiers.programs._checker import check
    from offaxis.verifiers.programs._served import run_script, serve

MEMORY = 79
"""Exit status of a script that ran out of memory."""
_REFUSED = {
    "network": ("socket.",),
    "signals": ("os.kill", "os.killpg"),
    "processes": ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
                  "pty.", "ctypes."),
}  # fmt: skip
_NATIVE = frozenset({"_ctypes", "_posixsubprocess"})  # ways around the hooks


def bound(limits: dict[str, int]) -> None:
    """Set each resource limit for good. One that the system does not know stays unset."""
    import resource

    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def refuse(kinds: list[str]) -> None:
    """Refuse these kinds of events from Python: all there is where the system bounds nothing."""
    events = tuple(event for kind in kinds for event in _REFUSED[kind])

    def hook(event: str, arguments: Any) -> None:
        native = event == "import" and arguments[0] in _NATIVE
        if native or event.startswith(events):
            raise PermissionError(f"{event} is not allowed here")

    if events:
        sys.addaudithook(hook)


def hide() -> None:
    """Keep other processes of this user out of this one's memory and descriptors (Linux)."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _text(fd: int) -> str:
    with os.fdopen(fd, encoding="utf-8", errors="surrogatepass") as file:
        file.seek(0)
        return file.read()


def boot(settings: dict[str, Any]) -> None:
    """Do what the settings say: `script`, `serve` or `check`."""
    text = _text(settings["text"])
    pipes = [os.fdopen(fd, mode) for fd, mode in zip(settings["pipes"], "rww", strict=False)]
    if settings["do"] == "check":
        hide()
    bound(settings["limits"])
    refuse(settings["refuse"])
    if settings["do"] == "script":
        try:
            run_script(text)
        except MemoryError:
            os._exit(MEMORY)
    elif settings["do"] == "serve":
        serve(text, *pipes)
    else:
        job = json.loads(text)
        check(job["tests"], job["nonce"], *pipes)


if __name__ == "__main__":
    boot(json.loads(sys.argv[1]))
