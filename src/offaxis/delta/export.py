"""A tuned model rounded to bfloat16 before it is packed, and what that loses."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from offaxis.checkpoint.dtypes import WIDTHS, torch_dtype
from offaxis.checkpoint.header import Entry, Header, parse_header
from offaxis.delta.folder import Source
from offaxis.kernels.bits import bf16_codes

__all__ = ["Rounded", "Rounding"]

_WIDER = ("F16", "F32", "F64")


@dataclass
class Rounding:
    """What rounding lost so far, over all tensors that were rounded."""

    entries: int = 0
    rounded: int = 0
    lost: float = 0.0
    square: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Both of the same shape; only finite entries count towards the norms."""
        exact, kept = before.double(), after.double()
        finite = torch.isfinite(exact) & torch.isfinite(kept)
        lost = torch.where(finite, exact - kept, 0.0)
        with self._lock:
            self.entries += exact.numel()
            self.rounded += int((exact != kept).logical_and_(~torch.isnan(exact)).sum())
            self.lost += float(lost.square().sum())
            self.square += float(torch.where(finite, exact, 0.0).square().sum())

    def summary(self) -> dict[str, Any]:
        """`entries` of rounded tensors, `changed` by rounding, `relative_norm` of what was lost."""
        norm = sqrt(self.lost / self.square) if self.square else None
        return {"entries": self.entries, "changed": self.rounded, "relative_norm": norm}


class Rounded:
    """A safetensors file as it would be with its wider floats in bfloat16."""

    def __init__(self, source: Source, rounding: Rounding) -> None:
        self.path = source.path
        self._source = source
        self._rounding = rounding
        self._origin = {entry.name: entry for entry in source.header.entries}
        self.header_text = _header(source.header)
        self.header: Header = parse_header(source.header.path, self.header_text.encode())

    def raw(self, entry: Entry) -> npt.NDArray[np.uint8]:
        stored = self._origin[entry.name]
        raw = self._source.raw(stored)
        if stored.dtype == entry.dtype or not raw.size:
            return raw
        dtype = torch_dtype(stored.dtype)
        assert dtype is not None
        before = torch.from_numpy(raw.copy()).view(dtype)
        codes = bf16_codes(before)
        self._rounding.add(before, torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16))
        return codes.view(np.uint8)


def _header(header: Header) -> str:
    """The header's JSON with BF16 where floats were wider, padded to a multiple of 8 bytes."""
    document: dict[str, Any] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    at = 0
    for entry in header.entries:
        wide = entry.dtype in _WIDER
        size = entry.stop - entry.start
        if wide:
            size = size * 16 // WIDTHS[entry.dtype]
        document[entry.name] = {
            "dtype": "BF16" if wide else entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(document, separators=(",", ":"))
    return text + " " * (-len(text) % 8)
