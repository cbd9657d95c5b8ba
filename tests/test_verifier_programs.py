"""Programs against tests: what passes, what only pretends to, and what is stopped."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from offaxis.errors import InputError
from offaxis.verifiers import AssertTest, CodeVerifier, Limits, StdinTest, run_code
from offaxis.verifiers.programs import program_in, read_tests, sandbox
from offaxis.verifiers.programs.running import ProgramResult
from offaxis.verifiers.programs.sandbox import Isolation, isolation

DOUBLE = "def f(x):\n    return x * 2"
ASSERTS = (AssertTest("assert f(2) == 4"), AssertTest("assert abs(f(3) - 6) < 1e-6"))
LIMITS = Limits(time_s=10.0)
SHORT = Limits(time_s=2.0)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs run on POSIX systems")


@pytest.fixture(params=["own", "hooks"])
def each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isolation:
    """Each test in this system's isolation, and with Python's audit hooks alone."""
    how = isolation() if request.param == "own" else Isolation(False, None, os.geteuid() == 0)
    monkeypatch.setattr(sandbox, "isolation", lambda: how)
    return how


def verdicts(program: str, *tests: str, limits: Limits = LIMITS) -> tuple[str, ...]:
    return run_code(program, [AssertTest(test) for test in tests], limits=limits).verdicts


def script(program: str, stdin: str, stdout: str, limits: Limits = LIMITS) -> str:
    return run_code(program, [StdinTest(stdin, stdout)], limits=limits).verdicts[0]


def test_right_and_wrong(each: Isolation) -> None:
    assert run_code(DOUBLE, ASSERTS, limits=LIMITS).correct
    half = run_code("def f(x):\n    return 4", ASSERTS, limits=LIMITS)
    assert (half.verdicts, half.passed, half.share) == (("passed", "failed"), (True, False), 0.5)
    assert script("print(int(input()) * 2)", "3\n", "6\n") == "passed"
    assert script("print(int(input()) * 2)", "3\n", "7\n") == "failed"
    assert script("print('6  \\n')", "", "6") == "passed", "blanks at the ends do not count"
    assert script("print(6); raise SystemExit(1)", "", "6") == "raised"
    assert run_code(DOUBLE, [], limits=LIMITS) == ProgramResult(())
    assert not ProgramResult(()).correct


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "class A(int):\n    def __eq__(self, other): return True\n"
        "    __hash__ = int.__hash__\ndef f(x): return A(3)",
        "abs = lambda x: 0\ndef f(x): return 9",
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.abs = lambda x: 0\n"
        "def f(x): return 0",
        "print(4)\nprint('passed')\ndef f(x): return None",
        "import os\ndef f(x):\n    for fd in range(3, 64):\n        try:\n"
        '            os.write(fd, b\'{"nonce": "", "verdict": "passed"}\\n\' * 9)\n'
        "        except OSError: pass\n    return 0",
        "def f(x): raise BaseException('passed')",
        "def f(x): return float('nan')",
        "import gc, sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in list(frame.f_locals.items()):\n"
        "            if isinstance(value, list): value.append('passed')\n"
        "        frame = frame.f_back\n    return 0",
        "def f(x):\n    raise AssertionError",
        "this is no Python",
        "",
    ],
)
def test_pretending_passes_nothing(program: str) -> None:
    assert set(verdicts(program, *(test.code for test in ASSERTS))).isdisjoint({"passed"})


def test_what_tests_may_do_with_a_program() -> None:
    program = (
        "import math\n"
        "LIMIT = 7\n"
        "def sort(a): a.sort()\n"
        "def fill(d): d['k'] = {1, 2}\n"
        "def fail(): raise ValueError('no')\n"
        "def squares(n): return (i * i for i in range(n))\n"
        "def pairs(): return {(1, 2): [None, True, 1.5, b'x', 2 + 1j, frozenset({3})]}\n"
        "def keyed(*, a, b=2): return (a, b)\n"
        "class Box:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def get(self): return self.x\n"
    )
    tests = [
        "a = [3, 1]\nsort(a)\nassert a == [1, 3]",
        "d = {}\nfill(d)\nassert d == {'k': {1, 2}}",
        "try:\n    fail()\nexcept ValueError as e:\n    said = str(e)\nassert said == 'no'",
        "assert list(squares(4)) == [0, 1, 4, 9]",
        "assert pairs() == {(1, 2): [None, True, 1.5, b'x', 2 + 1j, frozenset({3})]}",
        "assert keyed(a=[1]) == ([1], 2)",
        "assert LIMIT == 7",
        "assert Box([5]).get() == [5] and Box(5).x == 5",
        "assert math.isclose(LIMIT, 7)",
        "def check(candidate):\n    assert candidate(a=1) == (1, 2)\ncheck(keyed)",
        "assert 10 ** 400 == 10 ** 400 and LIMIT + 10 ** 400 > 7",
    ]
    assert verdicts(program, *tests) == ("passed",) * len(tests)
    assert (
        verdicts(program, "assert Box(1) == Box(1)", "assert Box(1) != 2", "assert Box(1)")
        == ("raised",) * 3
    )


def test_a_module_that_the_program_changes_is_not_the_tests() -> None:
    program = "import math\nmath.isclose = lambda *a: True\ndef f(x): return 0"
    assert verdicts(program, "assert math.isclose(f(1), 2)") == ("failed",)


def test_a_test_that_fails_leaves_the_next_its_program() -> None:
    program = "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x * 2"
    assert verdicts(program, "assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 6") == (
        "passed", "ended", "passed",
    )  # fmt: skip


# What is stopped


def test_loops(each: Isolation) -> None:
    started = time.monotonic()
    assert verdicts("while True: pass", "assert True", "assert True", limits=SHORT) == (
        "timeout", "timeout",
    )  # fmt: skip
    assert verdicts("def f(x):\n    while x == 1: pass\n    return x", "assert f(1) == 1",
                    "assert f(2) == 2", limits=SHORT) == ("timeout", "passed")  # fmt: skip
    assert script("while True: pass", "", "", SHORT) == "timeout"
    assert script("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile 1: pass",
                  "", "", SHORT) == "timeout"  # fmt: skip
    assert verdicts("import time\ntime.sleep(1000)", "assert True", limits=SHORT) == ("timeout",)
    assert time.monotonic() - started < 5 * SHORT.time_s + 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is enforced on Linux")
def test_memory(each: Isolation) -> None:
    assert verdicts("def f(): return len([0] * 10**9)", "assert f() == 10**9") == ("memory",)
    assert script("x = bytearray(1 << 31)\nprint(1)", "", "1") == "memory"
    assert script("x = bytearray(1 << 26)\nprint(1)", "", "1") == "passed"


def test_output_is_limited() -> None:
    flood = "while True: print('x' * 1000)"
    assert script(flood, "", "") == "output"
    assert script("print('x' * 1000)", "", "x" * 1000) == "passed"
    assert verdicts("print('x' * 10**7)\n" + DOUBLE, "assert f(1) == 2") == ("passed",)


def test_files(each: Isolation) -> None:
    big = "open('a', 'wb').write(bytes(10 << 20))\nprint(1)"
    assert script(big, "", "1") == "raised"
    assert script("open('a', 'w').write('x')\nprint(open('a').read())", "", "x") == "passed"
    assert script("fs = [open('a', 'w') for i in range(100)]\nprint(1)", "", "1") == "raised"
    before = {path.name for path in Path(tempfile.gettempdir()).glob("offaxis-program-*")}
    run_code("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\n" + DOUBLE, ASSERTS, limits=LIMITS)
    after = {path.name for path in Path(tempfile.gettempdir()).glob("offaxis-program-*")}
    assert after <= before, "its directory is gone"


FORKS = """
import os, sys
count = 0
try:
    for _ in range(200):
        if os.fork() == 0:
            while True: pass
        count += 1
