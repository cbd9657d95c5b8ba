"""What is not edited: nothing on a guess, nothing half, and every message says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import intervene_models as models
from offaxis import intervene
from offaxis.errors import CheckpointError, InputError, OffaxisError, OutputError
from offaxis.intervene import Layer, parse_layers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.build("llama"), tmp_path_factory.mktemp("refusals") / "base")


@pytest.fixture
def copy(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_layers_are_numbers_and_ranges_joined_by_commas():
    assert parse_layers("2,0") == (Layer("", 0), Layer("", 2))
    assert parse_layers("4-6, 1") == tuple(Layer("", n) for n in (1, 4, 5, 6))
    assert parse_layers([3, "vision.0-1"]) == (
        Layer("", 3), Layer("vision", 0), Layer("vision", 1),
    )  # fmt: skip
    assert parse_layers(7) == (Layer("", 7),)
    assert [str(one) for one in parse_layers("vision.3,1")] == ["1", "vision.3"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("", "give a number"),
        ("1,", "give a number"),
        ("one", "give a number"),
        ("-1", "give a number"),
        ("1.5", "give a number"),
        ("audio.1", "give a number"),
        ("٣", "give a number"),
        ("3-1", "write 1-3"),
        ("1,1", "1 is named twice"),
        ("0-3,2", "2 is named twice"),
        ([], "no layer is named"),
    ],
)
def test_other_layers_are_refused(words, what):
    with pytest.raises(InputError, match=what):
        parse_layers(words)


def both(path: Path, layers: object, tmp_path: Path, match: str) -> None:
    """Both verbs refuse, and leave nothing."""
    for verb in (intervene.rotate, intervene.permute):
        with pytest.raises(OffaxisError, match=match):
            verb(path, layers, out=tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_a_layer_that_is_not_there(base, tmp_path):
    both(base, 2, tmp_path, r"no layer 2; its language model has layers 0-1")
    both(base, "0-9999", tmp_path, r"no layer 2; its language model has layers 0-1")
    both(base, "vision.0", tmp_path, r"vision tower of model_type 'llama'")


def test_a_family_that_nobody_has_read(copy, tmp_path):
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"lama"'))
    both(copy, 0, tmp_path, r"'lama' has an attention that offaxis does not know.*known are")


def test_a_model_without_a_configuration(copy, tmp_path):
    (copy / "config.json").unlink()
    both(copy, 0, tmp_path, "no config.json")


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("self_attn.sinks", (3,), "not of one model"),
        ("self_attn.gate_proj.weight", (32, 32), r"gate_proj.weight, of which offaxis does not"),
        ("self_attn.q_norm.weight", (5,), r"q_norm.weight has the shape \(5,\)"),
        ("self_attn.v_proj.bias", (3,), r"v_proj.bias has the shape \(3,\)"),
        ("self_attn.v_proj.weight", (15, 32), "2 heads do not divide"),
        ("self_attn.k_proj.weight", (32, 32), "k_proj has 32 channels where its heads make 16"),
        ("self_attn.o_proj.weight", (32, 16), "the input of o_proj has 16"),
    ],
)
def test_attention_that_holds_something_else(copy, tmp_path, name, shape, what):
    state = load_file(copy / "model.safetensors")
    state[f"model.layers.0.{name}"] = torch.zeros(shape, dtype=torch.float64)
    save_file(state, copy / "model.safetensors")
    both(copy, 0, tmp_path, what)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"num_attention_heads": None}, "config.json lacks num_attention_heads"),
        ({"num_attention_heads": 3}, "3 query heads are not shared evenly by 2 KV heads"),
        ({"num_key_value_heads": None}, "k_proj has 16 channels where its heads make 32"),
        ({"head_dim": 4}, "a head of q_proj has 8 channels where its heads make 4"),
    ],
)
def test_a_configuration_that_does_not_fit(copy, tmp_path, keys, what):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | keys))
    both(copy, 0, tmp_path, what)


@pytest.mark.parametrize("key", ["multi_query", "new_decoder_architecture"])
def test_falcon_must_say_which_layout_it_has(tmp_path, key):
    path = models.saved(models.build("falcon_7b"), tmp_path / "base")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
    both(path, 0, tmp_path, f"config.json lacks {key}")


def test_two_models_in_one(copy, tmp_path):
    state = load_file(copy / "model.safetensors")
    twin = {n.removeprefix("model."): t.clone() for n, t in state.items() if ".layers.0." in n}
    save_file(state | twin, copy / "model.safetensors")
    both(copy, 0, tmp_path, r"layer 0 could be in layers or model.layers")


def test_what_predicts_further_tokens_is_no_layer(copy, tmp_path):
    """`mtp.layers.0`, and layers past the configured number (DeepSeek-V3's 61)."""
    state = load_file(copy / "model.safetensors")
    for prefix in ("mtp.layers.0.", "model.layers.2."):
        state |= {
            n.replace("model.layers.0.", prefix): t.clone()
            for n, t in state.items()
            if n.startswith("model.layers.0.")
        }
    save_file(state, copy / "model.safetensors")
    made = intervene.rotate(copy, 0, out=tmp_path / "out")
    assert all(name.startswith("model.layers.0.") for name in made.tensors)
    both(copy, 2, tmp_path, "has layers 0-1")


def test_one_head_has_no_other_order(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    keys = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    (copy / "config.json").write_text(json.dumps(config | keys))
    state = load_file(copy / "model.safetensors")
    for part in "kv":
        state[f"model.layers.0.self_attn.{part}_proj.weight"] = torch.zeros(32, 32).double()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(InputError, match="one head, which has no other order"):
        intervene.permute(copy, 0, out=tmp_path / "out")
    intervene.rotate(copy, 0, out=tmp_path / "out")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_rotation_spreads_no_nan_and_a_permutation_moves_it(copy, tmp_path, bad):
    state = load_file(copy / "model.safetensors")
    state["model.layers.0.self_attn.v_proj.weight"][0, 0] = bad
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"v_proj.weight: holds NaN or infinity"):
        intervene.rotate(copy, 0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    intervene.permute(copy, 0, out=tmp_path / "out")


def recast(copy: Path, part: str, dtype: torch.dtype, scale: float = 1.0) -> None:
    """One part of layer 0, scaled, in another dtype."""
    state = load_file(copy / "model.safetensors")
    name = f"model.layers.0.self_attn.{part}.weight"
    state[name] = (state[name] * scale).to(dtype)
    save_file(state, copy / "model.safetensors")


def test_values_that_do_not_fit_once_they_are_rotated(copy, tmp_path):
    """All channels of a head at 60 000 in float16: a Hadamard row sums them."""
    state = load_file(copy / "model.safetensors")
    one = state["model.layers.0.self_attn.v_proj.weight"]
    state["model.layers.0.self_attn.v_proj.weight"] = torch.full_like(one, 6e4).half()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"v_proj\.weight: does not fit into F16"):
        intervene.rotate(copy, 0, out=tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_tensor_keeps_its_own_dtype(copy, tmp_path, dtype):
    recast(copy, "v_proj", dtype)
    made = intervene.rotate(copy, 0, out=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    loss = {name.split(".")[-2]: made.tensors[name].rounding for name in made.tensors}
    assert after["model.layers.0.self_attn.v_proj.weight"].dtype == dtype
    assert 0 == loss["o_proj"] < loss["v_proj"] < torch.finfo(dtype).eps / 2


def test_eight_bits_are_moved_and_not_rotated(copy, tmp_path):
    recast(copy, "v_proj", torch.float8_e4m3fn)
    with pytest.raises(InputError, match="F8_E4M3, too coarse to be rotated"):
        intervene.rotate(copy, 0, out=tmp_path / "out")
    made = intervene.permute(copy, 0, out=tmp_path / "out")
    before, after = (load_file(one / "model.safetensors") for one in (copy, tmp_path / "out"))
    name = "model.layers.0.self_attn.v_proj.weight"
    assert made.steps[0].orders[0][1] == (1, 0)
    heads = [one[name].view(torch.uint8).view(2, 8, -1) for one in (before, after)]
    assert torch.equal(heads[0].flip(0), heads[1])


def test_adapters_and_pickles_and_quantised_models(copy, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 4)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    both(adapter, 0, tmp_path, "an adapter, which has no heads of its own")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save({}, pickled / "pytorch_model.bin")
    both(pickled, 0, tmp_path, "holds pickles; save the model as safetensors")
    state = load_file(copy / "model.safetensors")
    save_file(state | {"x.qweight": torch.zeros(2, dtype=torch.int32)}, copy / "model.safetensors")
    both(copy, 0, tmp_path, "quantised")


def test_directories_that_cannot_be_written(base, copy, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "note").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        intervene.rotate(base, 0, out=full)
    intervene.rotate(base, 0, out=full, overwrite=True)
    assert (full / "note").read_text() == "mine"
    (full / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OutputError, match="weights of another model"):
        intervene.rotate(base, 0, out=full, overwrite=True)
    with pytest.raises(OutputError, match="the model's own directory"):
        intervene.rotate(copy, 0, out=copy, overwrite=True)


def test_a_file_in_place_of_the_directory_or_of_its_parent(base, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="a file is there"):
        intervene.permute(base, 0, out=tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="choose another"):
        intervene.permute(base, 0, out=tmp_path / "file" / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_progress_counts_every_entry_and_an_interrupt_leaves_nothing(base, tmp_path):
    seen = []
    intervene.permute(base, 0, out=tmp_path / "out", progress=seen.append)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total
    assert len({one.tensor for one in seen}) == len(seen)

    def stop(one):
        if one.done > one.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        intervene.rotate(base, 0, out=tmp_path / "deep" / "two", progress=stop)
    assert os.listdir(tmp_path) == ["out"]


def test_an_unknown_kind(base, tmp_path):
    with pytest.raises(InputError, match="kind 'givens': choose haar or hadamard"):
        intervene.rotate(base, 0, out=tmp_path / "out", kind="givens")


# The command line


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offaxis", "intervene", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_writes_a_model_and_says_so(base, tmp_path):
    done = run("rotate", base, "--layers", "0-1", "--out", tmp_path / "out", "--kind", "hadamard",
               "--per-head", "--seed", 5, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["edit"], told["kind"], told["layers"], told["seed"]) == (
        "rotate", "hadamard", ["0", "1"], 5,
    )  # fmt: skip
    assert len(told["tensors"]) == 4
    assert told["untouched"] == 17
    done = run("permute", base, "--layers", "1", "--out", tmp_path / "two", "--within-groups")
    assert done.returncode == 0, done.stderr
    assert "layers 1 permuted, seed 0" in done.stdout
    assert (tmp_path / "two" / "intervention.json").is_file()


def test_exit_codes(base, tmp_path):
    bad = run("rotate", base, "--layers", "9", "--out", tmp_path / "out")
    assert bad.returncode == 1
    assert "no layer 9" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert run("permute", base, "--out", tmp_path / "out").returncode == 2
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_130_and_leaves_nothing(copy, tmp_path):
    """Pressed while the files are written: a tensor of 400 MB takes its time."""
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, size = json.loads(raw[8 : 8 + length]), len(raw) - 8 - length
    more = 400 << 20
    header["wide"] = {"dtype": "U8", "shape": [more], "data_offsets": [size, size + more]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    os.truncate(file, 8 + len(text) + size + more)
    command = ["intervene", "rotate", str(copy), "--layers", "0", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-m", "offaxis", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and len(os.listdir(tmp_path)) == 1:
            time.sleep(0.002)
        assert process.poll() is None, "it was done before it could be interrupted"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        words = process.stderr.read()
    assert process.returncode == 130, words
    assert "nothing half-written is left" in words
    assert "Traceback" not in words
    assert os.listdir(tmp_path) == ["copy"]
