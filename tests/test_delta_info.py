"""What a delta says of itself: changed entries by layer and role, savings, codecs, notes, progress.

Every number against a count of the files' bytes that uses nothing of the delta.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from delta_models import Tensor, Tensors, changed_entries, stepped, wild, write_file, write_folder
from offaxis.checkpoint.digest import checksum
from offaxis.delta import Step, apply, info, pack, verify

CODECS = ("small", "fast")
LAYERS = 2
STATE = {"optimizer.pt": bytes(9000), "trainer_state.json": b"{}" * 400, "rng_state.pth": b"r"}


def tensors_of(state: models.State) -> Tensors:
    """A model of torch tensors as the bytes of a file."""
    names = {torch.bfloat16: "BF16", torch.float32: "F32"}
    return {
        name: Tensor(names[t.dtype], tuple(t.shape), t.view(torch.uint8).numpy().tobytes())
        for name, t in state.items()
    }


def shares() -> dict[str, float]:
    """How much of each tensor is to move: none of the norms, more in later layers."""
    names = list(models.tiny(layers=LAYERS))
    return {name: 0.0 if "norm" in name else (i % 7) / 10 for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, Tensors, Path]:
    """Base and tuned tensors, and a directory that holds both and their deltas."""
    root = tmp_path_factory.mktemp("info")
    base = tensors_of(models.tiny(layers=LAYERS))
    tuned = {
        name: stepped(tensor, share=shares()[name], seed=i)
        for i, (name, tensor) in enumerate(base.items())
    }
    write_folder(root / "base", base)
    write_folder(root / "tuned", tuned, shards=2, files=STATE | {"config.json": b"{}"})
    for codec in CODECS:
        pack(root / "base", root / "tuned", out=root / codec, codec=codec)
    return base, tuned, root


def role_of(name: str) -> tuple[int | None, str]:
    """Layer and role, told from the names that `models.tiny` gives."""
    parts = name.split(".")
    layer = int(parts[2]) if parts[1] == "layers" else None
    if "norm" in name:
        return layer, "norm"
    return layer, {"embed_tokens": "embed"}.get(parts[-2], parts[-2])


@pytest.mark.parametrize("codec", CODECS)
def test_roles_count_what_changed(codec: str, pair: tuple[Tensors, Tensors, Path]) -> None:
    base, tuned, root = pair
    said = info(root / codec)
    expected: Counter[tuple[int | None, str, str]] = Counter()
    for name, tensor in tuned.items():
        where = role_of(name)
        expected[*where, "tensors"] += 1
        expected[*where, "entries"] += len(tensor.words)
        expected[*where, "changed"] += changed_entries(base[name], tensor)
        expected[*where, "bytes"] += len(tensor.data)
    found = {
        (row["layer"], row["role"], key): row[key]
        for row in said["roles"]
        for key in ("tensors", "entries", "changed", "bytes")
    }
    assert found == dict(expected)
    layers = [row["layer"] for row in said["roles"]]
    assert layers == sorted(layers, key=lambda layer: LAYERS if layer is None else layer)
    for row in said["roles"]:
        assert (row["delta"] > 0) == (row["changed"] > 0)


@pytest.mark.parametrize("codec", CODECS)
def test_totals_are_the_sums_and_the_sizes_of_the_files(
    codec: str, pair: tuple[Tensors, Tensors, Path]
) -> None:
    base, tuned, root = pair
    said = info(root / codec)
    assert said["changed"] == sum(changed_entries(base[name], tuned[name]) for name in base)
    assert said["entries"] == sum(len(tensor.words) for tensor in tuned.values())
    assert said["changed_share"] == said["changed"] / said["entries"]
    assert said["tensors"] == len(tuned) == sum(said["codecs"].values())
    assert said["unchanged_tensors"] == sum(base[n].data == tuned[n].data for n in base)
    assert said["bytes"] == (root / codec).stat().st_size
    files = {path.name: path.stat().st_size for path in (root / "tuned").iterdir()}
    whole, export = said["resumable"], said["export"]
    assert whole["bytes"] == sum(files.values())
    assert export["bytes"] == sum(size for name, size in files.items() if name not in STATE)
    assert whole["delta"] == said["bytes"] > export["delta"]
    for one in (whole, export):
        assert one["saved"] == pytest.approx(1 - one["delta"] / one["bytes"])


def content_digest(tensors: Tensors) -> str:
    """As docs/delta-format.md has it."""
    lines = [
        f"{name}\t{t.dtype}\t{','.join(map(str, t.shape))}\t{checksum(t.data)}\n"
        for name, t in tensors.items()
    ]
    return checksum("".join(sorted(lines)).encode())


def test_digests_name_the_models_and_the_writer_is_named(
    pair: tuple[Tensors, Tensors, Path],
) -> None:
    base, tuned, root = pair
    said = info(root / "small")
    assert (said["base"], said["tuned"]) == (content_digest(base), content_digest(tuned))
    assert (said["format"], said["version"], said["codec"]) == ("offaxis-delta", "1", "small")
    assert said["writer"].startswith("offaxis ")
    assert said["schema"] == 1
    assert said["rounded_to"] is None
    assert info(root / "fast")["codec"] == "fast"
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_what_pack_returns_is_what_info_says(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {"a": wild("F16", (9, 9))})
    said = pack(path, path, out=tmp_path / "delta")
    assert said == info(tmp_path / "delta")
    assert said["file"] == str(tmp_path / "delta")
    assert said["codec"] == "small", "the default"


def packed(base: Tensors, tuned: Tensors, place: Path, **options: Any) -> dict[str, Any]:
    first = write_file(place / "base.safetensors", base)
    second = write_file(place / "tuned.safetensors", tuned)
    return pack(first, second, out=place / "delta", **options)


@pytest.mark.parametrize("codec", CODECS)
def test_a_tensor_whose_name_stays_is_not_removed(codec: str, tmp_path: Path) -> None:
    """Neither where nothing of the base is left in it, nor where its dtype is another."""
    base = {n: wild("F32", (60, 60), seed=i) for i, n in enumerate(("a", "b", "gone"))}
    tuned = {"a": wild("F32", (60, 60), seed=9), "b": wild("I64", (8,)), "new": wild("U8", (3,))}
    assert packed(base, tuned, tmp_path, codec=codec)["removed"] == ["gone"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "C64", "F4", "F6_E2M3", "BOOL", "I64"])
def test_no_more_can_change_than_there_is(dtype: str, codec: str, tmp_path: Path) -> None:
    base = wild(dtype, (40, 40))
    every = replace(base, data=bytes(byte ^ 1 for byte in base.data))
    found = [
        packed({"a": base}, {"a": tuned}, tmp_path / str(i), codec=codec)
        for i, tuned in enumerate((base, stepped(base, share=0.2), every))
    ]
    assert [said["changed_share"] for said in found[::2]] == [0, 1]
    assert 0 < found[1]["changed"] < found[1]["entries"] == found[2]["changed"]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_unlike_its_base_takes_no_more_than_its_bytes(codec: str, tmp_path: Path) -> None:
    noise = [Tensor("BF16", (90, 99), random.Random(i).randbytes(2 * 90 * 99)) for i in (0, 1)]
    ramp = Tensor("F32", (4000,), bytes(i % 7 for i in range(16000)))
    other = wild("F32", (4000,))
    said = packed({"a": noise[0], "b": other}, {"a": noise[1], "b": ramp}, tmp_path, codec=codec)
    assert said["codecs"] == {"planes": 1, "raw": 1}
    assert said["changed_share"] == 1
    assert said["bytes"] < len(noise[0].data) + 3000


def test_new_tensors_count_whole(tmp_path: Path) -> None:
    base = {"a": wild("BF16", (10, 10))}
    said = packed(base, base | {"b": Tensor("BF16", (7,), bytes(14))}, tmp_path)
    assert (said["entries"], said["changed"]) == (107, 7)


def test_a_model_without_tensors_has_no_share(tmp_path: Path) -> None:
    said = packed({}, {}, tmp_path)
    assert (said["entries"], said["changed"], said["changed_share"]) == (0, 0, None)
    assert said["resumable"] is None
    assert said["roles"] == []


def test_float32_that_moved_everywhere_is_told_of_export(tmp_path: Path) -> None:
    wide, narrow = wild("F32", (50, 50)), wild("BF16", (50, 50))
    for name, tensor, share, noted in (
        ("all", wide, 1.0, True),
        ("half", wide, 0.5, False),
        ("narrow", narrow, 1.0, False),
    ):
        tuned = stepped(tensor, share=share, reach=9)
        said = packed({"a": tensor}, {"a": tuned}, tmp_path / name)
        assert any("--export bf16" in note for note in said["notes"]) == noted


def test_removed_tensors_are_noted(tmp_path: Path) -> None:
    some = {"a": wild("BF16", (10, 10)), "b": wild("BF16", (4,))}
    said = packed(some, {"a": some["a"]}, tmp_path)
    assert said["removed"] == ["b"]
    assert any("1 tensors of the base" in note or "1 tensor " in note for note in said["notes"])


def test_progress_ends_where_it_says_that_it_will(
    pair: tuple[Tensors, Tensors, Path], tmp_path: Path
) -> None:
    base, tuned, root = pair
    total = sum(len(tensor.data) for tensor in tuned.values())
    for run in (
        lambda tell: pack(root / "base", root / "tuned", out=tmp_path / "delta", progress=tell),
        lambda tell: apply(root / "base", root / "small", out=tmp_path / "out", progress=tell),
        lambda tell: verify(root / "base", root / "small", progress=tell),
    ):
        steps: list[Step] = []
        run(steps.append)
        assert sorted(step.tensor for step in steps) == sorted(base)
        done = [step.done for step in steps]
        assert done == sorted(done)
        assert done[-1] == total
        assert {step.total for step in steps} == {total}