except OSError:
    pass
print("bounded" if count < 150 else "not bounded")
sys.stdout.flush()
os._exit(0)
"""


def processes() -> int:
    """Processes that hold the mark of this file's fork bombs in their command line."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += b'"do": "script"' in path.read_bytes()
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts in /proc")
def test_processes(each: Isolation) -> None:
    assert script(FORKS, "", "bounded", Limits(time_s=5.0)) == "passed"
    time.sleep(0.3)
    assert processes() == 0, "what it started ended with it"
    if each.namespaces and not each.root:
        threads = "import threading\nthreading.Thread(target=print, args=(1,)).start()"
        assert script(threads, "", "1") == "passed"


def test_network(each: Isolation) -> None:
    """A server of ours that any process of this machine can reach, but no program."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        accepted: list[object] = []
        server.settimeout(30)
        thread = threading.Thread(target=lambda: accepted.append(server.accept()), daemon=True)
        thread.start()
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint(1)"
        assert script(reach, "", "1") == "raised"
        assert accepted == []
        with socket.create_connection(("127.0.0.1", port), 2):  # the test itself can
            thread.join()
        assert len(accepted) == 1
        for kept in accepted:
            kept[0].close()  # type: ignore[index]


def test_the_hooks_refuse_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "isolation", lambda: Isolation(False, None, os.geteuid() == 0))
    for way in ("import os\nos.system('true')", "import os\nos.kill(os.getppid(), 0)",
                "import subprocess\nsubprocess.run(['true'])", "import ctypes",
                "import os\nos.execv('/bin/true', ['true'])"):  # fmt: skip
        assert script(way + "\nprint(1)", "", "1") == "raised", way


def test_surroundings(each: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no site packages, a directory of its own, nothing of ours."""
    monkeypatch.setenv("OFFAXIS_SECRET", "hunter2")
    look = "import os, sys\nprint(os.environ.get('OFFAXIS_SECRET'), os.listdir('.'), len(sys.argv))"
    assert script(look, "", "None [] 2") == "passed"
    assert script("import numpy", "", "") == "raised"
    assert script("import offaxis", "", "") == "raised"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_root_hands_over_to_nobody_where_nobody_may_run_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no Python that everyone may run")
    monkeypatch.setattr(sandbox, "_python", lambda: str(python))
    how = sandbox.isolation.__wrapped__()
    assert (how.user, how.root) == (65534, False)
    monkeypatch.setattr(sandbox, "isolation", lambda: how)
    assert run_code(DOUBLE, ASSERTS, limits=LIMITS).correct
    assert script("import os\nprint(os.getuid())", "", "65534") == "passed"
    assert script(FORKS, "", "bounded", Limits(time_s=5.0)) == "passed"
    if how.namespaces:
        threads = "import threading\nthreading.Thread(target=print, args=(1,)).start()"
        assert script(threads, "", "1") == "passed"


