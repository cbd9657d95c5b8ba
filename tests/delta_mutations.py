"""Deltas turned hostile: damaged anywhere, or forged with a digest that fits.

Raw mutations hit a file's bytes and mostly fall to its digest. Forged ones take a delta apart,
change what lies inside (streams, tables, plan, headers) and seal it again, so that the reader's own
checks stand alone. `mutant(seed, deltas)` is the same bytes for the same seed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import zstandard
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

__all__ = [
    "DEEP", "HOSTILE_PATHS", "Parts", "chunks_of", "damaged", "frames_chunk", "joined", "mutant",
    "opened", "raw_frame", "sized", "small_chunk", "squeezed", "take_apart",
]  # fmt: skip

_WORDS = (0, 1, 2, 11, 13, 127, 128, 255, 256, 1 << 14, (1 << 16) - 1, 1 << 16, 1 << 18, 1 << 20,
          (1 << 31) - 1, 1 << 31, (1 << 32) - 1)  # fmt: skip
_INTEGERS = (-1, 0, 1, 2, 3, 7, 8, 16, 63, 64, 255, 4096, 65536, 1 << 26, 1 << 31, 1 << 40, 1 << 50,
             (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 10**300)  # fmt: skip
DEEP = "@@deep@@"
"""A string that becomes an array in an array in an array, 990 times."""
HOSTILE_PATHS = (
    "..", "../x", "a/../../x", "a/../b", "/abs", "//x", "C:x", "c:/x", "a\\b", "..\\x", "a//b",
    "./a", ".", "a/", "", "a\0b", "a\nb", "a\u202eb", "\ud800", "x" * 1025, "a/" * 600 + "b",
)  # fmt: skip
"""Paths that no reader may follow."""
_PATHS = (
    *HOSTILE_PATHS, "x" * 300, "é" * 200, "a/" * 200 + "b", "CON", "~", "config.json", "ß",
    "CONFIG.json", "model.safetensors", "MODEL.safetensors", "config.json/x",
)  # fmt: skip
_VALUES = (None, True, False, 0.5, 1e308, float("nan"), float("inf"), float("-inf"), -0.0, "", "x",
           "0" * 32, "g" * 32, "F4", "BF16", "F32", "\ud800", [], {}, [[]], [None], {"x": 1}, DEEP,
           "same", "small", "fast", "planes", "raw", "zstd")  # fmt: skip

TORN = (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error,
         zstandard.ZstdError)  # fmt: skip
"""What may be met in the ruins that a first mutation left."""


@dataclass
class Parts:
    """What a delta consists of. `seal` puts it together again, with a digest that fits."""

    metadata: dict[str, Any]
    payload: bytes
    tables: bytes
    plan: Any
    regions: dict[str, bytes] = field(default_factory=dict)
    """Bytes to stand for `tables` or `plan`, size and frame, instead of what they would be."""
    rewrite: Callable[[dict[str, Any]], Any] | None = None
    """The last word on the container's header: the document in, a document or its bytes out."""

    def seal(self) -> bytes:
        plan = json.dumps(self.plan).replace(f'"{DEEP}"', "[" * 990 + "]" * 990).encode()
        regions = {"payload": self.payload, "tables": sized(self.tables), "plan": sized(plan),
                   "digest": bytes(16)} | self.regions  # fmt: skip
        document: dict[str, Any] = {"__metadata__": self.metadata}
        at = 0
        for name, one in regions.items():
            span = [at, at := at + len(one)]
            document[name] = {"dtype": "U8", "shape": [len(one)], "data_offsets": span}
        made = self.rewrite(document) if self.rewrite else document
        text = made if isinstance(made, bytes) else json.dumps(made).encode()
        body = struct.pack("<Q", len(text)) + text + b"".join(regions.values())[:-16]
        return body + xxh3_128_digest(body)

    def agree(self) -> Parts:
        """Give plan and header the digests that fit the tensors, where these can be read."""
        with contextlib.suppress(*TORN):
            self.plan["tuned"] = xxh3_128_hexdigest(b"".join(sorted(self._lines())))
            self.metadata |= {"base": self.plan["base"], "tuned": self.plan["tuned"]}
        return self

    def _lines(self) -> Iterator[bytes]:
        """What a content digest is made of."""
        for file in self.plan["files"]:
            document = json.loads(file["header"])
            document.pop("__metadata__", None)
            order = sorted(document.items(), key=lambda item: item[1]["data_offsets"])
            for (name, entry), row in zip(order, file["tensors"], strict=True):
                extents = ",".join(map(str, entry["shape"]))
                yield f"{name}\t{entry['dtype']}\t{extents}\t{row['tuned']}\n".encode()

    @property
    def tensors(self) -> list[dict[str, Any]]:
        return [row for file in self.plan["files"] for row in file["tensors"]]

    def stream(self, row: dict[str, Any]) -> bytes:
        return self.payload[row["at"] : row["at"] + row["length"]]

    def put(self, row: dict[str, Any], stream: bytes) -> None:
        row["at"], row["length"] = len(self.payload), len(stream)
        self.payload += stream


