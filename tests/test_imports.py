"""`import offaxis` and `offaxis --help` cost next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "polars", "jaxtyping", "numba", "plotly", "sklearn", "transformers")
IMPORT = "import offaxis"
HELP = """
import sys
sys.argv = ["offaxis", "--help"]
from offaxis.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
LOADED = f"""
import json, sys
heavy = {HEAVY!r}
print("\\n" + json.dumps([name for name in heavy if name in sys.modules]))
"""
# pytest-xdist and coverage set variables that make a child import more than a user's would
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "PYTHON"))}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=PLAIN, capture_output=True, text=True, check=True
    )


def cpu(code: str) -> float:
    """User and system seconds of a fresh interpreter that runs `code`, the least of three."""
    spent = []
    for _ in range(3):
        before = os.times()
        run(code)
        after = os.times()
        spent.append(after.children_user - before.children_user
                     + after.children_system - before.children_system)  # fmt: skip
    return min(spent)


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "--help"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    out = run(code + LOADED).stdout
    assert json.loads(out.splitlines()[-1]) == []


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "--help"])
def test_it_costs_less_than_half_a_second(code: str) -> None:
    assert cpu(code) - cpu("pass") < 0.5


def test_the_measurement_can_fail() -> None:
    out = run("import offaxis; offaxis.compare" + LOADED).stdout
    assert set(json.loads(out.splitlines()[-1])) >= {"torch", "numpy", "numba"}


def test_help_names_every_verb() -> None:
    words = run(HELP).stdout.split()
    assert {"describe", "compare", "demo", "lab", "predict"} <= set(words)


def test_public_names_work_after_a_bare_import() -> None:
    code = """
import offaxis
for name in offaxis.__all__:
    getattr(offaxis, name)
assert callable(offaxis.compare), "a module must not shadow the function"
import offaxis.comparison
assert callable(offaxis.compare)
assert "compare" in dir(offaxis)
try:
    offaxis.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
"""
    run(code)
