"""From YAML and flags to a run's arguments: TRL's keys work, each method is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from offaxis.errors import InputError
from offaxis.train import METHODS, read_arguments

NAMES = ("grpo", "dapo", "dr_grpo", "gspo", "rloo", "reinforce_pp", "sft", "rejection_sft",
         "distill", "distill_on_policy", "dpo")  # fmt: skip
MINIMAL: dict[str, Any] = {"model_name_or_path": "somewhere", "output_dir": "out"}


def config(tmp_path: Path, **keys: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | keys))
    return path


def test_the_methods_are_those_of_the_contract() -> None:
    assert tuple(sorted(METHODS)) == tuple(sorted(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_fixed_and_default_settings_reach_the_trainer(name: str) -> None:
    arguments = read_arguments(name, MINIMAL)
    resolved = arguments.resolved()
    for key, value in {**METHODS[name].defaults, **METHODS[name].fixed}.items():
        assert resolved[key] == value, key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", {"loss_type": "grpo", "scale_rewards": "group"}),
        ("dapo", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("gspo", {"importance_sampling_level": "sequence", "epsilon": 3e-4}),
        ("distill_on_policy", {"beta": 1.0}),
    ],
)
def test_what_papers_say(name: str, expected: dict[str, Any]) -> None:
    resolved = read_arguments(name, MINIMAL).resolved()
    assert {key: resolved[key] for key in expected} == expected


def test_yaml_of_a_trl_script_works_as_it_is(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        dataset_name="trl-lib/DeepMath-103K",
        reward_funcs=["accuracy_reward"],
        learning_rate="1e-6",
        num_generations=4,
        per_device_train_batch_size=8,
        use_peft=True,
        lora_r=8,
        dtype="bfloat16",
        vllm_mode="colocate",
        use_vllm=False,
    )
    arguments = read_arguments("grpo", path)
    assert arguments.config.learning_rate == 1e-6
    assert arguments.model.lora_r == 8
    assert arguments.script.reward_funcs == ["accuracy_reward"]


def test_flags_win_over_the_file_and_the_file_over_the_method(tmp_path: Path) -> None:
    path = config(tmp_path, epsilon_high=0.3, kl_every=5, learning_rate=1e-5)
    arguments = read_arguments("dapo", path, flags=["--kl_every", "7"])
    assert arguments.config.epsilon_high == 0.3
    assert arguments.extra.kl_every == 7
    assert set(arguments.given) >= {"epsilon_high", "kl_every", "learning_rate"}


def test_mappings_in_yaml_and_json_on_the_command_line() -> None:
    from_yaml = read_arguments("grpo", MINIMAL | {"leash_options": {"target": 0.5}})
    from_flag = read_arguments("grpo", MINIMAL, flags=["--leash_options", '{"target": 0.5}'])
    assert from_yaml.extra.leash_options == from_flag.extra.leash_options == {"target": 0.5}


def test_a_contradiction_names_both_sides() -> None:
    with pytest.raises(InputError, match=r"loss_type 'grpo', but dapo is loss_type 'dapo'"):
        read_arguments("dapo", MINIMAL | {"loss_type": "grpo"})
    with pytest.raises(InputError, match=r"scale_rewards 'group', but dr_grpo"):
        read_arguments("dr_grpo", MINIMAL, flags=["--scale_rewards", "group"])


def test_saying_what_the_method_is_is_allowed() -> None:
    assert read_arguments("dapo", MINIMAL | {"loss_type": "dapo"}).config.loss_type == "dapo"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"learnin_rate": 1e-5}, "did you mean learning_rate"),
        ({"num_generations": 1}, "at least 2 generations"),
        ({"kl_prompts": 0}, "kl_prompts 0"),
        ({"overlong_cache": -1}, "overlong_cache -1"),
        ({"prompt_template": "no slot"}, "{prompt}"),
        ({"leash_options": "{"}, "not JSON"),
        ({"leash_options": "[1]"}, "a mapping is needed"),
    ],
)
def test_bad_keys_and_values(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_arguments("grpo", MINIMAL | keys)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("[1]", "no mapping"), ("a: [", "not YAML"), (None, "cannot be read")]
)
def test_bad_files_are_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_arguments("grpo", path)
    assert str(path) in str(caught.value)


def test_an_unknown_method_lists_all() -> None:
    with pytest.raises(InputError, match=r"ppo.*grpo, dapo"):
        read_arguments("ppo", MINIMAL)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gspo_updates_four_times_a_batch_unless_told(accumulation: int) -> None:
    keys = MINIMAL | {"gradient_accumulation_steps": accumulation}
    assert read_arguments("gspo", keys).updates_per_generation == 4
    assert read_arguments("gspo", keys | {"num_iterations": 2}).updates_per_generation == 2
    assert read_arguments("grpo", keys).updates_per_generation == 1


def test_without_an_accelerator_a_run_is_on_the_cpu_in_float32() -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    assert read_arguments("grpo", MINIMAL).config.use_cpu
    assert not read_arguments("grpo", MINIMAL).config.bf16
    assert read_arguments("grpo", MINIMAL | {"bf16": True}).config.bf16


def offaxis(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offaxis", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_dry_run_prints_everything_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = config(tmp_path, output_dir=str(out), per_device_train_batch_size=16)
    done = offaxis("train", "gspo", "--config", str(path), "--dry-run", "--json", "--seed", "5")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["arguments"]["seed"] == 5
    assert told["derived"]["updates_per_generation"] == 4
    assert told["derived"]["resumes_exactly_every"] == 4
    assert told["fixed"]["importance_sampling_level"] == "sequence"
    assert not out.exists()
    readable = offaxis("train", "gspo", "--config", str(path), "--dry-run")
    assert yaml.safe_load(readable.stdout)["method"] == "gspo"


def test_exit_codes(tmp_path: Path) -> None:
    wrong = offaxis("train", "grpo", "--config", str(tmp_path / "none.yaml"))
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("offaxis: ")
    assert "none.yaml" in wrong.stderr
    assert offaxis("train").returncode == 2
    path = config(tmp_path)
    assert offaxis("train", "grpo", "--config", str(path), "--seed", "x").returncode == 2
