"""Headers that lie. Every refusal names the file, the tensor, the numbers and a remedy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from offaxis.checkpoint import open_checkpoint
from offaxis.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with any header, announced as `length` bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int, stop: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


TWO = {"a": entry(0, 8), "b": entry(8, 16)}

CASES: dict[str, tuple[Any, bytes, tuple[str, ...]]] = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), ("'b'", "overlaps 'a'")),
    "same bytes": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), ("overlaps",)),
    "hole": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), ("'b'", "hole after 'a'")),
    "late start": ({"a": entry(4, 12)}, bytes(12), ("'a'", "hole after the header")),
    "past the end": (TWO, bytes(12), ("'b'", "truncated")),
    "trailing bytes": (TWO, bytes(20), ("4 bytes after the last tensor",)),
    "shape larger": ({"a": entry(0, 8, (3,))}, bytes(8), ("'a'", "(3,)", "12 bytes", "span 8")),
    "shape of products": ({"a": entry(0, 8, (2**40, 2**40))}, bytes(8), ("'a'", "span 8")),
    "reversed offsets": ({"a": entry(8, 0)}, bytes(8), ("'a'", "[8, 0]")),
    "negative offset": ({"a": entry(-8, 0)}, bytes(8), ("'a'", "[-8, 0]")),
    "negative extent": ({"a": entry(0, 8, (-2,))}, bytes(8), ("'a'", "[-2]")),
    "float extent": ({"a": entry(0, 8, (2.0,))}, bytes(8), ("'a'", "[2.0]")),
    "boolean extent": ({"a": entry(0, 4, (True,))}, bytes(4), ("'a'", "[True]")),
    "huge offset": ({"a": entry(0, 2**70)}, bytes(8), ("'a'",)),
    "three offsets": ({"a": {**entry(0, 8), "data_offsets": [0, 4, 8]}}, bytes(8), ("'a'",)),
    "unknown dtype": ({"a": entry(0, 8, dtype="F31")}, bytes(8), ("'a'", "'F31'", "BF16")),
    "dtype a list": ({"a": {**entry(0, 8), "dtype": ["F32"]}}, bytes(8), ("'a'",)),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), ("'a'", "data_offsets")),
    "extra key": ({"a": {**entry(0, 8), "x": 1}}, bytes(8), ("'a'",)),
    "entry a list": ({"a": [1, 2]}, bytes(8), ("'a'",)),
    "empty name": ({"": entry(0, 8)}, bytes(8), ("empty",)),
    "lone surrogate": (b'{"\\ud800": {}}', b"", ("valid text",)),
    "metadata a number": ({"__metadata__": {"x": 1}, **TWO}, bytes(16), ("__metadata__",)),
    "duplicate name": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
        ("'a'", "twice"),
    ),
    "bad JSON": (b'{"a": ', b"", ("not valid JSON",)),
    "not UTF-8": (b'{"\xff": 1}', b"", ("not valid JSON",)),
    "deep JSON": (b'{"a":' + b"[" * 200_000, b"", ("not valid JSON",)),
    "long number": (b'{"a":' + b"9" * 10_000 + b"}", b"", ("not valid JSON",)),
    "a list": (b"[1, 2]", b"", ("b'['",)),
    "no header": (b"", b"", ("header",)),
    "no tensors": ({}, b"", ("holds no tensors",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_lying_header_is_refused(tmp_path, case):
    header, data, words = CASES[case]
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(path)
    message = str(refusal.value)
    assert str(path) in message
    assert ";" in message  # the remedy
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (100_000_001, "above the limit"),
        (2**64 - 1, "above the limit"),
        (5_000, "truncated: a header of 5000 bytes"),
    ],
)
def test_a_lying_header_length_is_refused(tmp_path, length, words):
    path = write(tmp_path / "m.safetensors", TWO, bytes(16), length=length)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


def test_a_header_over_the_limit_is_refused_even_if_the_file_is_that_long(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(200_000_000)
    with pytest.raises(CheckpointError, match="above the limit of 100000000"):
        open_checkpoint(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(keep=st.integers(min_value=0))
def test_every_truncation_is_refused(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(3, 2, dtype=torch.bfloat16)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep % len(whole)])
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        open_checkpoint(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_flipped_header_byte_never_escapes_as_another_error(tmp_path, position, byte):
    """Whatever a damaged header says, it is refused or read within the file."""
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(3, 2, dtype=torch.bfloat16)}, path)
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = byte
    path.write_bytes(raw)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    for name, spec in checkpoint.specs.items():
        assert tuple(checkpoint[name].shape) == spec.shape


def test_unusual_but_legal_headers_are_read(tmp_path):
    """Padding, empty tensors, scalars, and names that look like paths."""
    header = {
        "__metadata__": {"format": "pt"},
        "../x": entry(8, 12, ()),
        "empty": entry(8, 8, (0, 5)),
        "a": entry(0, 8),
    }
    raw = json.dumps(header).encode() + b"     "
    data = struct.pack("<3f", 1, 2, 3)
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", raw, data))
    assert checkpoint["../x"].item() == 3
    assert checkpoint["empty"].shape == (0, 5)
    assert checkpoint["a"].tolist() == [1, 2]


def test_a_file_that_shrinks_after_opening_is_refused(tmp_path):
    path = write(tmp_path / "m.safetensors", TWO, bytes(16))
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="when it was opened"):
        checkpoint["a"]


def test_a_file_that_vanishes_after_opening_is_refused(tmp_path):
    path = write(tmp_path / "m.safetensors", TWO, bytes(16))
    checkpoint = open_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        checkpoint["a"]
