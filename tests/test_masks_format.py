"""Masks in files: every mask comes back, in few bytes, and the page alone is enough to read one."""

from __future__ import annotations

import json
import os
import struct
from math import log2, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from xxhash import xxh3_128_hexdigest

from golden.masks import make
from models import tiny
from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError, OutputError
from offaxis.kernels import pack
from offaxis.kernels.gaps import MOST_BITS, gap_bits, write_gaps
from offaxis.masks import Mask, Origin, build, load
from offaxis.masks.coding import decode, encode

GOLDEN = Path(__file__).parent / "golden" / "masks"

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def mask_of(flags: dict[str, Flags], rule: str = "planted") -> Mask:
    return Mask(
        {name: pack(one) for name, one in flags.items()},
        {name: one.shape for name, one in flags.items()},
        {name: Origin(*make.origin(name, i)) for i, name in enumerate(flags)},
        rule,
    )


# A reader written from docs/mask-format.md alone: no import from offaxis.


def read_by_the_page(raw: bytes) -> tuple[dict[str, str], dict[str, Flags]]:
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    said = header.pop("__metadata__")
    assert (said["format"], said["version"]) == ("offaxis-mask", "1")
    head = "".join(said[key] + "\n" for key in ("rule", "density", "base", "tensors"))
    assert xxh3_128_hexdigest(head.encode() + data) == said["content"]
    rows = json.loads(said["tensors"])
    assert rows.keys() == header.keys()
    flags = {}
    for name, row in rows.items():
        start, stop = header[name]["data_offsets"]
        assert header[name] == {
            "dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]
        }  # fmt: skip
        entries = prod(row["shape"])
        bits = np.unpackbits(np.frombuffer(data[start:stop], np.uint8), bitorder="little")
        if row["coding"] == "bitmap":
            found, after = bits[:entries].astype(bool), bits[entries:]
        else:
            count = row["selected"] if row["coding"] == "ones" else entries - row["selected"]
            places, after = read_gaps(bits, count, row["parameter"])
            found = np.zeros(entries, bool)
            found[places] = True
            found = found if row["coding"] == "ones" else ~found
        assert len(after) < 8
        assert not after.any()
        assert found.sum() == row["selected"]
        flags[name] = found.reshape(row["shape"])
    lines = sorted(
        f"{name}\t{row['dtype']}\t{','.join(map(str, row['shape']))}\t{row['base']}\n".encode()
        for name, row in rows.items()
    )
    assert said["base"] == xxh3_128_hexdigest(b"".join(lines))
    every = sum(one.size for one in flags.values())
    assert float(said["density"]) == sum(one.sum() for one in flags.values()) / every
    return said, flags


def read_gaps(bits: Flags, count: int, k: int) -> tuple[list[int], Flags]:
    places, at, entry = [], 0, 0
    for _ in range(count):
        zeros = 0
        while not bits[at]:
            zeros, at = zeros + 1, at + 1
        low = sum(int(bit) << j for j, bit in enumerate(bits[at + 1 : at + 1 + k]))
        at += 1 + k
        entry += (zeros << k) + low
        places.append(entry)
        entry += 1
    return places, bits[at:]


@pytest.mark.parametrize("name", make.FILES)
def test_the_page_alone_is_enough_for_the_golden_files(name: str) -> None:
    said, flags = read_by_the_page((GOLDEN / f"{name}.mask").read_bytes())
    assert said["rule"] == f"golden({name!r})"
    assert list(flags) == list(make.FILES[name])
    for one, expected in make.FILES[name].items():
        assert np.array_equal(flags[one], expected)


@pytest.mark.parametrize("name", make.FILES)
def test_offaxis_reads_and_writes_the_golden_files(name: str, tmp_path: Path) -> None:
    golden = GOLDEN / f"{name}.mask"
    mask = mask_of(make.FILES[name], f"golden({name!r})")
    found = load(golden)
    assert found == mask
    assert found.rule == mask.rule
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == golden.read_bytes()


def test_the_golden_files_hold_every_coding() -> None:
    rows = {}
    for name in make.FILES:
        said, _ = read_by_the_page((GOLDEN / f"{name}.mask").read_bytes())
        rows |= json.loads(said["tensors"])
    assert {row["coding"] for row in rows.values()} == {"bitmap", "ones", "zeros"}
    assert {row["parameter"] for row in rows.values()} >= {0, 1, 9}


