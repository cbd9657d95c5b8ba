"""Small pairs of models for the tests of the delta, as safetensors files written by hand.

By hand, because half of the dtypes that a header may name have no writer, and because headers must
come back byte for byte however they were laid out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from offaxis.checkpoint.digest import DIGEST_BYTES, file_digest
from offaxis.checkpoint.dtypes import WIDTHS
from offaxis.delta import apply, pack, verify

__all__ = [
    "HEADERS",
    "SHAPES",
    "Tensor",
    "Tensors",
    "changed_entries",
    "fits",
    "header_text",
    "planted",
    "reseal",
    "resized",
    "round_trip",
    "stepped",
    "tree",
    "unsigned",
    "wild",
    "write_file",
    "write_folder",
]

SHAPES = (
    (), (0,), (0, 3), (3, 0, 2), (1,), (7,), (1, 1), (5, 3), (4, 8), (2, 3, 4), (33, 47), (40, 64),
)  # fmt: skip

_INFINITY = {
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F32": 0x7F800000,
    "F64": 0x7FF0 << 48,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> np.ndarray:
        return np.frombuffer(self.data, unsigned(self.dtype))

    def with_words(self, words: np.ndarray) -> Tensor:
        return replace(self, data=words.tobytes())


Tensors = dict[str, Tensor]


def unsigned(dtype: str) -> np.dtype[Any]:
    """The unsigned words that a dtype's elements are; bytes where an element is less than one."""
    width = WIDTHS[dtype]
    return np.dtype(f"<u{width // 8}" if width >= 8 else "<u1")


