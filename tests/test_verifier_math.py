"""The mathematics verifier: agreement with labelled data, and inputs that hang, eat or kill."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offaxis.errors import InputError
from offaxis.verifiers import Mark, Match, MathVerifier
from offaxis.verifiers.workers import Pool

DATA = Path(__file__).parents[2] / "shared" / "data" / "verifier"
TOWER = "\\boxed{9^{9^{9^{9}}}}"
FINE = ("\\boxed{\\frac{x}{2}+\\frac{x}{2}}", "$x$")
LOOPS = {
    "tower of powers": TOWER,
    "factorial": "\\boxed{(10^{9})!}",
    "power": "\\boxed{2^{10^{10}}}",
    "sum": "\\boxed{\\sum_{k=1}^{10^{12}} k^k}",
}
LONG = {
    "100 000 brackets": "\\boxed{" + "(" * 100_000 + "1" + ")" * 100_000 + "}",
    "megabyte of digits": "1" * 1_000_000,
    "megabyte of letters": "a" * 1_000_000,
}
HOSTILE = {"brackets": "\\boxed{" + "(" * 900 + "x" + ")" * 900 + "}"} | LOOPS | LONG


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(timeout_s=20.0) as made:
        yield made


def rows(name: str) -> Any:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path} (local test material, see DESIGN.md)")
    text = path.read_text()
    return json.loads(text) if name.endswith(".json") else [*map(json.loads, text.splitlines())]


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        ("\\boxed{\\frac{63}{400}}", "\\frac{63}{400}", True),
        ("\\boxed{\\tfrac{1}{2}}", "0.5", True),
        ("$\\frac{x}{7}+\\frac{2}{7}$", "$\\frac{x+2}{7}$", True),
        ("$x = 11$", "11", True),
        ("the answer is $(0.6,2.6667]$", "$(\\frac{3}{5},\\frac{8}{3}]$", False),
        ("\\boxed{-2,1}", "\\boxed{1} and \\boxed{-2}", True),
        ("\\boxed{(2,1)}", "(1,2)", False),
        ("\\boxed{\\text{yes}}", "yes", True),
        ("\\boxed{24 + 14*x + (-13)*x^2 - 2*x^3 + x^4}", "$x^{4}-2 x^{3}-13 x^{2}+14 x+24$", True),
        ("\\boxed{x^10}", "$x^{10}$", True),
        ("\\boxed{sqrt(2)}", "\\frac{\\sqrt{8}}{2}", True),
        # math-verify 0.9 alone calls these equal
        ("$1 + \\frac{1}{\\mathrm{e}}$", "$1 - \\frac{1}{\\mathrm{e}}$", False),
        ("$12_{5}$", "$12$", False),
        ("$0.0000002$", "$0.0000001$", False),
        # whoever hedges has not answered
        ("\\boxed{5} or \\boxed{6}", "5", False),
        ("\\boxed{5, 6, 7}", "5", False),
        ("The answer is 5 or 6.", "6", False),
        ("1, 2, 3, 4, 5, 6, 7, 8", "8", False),
        ("\\boxed{5 \\text{ or } 6}", "5", False),
        ("\\boxed{x > 5}", "5", False),
        ("\\boxed{\\pm 5}", "5", False),
        ("\\boxed{}  5", "5", False),
    ],
)
def test_marks(verifier: MathVerifier, response: str, gold: str, correct: bool) -> None:
    assert verifier.mark([(response, gold)])[0].correct is correct


def test_reasons(verifier: MathVerifier) -> None:
    pairs = [("\\boxed{5}", "5"), ("\\boxed{6}", "5"), ("none", "5"), ("\\boxed{5}", ""), ("", "")]
    marks = verifier.mark(pairs)
    assert [mark.reason for mark in marks] == [
        "equal", "different", "no_answer", "bad_gold", "bad_gold",
    ]  # fmt: skip
    assert [mark.answer for mark in marks] == ["5", "6", None, "5", None]
    assert verifier.mark([]) == []


def test_a_calculation_is_no_answer_where_that_is_asked() -> None:
    with MathVerifier(match=Match(worked_out=True)) as strict, MathVerifier() as loose:
        assert loose.mark([("\\boxed{(16-3-4) \\cdot 2}", "18")])[0].correct
        pairs = [("\\boxed{(16-3-4) \\cdot 2}", "18"), ("\\boxed{x = 18}", "18"), ("$18.00", "18")]
        assert [mark.correct for mark in strict.mark(pairs)] == [False, True, True]


def test_gsm8k_responses(verifier: MathVerifier) -> None:
    data = rows("labelled_responses_gsm8k.jsonl")
    marks = verifier.mark([(row["response"], row["gold"]) for row in data])
    wrong = [
        row["id"] for row, mark in zip(data, marks, strict=True) if mark.correct != row["label"]
    ]
    assert len(data) == 5276
    assert wrong == []
    forms = ["So it is \\boxed{%s}.", "#### %s", "The answer is $%s.", "**Answer:** %s dollars"]
    some = data[::25]
    for form in forms:
        stated = [form % row["response"].rpartition("A:")[2].strip() for row in some]
        found = verifier.mark([*zip(stated, (row["gold"] for row in some), strict=True)])
        assert [mark.correct for mark in found] == [row["label"] for row in some], form


def settings_of(options: dict[str, Any]) -> Match:
    """What a case's suite asks for, as `Match`."""
    exact = "strict exact" in options.get("note", "")
    return Match(
        plain=options.get("match_types") != ["latex"],
        precision=None if exact else options.get("precision", 6),
        percent="literal" if exact else "either",
        strict=options.get("strict", True),
        relation_as_set=options.get("allow_set_relation_comp", False),
    )


