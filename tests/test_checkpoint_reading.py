"""Values as they are stored: every dtype, any offset, no copy."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import families
import offaxis
from offaxis.checkpoint import align, describe, open_checkpoint, read_pair

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "pairs"

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_reads_bit_for_bit(tmp_path, code):
    state = {"a.weight": torch.randn(5, 7).to(DTYPES[code]), "b": torch.randn(3).to(DTYPES[code])}
    save_file(state, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    for name, value in state.items():
        read = checkpoint[name]
        assert (read.dtype, checkpoint.specs[name].dtype) == (DTYPES[code], code)
        assert torch.equal(read.view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize("pad", range(8))
def test_misaligned_tensors_read(tmp_path, pad):
    """The header is not padded, so the data starts at any byte."""
    values = torch.arange(6, dtype=torch.float64)
    header = {"a": {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}}
    raw = json.dumps(header).encode() + b" " * pad
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + values.numpy().tobytes())
    read = open_checkpoint(path)["a"]
    assert torch.equal(read, values.view(2, 3))
    assert read.data_ptr() % 8 == 0


def test_reading_is_private(tmp_path):
    """Writing into what was read changes no file, and gives no warning (warnings are errors)."""
    directory = families.save({"a": torch.zeros(4)}, tmp_path)
    before = (directory / "model.safetensors").read_bytes()
    open_checkpoint(directory)["a"].add_(1)
    assert (directory / "model.safetensors").read_bytes() == before


MEMORY = """
import sys
import torch
from offaxis.checkpoint import open_checkpoint

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

checkpoint = open_checkpoint(sys.argv[1])
checkpoint["small"].sum()
before = anonymous()
large = checkpoint["large"]
large.view(torch.int32).max()
print(anonymous() - before, large.shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
def test_reading_takes_no_anonymous_memory(tmp_path):
    """A 64 MiB tensor is read whole; anonymous memory grows by less than 4 MiB."""
    state = {"large": torch.ones(16 << 20), "small": torch.ones(2)}
    save_file(state, tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path / "m.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[0]) < 4


def test_read_pair_is_contiguous_and_in_stored_orientation(tmp_path):
    """GPT-2's query columns: cut from (in, 3 out), not turned."""
    model = families.build("gpt2")
    checkpoint = open_checkpoint(families.save(model.transformer.state_dict(), tmp_path))
    for pair in align(checkpoint, checkpoint).pairs:
        values = read_pair(checkpoint, checkpoint, pair)
        assert values.base.is_contiguous()
        assert tuple(values.base.shape) == pair.part.shape
        if pair.part.tensor == "h.1.attn.c_attn.weight[k_proj]":
            stored = model.state_dict()["transformer.h.1.attn.c_attn.weight"]
            assert torch.equal(values.base, stored[:, 32:64])


def test_mapping_is_lazy_and_read_only(tmp_path):
    checkpoint = open_checkpoint(
        families.save({"b.10": torch.ones(2), "b.9": torch.ones(1)}, tmp_path)
    )
    assert list(checkpoint) == ["b.9", "b.10"]
    assert "b.9" in checkpoint
    assert "c" not in checkpoint
    assert checkpoint != dict(checkpoint)
    assert checkpoint in {checkpoint}
    assert "2 tensors" in repr(checkpoint)
    with pytest.raises(KeyError, match=r"no tensor 'b\.8'; near it"):
        checkpoint["b.8"]
    with pytest.raises(TypeError):
        checkpoint["b.9"] = torch.ones(1)
    with pytest.raises(TypeError):
        checkpoint.specs["x"] = None


def test_open_checkpoint_hangs_on_the_package():
    assert offaxis.open_checkpoint is open_checkpoint
    assert offaxis.describe is describe


@pytest.mark.parametrize("family", families.FAMILIES)
def test_describe_counts_what_the_model_has(tmp_path, family):
    model = families.build(family)
    model.save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["parameters"] == sum(p.numel() for p in model.parameters())  # tied counted once
    assert found["family"] == family
    assert found["layers"] == 2
    assert found["experts"] == (3 if family == "qwen3_moe" else 0)
    assert found["tied"] == (family in ("qwen2", "gpt2"))
    assert sum(row["elements"] for row in found["roles"]) == found["dtypes"]["F32"]["elements"]
    assert bool(found["notes"]) == (family in ("qwen2", "gpt2", "phi3"))


def test_describe_counts_a_head_stored_twice_once(tmp_path):
    embedding = torch.randn(20, 8)
    state = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    found = describe(families.save(state, tmp_path))
    assert found["parameters"] == 160
    assert found["tied"] is True


def test_describe_verb(tmp_path, capsys):
    from offaxis.cli.describe import describe as verb

    families.build("phi3").save_pretrained(tmp_path)
    capsys.readouterr()
    verb(str(tmp_path), json=True)
    assert json.loads(capsys.readouterr().out) == describe(str(tmp_path))
    verb(str(tmp_path))
    shown = capsys.readouterr().out
    for text in ("phi3", "q_proj", "0-1", "fused tensors are split"):
        assert text in shown


def test_terminal_escapes_in_names_are_not_printed(tmp_path, capsys):
    from offaxis.cli.describe import describe as verb

    header = {"\x1b[31mh.0.attn.c_attn.weight": torch.ones(2, 6)}
    verb(str(families.save(header, tmp_path)))
    assert "\x1b[31mh" not in capsys.readouterr().out


@pytest.mark.skipif(not PAIRS.is_dir(), reason="the real pairs are not beside this checkout")
@pytest.mark.parametrize("tuned", ["rl-checkpoint-20", "rl-checkpoint-60", "sft-60"])
def test_real_pairs_align_whole(tuned):
    base, after = open_checkpoint(PAIRS / "base"), open_checkpoint(PAIRS / tuned)
    aligned = align(base, after)
    assert aligned.renaming == "identity"
    assert not aligned.mismatches
    assert len(aligned.pairs) == 46
    assert sum(pair.part.is_matrix for pair in aligned.pairs) == 28
    moved = sum(
        not torch.equal(values.base.float(), values.tuned.float())
        for values in (read_pair(base, after, pair) for pair in aligned.pairs)
    )
    assert moved > 30
