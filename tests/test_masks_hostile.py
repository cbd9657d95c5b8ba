"""Mask files that are damaged, or an enemy's: an error that names them, and nothing else."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_128_hexdigest

from golden.masks import make
from offaxis.errors import InputError
from offaxis.kernels import pack
from offaxis.kernels.gaps import read_gaps, write_gaps
from offaxis.masks import Mask, load

GOLDEN = Path(__file__).parent / "golden" / "masks"

HALF, STACK, NONE = "a.layers.2.half", "a.layers.2.stack", "a.layers.10.none"


@dataclass(frozen=True)
class Parts:
    """A mask file in parts, each of which can be replaced before all is sealed again."""

    metadata: dict[str, Any]
    rows: dict[str, Any]
    data: dict[str, bytes]
    sealed: bool = True
    tensors: str | None = None
    """The text of `tensors` where it is not the JSON of `rows`."""

    def row(self, name: str, **changes: Any) -> Parts:
        return replace(self, rows=self.rows | {name: self.rows[name] | changes})

    def stream(self, name: str, data: bytes, **changes: Any) -> Parts:
        return replace(self, data=self.data | {name: data}).row(name, **changes)

    def said(self, **changes: Any) -> Parts:
        return replace(self, metadata=self.metadata | changes)

    def write(self, file: Path) -> Path:
        said = dict(self.metadata)
        said["tensors"] = json.dumps(self.rows) if self.tensors is None else self.tensors
        body = b"".join(self.data.values())
        if self.sealed:
            self.seal(said, body)
        header: dict[str, Any] = {"__metadata__": said}
        at = 0
        for name, one in self.data.items():
            header[name] = {"dtype": "U8", "shape": [len(one)], "data_offsets": [at, at + len(one)]}
            at += len(one)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + body)
        return file

    def seal(self, said: dict[str, Any], body: bytes) -> None:
        """Set base, density and content to what a reader finds, where they are not set already."""
        lines = []
        for name, row in self.rows.items():
            if isinstance(row, dict):
                extents = (
                    ",".join(map(str, row["shape"])) if isinstance(row.get("shape"), list) else ""
                )
                lines.append(f"{name}\t{row.get('dtype')}\t{extents}\t{row.get('base')}\n".encode())
        said.setdefault("base", xxh3_128_hexdigest(b"".join(sorted(lines))))
        said.setdefault("density", repr(self.density()))
        head = "".join(f"{said.get(k)}\n" for k in ("rule", "density", "base", "tensors"))
        said.setdefault("content", xxh3_128_hexdigest(head.encode("utf-8", "replace") + body))

    def density(self) -> float:
        with suppress(TypeError, KeyError, ZeroDivisionError, OverflowError):
            entries = sum(prod(row["shape"]) for row in self.rows.values())
            return float(sum(row["selected"] for row in self.rows.values()) / entries)
        return 0.0


def parts_of(file: Path) -> Parts:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    said = header.pop("__metadata__")
    rows = json.loads(said.pop("tensors"))
    data = {n: raw[8 + length :][slice(*one["data_offsets"])] for n, one in header.items()}
    return Parts({key: said[key] for key in ("format", "version", "rule")}, rows, data)


@pytest.fixture
def parts() -> Parts:
    return parts_of(GOLDEN / "codings.mask")


def refused(file: Path) -> str:
    """The message; within a second, and in 40 MB."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(InputError) as error:
            load(file)
        assert tracemalloc.get_traced_memory()[1] < 4e7
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 2
    words = str(error.value)
    assert str(file) in words
    assert len(words) < 1000
    return words


def test_a_file_made_again_is_the_same_mask(parts: Parts, tmp_path: Path) -> None:
    """The tools of this page are sound: what follows fails for its own reason."""
    sound = load(GOLDEN / "codings.mask")
    assert load(parts.write(tmp_path / "m")) == sound
    again = replace(parts, data=dict(reversed(parts.data.items())))
    found = load(again.write(tmp_path / "m"))
    assert found == sound
    assert list(found) == list(sound)  # in natural order, whatever the file's
    assert load(parts.said(more="ignored").write(tmp_path / "m")) == sound
    more_digits = f"{sound.density!r}000"
    assert load(parts.said(density=more_digits).write(tmp_path / "m")) == sound