def test_labelled_pairs() -> None:
    """All but five, which docs/verifier.md explains one by one."""
    cases = rows("verifier_cases.json")["verify"]
    wrong = []
    with MathVerifier(timeout_s=20.0) as verifier:
        for index, case in enumerate(cases):
            verifier.match = settings_of(case["options"])  # one worker serves them all
            mark = verifier.mark([(case["prediction"], case["gold"])])[0]
            wrong += [index] if mark.correct != case["expected"] else []
    assert len(cases) == 309
    assert wrong == [190, 217, 263, 291, 299]


# Limits


def test_hostile_responses_end_and_harm_no_other() -> None:
    pairs = [pair for text in HOSTILE.values() for pair in ((text, "$x+7$"), FINE)]
    with MathVerifier(timeout_s=3.0) as verifier:  # a busy machine is no hostile response
        verifier.mark([FINE])
        started = time.monotonic()
        marks = verifier.mark(pairs)
        assert time.monotonic() - started < 10 * len(HOSTILE)  # a second, and a worker's start
    assert all(mark.correct for mark in marks[1::2])
    found = dict(zip(HOSTILE, (mark.reason for mark in marks[::2]), strict=True))
    assert found.pop("brackets") in ("timeout", "different"), "as deep as the tail's limits allow"
    assert found == dict.fromkeys(LOOPS, "timeout") | dict.fromkeys(LONG, "no_answer")


def test_a_timeout_kills_the_worker_and_another_takes_its_place() -> None:
    with MathVerifier(timeout_s=1.0) as verifier:
        verifier.mark([FINE])
        (first,) = verifier._pool.pids()
        assert verifier.mark([(TOWER, "$x+7$")])[0].reason == "timeout"
        assert not Path(f"/proc/{first}").exists() or not Path("/proc").exists()
        assert verifier.mark([FINE])[0].correct
        assert verifier._pool.pids() != [first]
        (second,) = verifier._pool.pids()
        verifier.mark([FINE] * 3)
        assert verifier._pool.pids() == [second], "a worker serves many pairs"


def test_numbers_need_no_worker() -> None:
    with MathVerifier() as verifier:
        verifier.mark([("A: 5", "5"), ("A: 5", "6"), ("A: 1/2", "0.5"), ("none", "5")])
        assert verifier._pool.pids() == []


def test_a_worker_that_is_killed_from_outside_is_an_error_for_its_pair_alone() -> None:
    with MathVerifier(timeout_s=30.0) as verifier:
        verifier.mark([FINE])
        (pid,) = verifier._pool.pids()
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        marks = verifier.mark([(TOWER, "$x+7$"), FINE])
    assert [mark.reason for mark in marks] == ["error", "equal"]


