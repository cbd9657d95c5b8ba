"""Where a parameter's trainable entries are: the smaller of a bitmap and 16-bit offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from offaxis.kernels import BLOCK, pack

__all__ = ["index_bytes", "lay_out", "layout_fault", "mask_in", "positions"]

INDEX = ("bits", "offsets", "starts")
"""Keys of a parameter's state that tell where its trainable entries are."""


def index_bytes(entries: int, trainable: int) -> int:
    """Bytes that tell K trainable of N entries: min(⌈N/8⌉, 2K) + 8(⌈N/65536⌉ + 1).

    None where K is 0 or N. N/8: a bit an entry. 2K: a 16-bit offset a trainable entry. The rest:
    where each block of 65536 entries begins among the trainable ones.
    """
    if trainable in (0, entries):
        return 0
    return min(-(-entries // 8), 2 * trainable) + 8 * (-(-entries // BLOCK) + 1)


def lay_out(mask: torch.Tensor | None, parameter: torch.Tensor) -> dict[str, Any]:
    """The state of a parameter that has taken no step: its shape, its trainable entries, step 0.

    "bits" (bit i % 8, lowest first, of byte i // 8) or "offsets" (uint16, inside blocks of 65536),
    and "starts" (int64, the trainable entries before each block, and all of them last), on the
    parameter's device; none of the three where all or no entries are trainable. mask: of the
    parameter's shape; None trains all.
    """
    entries = parameter.numel()
    trainable = entries if mask is None else int(mask.count_nonzero())
    state: dict[str, Any] = {"step": 0, "shape": tuple(parameter.shape), "trainable": trainable}
    if mask is None or trainable in (0, entries):
        return state
    flat = mask.detach().cpu().contiguous().reshape(-1)
    bits = pack(flat)
    state["starts"] = torch.from_numpy(_starts(bits)).to(parameter.device)
    if bits.size <= 2 * trainable:
        state["bits"] = torch.from_numpy(bits).to(parameter.device)
    else:
        offsets = flat.nonzero().reshape(-1) % BLOCK
        state["offsets"] = offsets.to(torch.uint16).to(parameter.device)
    return state


def _starts(bits: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    counts = np.bitwise_count(bits)
    blocks = np.add.reduceat(counts, np.arange(0, bits.size, BLOCK // 8), dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])


def positions(state: dict[str, Any]) -> torch.Tensor | None:
    """Flat row-major positions (int64, ascending) of the trainable entries; None: no index."""
    if "bits" in state:
        return mask_in(state).reshape(-1).nonzero().reshape(-1)
    if "offsets" in state:
        starts = state["starts"]
        bases = torch.arange(starts.numel() - 1, device=starts.device) * BLOCK
        offsets: torch.Tensor = state["offsets"]
        return offsets.to(torch.int64) + bases.repeat_interleave(
            starts.diff(), output_size=state["trainable"]
        )
    return None


def mask_in(state: dict[str, Any]) -> torch.Tensor:
    """The boolean mask behind a state, of the parameter's shape, on the index's device."""
    shape = state["shape"]
    if "bits" in state:
        bits: torch.Tensor = state["bits"]
        places = torch.arange(8, dtype=torch.uint8, device=bits.device)
        flags = (bits[:, None] >> places).bitwise_and_(1).reshape(-1).view(torch.bool)
        return flags[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    if "offsets" in state:
        found = positions(state)
        mask = torch.zeros(shape, dtype=torch.bool, device=state["offsets"].device)
        mask.view(-1)[found] = True
        return mask
    return torch.full(shape, state["trainable"] > 0, dtype=torch.bool)


def layout_fault(state: dict[str, Any]) -> str | None:
    """What is wrong with the index of a state that came from a file; None if nothing is."""
    entries, trainable = int(np.prod(state["shape"], dtype=np.int64)), state["trainable"]
    bits, offsets, starts = (state.get(key) for key in INDEX)
    if trainable in (0, entries):
        return None if bits is offsets is starts is None else "an index where none belongs"
    if (bits is None) == (offsets is None) or starts is None:
        return "no index of its trainable entries"
    blocks = -(-entries // BLOCK)
    if starts.dtype != torch.int64 or starts.shape != (blocks + 1,):
        return f"block starts of shape {tuple(starts.shape)}, not {(blocks + 1,)}"
    found = starts.cpu().numpy()
    if bits is not None:
        return _bits_fault(bits, entries, trainable, found)
    return _offsets_fault(offsets, entries, trainable, found)


def _bits_fault(bits: torch.Tensor, entries: int, trainable: int, starts: Any) -> str | None:
    if bits.dtype != torch.uint8 or bits.shape != (-(-entries // 8),):
        return f"a bitmap of {bits.numel()} bytes for {entries} entries"
    packed = bits.cpu().numpy()
    if entries % 8 and packed[-1] >> (entries % 8):
        return "bits beyond the last entry"
    if not np.array_equal(_starts(packed), starts) or starts[-1] != trainable:
        return f"a bitmap that does not have the {trainable} bits it should have"
    return None


def _offsets_fault(offsets: Any, entries: int, trainable: int, starts: Any) -> str | None:
    if offsets.dtype != torch.uint16 or offsets.shape != (trainable,):
        return f"{offsets.numel()} offsets for {trainable} trainable entries"
    if starts[0] != 0 or starts[-1] != trainable or (np.diff(starts) < 0).any():
        return "block starts that do not count its trainable entries"
    bases = np.repeat(np.arange(starts.size - 1) * BLOCK, np.diff(starts))
    places = offsets.cpu().numpy() + bases
    if (np.diff(places) <= 0).any() or places[-1] >= entries:
        return "offsets out of order or beyond its end"
    return None
