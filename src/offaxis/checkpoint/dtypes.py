"""The dtype codes of safetensors: how wide each is, and what offaxis makes of it.

A code is *float* where its values can be compared as they are stored. Sub-byte and scale formats
(`F4`, `F8_E8M0`) are codes of a quantised tensor: legal in a file, refused as weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["FLOATS", "WIDTHS", "code_of", "torch_dtype"]

WIDTHS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits an element takes in the file, for every code that safetensors 0.8 knows."""

FLOATS = frozenset({"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"})
"""Codes whose values are measured. Everything else is a buffer or a quantised code."""

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


def torch_dtype(code: str) -> torch.dtype | None:
    """The torch dtype of a safetensors code, or None where torch has none (`F4`, `F6_*`)."""
    import torch

    name = _TORCH.get(code)
    return None if name is None else getattr(torch, name)


def code_of(dtype: torch.dtype) -> str | None:
    """The safetensors code of a torch dtype, or None where safetensors has none."""
    return {f"torch.{name}": code for code, name in _TORCH.items()}.get(str(dtype))
