"""The law of the delta: `apply(base, pack(base, tuned))` is tuned, byte for byte.

Over dtypes, shapes, bit patterns, headers, shardings and every model in the tree; and packing gives
the same bytes each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import families
import models
from delta_models import (
    HEADERS,
    SHAPES,
    Tensor,
    changed_entries,
    fits,
    planted,
    resized,
    round_trip,
    stepped,
    wild,
    write_file,
    write_folder,
)
from offaxis.checkpoint.dtypes import WIDTHS
from offaxis.delta import apply, pack, small
from offaxis.delta.words import words_of

CODECS = ("small", "fast")
BUNDLED = Path(__file__).parents[1] / "src" / "offaxis" / "lab" / "base"
DATA = Path(__file__).parents[2] / "shared" / "data"

Tensors = dict[str, Tensor]


def check(base: Tensors, tuned: Tensors, place: Path, *, text: str | None = None) -> None:
    """The law with both codecs, for models of one file."""
    first = write_file(place / "base" / "model.safetensors", base)
    second = write_file(place / "tuned" / "model.safetensors", tuned, text=text)
    for codec in CODECS:
        said = round_trip(first.parent, second.parent, place / codec, codec=codec)
        assert said["tensors"] == len(tuned)


def grown(tensor: Tensor, seed: int, *, rows: int = 4) -> Tensor:
    """With rows appended, as a resized embedding; from nothing, where it has no rows."""
    if not tensor.shape:
        return resized(tensor, (4,), seed=seed)
    return resized(tensor, (tensor.shape[0] + rows, *tensor.shape[1:]), seed=seed)


def cast(tensor: Tensor, seed: int) -> Tensor:
    """In another dtype: BF16 and F32 by their values and a step, the others as random bits."""
    if tensor.dtype == "BF16":
        wide = tensor.words.astype("<u4") << 16
        widened = Tensor("F32", tensor.shape, wide.tobytes())
        return stepped(widened, share=0.5, reach=1 << 15, seed=seed)
    if tensor.dtype == "F32":
        return Tensor("BF16", tensor.shape, (tensor.words >> 16).astype("<u2").tobytes())
    other = {"F16": "BF16", "I32": "F32"}.get(tensor.dtype, "I64")
    return wild(other, tensor.shape, seed=seed)


RELATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "same": lambda tensor, seed: tensor,
    "stepped": lambda tensor, seed: stepped(tensor, share=0.1, seed=seed),
    "dense": lambda tensor, seed: stepped(tensor, share=0.9, reach=40, seed=seed),
    "unlike": lambda tensor, seed: wild(tensor.dtype, tensor.shape, seed=seed + 1),
    "reshaped": lambda tensor, seed: resized(tensor, tensor.shape[::-1]),
    "flattened": lambda tensor, seed: resized(tensor, (int(np.prod(tensor.shape)),)),
    "grown": grown,
    "emptied": lambda tensor, seed: resized(tensor, (0, *tensor.shape[1:])),
    "cast": cast,
    "cast and grown": lambda tensor, seed: grown(cast(tensor, seed), seed),
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Two models of up to four tensors each; some in one of them only."""
    base: Tensors = {}
    tuned: Tensors = {}
    for name in draw(st.lists(NAMES.filter("__metadata__".__ne__), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(WIDTHS)))
        shape = draw(st.sampled_from([shape for shape in SHAPES if fits(dtype, shape)]))
        seed = draw(st.integers(0, 99))
        where = draw(st.sampled_from(["both", "both", "both", "base", "tuned"]))
        before = wild(dtype, shape, seed=seed)
        after = RELATIONS[draw(st.sampled_from(sorted(RELATIONS)))](before, seed)
        if where != "tuned":
            base[name] = before
        if where != "base":
            tuned[name] = after
    return base, tuned


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(pair=pairs(), header=st.sampled_from(sorted(HEADERS)))
def test_any_model_comes_back(pair: tuple[Tensors, Tensors], header: str) -> None:
    base, tuned = pair
    with tempfile.TemporaryDirectory() as place:
        check(base, tuned, Path(place), text=HEADERS[header](tuned))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("dtype", WIDTHS)
def test_every_dtype_comes_back(dtype: str, relation: str, tmp_path: Path) -> None:
    """One tensor of each shape under each relation, so that none is left to chance."""
    shapes = [shape for shape in SHAPES if fits(dtype, shape) and shape != (0,)]
    if relation == "emptied":
        shapes = [shape for shape in shapes if shape]
    base = {f"{i}{shape}": wild(dtype, shape, seed=i) for i, shape in enumerate(shapes)}
    tuned = {name: RELATIONS[relation](tensor, 7) for name, tensor in base.items()}
    check(base, tuned, tmp_path)


