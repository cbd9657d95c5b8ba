"""The example of docs/train.md, "Train only a mask", runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from offaxis.checkpoint import open_checkpoint
from offaxis.lab import BASE
from offaxis.masks import load
from policy_runs import cpu_threads, quiet_libraries
from sparse_runs import bits

DOCS = Path(__file__).parents[1] / "docs" / "train.md"


def test_the_one_line_in_a_trl_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = DOCS.read_text(encoding="utf-8").split("\n## Train only a mask\n")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    with cpu_threads(1), quiet_libraries():
        exec(compile(example, "train.md", "exec"), found)
    chosen, base = load(tmp_path / "safe.mask"), open_checkpoint(str(BASE))
    assert found["trainer"].state.global_step == 4
    for name, flags in chosen.items():
        now, before = found["trainer"].model.get_parameter(name).detach(), base[name].float()
        assert torch.equal(bits(now)[~flags], bits(before)[~flags])
        assert bool((now != before)[flags].any())