BIG = 1 << 40
WRONG: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "no format": (lambda p: replace(p, metadata={"rule": "x"}), "no offaxis mask"),
    "another format": (lambda p: p.said(format="offaxis-delta"), "no offaxis mask"),
    "another version": (lambda p: p.said(version="2"), "version '2', and this offaxis reads 1"),
    "no rule": (lambda p: replace(p, metadata={"format": "offaxis-mask", "version": "1"}),
                "no 'rule'"),
    "no text": (lambda p: p.said(rule="\ud800"), "'rule' is not valid text"),
    "density": (lambda p: p.said(density="0.5"), "its density is 0.*, not"),
    "no density": (lambda p: p.said(density="nan"), "its density is"),
    "density of words": (lambda p: p.said(density="half"), "its density is"),
    "base": (lambda p: p.said(base="0" * 32), "its base has digest"),
    "content": (lambda p: p.said(content="0" * 32), "does not match its content"),
    "tensors of words": (lambda p: replace(p, tensors="{"), "not valid JSON"),
    "tensors of a list": (lambda p: replace(p, tensors="[]"), "no JSON object"),
    "tensors deep": (lambda p: replace(p, tensors="[" * 100_000), "not valid JSON"),
    "tensors many": (lambda p: replace(p, tensors="[" + "[]," * 1_100_000),
                     "more than 1048576 arrays"),
    "a name twice": (lambda p: replace(p, tensors='{"a": 1, "a": 2}'), "'a' occurs twice"),
    "names of nothing": (lambda p: replace(p, rows={}), "is not both in its header"),
    "a name more": (lambda p: replace(p, rows=p.rows | {"x": p.rows[HALF]}), "'x' is not both"),
    "a name less": (lambda p: replace(p, data={k: v for k, v in p.data.items() if k != HALF}),
                    f"'{HALF}' is not both"),
    "a row of words": (lambda p: replace(p, rows=p.rows | {HALF: "x"}), f"{HALF}.*exactly base"),
    "a key more": (lambda p: p.row(HALF, x=1), f"{HALF}.*exactly base"),
    "shape of words": (lambda p: p.row(HALF, shape="5x7"), f"{HALF}.*has the shape 5x7"),
    "no axes": (lambda p: p.row(HALF, shape=[]), f"{HALF}.*has the shape"),
    "nine axes": (lambda p: p.row(HALF, shape=[1] * 9), f"{HALF}.*has the shape"),
    "no entries": (lambda p: p.row(HALF, shape=[0, 7]), f"{HALF}.*has the shape"),
    "negative": (lambda p: p.row(HALF, shape=[-5, -7]), f"{HALF}.*has the shape"),
    "true": (lambda p: p.row(HALF, shape=[True, 35]), f"{HALF}.*has the shape"),
    "fractions": (lambda p: p.row(HALF, shape=[5.0, 7.0]), f"{HALF}.*has the shape"),
    "absurd extent": (lambda p: p.row(NONE, shape=[10**40, 1]), f"{NONE}.*has the shape"),
    "absurd product": (lambda p: p.row(NONE, shape=[BIG, BIG]), f"{NONE}.*more than 2.40 entries"),
    "more than memory": (lambda p: many(p, NONE, shape=[BIG], selected=0), "this machine has"),
    "all of more than memory": (
        lambda p: many(p, "a.layers.10.all", shape=[BIG], selected=BIG), "this machine has"),
    "dtype": (lambda p: p.row(HALF, dtype="I8"), f"{HALF}.*dtype 'I8'"),
    "dtype of numbers": (lambda p: p.row(HALF, dtype=[1]), f"{HALF}.*dtype"),
    "checksum": (lambda p: p.row(HALF, base="F" * 32), f"{HALF}.*not 32 hexadecimal digits"),
    "selected": (lambda p: p.row(HALF, selected=36), f"{HALF}.*36 of 35 entries"),
    "selected less": (lambda p: p.row(HALF, selected=3), f"{HALF}.*are selected, and 3 are"),
    "selected negative": (lambda p: p.row(HALF, selected=-1), f"{HALF}.*-1 of 35"),
    "coding": (lambda p: p.row(HALF, coding="zip"), f"{HALF}.*coding 'zip' is none of"),
    "coding of lists": (lambda p: p.row(HALF, coding=[1]), f"{HALF}.*coding"),
    "a bitmap with a parameter": (lambda p: p.row(HALF, parameter=1), f"{HALF}.*parameter 0 and 5"),
    "a parameter": (lambda p: p.row(STACK, parameter=41), f"{STACK}.*41 is above 40"),
    "a parameter of words": (lambda p: p.row(STACK, parameter="1"), f"{STACK}.*parameter"),
    "a bitmap too short": (lambda p: p.stream(HALF, p.data[HALF][:-1]), f"{HALF}.*and 5 bytes"),
    "a bitmap too long": (lambda p: p.stream(HALF, p.data[HALF] + b"\0"), f"{HALF}.*and 5 bytes"),
    "bits after a bitmap": (lambda p: p.stream(HALF, p.data[HALF][:-1] + b"\xff"),
                            f"{HALF}.*set after the last of 35"),
    "no gaps": (lambda p: p.stream(STACK, b""), f"{STACK}.*too few"),
    "gaps too short": (lambda p: p.stream(STACK, p.data[STACK][:-1]), f"{STACK}.*the code ends"),
    "a byte after the gaps": (lambda p: p.stream(STACK, p.data[STACK] + b"\0"),
                              f"{STACK}.*there are"),
    "bits after the gaps": (lambda p: p.stream(STACK, b"\x81", selected=1, parameter=0),
                            f"{STACK}.*set after the last gap"),
    "a gap more": (lambda p: p.row(STACK, selected=p.rows[STACK]["selected"] + 1), STACK),
    "a gap less": (lambda p: p.row(STACK, selected=p.rows[STACK]["selected"] - 1), STACK),
    "a gap past the end": (lambda p: p.stream(STACK, coded([60]), selected=1, parameter=0),
                           f"{STACK}.*past the last of 60"),
    "a gap far past the end": (
        lambda p: p.stream(STACK, coded([2**40 - 1], k=40), selected=1, parameter=40),
        f"{STACK}.*past the last of 60"),
    "a run of zeros": (lambda p: p.stream(STACK, bytes(10**6), selected=1, parameter=40),
                       f"{STACK}.*the code ends"),
    "a gap of 2^64, which 64 bits take for 0": (
        lambda p: p.stream(STACK, bytes(1 << 21) + b"\1" + bytes(5), selected=1, parameter=40),
        f"{STACK}.*past the last of 60"),
    "more gaps than bits": (
        lambda p: p.row(STACK, shape=[BIG >> 8], selected=BIG >> 8), f"{STACK}.*too few"),
    "more of no gaps": (lambda p: p.row(NONE, selected=3), f"{NONE}.*too few"),
    "bytes of an empty mask": (lambda p: p.stream(NONE, b"\0"), f"{NONE}.*there are 1"),
}  # fmt: skip


