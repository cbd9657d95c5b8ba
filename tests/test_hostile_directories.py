"""Directories that are incomplete, ambiguous, quantised, pickled or point outside themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import families
from offaxis.checkpoint import describe, open_checkpoint
from offaxis.errors import CheckpointError

STATE = families.random_state({"a.weight": (4, 3), "b.weight": (2, 5)})


def refusal(source, **settings) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source, **settings)
    message = str(caught.value)
    assert ";" in message  # the remedy
    return message


def sharded(directory: Path) -> Path:
    return families.save_shards(STATE, directory, [0, 1])


def edit_index(directory: Path, **changes) -> Path:
    """Change the index's weight_map; None removes a tensor."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for name, shard in changes.items():
        key = name.replace("_", ".")
        index["weight_map"][key] = shard
        if shard is None:
            del index["weight_map"][key]
    path.write_text(json.dumps(index))
    return directory


def test_missing_path(tmp_path):
    message = refusal(tmp_path / "no" / "such")
    assert "no such file or directory" in message
    assert "Hub id" in message


def test_empty_directory(tmp_path):
    assert "it is empty" in refusal(tmp_path)


def test_directory_without_weights_names_what_it_has(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    assert "notes.md" in refusal(tmp_path)


def test_not_a_safetensors_file(tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"x")
    assert "weights.gguf" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refusal(tmp_path)


def test_index_names_a_missing_shard(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(tmp_path)
    assert "model-00002-of-00002.safetensors" in message
    assert "'b.weight'" in message


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x", 7, "", None, "a\0b"],
)
def test_index_points_outside_its_directory(tmp_path, shard):
    save_file(STATE, tmp_path / "x.safetensors")
    directory = sharded(tmp_path / "model")
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    message = refusal(directory)
    assert "'a.weight'" in message
    assert repr(shard) in message


def test_index_in_a_subdirectory_is_allowed(tmp_path):
    (tmp_path / "part").mkdir()
    save_file(STATE, tmp_path / "part" / "x.safetensors")
    index = {"weight_map": dict.fromkeys(STATE, "part/x.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path)) == set(STATE)


def test_index_names_a_tensor_that_no_shard_has(tmp_path):
    directory = edit_index(sharded(tmp_path), c_weight="model-00001-of-00002.safetensors")
    assert "'c.weight'" in refusal(directory)


def test_index_puts_a_tensor_in_the_wrong_shard(tmp_path):
    directory = edit_index(sharded(tmp_path), a_weight="model-00002-of-00002.safetensors")
    # shard 1 is now named by no tensor, so a.weight is nowhere
    assert "'a.weight'" in refusal(directory)


def test_shard_has_a_tensor_that_the_index_lacks(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    index = {"weight_map": {"a.weight": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'b.weight'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\xff"]
)
def test_bad_index(tmp_path, text):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    assert "index.json" in refusal(tmp_path)


def test_one_tensor_in_two_files(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    save_file(STATE, tmp_path / "y.safetensors")
    message = refusal(tmp_path)
    assert "x.safetensors" in message
    assert "y.safetensors" in message


def test_unfinished_download_without_an_index(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert set(open_checkpoint(tmp_path)) == set(STATE)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert "1 of the 2 shards" in refusal(tmp_path)


def test_two_indexes(tmp_path):
    index = json.dumps({"weight_map": {"a": "x"}})
    save_file(STATE, tmp_path / "x.safetensors")
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors.index.json").write_text(index)
    assert "2 index files" in refusal(tmp_path)


def test_model_and_adapter_in_one_directory(tmp_path):
    families.save(STATE, tmp_path)
    save_file(STATE, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "both a model" in refusal(tmp_path)


def test_adapter_without_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "no adapter_model.safetensors" in refusal(tmp_path)


def test_bad_config(tmp_path):
    families.save(STATE, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refusal(tmp_path)


class TestPickles:
    def test_are_refused_unless_allowed(self, tmp_path):
        torch.save(STATE, tmp_path / "pytorch_model.bin")
        assert "--allow-pickle" in refusal(tmp_path)
        assert "--allow-pickle" in refusal(tmp_path / "pytorch_model.bin")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_read_the_same_when_allowed(self, tmp_path, zipped):
        torch.save(
            {"state_dict": STATE},
            tmp_path / "model.pt",
            _use_new_zipfile_serialization=zipped,
        )
        checkpoint = open_checkpoint(tmp_path, allow_pickle=True)
        assert all(torch.equal(checkpoint[name], STATE[name]) for name in STATE)
        assert checkpoint.specs["a.weight"].dtype == "F32"

    def test_of_a_trainer_are_no_weights(self, tmp_path):
        torch.save({}, tmp_path / "optimizer.pt")
        torch.save({}, tmp_path / "training_args.bin")
        assert "no .safetensors file" in refusal(tmp_path, allow_pickle=True)

    def test_that_run_code_are_refused_even_when_allowed(self, tmp_path):
        """The pickle would create a file if it ran."""
        flag = tmp_path / "ran"
        torch.save({"x": _Runs(str(flag))}, tmp_path / "pytorch_model.bin")
        assert "weights_only=True" in refusal(tmp_path, allow_pickle=True)
        assert not flag.exists()

    @pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 broken"])
    def test_broken(self, tmp_path, content):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        assert "pytorch_model.bin" in refusal(tmp_path, allow_pickle=True)

    def test_without_a_state_dict(self, tmp_path):
        torch.save([1, 2], tmp_path / "pytorch_model.bin")
        assert "no state dict" in refusal(tmp_path, allow_pickle=True)
        torch.save({"a": torch.ones(2), "step": 3}, tmp_path / "pytorch_model.bin")
        assert "'step'" in refusal(tmp_path, allow_pickle=True)


class _Runs:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


QUANTISED = {
    "gptq": {"a.qweight": torch.zeros(4, 4, dtype=torch.int32)},
    "fp8 blocks": {
        "a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.ones(1, 1),
    },
    "bitsandbytes 8": {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)},
    "bitsandbytes 4": {
        "a.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "a.weight.absmax": torch.ones(1),
        "a.weight.quant_map": torch.ones(16),
    },
    "packed": {"a.weight": torch.zeros(4, 4, dtype=torch.uint8)},
    "mxfp4": {"a.gate_up_proj_blocks": torch.zeros(4, 4, dtype=torch.uint8)},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_codes_are_refused_and_described(tmp_path, kind):
    families.save(QUANTISED[kind], tmp_path)
    message = refusal(tmp_path)
    assert "quantised" in message
    assert "'a." in message
    assert "dequantise" in message
    assert describe(tmp_path)["quantised"] is not None


def test_quantised_by_config(tmp_path):
    state = {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}
    families.save(state, tmp_path / "plain", {})
    open_checkpoint(tmp_path / "plain")
    families.save(state, tmp_path / "fp8", {"quantization_config": {"quant_method": "fp8"}})
    assert "(fp8)" in refusal(tmp_path / "fp8")


def test_integer_buffers_are_not_quantised(tmp_path):
    state = {
        **STATE,
        "embeddings.position_ids": torch.arange(8).view(1, 8),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "bn.num_batches_tracked": torch.tensor(3),
        "retention.time_scales": torch.ones(3),
    }
    assert len(open_checkpoint(families.save(state, tmp_path))) == 6


HUB = """
import sys
from offaxis.checkpoint import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
print(checkpoint.source, sorted(checkpoint), float(checkpoint["a.weight"].sum()))
"""


def hub_cache(root: Path) -> Path:
    """A cache as huggingface_hub lays it out: blobs, and snapshots of links to them."""
    repo, commit = root / "models--org--name", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    directory = sharded(root / "made")
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        blob = repo / "blobs" / f"{number:064x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return root


def run_hub(cache: Path, source: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", HUB, source],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_hub_id_offline(tmp_path):
    cache = hub_cache(tmp_path / "cache")
    expected = float(STATE["a.weight"].sum())
    for source in ("org/name", "org/name@main", f"org/name@{'0123456789abcdef' * 2}01234567"):
        done = run_hub(cache, source, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == source
        assert float(done.stdout.split()[-1]) == pytest.approx(expected)
    absent = run_hub(cache, "org/other", tmp_path)
    assert "org/other: no such file or directory, and the Hub could not give" in absent.stderr
    absent = run_hub(cache, "org/name@v2", tmp_path)
    assert "at revision v2" in absent.stderr
    # a local path wins
    families.save({"a.weight": torch.full((2, 2), 7.0)}, tmp_path / "org" / "name")
    assert float(run_hub(cache, "org/name", tmp_path).stdout.split()[-1]) == 28.0


def test_a_cache_without_the_tokenizer_is_enough(tmp_path):
    """huggingface_hub knows that the repository has one, and refuses the snapshot for it."""
    cache = hub_cache(tmp_path / "cache")
    (commit,) = cache.glob("models--*/snapshots/*")
    listing = {"format_version": 1, "files": {"tokenizer.json": {"size": 1, "blob_id": "0" * 40}}}
    trees = commit.parents[1] / "trees"
    trees.mkdir()
    (trees / f"{commit.name}.json").write_text(json.dumps(listing))
    done = run_hub(cache, "org/name", tmp_path)
    assert done.returncode == 0, done.stderr


def test_incomplete_hub_cache_names_the_missing_shard(tmp_path):
    cache = hub_cache(tmp_path / "cache")
    next(cache.glob("models--*/snapshots/*/model-00002*")).unlink()
    assert "model-00002-of-00002.safetensors" in run_hub(cache, "org/name", tmp_path).stderr
