"""`offaxis train METHOD --mask`: its keys, its record, and what is refused before any writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from offaxis.cli import main
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.masks import build, load
from offaxis.train import train
from policy_runs import cpu_threads, quiet_libraries

ROOT = Path(__file__).parents[1]
KEYS: dict[str, Any] = {
    "model_name_or_path": str(BASE),
    "data": "lab:arithmetic?count=64",
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "kl_every": 0,
    "optim": "adamw_torch",
}


def sft(out: Path, **keys: Any) -> Any:
    with cpu_threads(1), quiet_libraries():
        return train("sft", KEYS | {"output_dir": str(out)} | keys, sources={"lab": named_data},
                     tell=lambda text: None)  # fmt: skip


def raw(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_a_rule_is_recorded_and_repeats_the_run(tmp_path: Path) -> None:
    rule = "random(density=0.05)"
    done = sft(tmp_path / "a", mask=rule)
    record = json.loads((done.output / "offaxis.json").read_text())
    chosen = load(done.output / "mask.offaxis")
    assert chosen == build(str(BASE), rule)
    assert record["mask"] == {
        "rule": "random(density=0.05, seed=0)", "density": chosen.density,
        "selected": chosen.selected, "entries": sum(map(chosen.entries, chosen)),
        "base": chosen.base_digest, "strategy": "projected", "others": "frozen", "refresh": 0,
    }  # fmt: skip
    first = next(row for row in done.log if "loss" in row)
    assert first["mask/density"] == pytest.approx(0.05, abs=1e-3)
    base, after = (load_file(one / "model.safetensors") for one in (BASE, done.output))
    for name, one in after.items():
        frozen = ~chosen[name] if name in chosen else torch.ones(one.shape, dtype=torch.bool)
        assert torch.equal(one[frozen], base[name].float()[frozen])

    said = yaml.safe_load((done.output / "train.yaml").read_text())
    again = sft(tmp_path / "b", **said | {"output_dir": str(tmp_path / "b")})
    file = said | {"output_dir": str(tmp_path / "c"), "mask": str(done.output / "mask.offaxis")}
    assert raw(again.output) == raw(sft(tmp_path / "c", **file).output) == raw(done.output)
    squeezed = sft(tmp_path / "d", mask=rule, mask_strategy="compressed")
    assert raw(squeezed.output) == raw(done.output)


def test_a_compressed_run_of_a_bfloat16_base_keeps_it(tmp_path: Path) -> None:
    done = sft(tmp_path, mask="random(density=0.2)", mask_strategy="compressed", dtype="bfloat16",
               mask_refresh=2, save_strategy="steps", save_steps=2)  # fmt: skip
    after = load_file(done.output / "model.safetensors")
    assert {one.dtype for one in after.values()} == {torch.bfloat16}
    assert not any("masters" in text for text in done.messages)
    kept = [row["mask/kept"] for row in done.log if "mask/kept" in row]
    assert kept == pytest.approx([0.2, 0.2], abs=0.01)
    keys = {"mask": "random(density=0.2)", "mask_strategy": "compressed", "mask_refresh": 2}
    again = sft(tmp_path, dtype="bfloat16", max_steps=6, resume_from_checkpoint="true",
                save_strategy="no", **keys)  # fmt: skip
    assert again.steps == 6
    with pytest.raises(InputError, match="began with mask"):
        sft(tmp_path, dtype="bfloat16", max_steps=6, resume_from_checkpoint="true",
            **keys | {"mask": "random(density=0.2, seed=1)"})  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mask": "absent.mask"}, "no such file; and as a rule"),
        ({"mask": "saf"}, "no rule 'saf'"),
        ({"mask": "random"}, "density=SHARE"),
        ({"mask": "gradient(density=0.1)"}, "make the mask first"),
        ({"mask": "none"}, "nothing is left to train"),
        ({"mask": "safe", "mask_strategy": "dense"}, "projected or compressed"),
        ({"mask": "safe", "mask_others": "some"}, "frozen or trained"),
        ({"mask": "safe", "mask_refresh": -1}, "0 or more"),
        ({"mask_strategy": "compressed"}, "mask_strategy without a mask"),
        ({"mask": "safe", "adapter": {"peft_type": "LORA"}}, "mask with adapter"),
        ({"mask": "safe", "use_peft": True}, "mask with use_peft"),
        ({"mask": "safe", "mask_strategy": "compressed", "pure_bf16": True}, "leave pure_bf16"),
        ({"mask": "safe", "mask_strategy": "compressed", "optim": "sgd"}, "optim sgd"),
    ],
)
def test_what_contradicts_a_mask_is_refused_before_anything_is_written(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        sft(tmp_path / "out", **keys)
    assert not list(tmp_path.glob("out/*"))


def test_a_mask_of_another_base_is_refused(tmp_path: Path, small_base: Path) -> None:
    build(str(small_base), "all").save(tmp_path / "other.mask")
    with pytest.raises(InputError, match="mask"):
        sft(tmp_path / "out", mask=str(tmp_path / "other.mask"))
    assert not (tmp_path / "out").exists()


def test_dry_run_and_help_tell_of_the_mask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def told(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["offaxis", "train", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    assert "--mask " in told("--help")
    recipe = ["grpo", "--config", str(ROOT / "recipes/lab/sparse.yaml"), "--dry-run", "--json"]
    found = json.loads(told(*recipe, "--mask", "safe"))
    assert found["derived"]["mask"]["rule"] == "safe(alpha=0.5)"
    assert found["arguments"]["mask"] == "safe"
    build(str(BASE), "low_magnitude").save(tmp_path / "low.mask")
    found = json.loads(told(*recipe, "--mask", str(tmp_path / "low.mask")))
    assert found["derived"]["mask"]["density"] == pytest.approx(0.5, abs=1e-3)
    assert found["derived"]["mask"]["strategy"] == "compressed"


def test_the_command_line_exits_with_1_for_a_missing_mask(tmp_path: Path) -> None:
    words = ["train", "grpo", "--config", str(ROOT / "recipes/lab/sparse.yaml"), "--mask",
             "absent.mask", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "offaxis", *words], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "mask absent.mask: no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []
