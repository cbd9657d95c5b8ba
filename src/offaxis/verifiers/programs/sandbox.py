"""Limited processes for untrusted Python: what bounds them, and what does not.

Bounded: wall clock (the whole session is killed), CPU time, address space, size and number of
files, number of processes; the environment is empty, the directory fresh. Where Linux gives an
unprivileged user namespaces, the program has its own network (without even a loopback) and its own
process ids, and ends as one with all that it started. Elsewhere Python's audit hooks refuse
sockets, signals and processes, which a determined program gets around. Root hands over to nobody
where nobody may run this Python; where not, hooks refuse processes, since no limit counts root's.

No security boundary: the program reads every file that its user may read, shares the kernel, and
can fill a disk with many small files until its time is over. Against an adversary use a container
without network, gVisor or a virtual machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from offaxis.errors import InputError, OffaxisError

__all__ = ["Isolation", "Job", "Limits", "end", "isolation", "room", "spawn"]

_NOBODY = 65534
_UNSHARE = ("--user", "--net", "--pid", "--fork", "--kill-child=KILL", "--")
_TRY = "print(1)"
_PROBE_S = 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use."""

    time_s: float = 5.0
    """Wall clock of one test, start-up (about 0.05 s) included."""
    memory_mib: int = 512
    """Address space of each of its processes; not enforced on macOS."""
    file_mib: int = 4
    """Size of any one file."""
    processes: int = 16
    """Processes and threads together; without namespaces, on top of those that the user has."""
    output_kib: int = 256
    """Standard output; a program that prints more has failed."""

    def __post_init__(self) -> None:
        if not 0 < self.time_s < 86_400:
            raise InputError(f"time_s {self.time_s}: choose seconds above 0 and below a day")
        if self.memory_mib < 64:
            raise InputError(f"memory_mib {self.memory_mib}: an interpreter needs 64 at least")
        if min(self.file_mib, self.output_kib) < 0 or self.processes < 1:
            raise InputError(
                f"file_mib {self.file_mib}, output_kib {self.output_kib}, processes "
                f"{self.processes}: none may be negative, and one process is needed"
            )

    def resources(self, runs: int) -> dict[str, int]:
        """The resource limits of a process that serves `runs` tests."""
        return {
            "RLIMIT_CPU": math.ceil(self.time_s * runs) + 1,
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.file_mib << 20,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": self.processes + (0 if isolation().namespaces else _tasks()),
        }


@dataclass(frozen=True, slots=True)
class Isolation:
    """What this system offers beyond resource limits."""

    namespaces: bool
    """Own network and process ids."""
    user: int | None
    """The user id that programs run under where it is not ours: nobody's, if we are root."""

    root: bool = False
    """Whether programs run as root, whose processes no limit counts."""

    @property
    def refused(self) -> list[str]:
        """What only Python's audit hooks keep programs from."""
        outside = [] if self.namespaces else ["network", "signals", "processes"]
        return outside or (["processes"] if self.root else [])


def _tasks() -> int:
    """Threads of all processes of the user that programs run under, where /proc tells; else 512.

    Within namespaces they are counted apart (Linux 5.14; before that no program can fork there).
    """
    user, count = isolation().user, 0
    user = os.getuid() if user is None else user
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if one.stat().st_uid == user:
                count += sum(1 for _ in (one / "task").iterdir())
    return count or 512


def _python() -> str:
    return getattr(sys, "_base_executable", None) or sys.executable


def _command(how: Isolation) -> list[str]:
    bare = [_python(), "-I", "-S", "-X", "utf8", "-c"]
    return ["unshare", *_UNSHARE, *bare] if how.namespaces else bare


def _as_user(how: Isolation) -> dict[str, Any]:
    if how.user is None:
        return {}
    return {"user": how.user, "group": how.user, "extra_groups": []}


@functools.cache
def isolation() -> Isolation:
    """The strongest isolation that works here, found by trying, once a process."""
    root = os.geteuid() == 0
    users = (_NOBODY, None) if root else (None,)
    ladder = [
        Isolation(spaces, user, root and user is None) for spaces in (True, False) for user in users
    ]
    for how in ladder:
        if how.namespaces and not shutil.which("unshare"):
            continue
        with room(how) as place, contextlib.suppress(OSError, subprocess.SubprocessError):
            tried = subprocess.run(
                [*_command(how), _TRY], cwd=place, env={"PATH": os.defpath}, timeout=_PROBE_S,
                capture_output=True, text=True, check=True, **_as_user(how),
            )  # fmt: skip
            if tried.stdout.strip():
                return how
    raise OffaxisError("no Python process could be started to run programs; check sys.executable")


@contextlib.contextmanager
def room(how: Isolation | None = None) -> Iterator[str]:
    """A fresh directory that the program's user owns, removed at the end with all that is in it."""
    how = how or isolation()
    place = tempfile.mkdtemp(prefix="offaxis-program-")
    try:
        if how.user is not None:
            os.chown(place, how.user, how.user)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@functools.cache
def _text() -> str:
    """All that runs inside, as one text for a bare interpreter."""
    here = files("offaxis.verifiers.programs")
    names = ("_wire.py", "_served.py", "_checker.py", "_boot.py")
    parts = [here.joinpath(name).read_text(encoding="utf-8") for name in names]
    return "\n".join(parts).replace("from __future__ import annotations\n", "")


Job: TypeAlias = Literal["script", "serve", "check"]


def spawn(
    do: Job,
    text: str,
    *,
    limits: dict[str, int],
    place: str,
    pipes: Sequence[int] = (),
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start one limited process on `text` (a program, or the checker's job)."""
    how = isolation()
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        settings = {
            "do": do,
            "text": file.fileno(),
            "pipes": list(pipes),
            "limits": limits,
            "refuse": how.refused if do != "check" else [],
        }
        return subprocess.Popen(
            [*_command(how), _text(), json.dumps(settings)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            cwd=place,
            env={"PATH": os.defpath},
            pass_fds=[file.fileno(), *pipes],
            start_new_session=True,
            **_as_user(how),
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the session of a process, and reap it."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
