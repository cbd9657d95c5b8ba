"""Models and delta files written by hand, and the golden files.

`python tests/golden/delta/make.py` writes the golden files again, after a change of the format that
is meant. Their models come of PCG64's raw integers and integer arithmetic alone, so that every
machine makes the same bytes; the delta files also depend on zstd's version.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from xxhash import xxh3_128_digest

Files = dict[str, bytes]
Stored = tuple[str, tuple[int, ...], bytes]  # dtype, shape, bytes

HERE = Path(__file__).parent
ZSTD = (1, 5, 7)  # the version that wrote the golden files


def words(seed: int, count: int, bits: int) -> np.ndarray:
    """Random words, the same in every numpy (its distributions may change, `random_raw` not)."""
    raw = np.random.PCG64(seed).random_raw(count)
    return (raw >> np.uint64(64 - bits)).astype(f"<u{bits // 8}")


def weights(seed: int, *shape: int) -> np.ndarray:
    """BF16 words of uniform values: each exponent is half as frequent as the one above."""
    raw = words(seed, int(np.prod(shape)), 64).reshape(shape)
    octaves = sum(((raw >> np.uint64(8)) % np.uint64(2**k) == 0).astype(int) for k in range(1, 13))
    return ((raw % 2 << 15) + ((122 - octaves).astype(np.uint64) << 7) + (raw >> 57)).astype("<u2")


def stepped(seed: int, before: np.ndarray, scale: np.ndarray | int = 0) -> np.ndarray:
    """BF16 words after updates of one size in value: fewer steps for larger weights.

    A word of exponent e moves by floor(u 2^(100 + scale - e)) steps, u a random 20-bit number.
    """
    raw = words(seed, before.size, 64).reshape(before.shape).astype(np.int64)
    exponents = (before >> 7).astype(np.int64) & 255
    steps = (raw & 0xFFFFF) << np.clip(130 - exponents + scale, 0, 22) >> 30
    return (before + np.where(raw & 2**40, steps, -steps)).astype("<u2")


def stored(dtype: str, array: np.ndarray) -> Stored:
    return dtype, array.shape, array.tobytes()


def shard(metadata: dict[str, str] | None = None, /, **tensors: Stored) -> bytes:
    """A safetensors file, its header written by hand."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(one[2] for one in tensors.values())


def sealed(
    metadata: dict[str, str], plan: Any, tables: bytes, payload: bytes, sizes: dict[str, int]
) -> bytes:
    """A delta file of these parts with the right digest, and a header that is not padded."""
    inner = {"tables": tables, "plan": json.dumps(plan).encode()}
    framed = {
        name: sizes.get(name, len(data)).to_bytes(8, "little") + zstandard.compress(data)
        for name, data in inner.items()
    }
    tensors = {"payload": payload, **framed, "digest": bytes(16)}
    data = shard(metadata, **{name: ("U8", (len(one),), one) for name, one in tensors.items()})
    return data[:-16] + xxh3_128_digest(data[:-16])


def write_files(root: Path, files: Files) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def golden_models() -> tuple[Files, Files]:
    """Steps that vary by row and column, rows appended, a norm moved, one kept, a head added."""
    embed, up = weights(1, 20, 32), weights(2, 72, 96)
    norms = words(3, 64, 32).reshape(2, 32) >> 9 | 0x3F800000  # F32 of 1 to 2
    scale = (words(4, 72, 16) % 4)[:, None].astype(int) - words(5, 96, 16) % 4
    base = {
        "embed_tokens.weight": stored("BF16", embed),
        "layers.0.mlp.up_proj.weight": stored("BF16", up),
        "layers.0.norm.weight": stored("F32", norms[0]),
        "norm.weight": stored("F32", norms[1]),
    }
    tuned = base | {
        "embed_tokens.weight": stored("BF16", np.r_[stepped(6, embed), weights(7, 2, 32)]),
        "layers.0.mlp.up_proj.weight": stored("BF16", stepped(8, up, scale)),
        "layers.0.norm.weight": stored("F32", norms[0] ^ norms[0] % 3),
        "score.weight": stored("BF16", weights(9, 4, 32)),
    }
    return model_files(base, 20), model_files(tuned, 22)


def model_files(tensors: dict[str, Stored], vocabulary: int) -> Files:
    sizes = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 1}
    config = {"architectures": ["GoldenModel"], **sizes, "vocab_size": vocabulary}
    return {
        "config.json": json.dumps(config, indent=2).encode(),
        "generation_config.json": b'{"do_sample": true}',
        "model.safetensors": shard({"format": "pt"}, **tensors),
    }


def write_golden() -> None:
    from offaxis.delta import pack

    if zstandard.ZSTD_VERSION != ZSTD:
        sys.exit(f"this zstd is {zstandard.ZSTD_VERSION}: set ZSTD to it, or install {ZSTD}")
    for name, files in zip(("base", "tuned"), golden_models(), strict=True):
        write_files(HERE / name, files)
    for codec in ("small", "fast"):
        pack(HERE / "base", HERE / "tuned", out=HERE / f"{codec}.delta", codec=codec)


if __name__ == "__main__":
    write_golden()
