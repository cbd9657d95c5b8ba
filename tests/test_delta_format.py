"""Every statement of docs/delta-format.md, by a reader written from that page alone.

`offaxis.delta.pack` writes, `delta_reader` reads. The golden files hold the format still; after a
change that is meant, write them again: `python tests/golden/delta/make.py`.
"""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import delta_reader as reader
import offaxis
from golden.delta import make
from golden.delta.make import HERE, Files, Stored, shard, stepped, stored, weights, words
from offaxis.delta import apply, pack
from offaxis.errors import DeltaError

DTYPES = [*reader.WORDS, "I8", "U8", "BOOL", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"]
ELEMENT_BITS = {"C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # where that is no word


def model(**tensors: Stored) -> Files:
    """A model of one file; m__ in a name is the prefix of all names."""
    renamed = {name.replace("m__", "model."): one for name, one in tensors.items()}
    return {"model.safetensors": shard(**renamed)}


# ---------------------------------------------------------------------------- packing and reading


def packed(tmp_path: Path, base: Files, tuned: Files, codec: str) -> bytes:
    out = tmp_path / f"{codec}.delta"
    for name, files in (("base", base), ("tuned", tuned)):
        if not (tmp_path / name).exists():
            make.write_files(tmp_path / name, files)
    pack(tmp_path / "base", tmp_path / "tuned", out=out, codec=codec)
    return out.read_bytes()


def digest_of(files: Files) -> str:
    shards = [data for path, data in files.items() if path.endswith(".safetensors")]
    return reader.content_digest([one for data in shards for one in reader.split(data)[1]])


def read_back(tmp_path: Path, base: Files, tuned: Files, codec: str) -> reader.Delta:
    """What the reader finds in the packed delta, once it has given every byte back."""
    data = packed(tmp_path, base, tuned, codec)
    assert reader.apply_delta(base, data) == tuned
    delta = reader.parse_delta(data)
    assert (delta.plan["base"], delta.plan["tuned"]) == (digest_of(base), digest_of(tuned))
    assert delta.metadata["codec"] == codec
    return delta


def items(delta: reader.Delta) -> dict[str, dict[str, Any]]:
    """The plan's object of every tensor, by its name."""
    found = {}
    for file in delta.plan["files"]:
        names = [name for name, _ in reader.entries(file["header"].encode())]
        found |= dict(zip(names, file["tensors"], strict=True))
    return found


def fast_kinds(delta: reader.Delta, name: str, count: int) -> list[int]:
    stream = reader.stream_of(items(delta)[name], delta)
    return [chunk[0] for _, chunk in reader.chunks(stream, count)]


# ---------------------------------------------------------------------------- words


def every_token(bits: int) -> list[int]:
    """z of 0 to 11, and the least and the most of every later token."""
    halves = [(2**k + h * 2 ** (k - 1), 2 ** (k - 1)) for k in range(3, bits) for h in (0, 1)]
    return [*range(12), *(z for low, size in halves[1:] for z in (low, low + size - 1))]


@pytest.mark.parametrize("codec", ["small", "fast"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_token(tmp_path: Path, dtype: str, codec: str) -> None:
    """Only words of low exponents move, so that a writer uses other tables for high ones."""
    bits, shift, exponents = reader.WORDS.get(dtype, reader.BYTES)
    before = words(1, 4800, bits)
    after = before.copy()
    low = [at for at, w in enumerate(before) if int(w) >> shift & exponents // 2 == 0]
    for at, z in zip(low[::2], itertools.cycle(every_token(bits)), strict=False):
        after[at] = reader.moved(int(before[at]), z, bits)
    columns = before.size * bits // ELEMENT_BITS.get(dtype, bits) // 20
    base, tuned = (model(w=(dtype, (4, 5, columns), x.tobytes())) for x in (before, after))
    delta = read_back(tmp_path, base, tuned, codec)
    assert items(delta)["w"]["codec"] == codec
    assert items(delta)["w"]["changed"] == np.count_nonzero(before != after)
    if codec == "small" and exponents > 1:
        assert delta.tables[0] > 1, "the writer used one table for all exponents"


def bf16(seed: int, *shape: int) -> Stored:
    return stored("BF16", weights(seed, *shape))


def nudged(one: Stored, seed: int = 2) -> Stored:
    """Some BF16 words moved."""
    before = np.frombuffer(one[2], "<u2").reshape(one[1])
    return stored("BF16", stepped(seed, before))


def reversed_header(data: bytes) -> bytes:
    """The same tensors, the last one named first in the header."""
    header, _ = reader.split(data)
    text = json.dumps(dict(reversed(json.loads(header).items()))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + len(header) :]


F32_CORNERS = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x3F807FFF, 0x3F808000, 0x3F818000,
               0x7F7F7FFF, 0x7F7F8000, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF,
               *(0x80000000, 0xFF7FFFFF, 0xFF800000, 0xFF800001, 0xFFFFFFFF)]  # fmt: skip
F32 = stored("F32", np.array(F32_CORNERS * 20, "<u4"))
BF16_CORNERS = stored("BF16", np.array([w >> 16 for w in F32_CORNERS] * 20, "<u2"))
W, V, NONE = bf16(1, 40, 50), bf16(3, 30), ("F32", (0, 3), b"")
N = nudged(W)
SCALARS = {"s": ("F32", (), b"1234"), "i": ("I64", (), b"12345678")}
ODD = ("U8", (3,), b"odd")
BYTES = ("U8", (600,), words(5, 600, 8).tobytes())
ZEROS = ("I32", (600,), bytes(2400))
EMPTY = {"model.safetensors": shard()}
OTHERS = {"config.json": "zstd", "same.txt": "same", "empty": "raw", "sub/ü/x": "raw"}
MANY = {"config.json": b"{}", "same.txt": b"same" * 20, "gone.txt": b"gone"}
NEXT = {"config.json": b'{"a": 1}' * 20, "same.txt": b"same" * 20, "empty": b"", "sub/ü/x": b"x"}

# name: base, tuned, codec of each tensor (step: the one that was asked for), removed names
CASES: dict[str, tuple[Files, Files, str, str]] = {
    "same": (model(w=W, v=V), model(w=W, v=V), "w same, v same", ""),
    "moved": (model(w=W), model(w=N), "w step", ""),
    "planes": (
        model(w=W),
        model(w=W, x=bf16(7, 40, 50), z=ZEROS),
        "w same, x planes, z planes",
        "",
    ),
    "raw": (model(w=W), model(w=W, r=BYTES), "w same, r raw", ""),
    "bf16 to f32": (model(w=BF16_CORNERS), model(w=F32), "w step", ""),
    "f32 to bf16": (model(w=F32), model(w=BF16_CORNERS), "w step", ""),
    "rows appended": (model(w=W), model(w=("BF16", (42, 50), N[2] + bytes(200))), "w step", ""),
    "rows left out": (model(w=W), model(w=("BF16", (30, 50), N[2][:3000])), "w step", ""),
    "another shape": (model(w=W), model(w=("BF16", (2, 1000), N[2])), "w step", ""),
    "one out, one in": (model(w=W, v=V), model(w=W, x=BYTES), "w same, x raw", "v"),
    "prefix gained": (model(w=W, v=V), model(m__w=N, m__v=V), "model.w step, model.v same", ""),
    "prefix lost": (model(m__w=W, m__v=V), model(w=N, v=V), "w step, v same", ""),
    "scalars": (model(**SCALARS), model(**SCALARS, o=ODD), "s same, i same, o raw", ""),
    "no elements": (model(y=NONE, w=W), model(z=NONE, y=NONE, w=N), "z raw, y same, w step", ""),
    "no tensors": (EMPTY, EMPTY, "", ""),
    "all removed": (model(w=W), EMPTY, "", "w"),
    "all added": (EMPTY, model(o=ODD), "o raw", ""),
    "odd offsets": (model(o=ODD, w=W), model(o=ODD, w=N), "o same, w step", ""),
    "header in another order": (
        model(o=ODD, w=W),
        {"model.safetensors": reversed_header(shard({"über": "ß"}, w=N, o=ODD))},
        "w step, o same",
        "",
    ),
    "shards": (
        {"b.safetensors": shard(v=V), "a.safetensors": shard(w=W)},
        {"c.safetensors": shard(w=N), "d/e.safetensors": shard(v=nudged(V))},
        "w step, v step",
        "",
    ),
    "a name in two shards": (
        {"b.safetensors": shard(w=bf16(8, 40, 50)), "a.safetensors": shard(w=W)},
        model(w=N),
        "w step",
        "",
    ),
    "other files": (model(w=W) | MANY, model(w=W) | NEXT, "w same", ""),
}


@pytest.mark.parametrize("codec", ["small", "fast"])
@pytest.mark.parametrize("name", CASES)
def test_every_case(tmp_path: Path, name: str, codec: str) -> None:
    base, tuned, codecs, removed = CASES[name]
    delta = read_back(tmp_path, base, tuned, codec)
    found = ", ".join(f"{tensor} {item['codec']}" for tensor, item in items(delta).items())
    assert found == codecs.replace("step", codec)
    assert " ".join(delta.plan["removed"]) == removed
    others = {item["path"]: item["codec"] for item in delta.plan["others"]}
    assert others == {path: OTHERS[path] for path in tuned if path in OTHERS}


# ---------------------------------------------------------------------------- streams


def test_chunks_of_fast_and_planes(tmp_path: Path) -> None:
    count = 2**20 + 2**10
    before = np.zeros(count, "u1")
    after = before.copy()
    after[[0, 2**20 - 1]] = 1  # few words of the first chunk, most of the second
    after[2**20 : -1] = 255
    base, tuned = (model(w=stored("U8", one)) for one in (before, after))
    delta = read_back(
        tmp_path, base, tuned | {"x.safetensors": shard(x=stored("U8", after))}, "fast"
    )
    assert fast_kinds(delta, "w", count) == [0, 1]
    assert items(delta)["x"]["codec"] == "planes"


def test_gaps(tmp_path: Path) -> None:
    gaps = [0, 0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 4000]
    at = np.cumsum(np.array(gaps) + 1) - 1
    before = words(6, at[-1] + 1, 16)
    after = before.copy()
    after[at] ^= 0x8000
    base, tuned = (model(w=stored("BF16", one)) for one in (before, after))
    delta = read_back(tmp_path, base, tuned, "fast")
    assert fast_kinds(delta, "w", before.size) == [0]
    assert items(delta)["w"]["changed"] == len(gaps)


@pytest.mark.parametrize(("changed", "kind"), [(999, 0), (1000, 1)])
def test_kind_changes_at_half_of_the_words(tmp_path: Path, changed: int, kind: int) -> None:
    before = weights(1, 2000)
    after = before.copy()
    after[:changed] += 1
    base, tuned = (model(w=stored("BF16", one)) for one in (before, after))
    assert fast_kinds(read_back(tmp_path, base, tuned, "fast"), "w", 2000) == [kind]


def test_shifts_and_chunks_of_small(tmp_path: Path) -> None:
    """Steps that vary by row and column; zeros that move and infinities that do not.

    The contexts of these leave the range at either end.
    """
    rows, columns = 520, 510  # 2^18 words end within a row
    before = weights(1, rows, columns)
    scales = [words(seed, size, 16).astype(int) % 4 for seed, size in ((2, rows), (3, columns))]
    after = stepped(4, before, scales[0][:, None] - scales[1])
    for k, (word, step) in enumerate(((0, 1), (0x8000, 1), (0x7F80, 0), (0xFFFF, 0))):
        before[k::16, k::16], after[k::16, k::16] = word, word + step
    base, tuned = (model(w=stored("BF16", one)) for one in (before, after))
    delta = read_back(tmp_path, base, tuned, "small")
    frame, _, _ = reader.pieces(reader.stream_of(items(delta)["w"], delta), 3)
    assert frame, "the writer saw no use in shifts"
    shifts = np.frombuffer(reader.unzstd(frame, rows + columns), "i1").astype(int)
    by_row, by_column = shifts[:rows], shifts[rows:]
    assert min(np.ptp(by_row), np.ptp(by_column)) > 0
    contexts = 2 * (before >> 7 & 255).astype(int) - by_row[:, None] - by_column
    assert contexts.min() < 0, "no context below the first"
    assert contexts.max() > 511, "no context above the last"


# ---------------------------------------------------------------------------- what is rejected

BASE = model(w=W, u=W) | MANY
TUNED = model(w=N, u=W, x=bf16(7, 40, 50)) | NEXT
PATHS = ["/x", "a//b", "a/", "./a", "a/../b", "a\\b", "c:x", "a\nb", "x" * 1025, "", "Config.JSON",
         "config.json/x"]  # fmt: skip
# what to change in a sound delta: where, and the value
FAULTS: list[tuple[str, Any]] = [
    ("metadata.format", "offaxis-mask"),
    ("metadata.version", "2"),
    *(("sizes.plan", size) for size in (99, 2**26 + 1)),
    *(("sizes.tables", size) for size in (99, 2**25 + 1)),
    *((part, b"") for part in ("tables", "payload")),
    *((f"plan.files.0.tensors.0.{key}", "0" * 32) for key in ("base", "tuned", "codec", "origin")),
    *(("plan.files.0.tensors.0.at", at) for at in (-1, 1, 10**9)),
    *(("plan.files.0.tensors.0.length", length) for length in (-1, 0, 9, 10**9)),
    ("plan.files.0.tensors.1.tuned", "0" * 32),
    ("plan.files.0.tensors", []),
    ("plan.others.0.size", 99),
    ("plan.others.0.digest", "0" * 32),
    ("plan.others.0.codec", "same"),
    *(("plan.files.0.path", path) for path in PATHS),
]


def parts_of(data: bytes) -> dict[str, Any]:
    return reader.parse_delta(data)._asdict() | {"sizes": {}}


def put(parts: Any, where: str, value: Any) -> None:
    """Set what a path such as `plan.files.0.path` leads to."""
    *way, last = (int(step) if step.isdigit() else step for step in where.split("."))
    for step in way:
        parts = parts[step]
    parts[last] = value


def refused(tmp_path: Path, data: bytes) -> None:
    """By the reader and by offaxis."""
    with pytest.raises(ValueError):  # noqa: PT011 (all that the reader raises)
        reader.apply_delta(BASE, data)
    (tmp_path / "bad.delta").write_bytes(data)
    with pytest.raises(DeltaError):
        apply(tmp_path / "base", tmp_path / "bad.delta", out=tmp_path / "out")


def test_refuses_faults(tmp_path: Path) -> None:
    sound = packed(tmp_path, BASE, TUNED, "small")
    assert reader.apply_delta(BASE, make.sealed(**parts_of(sound))) == TUNED
    for where, value in FAULTS:
        parts = parts_of(sound)
        put(parts, where, value)
        refused(tmp_path, make.sealed(**parts))


@pytest.mark.parametrize("codec", ["small", "fast"])
def test_refuses_flipped_bits(tmp_path: Path, codec: str) -> None:
    sound = packed(tmp_path, BASE, TUNED, codec)
    for at in range(0, len(sound), 97):
        with pytest.raises(ValueError):  # noqa: PT011
            reader.apply_delta(BASE, sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    for name in ("payload", "tables"):
        content = parts_of(sound)[name]
        for at in range(0, len(content), 17):
            parts = parts_of(sound)
            parts[name] = content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]
            with pytest.raises(ValueError):  # noqa: PT011
                reader.apply_delta(BASE, make.sealed(**parts))


def test_refuses_unsound_streams(tmp_path: Path) -> None:
    """They would give the right words, were it not for a rule."""
    parts = parts_of(packed(tmp_path, model(w=W), model(w=N), "small"))
    item = parts["plan"]["files"][0]["tensors"][0]
    tables, chunk = parts["tables"], parts["payload"][8:]
    (count, tokens), words_read = tables[:2], int.from_bytes(chunk[:4], "little")
    first, rows = tables[2 : 2 + 2 * count], tables[2 + 2 * count :]
    end, one_more = 20 + 2 * words_read, (words_read + 1).to_bytes(4, "little")
    high = bytes([(128 - sum(rows[::tokens])) % 256]) + bytes(tokens - 1)  # a code of 128

    def sealed(chunk: bytes, context: int, row: bytes = bytes(tokens)) -> bytes:
        """With another chunk, and with a table more, for contexts that no word has."""
        more = bytes([count + 1, tokens]) + first + context.to_bytes(2, "little") + rows + row
        payload = bytes(4) + len(chunk).to_bytes(4, "little") + chunk
        item["length"] = len(payload)
        return make.sealed(**parts | {"payload": payload, "tables": more})

    assert reader.apply_delta(BASE, sealed(chunk, 255)) == model(w=N)
    refused(tmp_path, sealed(chunk, 255, high))
    refused(tmp_path, sealed(chunk, 256))
    refused(tmp_path, sealed(chunk, int.from_bytes(first[-2:], "little")))
    refused(tmp_path, make.sealed(**parts | {"tables": tables + bytes(1)}))
    refused(tmp_path, sealed(chunk + bytes(4), 255))  # raw bits left over
    refused(tmp_path, sealed(one_more + chunk[4:end] + bytes(2) + chunk[end:], 255))


# ---------------------------------------------------------------------------- golden files


def files_in(root: Path) -> Files:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def golden(name: str) -> Files:
    return files_in(HERE / name)


def test_golden_models() -> None:
    """Their bytes depend on neither the machine nor numpy."""
    assert (golden("base"), golden("tuned")) == make.golden_models()


@pytest.mark.parametrize("codec", ["small", "fast"])
def test_golden_files_are_read(tmp_path: Path, codec: str) -> None:
    data = (HERE / f"{codec}.delta").read_bytes()
    assert reader.apply_delta(golden("base"), data) == golden("tuned")
    apply(HERE / "base", HERE / f"{codec}.delta", out=tmp_path / "out")
    assert files_in(tmp_path / "out") == golden("tuned")


@pytest.mark.parametrize("codec", ["small", "fast"])
def test_golden_files_are_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    if zstandard.ZSTD_VERSION != make.ZSTD:
        pytest.skip(f"zstd {make.ZSTD} wrote the golden files, here is {zstandard.ZSTD_VERSION}")
    delta = reader.read_delta(HERE / f"{codec}.delta")
    monkeypatch.setattr(offaxis, "__version__", delta.metadata["writer"].removeprefix("offaxis "))
    pack(HERE / "base", HERE / "tuned", out=tmp_path / "new.delta", codec=codec)
    assert (tmp_path / "new.delta").read_bytes() == (HERE / f"{codec}.delta").read_bytes()


@pytest.mark.parametrize("codec", ["small", "fast"])
def test_first_bytes(codec: str) -> None:
    data = (HERE / f"{codec}.delta").read_bytes()
    assert data[:8] == (640 - 8).to_bytes(8, "little")
    start = f'{{"__metadata__":{{"format":"offaxis-delta","version":"1","codec":"{codec}","writer":'
    assert data[8:].startswith(start.encode())
    assert data[639:640] == b" "
    assert list(json.loads(data[8:640])) == ["__metadata__", "payload", "tables", "plan", "digest"]