@pytest.mark.parametrize("codec", CODECS)
def test_a_cast_alone_changes_no_entry(codec: str, tmp_path: Path) -> None:
    """BF16 to F32 is exact; F32 to BF16 as torch rounds, but for NaN, whose payload it drops."""
    bits = wild("F32", (80, 90)).words
    bits = np.where((bits & 0x7FFFFFFF) > 0x7F800000, 1, bits)
    wide = Tensor("F32", (80, 90), bits.tobytes())
    rounded = torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16).view(torch.uint8)
    narrow = Tensor("BF16", (80, 90), rounded.numpy().tobytes())
    back = Tensor("F32", (80, 90), (narrow.words.astype("<u4") << 16).tobytes())
    for name, base, tuned in (("down", wide, narrow), ("up", narrow, back)):
        first = write_file(tmp_path / name / "base.safetensors", {"a": base})
        second = write_file(tmp_path / name / "tuned.safetensors", {"a": tuned})
        said = round_trip(first, second, tmp_path / name, codec=codec)
        assert (said["codecs"], said["changed"]) == ({codec: 1}, 0)


@pytest.mark.parametrize("header", HEADERS)
def test_headers_come_back_byte_for_byte(header: str, tmp_path: Path) -> None:
    base = {"ä.weight": wild("BF16", (40, 8)), "b\n": wild("F32", (3,)), "z": wild("BOOL", (5,))}
    tuned = {name: stepped(tensor, share=0.3) for name, tensor in base.items()}
    check(base, tuned, tmp_path, text=HEADERS[header](tuned))


def test_a_model_without_tensors_comes_back(tmp_path: Path) -> None:
    some = {"a": wild("BF16", (3, 4))}
    for number, (base, tuned) in enumerate([({}, {}), (some, {}), ({}, some)]):
        check(base, tuned, tmp_path / str(number), text="{}" if not tuned else None)


def tiny() -> Tensors:
    """Shaped as a transformer, so that renamings can be found."""
    out = {"model.embed_tokens.weight": wild("BF16", (50, 32), seed=1)}
    for layer in range(3):
        for i, name in enumerate(("self_attn.q_proj", "mlp.up_proj")):
            tensor = wild("BF16", (40, 32), seed=10 * layer + i)
            out[f"model.layers.{layer}.{name}.weight"] = tensor
    return out | {"model.norm.weight": wild("BF16", (32,), seed=99)}


def moved(tensors: Tensors) -> Tensors:
    return {name: stepped(t, share=0.2, seed=i) for i, (name, t) in enumerate(tensors.items())}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda name: f"_orig_mod.{name}", id="wrapped"),
        pytest.param(lambda name: name.removeprefix("model."), id="stripped"),
        pytest.param(lambda name: f"module.{name}", id="module"),
    ],
)
def test_renamed_tensors_are_found(
    rename: Callable[[str], str], codec: str, tmp_path: Path
) -> None:
    base = tiny()
    tuned = {rename(name): tensor for name, tensor in moved(base).items()}
    grown_name = rename("model.embed_tokens.weight")
    tuned[grown_name] = grown(tuned[grown_name], 3)
    paths = [write_folder(tmp_path / n, t) for n, t in (("base", base), ("tuned", tuned))]
    said = round_trip(*paths, tmp_path, codec=codec)
    assert said["codecs"] == {codec: len(base)}
    assert said["removed"] == []
    assert said["changed_share"] < 0.3


@pytest.mark.parametrize("shards", [(1, 3), (3, 1), (2, 3)], ids=str)
def test_sharding_is_free_on_either_side(shards: tuple[int, int], tmp_path: Path) -> None:
    """And a base that is sharded otherwise when it is applied is the same base."""
    base, tuned = tiny(), moved(tiny())
    first = write_folder(tmp_path / "base", base, shards=shards[0])
    second = write_folder(tmp_path / "tuned", tuned, shards=shards[1])
    said = round_trip(first, second, tmp_path / "one")
    again = write_folder(tmp_path / "again", base, shards=5 - shards[0])
    apply(again, tmp_path / "one" / "delta", out=tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }
    whole = write_folder(tmp_path / "whole", tuned)
    assert pack(again, whole, out=tmp_path / "other")["tuned"] == said["tuned"]


@pytest.mark.parametrize("codec", CODECS)
def test_an_identical_model_takes_next_to_nothing(codec: str, tmp_path: Path) -> None:
    base = {str(i): wild("BF16", (100, 200), seed=i) for i in range(20)}
    paths = [write_folder(tmp_path / name, base) for name in ("base", "tuned")]
    said = round_trip(*paths, tmp_path, codec=codec)
    assert said["codecs"] == {"same": 20}
    assert (said["changed"], said["unchanged_tensors"]) == (0, 20)
    assert said["bytes"] < 0.004 * said["export"]["bytes"]


