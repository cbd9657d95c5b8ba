"""benchmarks/sparse.py still works, and its methods train the same entries to the same loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sparse.py"


def ran(part: str, out: Path) -> tuple[str, list[dict[str, Any]]]:
    """What the script prints, and its figures."""
    command = [sys.executable, str(SCRIPT), part, "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return done.stdout, json.loads(out.read_text())[part]


def test_steps(tmp_path: Path) -> None:
    printed, rows = ran("step", tmp_path / "figures.json")
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    for row in rows:
        assert sum(row["state"].values()) == row["law"]
        assert row["law"] <= row["torch_state"]
        assert len(row["ours"]) == len(row["torch_fused"]) == 2
    assert printed.count("\n| 0.05 | random |") == 2
    assert printed.count("\n| 0.05 | rows |") == 2


@pytest.mark.slow
def test_training_runs_that_must_agree(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    _, rows = ran("train", tmp_path / "figures.json")
    found = {row["method"]: row for row in rows}
    for method in ("shira", "supertuning"):
        theirs, ours = found[method], found[f"offaxis as {method}"]
        assert ours["trainable"] == theirs["trainable"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["kept"] < theirs["kept"] < found["dense"]["kept"]
    assert found["dense"]["loss"] != pytest.approx(found["shira"]["loss"], abs=1e-4)
