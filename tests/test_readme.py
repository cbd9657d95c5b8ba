"""The README's Python example runs as it stands, on checkpoints where it expects the demo's."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offaxis.lab import BASE

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    weights = load_file(Path(BASE) / "model.safetensors")
    for number, name in enumerate(("base", "rl/checkpoint-60", "sft/checkpoint-60")):
        folder = tmp_path / "demo-report" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        moved = {
            key: value.float() + number * 1e-4 * torch.randn(value.shape, generator=generator)
            for key, value in weights.items()
        }
        save_file(moved, folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "against" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
