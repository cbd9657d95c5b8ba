"""What a delta makes of folders: other files, state, exports to bfloat16, single files, links."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from delta_models import (
    Tensor,
    Tensors,
    round_trip,
    stepped,
    tree,
    wild,
    write_file,
    write_folder,
)
from offaxis.delta import Delta, apply, pack
from offaxis.errors import DeltaError

NOISE = np.random.default_rng(0).bytes(3000)
OTHERS = {
    "config.json": (b"{}", b"{}", "same"),
    "generation_config.json": (b"{}", b'{"top_p": 1}' * 99, "zstd"),
    "sub/same.txt": (NOISE, NOISE, "same"),
    "sub/moved.txt": (None, b"words\n" * 99, "zstd"),
    "random.dat": (None, NOISE, "raw"),
    "empty.txt": (b"not empty", b"", "raw"),
    "both_empty.txt": (b"", b"", "same"),
    "one": (None, b"1", "raw"),
    "ünïcode name.txt": (None, b"a" * 200, "zstd"),
    "large.txt": (None, b"0123456789abcdef" * (5 << 16) + b"end", "zstd"),
    "exact.txt": (None, b"0123456789abcdef" * (1 << 18), "zstd"),
    "large.dat": (None, NOISE * 1500, "zstd"),
    "checkpoint-final/kept.txt": (b"x", b"x", "same"),
}
"""Path: the base's bytes, the tuned model's, and how the delta should hold them."""
HIDDEN = (".git/config", ".env", "sub/.cache", "checkpoint-10/model.safetensors",
          "sub/checkpoint-3/a.txt")  # fmt: skip
STATE = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json",
         "training_args.bin", "latest", "global_step7/zero_pp_rank_0.pt")  # fmt: skip


def small_pair() -> tuple[Tensors, Tensors]:
    base = {f"model.layers.{i}.mlp.up_proj.weight": wild("BF16", (40, 50), seed=i) for i in (0, 1)}
    tuned = {name: stepped(tensor, share=0.2) for name, tensor in base.items()}
    return base | {"norm": wild("F32", (9,))}, tuned | {"norm": wild("F32", (9,))}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base, tuned = small_pair()
    config = {"config.json": b"{}"}
    return (
        write_folder(tmp_path / "in" / "base", base, files=config),
        write_folder(tmp_path / "in" / "tuned", tuned, files=config),
    )


def test_other_files_come_back_by_reference_compressed_or_raw(tmp_path: Path) -> None:
    base, tuned = small_pair()
    sides = [{p: one[i] for p, one in OTHERS.items() if one[i] is not None} for i in (0, 1)]
    first = write_folder(tmp_path / "base", base, files=sides[0] | {"theirs.txt": b"not ours"})
    second = write_folder(tmp_path / "tuned", tuned, files=sides[1])
    write_file(second / "vision" / "model.safetensors", {"norm": wild("F16", (3,))})
    round_trip(first, second, tmp_path)
    plan = Delta.open(tmp_path / "delta").plan
    assert {one.path: one.codec for one in plan.others} == {p: one[2] for p, one in OTHERS.items()}
    assert [one.path for one in plan.files] == ["model.safetensors", "vision/model.safetensors"]


def test_hidden_files_and_nested_checkpoints_are_left_out(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = tree(pair[1])
    for path in HIDDEN:
        (pair[1] / path).parent.mkdir(parents=True, exist_ok=True)
        (pair[1] / path).write_bytes(b"no safetensors")
    pack(*pair, out=tmp_path / "delta")
    apply(pair[0], tmp_path / "delta", out=tmp_path / "out")
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("options", [{"weights_only": True}, {"export": "bf16"}], ids=str)
def test_state_is_kept_unless_only_weights_are_wanted(
    options: dict[str, object], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = {*tree(pair[1])}
    for path in STATE:
        (pair[1] / path).parent.mkdir(exist_ok=True)
        (pair[1] / path).write_bytes(NOISE)
    whole = round_trip(*pair, tmp_path / "whole")
    assert whole["resumable"]["bytes"] == whole["export"]["bytes"] + len(STATE) * len(NOISE)
    assert whole["bytes"] > len(STATE) * len(NOISE)
    lean = pack(*pair, out=tmp_path / "lean", **options)
    assert lean["resumable"] is None
    apply(pair[0], tmp_path / "lean", out=tmp_path / "out")
    assert {*tree(tmp_path / "out")} == expected


def values(tensor: Tensor) -> torch.Tensor:
    kinds = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    kinds |= {"BF16": torch.bfloat16, "I64": torch.int64}
    raw = torch.tensor([*tensor.data], dtype=torch.uint8)
    return raw.view(kinds[tensor.dtype]).reshape(tensor.shape)


def of_range(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Wild bits; in F64 only those that float32 has, since torch rounds by way of it."""
    if dtype != "F64":
        return wild(dtype, shape, seed=3)
    single = np.frombuffer(wild("F32", shape, seed=3).data, "<f4")
    return Tensor("F64", shape, np.where(np.isnan(single), 1.5, single).astype("<f8").tobytes())