@pytest.mark.parametrize(
    ("shape", "shifted"),
    [((700, 801), True), ((1, 300_001), False), ((300_001, 1), False)],
    ids=str,
)
def test_rows_and_columns_that_move_apart_are_coded_apart(
    shape: tuple[int, int], shifted: bool, tmp_path: Path
) -> None:
    """Chunks begin in the middle of rows. Shifts are used where there is a matrix."""
    base, tuned = planted(shape)
    check({"w": base}, {"w": tuned}, tmp_path)
    model, changed = small.analyse(base.words, tuned.words, words_of("BF16"), shape)
    assert (model.shifts is not None) == shifted
    assert changed == changed_entries(base, tuned) > 0.2 * len(base.words)


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.RECENT])
def test_every_family_comes_back(family: str, tmp_path: Path) -> None:
    state = families.build(family).state_dict()
    state = {n: t.clone() for n, t in state.items()}
    base = families.save(state, tmp_path / "base", {"model_type": family})
    halved = {
        n: t.to(torch.bfloat16).to(t.dtype) if i % 2 else t
        for i, (n, t) in enumerate(state.items())
    }
    tuned = families.save_shards(halved, tmp_path / "tuned", [i % 2 for i in range(len(state))])
    for codec in CODECS:
        said = round_trip(base, tuned, tmp_path / codec, codec=codec)
        assert said["unchanged_tensors"] >= len(state) // 2


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_bundled_base_after_a_step_comes_back(
    dtype: torch.dtype, codec: str, tmp_path: Path
) -> None:
    tuned = models.nudged(models.read(BUNDLED), seed=1, size=3e-6, dtype=dtype)
    said = round_trip(BUNDLED, models.write(tmp_path / "tuned", tuned), tmp_path, codec=codec)
    assert codec in said["codecs"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "names",
    [
        ("base", "rl-checkpoint-20"),
        ("rl-checkpoint-20", "rl-checkpoint-40"),
        ("rl-checkpoint-60", "base"),
        ("base", "sft-60"),
    ],
    ids="-".join,
)
def test_real_pairs_come_back(
    names: tuple[str, str], codec: str, pairs: Path, tmp_path: Path
) -> None:
    round_trip(*(pairs / name for name in names), tmp_path, codec=codec)


def test_a_real_model_comes_back_from_an_unlike_base(pairs: Path, tmp_path: Path) -> None:
    model = DATA / "models" / "verl_arithmetic_sequence"
    if not model.is_dir():
        pytest.skip(f"no model at {model} (local test material)")
    for codec in CODECS:
        round_trip(pairs / "base", model, tmp_path / codec, codec=codec)


PACK = """
import os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from offaxis.delta import pack
for codec in ("small", "fast"):
    pack(sys.argv[2], sys.argv[3], out=f"{sys.argv[4]}-{codec}", codec=codec)
"""


@pytest.fixture(scope="module")
def various(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pair that uses every codec, several chunks and shifts."""
    root = tmp_path_factory.mktemp("various")
    first, second = planted((600, 900))
    base = tiny() | {"w": first, "odd": wild("F32", (70, 70)), "gone": wild("I8", (5,))}
    tuned = moved(tiny()) | {"w": second, "odd": wild("F32", (70, 70), seed=5)}
    tuned |= {
        "new": Tensor("U8", (5000,), np.random.default_rng(0).bytes(5000)),
        "zeros": Tensor("I64", (99,), bytes(792)),
    }
    files = {"config.json": b"{}", "notes.txt": b"words " * 999}
    return (
        write_folder(root / "base", base, files={"config.json": b"{}"}),
        write_folder(root / "tuned", tuned, shards=2, files=files),
    )


def packed(pair: tuple[Path, Path], out: Path) -> list[bytes]:
    for codec in CODECS:
        pack(*pair, out=out.with_name(f"{out.name}-{codec}"), codec=codec)
    return [out.with_name(f"{out.name}-{codec}").read_bytes() for codec in CODECS]


def test_packing_is_deterministic(
    various: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, with one worker or eight, and in fresh processes on one processor or all."""
    expected = packed(various, tmp_path / "first")
    assert packed(various, tmp_path / "second") == expected
    for count in (1, 8):
        monkeypatch.setattr("offaxis.delta.packing.threads", lambda count=count: count)
        monkeypatch.setattr("offaxis.kernels.pool.threads", lambda count=count: count)
        assert packed(various, tmp_path / f"by-{count}") == expected
    for processors in ("one", "all") if hasattr(os, "sched_setaffinity") else ("all",):
        out = tmp_path / processors
        command = [sys.executable, "-c", PACK, processors, *map(str, (*various, out))]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
        assert [(tmp_path / f"{processors}-{c}").read_bytes() for c in CODECS] == expected


def test_the_various_pair_comes_back_and_is_various(
    various: tuple[Path, Path], tmp_path: Path
) -> None:
    for codec in CODECS:
        said = round_trip(*various, tmp_path / codec, codec=codec)
        assert {"planes", "raw", codec} <= set(said["codecs"])
