"""Programs in responses, marked against tests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from offaxis.errors import InputError
from offaxis.verifiers.mark import Mark, Marking, Reason
from offaxis.verifiers.programs.cases import program_in, read_tests
from offaxis.verifiers.programs.running import ProgramResult, run_code
from offaxis.verifiers.programs.sandbox import Limits

__all__ = ["CodeVerifier"]

_REASONS: dict[str, Reason] = {"timeout": "timeout", "memory": "memory", "ended": "error"}


class CodeVerifier(Marking):
    """Whether the program in a response passes all tests that the gold text holds.

    `program_in` finds the program and `read_tests` the tests; `run_code` says how they run, and
    `workers` how many pairs at a time. A mark's answer is the program. `results` tells every test.
    """

    def __init__(
        self,
        time_s: float = 5.0,
        memory_mib: int = 512,
        *,
        file_mib: int = 4,
        processes: int = 16,
        output_kib: int = 256,
        workers: int = 1,
    ) -> None:
        if not 1 <= workers <= 64:
            raise InputError(f"workers {workers}: choose 1 to 64")
        self.limits = Limits(time_s, memory_mib, file_mib, processes, output_kib)
        self.workers = workers

    def results(self, pairs: Sequence[tuple[str, str]]) -> list[ProgramResult | None]:
        """What came of each test; None where there is no program or no test."""

        def one(pair: tuple[str, str]) -> ProgramResult | None:
            program, tests = program_in(pair[0] or ""), read_tests(pair[1] or "")
            return run_code(program, tests, limits=self.limits) if program and tests else None

        if self.workers == 1 or len(pairs) < 2:
            return [one(pair) for pair in pairs]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(one, pairs))

    def mark(self, pairs: Sequence[tuple[str, str]]) -> list[Mark]:
        """Marks of (response, gold) pairs, in order."""
        return [
            _marked(pair, result) for pair, result in zip(pairs, self.results(pairs), strict=True)
        ]


def _marked(pair: tuple[str, str], result: ProgramResult | None) -> Mark:
    program = program_in(pair[0] or "")
    if result is None:
        return Mark(False, "bad_gold" if not read_tests(pair[1] or "") else "no_answer", program)
    if result.correct:
        return Mark(True, "equal", program)
    first = next(verdict for verdict in result.verdicts if verdict != "passed")
    return Mark(False, _REASONS.get(first, "different"), program)