def many(parts: Parts, name: str, **changes: Any) -> Parts:
    """A thousand tensors like one of no bytes: 128 TiB of flags, were they made room for."""
    row = parts.rows[name] | changes
    names = [f"w{i}" for i in range(1000)]
    return replace(parts, rows=dict.fromkeys(names, row), data=dict.fromkeys(names, b""))


def coded(places: list[int], *, k: int = 0) -> bytes:
    bits = []
    for gap in places:
        bits += [0] * (gap >> k) + [1] + [gap >> j & 1 for j in range(k)]
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_contradicts_itself_is_refused(what: str, parts: Parts, tmp_path: Path) -> None:
    change, words = WRONG[what]
    found = refused(change(parts).write(tmp_path / "hostile.mask"))
    assert re.search(words, found), found


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    raw = (GOLDEN / "codings.mask").read_bytes()
    sound, file = load(GOLDEN / "codings.mask"), tmp_path / "damaged.mask"
    for stop in range(0, len(raw), 7):
        file.write_bytes(raw[:stop])
        refused(file)
    file.write_bytes(raw + b"\0")
    refused(file)
    rng = random.Random(0)
    for at in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with suppress(InputError):  # of which `refused` asks more
            found = load(file)
            assert found == sound  # a blank of the header's JSON, or a key that is not read
            assert found.rule == sound.rule


