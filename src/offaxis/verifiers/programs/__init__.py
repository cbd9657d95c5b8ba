"""Marking programs: untrusted Python run against tests in limited processes."""

from offaxis.verifiers.programs.cases import AssertTest, StdinTest, Test, program_in, read_tests
from offaxis.verifiers.programs.running import ProgramResult, run_code
from offaxis.verifiers.programs.sandbox import Isolation, Limits, isolation
from offaxis.verifiers.programs.verifier import CodeVerifier

__all__ = [
    "AssertTest",
    "CodeVerifier",
    "Isolation",
    "Limits",
    "ProgramResult",
    "StdinTest",
    "Test",
    "isolation",
    "program_in",
    "read_tests",
    "run_code",
]