def test_an_export_rounds_as_torch_does_and_states_the_loss(tmp_path: Path) -> None:
    kinds = ("F16", "F32", "F64", "BF16", "I64")
    tuned = {dtype: of_range(dtype, (30, 41)) for dtype in kinds} | {"none": wild("F32", (0, 3))}
    base = {name: wild("BF16", tensor.shape, seed=8) for name, tensor in tuned.items()}
    config = b'{"torch_dtype": "float32"}'
    first = write_folder(tmp_path / "base", base)
    second = write_folder(tmp_path / "tuned", tuned, files={"config.json": config})
    said = pack(first, second, out=tmp_path / "delta", export="bf16")
    apply(first, tmp_path / "delta", out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "config.json").read_bytes() == config
    assert set(found) == set(tuned)
    entries, changed, lost, square = 0, 0, 0.0, 0.0
    for name, tensor in tuned.items():
        before = values(tensor)
        if tensor.dtype in {"BF16", "I64"}:
            assert found[name].dtype == before.dtype
            assert bytes(found[name].view(torch.uint8).numpy()) == tensor.data
            continue
        after, exact = before.to(torch.bfloat16), before.double().numpy()
        kept = after.double().numpy()
        assert found[name].dtype == torch.bfloat16
        nan = after.isnan()
        assert torch.equal(found[name].isnan(), nan)
        codes = [one.view(torch.int16)[~nan] for one in (found[name], after)]
        assert torch.equal(*codes)
        finite = np.isfinite(exact) & np.isfinite(kept)
        entries, changed = entries + exact.size, changed + int((exact != kept)[~nan.numpy()].sum())
        lost += float(((exact[finite] - kept[finite]) ** 2).sum())
        square += float((exact[finite] ** 2).sum())
    assert said["rounded_to"] == "BF16"
    loss = said["rounding"]
    assert (loss["entries"], loss["changed"]) == (entries, changed)
    assert loss["relative_norm"] == pytest.approx((lost / square) ** 0.5, rel=1e-9)
    assert loss["relative_norm"] < 2.0**-8


def test_an_export_keeps_metadata_and_is_none_where_nothing_is_wide(tmp_path: Path) -> None:
    narrow = write_file(tmp_path / "a.safetensors", {"a": wild("BF16", (9, 9))})
    said = pack(narrow, narrow, out=tmp_path / "d", export="bf16")
    assert said["rounding"] == {"entries": 0, "changed": 0, "relative_norm": None}
    tensors = {"ä": wild("F32", (2, 2)), "b": wild("BOOL", (3,))}
    text = json.dumps({"__metadata__": {"format": "pt", "note": "ü\n"}} | {
        "ä": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BOOL", "shape": [3], "data_offsets": [16, 19]},
    })  # fmt: skip
    wide = write_file(tmp_path / "b.safetensors", tensors, text=text)
    pack(narrow, wide, out=tmp_path / "delta", export="bf16")
    apply(narrow, tmp_path / "delta", out=tmp_path / "out")
    raw = (tmp_path / "out" / "b.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt", "note": "ü\n"}
    assert header["ä"] == {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
    assert header["b"] == {"dtype": "BOOL", "shape": [3], "data_offsets": [8, 11]}


def test_single_files_stand_for_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a file only the file is packed, whatever lies beside it; either side may be one."""
    files = [side / "model.safetensors" for side in pair]
    round_trip(*files, tmp_path / "files")
    round_trip(pair[0], files[1], tmp_path / "mixed")
    renamed = files[1].rename(pair[1] / "other.safetensors")
    round_trip(files[0], renamed, tmp_path / "renamed")
    link = tmp_path / "link.safetensors"
    link.symlink_to(files[0])
    apply(link, tmp_path / "files" / "delta", out=tmp_path / "out")
    pack(*pair, out=tmp_path / "delta")
    with pytest.raises(DeltaError, match=r"config\.json"):
        apply(files[0], tmp_path / "delta", out=tmp_path / "no")


def hub_cache(root: Path, directory: Path) -> Path:
    """The directory as huggingface_hub caches `org/name`: blobs, and a snapshot of links."""
    repo, commit = root / "models--org--name", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(directory.iterdir())):
        blob = repo / "blobs" / f"{number:064x}"
        blob.write_bytes(path.read_bytes())
        link = repo / "snapshots" / commit / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../../blobs") / blob.name)
    return link.parent


def test_a_hub_id_and_the_cache_behind_it_are_models(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    snapshot = hub_cache(tmp_path / "cache", pair[0])
    round_trip(snapshot, pair[1], tmp_path / "links")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    code = (
        "import sys; from offaxis.delta import apply, pack; base, tuned, out = sys.argv[1:]\n"
        "pack(base, tuned, out=out + '/d'); apply(base + '@main', out + '/d', out=out + '/hub')"
    )
    command = [sys.executable, "-c", code, "org/name", str(pair[1]), str(tmp_path)]
    subprocess.run(command, env=env, cwd=tmp_path, check=True)
    assert tree(tmp_path / "hub") == tree(pair[1])
    assert (tmp_path / "d").read_bytes() == (tmp_path / "links" / "delta").read_bytes()
