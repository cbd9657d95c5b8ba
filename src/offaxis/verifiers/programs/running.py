"""Running a program against tests, in processes that cannot say by themselves that they passed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from offaxis.verifiers.programs._boot import MEMORY
from offaxis.verifiers.programs.cases import AssertTest, StdinTest, Test
from offaxis.verifiers.programs.sandbox import Limits, end, room, spawn

__all__ = ["ProgramResult", "Verdict", "run_code"]

Verdict: TypeAlias = Literal["passed", "failed", "raised", "timeout", "memory", "output", "ended"]
_ENDED: Verdict = "ended"
_LONGEST = 1 << 20  # characters of a program


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What came of each test, in order."""

    verdicts: tuple[Verdict, ...]
    """`passed`; `failed` (other output, or an assert that does not hold); `raised`; `timeout`,
    `memory`, `output` (a limit was met); `ended` (the process was gone before the test was)."""

    @property
    def passed(self) -> tuple[bool, ...]:
        """Which tests passed."""
        return tuple(verdict == "passed" for verdict in self.verdicts)

    @property
    def share(self) -> float:
        """Share of tests that passed, in [0, 1]; 0 without tests."""
        return sum(self.passed) / len(self.verdicts) if self.verdicts else 0.0

    @property
    def correct(self) -> bool:
        """Whether there were tests and all passed."""
        return bool(self.verdicts) and all(self.passed)


def _output(process: subprocess.Popen[bytes], deadline: float, most: int) -> bytes | Verdict:
    """Standard output up to its end or the process's, or the limit that was met."""
    assert process.stdout is not None
    pieces = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            if not selector.select(min(left, 0.2)):
                if process.poll() is not None:  # and a child of its own holds the pipe
                    return bytes(pieces)
                continue
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return bytes(pieces)
            pieces += piece
            if len(pieces) > most:
                return "output"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _script(program: str, test: StdinTest, limits: Limits) -> Verdict:
    """One stdin test in a process of its own."""
    deadline = time.monotonic() + limits.time_s
    with room() as place, tempfile.TemporaryFile() as given:
        given.write(test.stdin.encode("utf-8", "surrogatepass"))
        given.seek(0)
        process = spawn(
            "script", program, limits=limits.resources(1), place=place, stdin=given,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            said = _output(process, deadline, limits.output_kib << 10)
            if isinstance(said, str):
                return said
            status = process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            end(process)
    if status:
        return "memory" if status == MEMORY else "raised"
    return "passed" if _lines(said.decode(errors="replace")) == _lines(test.stdout) else "failed"


@contextlib.contextmanager
def _checking(
    program: str, tests: Sequence[AssertTest], limits: Limits, nonce: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The pipe of verdicts and the program's process, while it and a checker run.

    The program's process never holds the pipe of verdicts, and the nonce is only in the checker's.
    """
    job = json.dumps({"tests": [test.code for test in tests], "nonce": nonce})
    bounds = limits.resources(len(tests))
    to_program, to_checker, verdicts = os.pipe(), os.pipe(), os.pipe()
    fds = {*to_program, *to_checker, *verdicts}
    processes: list[subprocess.Popen[bytes]] = []
    with room() as place, room() as other:
        try:
            pipes = (to_program[0], to_checker[1])
            processes.append(spawn("serve", program, limits=bounds, place=place, pipes=pipes))
            pipes_back = (to_checker[0], to_program[1], verdicts[1])
            processes.append(spawn("check", job, limits=bounds, place=other, pipes=pipes_back))
            for fd in fds - {verdicts[0]}:
                os.close(fd)
            fds = {verdicts[0]}
            yield verdicts[0], processes[0]
        finally:
            for process in processes:
                end(process)
            for fd in fds:
                os.close(fd)


def _heard(fd: int, rest: bytearray, deadline: float) -> dict[str, Any] | None:
    """The next line of the pipe as an object; None at its end. TimeoutError past the deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while b"\n" not in rest:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            piece = os.read(fd, 1 << 16)
            if not piece:
                return None
            rest += piece
    line, _, behind = bytes(rest).partition(b"\n")
    rest[:] = behind
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    return {}


def _session(program: str, tests: Sequence[AssertTest], limits: Limits) -> list[Verdict]:
    """Verdicts of as many tests as one pair of processes lives through, at least one."""
    nonce = secrets.token_hex(16)
    verdicts: list[Verdict] = []
    loaded = False
    with _checking(program, tests, limits, nonce) as (pipe, _):
        rest = bytearray()
        deadline = time.monotonic() + limits.time_s
        while len(verdicts) < len(tests):
            try:
                heard = _heard(pipe, rest, deadline)
            except TimeoutError:
                verdicts.append("timeout")
                break
            if heard is None:
                verdicts.append("ended")
                break
            if heard.get("nonce") != nonce:
                continue
            if "verdict" in heard:
                verdicts.append(heard["verdict"])
            loaded = True
            deadline = time.monotonic() + limits.time_s
    return verdicts if loaded else verdicts[:1] * len(tests)


def _asserts(program: str, tests: Sequence[AssertTest], limits: Limits) -> list[Verdict]:
    verdicts: list[Verdict] = []
    while len(verdicts) < len(tests):
        verdicts += _session(program, tests[len(verdicts) :], limits)
    return verdicts


def run_code(program: str, tests: Sequence[Test], *, limits: Limits | None = None) -> ProgramResult:
    """Run untrusted Python against tests; see `sandbox` for what bounds it and what does not.

    A stdin test is a process of its own. Assert tests run in a second process, the checker, which
    asks the program's process for the values of calls: they travel as built-in values, so exiting,
    printing what a test expects, or redefining `==` or `abs` passes nothing. Arguments that the
    program changes in place are changed for the test too. An object of a class of the program's
    can be called, indexed and iterated from a test, and not compared; names of built-ins that the
    program redefines are not the tests'. There is nothing outside the standard library.
    """
    limits = limits or Limits()
    if len(program) > _LONGEST:
        return ProgramResult(tuple(_ENDED for _ in tests))
    verdicts: list[Verdict] = [_ENDED] * len(tests)
    asserts = [(index, one) for index, one in enumerate(tests) if isinstance(one, AssertTest)]
    found = _asserts(program, [one for _, one in asserts], limits)
    for (index, _), verdict in zip(asserts, found, strict=True):
        verdicts[index] = verdict
    for index, one in enumerate(tests):
        if isinstance(one, StdinTest):
            verdicts[index] = _script(program, one, limits)
    return ProgramResult(tuple(verdicts))