def fits(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor takes whole bytes."""
    return WIDTHS[dtype] * prod(shape) % 8 == 0


def wild(dtype: str, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Any bits at all: zeros of both signs, subnormals, infinities, NaN payloads among them."""
    rng = np.random.default_rng(seed)
    kind = unsigned(dtype)
    size = WIDTHS[dtype] * prod(shape) // 8
    words = np.frombuffer(rng.bytes(size), kind).copy()
    top, infinity = 1 << (8 * kind.itemsize - 1), _INFINITY.get(dtype, 0)
    special = [0, 1, top, top + 1, 2 * top - 1, infinity, infinity + 1, infinity | top, top - 1]
    hit = rng.random(words.size) < 0.3
    words[hit] = rng.choice(np.array(special, dtype=kind), int(hit.sum()))
    return Tensor(dtype, shape, words.tobytes())


def stepped(tensor: Tensor, *, share: float, reach: int = 1, seed: int = 0) -> Tensor:
    """About `share` of the words moved by 1 to `reach`, up or down, modulo their width."""
    rng = np.random.default_rng(seed)
    words = tensor.words.copy()
    steps = rng.integers(1, reach + 1, words.size) * rng.choice([-1, 1], words.size)
    steps[rng.random(words.size) >= share] = 0
    return tensor.with_words(words + steps.astype(words.dtype))


def resized(tensor: Tensor, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """The first words of a tensor in another shape; words that it lacks are random."""
    more = wild(tensor.dtype, shape, seed=seed).data
    kept = tensor.data[: len(more)]
    return Tensor(tensor.dtype, shape, kept + more[len(kept) :])


def planted(shape: tuple[int, int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A BF16 matrix before and after steps whose size depends on the row and on the column."""
    rng = np.random.default_rng(seed)
    scales = [2.0 ** rng.uniform(-2.5, 2.5, extent) for extent in shape]
    base = rng.normal(size=shape).astype(np.float32) * 0.02
    stored = base.view(np.uint32) & np.uint32(0xFFFF0000)
    step = 4e-5 * scales[0][:, None] * scales[1] * rng.normal(size=shape)
    moved = (stored.view(np.float32) + step).astype(np.float32).view(np.uint32)
    pair = (stored, moved + np.uint32(0x8000))
    first, second = (
        Tensor("BF16", shape, (bits >> np.uint32(16)).astype("<u2").tobytes()) for bits in pair
    )
    return first, second


def changed_entries(base: Tensor, tuned: Tensor) -> int:
    """How many entries differ in their bits, counted in Python and not by offaxis."""
    width, sides = WIDTHS[tuned.dtype], (base.data, tuned.data)
    if width < 8:
        bits = ("".join(f"{byte:08b}"[::-1] for byte in data) for data in sides)
        return _unlike(*bits, width)
    return _unlike(*sides, width // 8)


def _unlike(first: Any, second: Any, step: int) -> int:
    """In how many pieces of `step` items two sequences of one length differ."""
    assert len(first) == len(second)
    return sum(first[i : i + step] != second[i : i + step] for i in range(0, len(first), step))


def _document(tensors: Tensors) -> dict[str, Any]:
    out, at = {}, 0
    for name, tensor in tensors.items():
        stop = at + len(tensor.data)
        out[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, stop]
        }  # fmt: skip
        at = stop
    return out


def header_text(tensors: Tensors, **metadata: str) -> str:
    """A header as safetensors lays it out."""
    document = ({"__metadata__": metadata} if metadata else {}) | _document(tensors)
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


def _turned(tensors: Tensors) -> str:
    """Tensors in the opposite order of their bytes, keys in another order, metadata last."""
    rows = {k: dict(reversed(row.items())) for k, row in reversed(_document(tensors).items())}
    return json.dumps(rows | {"__metadata__": {"format": "pt"}})


HEADERS: dict[str, Callable[[Tensors], str]] = {
    "plain": header_text,
    "metadata": lambda tensors: header_text(tensors, format="pt", note='q"uo\\te\n', ünï="日本"),
    "escaped": lambda tensors: json.dumps(_document(tensors), ensure_ascii=True),
    "indented": lambda tensors: json.dumps(_document(tensors), indent=2, ensure_ascii=False),
    "turned": _turned,
    "odd padding": lambda tensors: json.dumps(_document(tensors)) + " \n\t" + " " * 5,
    "empty metadata": lambda tensors: json.dumps({"__metadata__": {}} | _document(tensors)),
}
"""Ways to write the header of the same tensors."""


def write_file(path: Path, tensors: Tensors, *, text: str | None = None) -> Path:
    """A safetensors file, its parents made; `text` is the header's JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = (header_text(tensors) if text is None else text).encode()
    data = b"".join(tensor.data for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def write_folder(
    root: Path, tensors: Tensors, *, shards: int = 1, files: Mapping[str, bytes] | None = None
) -> Path:
    """A model directory of one file, or of shards with their index; `files` lie beside it."""
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(tensors)}
    if shards == 1:
        write_file(root / "model.safetensors", tensors)
    for file in names if shards > 1 else ():
        write_file(root / file, {n: t for n, t in tensors.items() if where[n] == file})
    if shards > 1:
        index = {"metadata": {}, "weight_map": where}
        (root / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, data in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def round_trip(base: Path, tuned: Path, place: Path, **options: Any) -> dict[str, Any]:
    """The law: `apply(base, pack(base, tuned))` is tuned, byte for byte. Returns what pack says."""
    place.mkdir(parents=True, exist_ok=True)
    said = pack(base, tuned, out=place / "delta", **options)
    done = apply(base, place / "delta", out=place / "out")
    expected = tree(tuned) if tuned.is_dir() else {tuned.name: tuned.read_bytes()}
    made = tree(place / "out")
    assert sorted(made) == sorted(expected)
    assert [name for name in made if made[name] != expected[name]] == []
    assert done["bytes"] == sum(map(len, expected.values()))
    assert verify(base, place / "delta")["base_matches"]
    return said


def reseal(path: Path, data: bytes | bytearray) -> Path:
    """Write a delta's bytes with a digest that fits them, as whoever forges one would."""
    path.write_bytes(bytes(data[:-DIGEST_BYTES]))
    path.write_bytes(path.read_bytes() + file_digest(path))
    return path