def test_memory_is_limited() -> None:
    """In the worker itself: an allocation beyond the limit fails, and is told."""
    pool = Pool("json", "loads", timeout_s=20.0, memory_mib=256, workers=1)
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_AS is enforced on Linux")
    assert pool.map(["[1]"])[0].value == [1]
    pool.close()
    eater = Pool("operator", "length_hint", timeout_s=20.0, memory_mib=256, workers=1)
    assert eater.map([[1, 2]])[0].value == 2
    eater.close()
    hungry = Pool("builtins", "bytearray", timeout_s=20.0, memory_mib=256, workers=1)
    assert hungry.map([1 << 30])[0].failed == "memory"
    hungry.close()


def test_threads_take_turns() -> None:
    found: dict[int, list[Mark]] = {}
    with MathVerifier(timeout_s=20.0, workers=2) as verifier:

        def work(number: int) -> None:
            pairs = [(f"\\boxed{{x+{number}}}", f"${i}+x$") for i in range(4)]
            found[number] = verifier.mark(pairs)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(verifier._pool.pids()) <= 2
    for number, marks in found.items():
        assert [mark.correct for mark in marks] == [i == number for i in range(4)]


def test_it_can_be_closed_used_again_and_pickled() -> None:
    verifier = MathVerifier(timeout_s=20.0, match=Match(precision=2))
    assert verifier.mark([FINE])[0].correct
    copy = pickle.loads(pickle.dumps(verifier))
    assert (copy.match, copy.timeout_s) == (verifier.match, 20.0)
    assert copy._pool.pids() == []
    verifier.close()
    assert verifier._pool.pids() == []
    assert verifier.mark([FINE])[0].correct
    verifier.close()


def child(code: str) -> subprocess.Popen[str]:
    """A process that uses a verifier and tells its worker's id."""
    start = """
        import os, signal, sys, time
        from offaxis.verifiers import MathVerifier
        verifier = MathVerifier(timeout_s=3.0)
        verifier.mark([("\\\\boxed{x+1}", "$1+x$")])
        print(*verifier._pool.pids(), flush=True)
    """
    text = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def gone(pid: int, within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("code", "within"),
    [
        ("", 10.0),  # a plain end of the interpreter
        ("os.kill(os.getpid(), signal.SIGKILL)", 10.0),
        ("os._exit(0)", 10.0),
        ("if os.fork() == 0: time.sleep(60)\nelse: os.kill(os.getpid(), signal.SIGKILL)", 20.0),
        (  # killed while its worker computes: the kernel's alarm ends it
            "import threading\n"
            "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
            "verifier.mark([('\\\\boxed{9^{9^{9^{9}}}}', '$x+7$')])",
            30.0,
        ),
    ],
    ids=["end", "killed", "_exit", "forked and killed", "killed at work"],
)
def test_no_worker_outlives_its_process(code: str, within: float) -> None:
    process = child(code)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    process.wait()
    assert gone(pid, within)


def test_a_fork_starts_a_worker_of_its_own() -> None:
    process = child(
        """
        mine = verifier._pool.pids()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            fine = verifier.mark([("\\\\boxed{x+1}", "$1+x$")])[0].correct
            own = verifier._pool.pids() != mine
            verifier.close()
            os.write(writing, b"y" if fine and own else b"n")
            os._exit(0)
        said = os.read(reading, 1)
        os.waitpid(child, 0)
        assert said == b"y", said
        assert verifier.mark([("\\\\boxed{x+1}", "$1+x$")])[0].correct
        assert verifier._pool.pids() == mine
        """
    )
    process.communicate()
    assert process.returncode == 0


def test_settings_are_checked() -> None:
    for bad in ({"timeout_s": 0}, {"memory_mib": 10}, {"workers": 0}, {"timeout_s": float("nan")}):
        with pytest.raises(InputError, match=r"choose|need"):
            MathVerifier(**bad)
    for wrong in ({"precision": -1}, {"percent": "x"}, {"units": "x"}):
        with pytest.raises(InputError, match="choose"):
            Match(**wrong)  # type: ignore[arg-type]