def test_streams_of_noise_are_refused_or_are_masks(parts: Parts, tmp_path: Path) -> None:
    """Sealed anew, so that the reader gets as far as the codes."""
    rng, file = np.random.default_rng(0), tmp_path / "noise.mask"
    sound = 0
    for i in range(400):
        size, k, selected = (int(rng.integers(0, n)) for n in (12, 6, 20))
        coding = ("ones", "zeros", "bitmap")[i % 3]
        noise = rng.bytes(size)
        hostile = parts.stream(STACK, noise, coding=coding, parameter=k, selected=selected)
        with suppress(InputError):
            assert load(hostile.write(file)).count(STACK) == selected
            sound += 1
    assert 0 < sound < 100


def test_gaps_are_read_within_their_bounds() -> None:
    """The kernel itself, at the edges of its arithmetic."""
    for k in (0, 1, 7, 39, 40):
        top = 1 << min(k + 3, 40)
        for places in ([0], [top - 1], [0, 1, top - 1]):
            if top > 1 << 20:
                with pytest.raises(ValueError, match="past the last"):
                    read_gaps(
                        np.frombuffer(coded([top - 1], k=k), np.uint8), 100, count=1, parameter=k
                    )
                continue
            flags = np.zeros(top, np.bool_)
            flags[places] = True
            gaps = np.diff([-1, *sorted(set(places))]) - 1
            raw = np.frombuffer(coded(gaps.tolist(), k=k), np.uint8)
            bits = read_gaps(raw, top, count=len(gaps), parameter=k)
            assert np.array_equal(bits, pack(flags))
            size = int(sum((g >> k) + 1 + k for g in gaps.tolist()))
            assert np.array_equal(write_gaps(bits, top, parameter=k, size=size), raw)
    with pytest.raises(ValueError, match="under the parameter 41"):
        read_gaps(np.zeros(1, np.uint8), 8, count=1, parameter=41)


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing", "cannot be read"), ("directory", "cannot be read|not a regular file"),
     ("empty", "too short"), ("text", "announces a header|no offaxis mask"),
     ("weights", "no offaxis mask"), ("long header", "no offaxis mask")],
)  # fmt: skip
def test_what_is_no_mask_is_refused(name: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "directory":
        file.mkdir()
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "text":
        file.write_bytes(b"low_magnitude | ~principal\n" * 9)
    elif name == "weights":
        raw = (GOLDEN / "empty.mask").read_bytes()
        file.write_bytes(raw.replace(b"offaxis-mask", b"offaxis-none"))
    elif name == "long header":
        with file.open("wb") as out:
            out.write(struct.pack("<Q", 1 << 26))
            out.truncate(1 << 27)  # a hole, which takes no disk
    assert re.search(words, refused(file))


def test_a_file_that_shrinks_while_it_is_read(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offaxis.masks import file as module

    file = parts.write(tmp_path / "m")
    check = module._check_content

    def then_cut(plan: Any) -> None:
        check(plan)
        os.truncate(file, file.stat().st_size - 9)

    monkeypatch.setattr(module, "_check_content", then_cut)
    assert "tensor" in refused(file)


def test_a_loaded_mask_is_one_like_any_other(tmp_path: Path) -> None:
    mask: Mask = load(GOLDEN / "codings.mask")
    assert (mask | ~mask).density == 1.0
    for name, flags in make.FILES["codings"].items():
        assert np.array_equal(mask[name].numpy(), flags)
    (mask & ~mask).save(tmp_path / "m")
    assert load(tmp_path / "m").selected == 0