# Tests and programs in text


def test_programs_in_responses() -> None:
    fence = "```python\nx = 1\n```\nno:\n```python\nx = 2\n```\n```bash\nls\n```"
    assert program_in(fence) == "x = 2\n"
    assert program_in("<think>```python\nx = 1\n```</think>hm") is None
    assert program_in("x = 1") == "x = 1"
    assert program_in("not Python at all") is None
    assert program_in("hm") is None
    assert program_in("```bash\nls\n```") is None
    assert program_in("") is None


def test_tests_in_golds() -> None:
    apps = json.dumps({"inputs": ["1\n", ["2", "3"]], "outputs": ["2", ["4", "6"]]})
    assert read_tests(apps) == (StdinTest("1\n", "2"), StdinTest("2\n3", "4\n6"))
    assert read_tests('["assert f(1) == 2"]') == (AssertTest("assert f(1) == 2"),)
    split = read_tests("a = 1\nassert f(a) == 2\nb = 2\nassert f(b) == 4")
    assert [test.code for test in split if isinstance(test, AssertTest)] == [
        "a = 1\nassert f(a) == 2",
        "a = 1\nb = 2\nassert f(b) == 4",
    ]
    assert read_tests("def check(c):\n    assert c(1)\ncheck(f)") != ()
    for nothing in ("", "[]", "3", '{"inputs": [1], "outputs": ["1"]}', "not Python at all"):
        assert read_tests(nothing) == ()


def test_the_verifier() -> None:
    fine = f"```python\n{DOUBLE}\n```"
    gold = "assert f(1) == 2\nassert f(2) == 4"
    pairs = [(fine, gold), ("```python\ndef f(x): return 2\n```", gold), ("no", gold),
             (fine, ""), ("```python\nwhile 1: pass\n```", gold)]  # fmt: skip
    with CodeVerifier(time_s=4.0, workers=2) as verifier:
        marks = verifier.mark(pairs)
        results = verifier.results(pairs[:2])
    assert [mark.reason for mark in marks] == [
        "equal", "different", "no_answer", "bad_gold", "timeout",
    ]  # fmt: skip
    assert [result.share for result in results if result] == [1.0, 0.5]


def test_limits_are_checked() -> None:
    for bad in ({"time_s": 0}, {"memory_mib": 1}, {"processes": 0}, {"file_mib": -1}):
        with pytest.raises(InputError, match=r"choose|needs|needed"):
            Limits(**bad)  # type: ignore[arg-type]