def test_any_safetensors_library_opens_it() -> None:
    with safe_open(GOLDEN / "codings.mask", "pt") as file:
        assert set(file.keys()) == set(make.FILES["codings"])
        assert file.metadata()["format"] == "offaxis-mask"
        assert file.get_tensor("a.layers.10.none").shape == (0,)
        assert file.get_tensor("a.layers.2.half").dtype == torch.uint8


shapes = st.one_of(
    st.tuples(st.just(1), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.just(1)),
    st.integers(1, 8).flatmap(lambda n: st.sampled_from([(n, 8), (3, 8 * n + 1), (1, 8 * n - 1)])),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)),
)
densities = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.01, 0.99]), st.floats(0, 1))


@settings(deadline=None)
@given(
    st.lists(st.tuples(shapes, densities), min_size=1, max_size=4), st.integers(0, 99), st.text()
)
def test_every_mask_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: list[tuple[tuple[int, ...], float]],
    seed: int,
    rule: str,
) -> None:
    rng = np.random.default_rng(seed)
    flags = {f"layers.{i}": rng.random(shape) < share for i, (shape, share) in enumerate(tensors)}
    mask = mask_of(flags, rule.encode("utf-8", "replace").decode())
    file = tmp_path_factory.getbasetemp() / "any.mask"
    mask.save(file)
    found = load(file)
    assert found == mask
    assert (found.rule, list(found), found.density) == (mask.rule, list(mask), mask.density)
    said, read = read_by_the_page(file.read_bytes())
    assert said["rule"] == mask.rule
    assert all(np.array_equal(read[name], one) for name, one in flags.items())
    before = file.read_bytes()
    found.save(file)
    assert file.read_bytes() == before


@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_the_coding_is_the_smallest(entries: int, share: float, seed: int) -> None:
    bits = pack(np.random.default_rng(seed).random(entries) < share)
    coded, selected = encode(bits, entries), int(np.bitwise_count(bits).sum())
    assert np.array_equal(decode(coded, entries, selected=selected), bits)
    flip = 2 * selected > entries
    count, sizes = gap_bits(bits, entries, flip=flip)
    assert count == min(selected, entries - selected)
    lengths = [write_gaps(bits, entries, parameter=k, size=int(sizes[k]), flip=flip).size
               for k in range(MOST_BITS + 1)]  # fmt: skip
    assert coded.data.size == min(bits.size, *lengths)
    if count == 0:
        assert coded.data.size == 0


@pytest.mark.parametrize(
    ("share", "most"), [(0.5, 0.0), (0.1, 0.015), (0.01, 0.005), (0.001, 0.01), (0.9, 0.015)]
)
def test_random_masks_take_little_more_than_their_entropy(share: float, most: float) -> None:
    """The bound on the excess is what docs/masks.md states for each density."""
    base = MemoryCheckpoint({"layers.0.up_proj.weight": torch.ones(2000, 1000)})
    (bits,) = build(base, "random", density=share).bits.values()
    entropy = -(share * log2(share) + (1 - share) * log2(1 - share)) * 2_000_000 / 8
    assert encode(bits, 2_000_000).data.size <= entropy * (1 + most) + 1


def test_the_file_has_the_name_given_and_replaces_what_is_there(tmp_path: Path) -> None:
    mask = build(MemoryCheckpoint(tiny(layers=1)), "random", density=0.1)
    file = tmp_path / "new" / "parents" / "exactly this"
    mask.save(file)
    assert os.listdir(file.parent) == ["exactly this"]
    (~mask).save(str(file))
    assert load(str(file)) == ~mask
    assert os.listdir(file.parent) == ["exactly this"]
    with pytest.raises(OutputError, match="a directory is there"):
        mask.save(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        mask.save(file / "below a file")


def test_a_rule_too_long_for_the_format_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    mask = mask_of({"w": np.ones((2, 2), np.bool_)}, "x" * (1 << 25))
    with pytest.raises(InputError, match="above the format's limit of 33554432"):
        mask.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())
