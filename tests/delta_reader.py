"""An independent reader of the delta format, written from docs/delta-format.md alone.

Nothing here imports offaxis or numpy: slow and plain. What a reader rejects raises ValueError.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from xxhash import xxh3_128_digest
from xxhash import xxh3_128_hexdigest as checksum

SMALL, FAST = 2**18, 2**20  # words of a chunk; planes has those of fast
PIECE = 2**22  # bytes of a file that are compressed together
WORDS = {
    "F64": (64, 52, 256),
    **dict.fromkeys(("F32", "C64"), (32, 23, 256)),
    "BF16": (16, 7, 256),
    "F16": (16, 10, 32),
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ"), (8, 3, 16)),
    **dict.fromkeys(("F8_E5M2", "F8_E5M2FNUZ"), (8, 2, 32)),
    **dict.fromkeys(("I64", "U64"), (64, 0, 1)),
    **dict.fromkeys(("I32", "U32"), (32, 0, 1)),
    **dict.fromkeys(("I16", "U16"), (16, 0, 1)),
}  # bits of a word, shift, number of exponents
BYTES = (8, 0, 1)  # all other dtypes
LETTER = {8: "B", 16: "H", 32: "I", 64: "Q"}
UNIT, LOW = 2**14, 2**16  # sum of the frequencies; the least state

Item = dict[str, Any]  # an object of the plan
Slots = list[tuple[int, int, int]]  # for each slot: token, frequency, start


class Tensor(NamedTuple):
    name: str
    dtype: str
    shape: list[int]
    data: bytes


class Delta(NamedTuple):
    metadata: dict[str, str]
    plan: Item
    tables: bytes
    payload: bytes


class Source:
    """Bytes that are taken from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        require(0 <= count <= self.left(), "more bytes are announced than there are")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, count: int, bits: int) -> list[int]:
        return cut(self.take(count * bits // 8), bits)

    def left(self) -> int:
        return len(self.data) - self.at

    def end(self) -> None:
        require(self.left() == 0, "bytes are left over")


def require(condition: bool, words: str) -> None:
    if not condition:
        raise ValueError(words)


def cut(data: bytes, bits: int) -> list[int]:
    require(len(data) * 8 % bits == 0, "no whole number of words")
    return list(struct.unpack(f"<{len(data) * 8 // bits}{LETTER[bits]}", data))


def unzstd(frame: bytes, size: int) -> bytes:
    """The content of one zstd frame that holds `size` bytes."""
    try:
        require(zstandard.frame_content_size(frame) in {-1, size}, "a frame of another size")
        reader = zstandard.ZstdDecompressor().decompressobj()
        content = reader.decompress(frame)
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from error
    require(reader.eof and not reader.unused_data, "a frame that does not end where it should")
    require(len(content) == size, "a frame of another size")
    return content


def entries(header: bytes) -> list[tuple[str, Item]]:
    """Names and entries of a header, in the order of the tensors' bytes."""
    found = json.loads(header.decode())
    found.pop("__metadata__", None)
    return sorted(found.items(), key=lambda item: item[1]["data_offsets"])


def split(data: bytes) -> tuple[bytes, list[Tensor]]:
    """A safetensors file's header and tensors, in the order of their bytes."""
    source = Source(data)
    header = source.take(source.number(8))
    tensors = []
    for name, entry in entries(header):
        start, stop = entry["data_offsets"]
        require(start == source.at - 8 - len(header), f"{name} does not follow the one before")
        tensors.append(Tensor(name, entry["dtype"], entry["shape"], source.take(stop - start)))
    source.end()
    return header, tensors


def content_digest(tensors: Iterable[Tensor]) -> str:
    rows = [(t.name, t.dtype, ",".join(map(str, t.shape)), checksum(t.data)) for t in tensors]
    return checksum(b"".join(sorted(("\t".join(row) + "\n").encode() for row in rows)))


def read_delta(path: str | Path) -> Delta:
    return parse_delta(Path(path).read_bytes())


def parse_delta(data: bytes) -> Delta:
    require(data[-16:] == xxh3_128_digest(data[:-16]), "the digest differs")
    header, tensors = split(data)
    require([one.name for one in tensors] == ["payload", "tables", "plan", "digest"], "tensors")
    for one in tensors:
        require(one.dtype == "U8" and one.shape == [len(one.data)], f"{one.name}: U8, one axis")
    payload, tables, packed, digest = (one.data for one in tensors)
    require(len(digest) == 16, "a digest of another size")
    metadata = json.loads(header.decode())["__metadata__"]
    require(metadata["format"] == "offaxis-delta", "not an offaxis delta")
    require(metadata["version"] == "1", "another version of the format")
    plan = json.loads(sized_frame(packed, 2**26).decode())
    require(all(metadata[key] == plan[key] for key in ("base", "tuned")), "header and plan differ")
    check_paths([one["path"] for one in plan["files"] + plan["others"]])
    return Delta(metadata, plan, sized_frame(tables, 2**25), payload)


def sized_frame(data: bytes, limit: int) -> bytes:
    size = int.from_bytes(data[:8], "little")
    require(size <= limit, f"more than {limit} bytes")
    return unzstd(data[8:], size)


def check_paths(paths: list[str]) -> None:
    folders = set()
    for path in paths:
        parts = path.casefold().split("/")
        require(not {"", ".", ".."} & set(parts), f"path {path!r}")
        require(path.isprintable() and not {"\\", ":"} & set(path), f"path {path!r}")
        require(len(path) <= 1024, "a path of more than 1024 characters")
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    folded = {path.casefold() for path in paths}
    require(len(folded) == len(paths), "a path twice")
    require(not folders & folded, "a path that is a directory of another")


def apply_delta(base_files: dict[str, bytes], delta_bytes: bytes) -> dict[str, bytes]:
    """The bytes of every file of the tuned model."""
    delta = parse_delta(delta_bytes)
    paths = [path for path in base_files if path.endswith(".safetensors")]
    base = [one for path in paths for one in split(base_files[path])[1]]
    tables = Source(delta.tables)
    made = {one["path"]: tuned_file(one, base, delta, tables) for one in delta.plan["files"]}
    tables.end()
    tensors = [one for data in made.values() for one in split(data)[1]]
    require(content_digest(tensors) == delta.plan["tuned"], "the tuned model's digest differs")
    return made | {one["path"]: other_file(one, base_files, delta) for one in delta.plan["others"]}


def other_file(item: Item, files: dict[str, bytes], delta: Delta) -> bytes:
    path, codec = item["path"], item["codec"]
    require(codec in {"same", "zstd", "raw"}, f"{path}: codec {codec!r}")
    require(codec != "same" or path in files, f"the base has no file {path!r}")
    data = files[path] if codec == "same" else stream_of(item, delta)
    if codec == "zstd":
        data = other_pieces(Source(data), item["size"])
    require(len(data) == item["size"], f"{path}: another size")
    require(checksum(data) == item["digest"], f"{path}: another digest")
    return data


def other_pieces(source: Source, size: int) -> bytes:
    found = [unzstd(source.take(source.number(4)), k) for k in chunk_sizes(size, PIECE)]
    source.end()
    return b"".join(found)


def tuned_file(item: Item, base: list[Tensor], delta: Delta, tables: Source) -> bytes:
    header = item["header"].encode()
    made = len(header).to_bytes(8, "little") + header
    for (name, entry), tensor in zip(entries(header), item["tensors"], strict=True):
        data = tuned_bytes(name, entry, tensor, base, delta, tables)
        require(checksum(data) == tensor["tuned"], f"{name}: another digest")
        made += data
    return made


def tuned_bytes(
    name: str, entry: Item, item: Item, base: list[Tensor], delta: Delta, tables: Source
) -> bytes:
    codec, origin = item["codec"], item.get("origin", name)
    require(codec in {"same", "small", "fast", "planes", "raw"}, f"{name}: codec {codec!r}")
    if codec == "same":
        return find(base, origin, item["tuned"]).data
    stream = stream_of(item, delta)
    if codec == "raw":
        return stream
    start, stop = entry["data_offsets"]
    bits = WORDS.get(entry["dtype"], BYTES)[0]
    count = (stop - start) * 8 // bits
    if codec == "planes":
        words = [w for k, c in chunks(stream, count) for w in planes_chunk(c, k, bits)]
        return struct.pack(f"<{count}{LETTER[bits]}", *words)
    before = base_words(find(base, origin, item["base"]), entry["dtype"], count)
    if codec == "fast":
        coded = [z for k, c in chunks(stream, count) for z in fast_chunk(c, k, bits)]
    else:
        coded = read_small(stream, before, entry, tables)
    after = [moved(b, z, bits) for b, z in zip(before, coded, strict=True)]
    return struct.pack(f"<{count}{LETTER[bits]}", *after)


def find(base: list[Tensor], name: str, digest: str) -> Tensor:
    for one in base:
        if one.name == name and checksum(one.data) == digest:
            return one
    raise ValueError(f"the base has no tensor {name!r} with checksum {digest}")


def stream_of(item: Item, delta: Delta) -> bytes:
    at, length = item["at"], item["length"]
    require(min(at, length) >= 0 and at + length <= len(delta.payload), "outside the payload")
    return delta.payload[at : at + length]


def base_words(base: Tensor, dtype: str, count: int) -> list[int]:
    words = cut(base.data, WORDS.get(base.dtype, BYTES)[0])
    if (base.dtype, dtype) == ("BF16", "F32"):
        words = [w << 16 for w in words]
    elif (base.dtype, dtype) == ("F32", "BF16"):
        words = [to_bf16(w) for w in words]
    else:
        require(base.dtype == dtype, f"{base.dtype} to {dtype}")
    return words[:count] + [0] * (count - len(words))


def to_bf16(w: int) -> int:
    if (w & 0x7FFFFFFF) > 0x7F800000:
        return (w >> 16) | 0x40
    return ((w + 0x7FFF + ((w >> 16) & 1)) % 2**32) >> 16


def moved(b: int, z: int, bits: int) -> int:
    return (b + z // 2 if z % 2 == 0 else b - (z + 1) // 2) % 2**bits


def pieces(stream: bytes, count: int) -> list[bytes]:
    """Pieces that follow their lengths."""
    source = Source(stream)
    found = [source.take(length) for length in source.numbers(count, 32)]
    source.end()
    return found


def chunk_sizes(count: int, most: int) -> list[int]:
    return [min(most, count - at) for at in range(0, count, most)]


def chunks(stream: bytes, count: int) -> list[tuple[int, bytes]]:
    """How many words each chunk of `fast` or `planes` has, and its bytes."""
    sizes = chunk_sizes(count, FAST)
    return list(zip(sizes, pieces(stream, len(sizes)), strict=True))


def planes_joined(planes: list[bytes]) -> list[int]:
    """Numbers from their lowest bytes, their second lowest bytes, and so on."""
    return [int.from_bytes(number, "little") for number in zip(*planes, strict=True)]


def planes_chunk(frame: bytes, k: int, bits: int) -> list[int]:
    content = Source(unzstd(frame, k * bits // 8))
    return planes_joined([content.take(k) for _ in range(bits // 8)])


def fast_chunk(chunk: bytes, k: int, bits: int) -> list[int]:
    source = Source(chunk)
    kind, count, gap_bytes, planes = (source.number(size) for size in (1, 4, 4, 1))
    require(kind <= 1, f"kind {kind}")
    require(max(count, gap_bytes) <= k and planes <= bits // 8, "more changes than words")
    frames = pieces(source.take(source.left()), (gap_bytes > 0) + planes)
    gaps = unzstd(frames.pop(0), gap_bytes) if gap_bytes > 0 else b""
    values = planes_joined([unzstd(frame, count) for frame in frames]) or [0] * count
    if kind == 1:
        require(count == k and not gaps, "kind 1 has every word and no gaps")
        return values
    zigzags = [0] * k
    for position, z in zip(positions(gaps), values, strict=True):
        require(position < k, "a change outside the chunk")
        zigzags[position] = z
    return zigzags


def positions(gaps: bytes) -> Iterator[int]:
    at = 0
    for gap in gaps:
        at += gap
        if gap < 255:
            yield at
            at += 1


def read_small(stream: bytes, before: list[int], entry: Item, tables: Source) -> list[int]:
    bits, shift, exponents = WORDS.get(entry["dtype"], BYTES)
    sizes = chunk_sizes(len(before), SMALL)
    shifts, *parts = pieces(stream, 1 + len(sizes))
    contexts = [(w >> shift) & (exponents - 1) for w in before]
    if shifts:
        contexts = shifted(contexts, shifts, entry["shape"], 2 * exponents)
    slots = read_tables(tables, 2 * exponents if shifts else exponents, bits)
    each = iter(contexts)
    zigzags = []
    for k, chunk in zip(sizes, parts, strict=True):
        zigzags += small_chunk(chunk, [slots[c] for c in itertools.islice(each, k)])
    return zigzags


def shifted(exponents: list[int], frame: bytes, shape: list[int], limit: int) -> list[int]:
    """Contexts 2e - R_i - C_j, of a word in row i and column j."""
    require(len(shape) >= 2 and math.prod(shape) == len(exponents), "shifts without rows")
    height, width = math.prod(shape[:-1]), shape[-1]
    both = struct.unpack(f"<{height + width}b", unzstd(frame, height + width))
    require(min(both) >= -12 and max(both) <= 12, "a shift beyond 12")
    rows, columns = both[:height], both[height:]
    found = [2 * e - rows[p // width] - columns[p % width] for p, e in enumerate(exponents)]
    return [min(max(k, 0), limit - 1) for k in found]


def read_tables(tables: Source, contexts: int, bits: int) -> list[Slots]:
    """The next tensor's tables, one for each context."""
    count, tokens = tables.number(1), tables.number(1)
    require(1 <= count <= 64 and tokens <= 12 + 2 * (bits - 3), "too many tables or tokens")
    first = tables.numbers(count, 16)
    require(first[0] == 0 and first[-1] < contexts, "first contexts out of range")
    require(all(a < b for a, b in itertools.pairwise(first)), "first contexts do not ascend")
    row, slots = [0] * tokens, []
    for _ in first:
        row = [(a + d) % 256 for a, d in zip(row, tables.take(tokens), strict=True)]
        slots.append(slots_of(frequencies(row)))
    return [slots[bisect_right(first, k) - 1] for k in range(contexts)]


def frequencies(codes: list[int]) -> list[int]:
    """A weight, floor(2^(24 - (c - 1)/8)), is the eighth root of 2^(193 - c), rounded down."""
    require(any(codes) and max(codes) <= 127, "a table without tokens, or a code above 127")
    weights = [math.isqrt(math.isqrt(math.isqrt(2 ** (193 - c)))) if c else 0 for c in codes]
    found = [max(w * UNIT // sum(weights), 1) if w else 0 for w in weights]
    found[found.index(max(found))] += UNIT - sum(found)
    return found


def slots_of(found: list[int]) -> Slots:
    slots: Slots = []
    for token, f in enumerate(found):
        slots += [(token, f, len(slots))] * f
    return slots


def small_chunk(chunk: bytes, tables: list[Slots]) -> list[int]:
    """The z of every word, each with the table of its context."""
    source = Source(chunk)
    count, states = source.number(4), source.numbers(4, 32)
    require(min(states) >= LOW, "a state below 2^16")
    words = Source(source.take(2 * count))
    integers = source.numbers(-(-source.left() // 4), 32)
    raw, used = "".join(f"{number:032b}"[::-1] for number in integers), 0
    zigzags = []
    for i, slots in enumerate(tables):
        high, slot = divmod(states[i % 4], UNIT)
        token, f, s = slots[slot]
        x = f * high + slot - s
        states[i % 4] = x * LOW + words.number(2) if x < LOW else x
        if token >= 12:
            c = 2 + (token - 12) // 2
            token = ((2 + token % 2) << c) + int(raw[used : used + c][::-1], 2)
            used += c
        zigzags.append(token)
    words.end()
    require(len(raw) - 32 < used <= len(raw) and "1" not in raw[used:], "raw bits are left over")
    require(states == [LOW] * 4, "states that do not end at 2^16")
    return zigzags