def squeezed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def opened(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(frame, max_output_size=1 << 20)


def sized(data: bytes, size: int | None = None) -> bytes:
    """A region: the announced size (by default the true one), then the frame."""
    return struct.pack("<Q", len(data) if size is None else size) + squeezed(data)


def raw_frame(announced: int, blocks: int = 0) -> bytes:
    """A zstd frame that announces a content size, of `blocks` runs of 128 KiB, four bytes each."""
    run = [struct.pack("<I", 1 << 20 | 2 | (i == blocks - 1))[:3] + b" " for i in range(blocks)]
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", announced) + (b"".join(run) or b"\1\0\0")


def take_apart(data: bytes) -> Parts:
    (length,) = struct.unpack_from("<Q", data)
    document = json.loads(data[8 : 8 + length])
    metadata, regions = document.pop("__metadata__"), {}
    for name, entry in document.items():
        start, stop = entry["data_offsets"]
        regions[name] = data[8 + length + start : 8 + length + stop]
    plan = json.loads(opened(regions["plan"][8:]))
    tables = opened(regions["tables"][8:]) if any(regions["tables"][:8]) else b""
    return Parts(metadata, regions["payload"], tables, plan)


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def patch(rng: random.Random, data: bytes) -> bytes:
    """Some bytes out, some in: overwritten, inserted, deleted."""
    at, cut = rng.randrange(len(data)), rng.choice((0, 1, 2, 4, 16, 100))
    return data[:at] + rng.randbytes(rng.choice((0, cut, cut, 3, 40))) + data[at + cut :]


def resize(rng: random.Random, data: bytes) -> bytes:
    """Truncated, or a part of it twice."""
    start, stop = sorted(rng.randrange(len(data)) for _ in "ab")
    return data[:stop] + rng.choice((b"", data[start:]))


def number(rng: random.Random, data: bytes) -> bytes:
    """A 32-bit number, mostly one of a head, becomes one that invites mistakes."""
    if len(data) < 4:
        return bytes(data)
    at = rng.randrange(len(data) - 3)
    at = rng.choice((at, min(4 * rng.randrange(8), len(data) - 4)))
    (old,) = struct.unpack_from("<I", data, at)
    new = rng.choice((*_WORDS, old + 1, old - 1, old * 2, old ^ 0x8000)) & 0xFFFFFFFF
    return data[:at] + struct.pack("<I", new) + data[at + 4 :]


RAW = (flip, flip, patch, patch, patch, resize, resize, number)


def damaged(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(RAW)(rng, data) if data else rng.randbytes(rng.randint(0, 9))


def _coded(rng: random.Random, parts: Parts, *codecs: str) -> dict[str, Any]:
    """A tensor that has a stream, of one of the codecs. Raises LookupError where there is none."""
    rows = (row for row in parts.tensors if "at" in row)
    return rng.choice([row for row in rows if not codecs or row["codec"] in codecs])


def forge_stream(rng: random.Random, parts: Parts) -> None:
    """A stream damaged as bytes, its length true; or another tensor's; or all of the payload."""
    one, other = (_coded(rng, parts) for _ in "ab")
    if rng.random() < 0.7:
        parts.put(one, damaged(rng, parts.stream(one)))
    elif rng.random() < 0.5:
        one["at"], one["length"] = other["at"], other["length"]
    else:
        parts.payload = damaged(rng, parts.payload)


def chunks_of(stream: bytes) -> list[bytes]:
    """The chunks (or frames) that the lengths before them cut a stream into."""
    for count in range(9):
        lengths = struct.unpack_from(f"<{count}I", stream)
        ends = [4 * count + sum(lengths[:i]) for i in range(count + 1)]
        if ends[-1] == len(stream):
            return [stream[a:b] for a, b in pairwise(ends)]
    raise ValueError("no stream of few chunks")


def joined(chunks: list[bytes]) -> bytes:
    return struct.pack(f"<{len(chunks)}I", *map(len, chunks)) + b"".join(chunks)


def small_chunk(rng: random.Random, chunk: bytes) -> bytes:
    """A chunk of `small` whose head, words or raw bits are other ones, of lengths that add up."""
    count, *states = struct.unpack_from("<5I", chunk)
    words, extra = chunk[20 : 20 + 2 * count], chunk[20 + 2 * count :]
    kind = rng.randrange(5)
    if kind == 0:
        states[rng.randrange(4)] = rng.choice(_WORDS)
    elif kind == 1:
        words = damaged(rng, words)[: 2 * rng.randint(0, count + 3)]
        words += bytes(len(words) % 2)
    elif kind < 4:
        extra = rng.choice((extra[:-4], extra + rng.randbytes(4), rng.randbytes(len(extra))))
    else:
        return damaged(rng, chunk[:20]) + words + extra
    return struct.pack("<5I", len(words) // 2, *states) + words + extra


def frames_chunk(rng: random.Random, chunk: bytes) -> bytes:
    """A chunk of `fast` whose head or the content of whose frames is another."""
    kind, count, gaps, planes = struct.unpack_from("<BIIB", chunk)
    contents = [opened(one) for one in chunks_of(chunk[10:])]
    spot = rng.randrange(6)
    if spot < 3 and contents:
        at = rng.randrange(len(contents))
        uniform = rng.choice((b"\xff", b"\0", b"\xfe")) * len(contents[at])
        contents[at] = rng.choice((uniform, damaged(rng, contents[at])))
        gaps = len(contents[0]) if gaps and rng.random() < 0.5 else gaps
    elif spot == 3:
        kind = rng.choice((0, 1, 2, 255))
    elif spot == 4:
        count = rng.choice((*_WORDS, count + 1, max(count - 1, 0)))
    else:
        planes, gaps = rng.choice(((planes + 1, gaps), (255, gaps), (0, gaps), (planes, 0)))
    return struct.pack("<BIIB", kind, count, gaps, planes) + joined([squeezed(c) for c in contents])


def forge_chunk(rng: random.Random, parts: Parts) -> None:
    row = _coded(rng, parts, "small", "fast")
    change = small_chunk if row["codec"] == "small" else frames_chunk
    *chunks, last = chunks_of(parts.stream(row))
    parts.put(row, joined([*chunks, change(rng, last)]))


def forge_shifts(rng: random.Random, parts: Parts) -> None:
    """Shifts out of range, too few, too many, or where no shifts can be."""
    row = _coded(rng, parts, "small")
    shifts, *chunks = chunks_of(parts.stream(row))
    held = opened(shifts) if shifts else bytes(rng.choice((8, 136, 0)))
    wild = bytes(rng.choice((12, 13, 127, 128, 243, 244)) for _ in held)
    held = rng.choice((damaged(rng, held), wild, held[:-1], held + b"\0", held))
    other = rng.choice((raw_frame(len(held)), b"", damaged(rng, shifts)))
    parts.put(row, joined([other if rng.random() < 0.4 else squeezed(held), *chunks]))


def forge_tables(rng: random.Random, parts: Parts) -> None:
    """Bytes of the tables, or a whole table: contexts out of order, tokens too many, rows of 0."""
    if rng.random() < 0.4 or len(parts.tables) < 2:
        parts.tables = damaged(rng, parts.tables)
        return
    tables, tokens = parts.tables[:2]
    rest = parts.tables[2 + 2 * tables + tables * tokens :]
    tables, tokens = rng.choice((tables, 1, 64, 65, 0)), rng.choice((tokens, 1, 40, 135, 255, 0))
    first = sorted(rng.sample(range(max(tables, rng.choice((32, 256, 512, 600)))), tables))
    first = rng.choice(([0, *first[1:]], [0, *first[1:]], first, first[::-1])) if tables else []
    row, size = bytes(rng.randrange(128) for _ in range(tokens)), tables * tokens
    codes = rng.choice((rng.randbytes(size), bytes(size), row.ljust(size, b"\0")))
    parts.tables = bytes((tables, tokens)) + struct.pack(f"<{len(first)}H", *first) + codes + rest


def _slots(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _slots(node[key])


def _another(rng: random.Random, old: Any, places: list[tuple[Any, Any]]) -> Any:
    """A value that may fit where the old one stood, and mostly does not."""
    if rng.random() < 0.25:
        holder, key = rng.choice(places)
        return copy.deepcopy(holder[key])
    if rng.random() < 0.25:
        return rng.choice(_VALUES)
    if isinstance(old, str):
        return rng.choice((old + "x", old[:-1], old.upper(), old[::-1], rng.choice(_PATHS)))
    near = (old + 1, old - 1, old * 2, float(old), str(old)) if type(old) is int else ()
    return rng.choice((*_INTEGERS, *near))


def forge_document(rng: random.Random, document: Any) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_slots(document))
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.75:
            holder[key] = _another(rng, holder[key], places)
        elif kind < 0.87:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randint(0, len(holder)), copy.deepcopy(holder[key]))
        else:
            holder[rng.choice(("origin", "base", "at", "x", "codec", "changed"))] = holder[key]


def forge_plan(rng: random.Random, parts: Parts) -> None:
    if rng.random() < 0.2:
        rng.choice(parts.plan["files"] + parts.plan["others"])["path"] = rng.choice(_PATHS)
    else:
        forge_document(rng, parts.plan)


def forge_origin(rng: random.Random, parts: Parts) -> None:
    """Another tensor's base: its name, its checksum, or both."""
    one, other = (rng.choice([row for row in parts.tensors if "base" in row]) for _ in "ab")
    for key in rng.choice((("base",), ("origin",), ("base", "origin"))):
        one[key] = other.get(key, "model.layers.0.q.weight")


def forge_header(rng: random.Random, parts: Parts) -> None:
    """The header of a tuned file, sound or not: other dtypes and shapes, names, offsets."""
    file = rng.choice(parts.plan["files"])
    document = json.loads(file["header"])
    if rng.random() < 0.5:
        forge_document(rng, document)
    else:
        row = document[rng.choice([key for key in document if key != "__metadata__"])]
        row["dtype"] = rng.choice(("BF16", "F16", "I16", "F32", "C64", "U8", "F8_E5M2", "F4"))
        if rng.random() < 0.5:
            row["shape"] = row["shape"][::-1] if rng.random() < 0.5 else [*row["shape"], 1]
    text = json.dumps(document).encode()
    file["header"] = (text if rng.random() < 0.9 else damaged(rng, text)).decode("latin-1")


def forge_size(rng: random.Random, parts: Parts) -> None:
    """One tensor announces what no stream of its length can hold."""
    file = parts.plan["files"][0]
    document = json.loads(file["header"])
    document.pop("__metadata__", None)
    last = max(document, key=lambda name: document[name]["data_offsets"])
    size = 1 << rng.choice((18, 21, 24, 30, 36, 44, 50, 61))
    start, _ = document[last]["data_offsets"]
    document[last] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
    file["header"] = json.dumps(document)
    if "at" in file["tensors"][-1]:
        file["tensors"][-1]["codec"] = rng.choice(("small", "fast", "planes", "raw"))


def forge_region(rng: random.Random, parts: Parts) -> None:
    """The frame of tables or plan: damaged, announcing too much, or a run of zeros without end."""
    name = rng.choice(("tables", "plan"))
    held = parts.tables if name == "tables" else json.dumps(parts.plan).replace(DEEP, "").encode()
    small, large = rng.choice(_INTEGERS[1:20]), rng.choice((64, 1 << 26, (1 << 64) - 1))
    parts.regions[name] = rng.choice((
        damaged(rng, sized(held)),
        sized(damaged(rng, held)),
        sized(held, small),
        struct.pack("<Q", small & (1 << 63) - 1) + raw_frame(large, rng.choice((0, 3, 300))),
        struct.pack("<Q", len(held)) + raw_frame(rng.choice(_INTEGERS[1:20])),
    ))  # fmt: skip


def forge_container(rng: random.Random, parts: Parts) -> None:
    def rewrite(document: dict[str, Any]) -> Any:
        forge_document(rng, document)
        return damaged(rng, json.dumps(document).encode()) if rng.random() < 0.3 else document

    parts.rewrite = rewrite


FORGED = (
    forge_stream, forge_stream, forge_chunk, forge_chunk, forge_chunk, forge_shifts, forge_shifts,
    forge_tables, forge_tables, forge_plan, forge_plan, forge_plan, forge_plan, forge_origin,
    forge_header, forge_header, forge_size, forge_region, forge_container,
)  # fmt: skip


def mutant(seed: int, deltas: Sequence[bytes], *, raw: float = 0.25) -> tuple[str, bytes]:
    """What was done, and the file: a share `raw` damaged as bytes, the rest forged and sealed."""
    rng = random.Random(seed)
    data = rng.choice(deltas)
    if rng.random() < raw:
        if rng.random() < 0.1:
            other = rng.choice(deltas)
            return "spliced", data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        return "damaged", damaged(rng, data)
    parts, names = take_apart(data), []
    with contextlib.suppress(*TORN):
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            forge = rng.choice(FORGED)
            names.append(forge.__name__)
            forge(rng, parts)
    return "+".join(names), (parts.agree() if rng.random() < 0.9 else parts).seal()
