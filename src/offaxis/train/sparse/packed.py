"""A tensor's trained entries, a bit each, and the two things done by them to whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit

from offaxis.kernels import pack, unpack
from offaxis.kernels.pool import for_each, spans, threads

__all__ = ["Packed"]

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALLEST_SPAN = 1 << 18


@njit(nogil=True, cache=True)
def _clear(words: Any, bits: Any) -> None:
    """Set the words whose bit is clear to zero, whatever they were."""
    one = words.dtype.type(1)
    for byte in range(words.size // 8):
        flags = bits[byte]
        for k in range(8):
            words[8 * byte + k] &= -(words.dtype.type(flags >> np.uint8(k)) & one)
    for i in range(words.size - words.size % 8, words.size):
        words[i] &= -(words.dtype.type(bits[i >> 3] >> np.uint8(i & 7)) & one)


@njit(nogil=True, cache=True)
def _restore(words: Any, before: Any, bits: Any) -> None:
    """Set the words whose bit is clear to those of `before`."""
    one = words.dtype.type(1)
    for byte in range(words.size // 8):
        flags = bits[byte]
        for k in range(8):
            i = 8 * byte + k
            keep = -(words.dtype.type(flags >> np.uint8(k)) & one)
            words[i] = (words[i] & keep) | (before[i] & ~keep)
    for i in range(words.size - words.size % 8, words.size):
        keep = -(words.dtype.type(bits[i >> 3] >> np.uint8(i & 7)) & one)
        words[i] = (words[i] & keep) | (before[i] & ~keep)


class Packed:
    """Which entries of a tensor are trained: a bit an entry, on the tensor's device.

    On the CPU the work is done by compiled loops over whole words: torch's own masked_fill_ and
    where take four to nine nanoseconds an entry there, and these less than one.
    """

    def __init__(self, flags: torch.Tensor, device: torch.device | None = None) -> None:
        """flags: boolean, of the tensor's shape, on the CPU."""
        bits = torch.from_numpy(pack(flags.contiguous()))
        self.shape = tuple(flags.shape)
        self.count = int(np.bitwise_count(bits.numpy()).sum(dtype=np.int64))
        self.bits = bits.to(device or "cpu")

    @property
    def full(self) -> bool:
        """Whether every entry is trained."""
        return self.count == int(np.prod(self.shape, dtype=np.int64))

    def flags(self) -> torch.Tensor:
        """Boolean, of the tensor's shape, on its device; True = trained."""
        if self.bits.device.type == "cpu":
            return torch.from_numpy(unpack(self.bits.numpy(), self.shape))
        places = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        flat = (self.bits[:, None] >> places).bitwise_and_(1).reshape(-1).view(torch.bool)
        return flat[: int(np.prod(self.shape, dtype=np.int64))].reshape(self.shape)

    @torch.no_grad()
    def clear(self, tensor: torch.Tensor) -> None:
        """Set the entries that are not trained to +0, whatever they were (NaN included)."""
        if self.full:
            return
        if (words := _words(tensor)) is None:
            tensor.masked_fill_(~self.flags(), 0)
        else:
            bits = self.bits.numpy()
            _spread(words.size, lambda a, b: _clear(words[a:b], bits[a // 8 : -(-b // 8)]))
            torch.autograd.graph.increment_version(tensor)

    @torch.no_grad()
    def restore(self, tensor: torch.Tensor, before: torch.Tensor) -> None:
        """Set the entries that are not trained to those of `before`, to the bit."""
        if self.full:
            return
        words, old = _words(tensor), _words(before)
        if words is None or old is None:
            tensor.copy_(torch.where(self.flags(), tensor, before))
            return
        bits = self.bits.numpy()
        _spread(words.size, lambda a, b: _restore(words[a:b], old[a:b], bits[a // 8 : -(-b // 8)]))
        torch.autograd.graph.increment_version(tensor)


def _words(tensor: torch.Tensor) -> Any:
    """The tensor's entries as integers that share its memory; None where that cannot be."""
    word = _WORDS.get(tensor.element_size())
    if tensor.device.type != "cpu" or word is None or not tensor.is_contiguous():
        return None
    return tensor.detach().reshape(-1).view(word).numpy()


def _spread(count: int, work: Callable[[int, int], None]) -> None:
    """`work` on spans of `range(count)`, over the pool unless torch is held to one thread."""
    if min(torch.get_num_threads(), threads()) < 2:
        work(0, count)
        return
    cut = spans(count, multiple=8, smallest=_SMALLEST_SPAN)
    for_each(lambda span: work(*span), cut)
