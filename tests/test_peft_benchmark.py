"""benchmarks/adapters.py still works; docs/adapters.md tells the table of methods, and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offaxis.checkpoint import open_checkpoint
from offaxis.lab import BASE
from offaxis.train.adapters import ADAPTERS, AdapterMethod
from policy_runs import cpu_threads, quiet_libraries

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "adapters.py"
DOCS = ROOT / "docs" / "adapters.md"


def ran(methods: str, out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """What the script prints, and its figures by method."""
    command = [sys.executable, str(SCRIPT), "--quick", "--steps", "2", "--json", str(out)]
    done = subprocess.run(
        [*command, "--methods", methods],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(out.read_text())["methods"]
    return done.stdout, {one["method"]: one for one in told}


def check(found: dict[str, dict[str, Any]]) -> None:
    plain, full = found["peft.LoraConfig"], found["full"]
    assert plain["to_lora"] == full["to_full"] == [1.0]
    assert full["materialize_seconds"] is None
    for name, one in found.items():
        assert one["seconds"][0] > 0
        assert one["trainable"] > 0
        if name != "full":
            assert one["trainable"] < full["trainable"]
            assert min(one[f"{key}_seconds"] for key in ("merge", "exact", "materialize")) > 0


@pytest.mark.slow
def test_two_methods_beside_plain_lora_and_full(tmp_path: Path) -> None:
    printed, found = ran("lora,ia3", tmp_path / "figures.json")
    assert set(found) == {"full", "peft.LoraConfig", "lora", "ia3"}
    check(found)
    assert found["lora"]["trainable"] == found["peft.LoraConfig"]["trainable"]
    # 2 layers: r (m + n) of seven matrices, hidden 64, MLP 160, r = 8
    assert found["lora"]["trainable"] == 2 * 8 * (4 * (64 + 64) + 3 * (64 + 160))
    assert printed.count("\n| lora |") == printed.count("\n| ia3 |") == 1


@pytest.mark.slow
def test_every_method(tmp_path: Path) -> None:
    _, found = ran("", tmp_path / "figures.json")
    assert set(found) == {*ADAPTERS, "peft.LoraConfig"}
    check(found)
    assert found["lora"]["loss"] == pytest.approx(found["peft.LoraConfig"]["loss"], abs=0.05)


# Docs


def row(one: AdapterMethod) -> str:
    trains = ", ".join(f"`{part}`" for part in one.trains) or "all"
    options = ", ".join(f"`{name}: {_shown(value)}`" for name, value in one.options.items())
    lacks = ", ".join(f"`{name}`" for name in one.lacks)
    return f"| `{one.name}` | {one.says} | {trains} | {options} | {lacks} | {one.source} |"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def table() -> str:
    """The table of docs/adapters.md."""
    head = ["method", "the weight", "trained", "options", "has no", "from"]
    return "\n".join(
        [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(row, ADAPTERS.values())]
    )


def test_the_documented_table_is_the_table() -> None:
    """To make it new: `python tests/test_peft_benchmark.py`."""
    text = DOCS.read_text(encoding="utf-8")
    assert f"<!-- methods -->\n{table()}\n<!-- end -->" in text


def test_the_two_lines_in_a_trl_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    with cpu_threads(1), quiet_libraries():
        exec(compile(example, "adapters.md", "exec"), found)
    assert found["trainer"].state.global_step == 4
    whole, base = open_checkpoint("runs/whole"), open_checkpoint(str(BASE))
    moved = [name for name in base if bool((whole[name].float() != base[name].float()).any())]
    assert moved == [name for name in base if name.endswith("_proj.weight")]


if __name__ == "__main__":
    new = f"<!-- methods -->\n{table()}\n<!-- end -->"
    old = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(re.sub(r"<!-- methods -->\n.*?<!-- end -->", new, old, flags=re.DOTALL))
