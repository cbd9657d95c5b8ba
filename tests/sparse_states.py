"""State dicts for the tests of sparse updates, compared by another way than the module's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from offaxis.checkpoint.dtypes import WIDTHS, torch_dtype
from offaxis.delta import sparse

State = dict[str, Tensor]

LAB = Path(sparse.__file__).parents[1] / "lab" / "base" / "model.safetensors"
DTYPES = [dtype for code in WIDTHS if (dtype := torch_dtype(code)) is not None]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (1, 5), (6, 4), (2, 3, 4), (2, 1, 3, 2)]
LAYOUTS = ("contiguous", "transposed", "sliced", "offset")


def raw(tensor: Tensor) -> np.ndarray:
    """A tensor's bytes, (entries, width), by another way than the module's."""
    width = tensor.element_size()
    plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().reshape(-1, width)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and np.array_equal(raw(one[n]), raw(other[n]))
        for n in one
    )


def clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def from_bytes(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data.copy().reshape(-1)).view(dtype).reshape(shape)


def laid_out(tensor: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The same entries in other memory: the tensor, and the whole of that memory."""
    if layout == "transposed":
        turned = tuple(reversed(range(tensor.dim())))
        whole = tensor.permute(turned).clone(memory_format=torch.contiguous_format)
        return whole.permute(turned), whole
    if layout == "sliced" and tensor.dim():
        whole = torch.zeros([2 * size for size in tensor.shape], dtype=tensor.dtype)
        part = whole[tuple(slice(1, None, 2) for _ in tensor.shape)]
    elif layout == "offset" and tensor.dim():  # the second of two fused tensors
        whole = torch.zeros([2 * tensor.shape[0], *tensor.shape[1:]], dtype=tensor.dtype)
        part = whole[tensor.shape[0] :]
    else:
        whole = part = tensor.clone()
    part.copy_(tensor)
    return part, whole


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of random bits, alike in a random share of their entries."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (int(np.prod(shape)), torch.empty(0, dtype=dtype).element_size())
    top = 2 if dtype == torch.bool else 256
    base, drawn = (rng.integers(0, top, size, dtype=np.uint8) for _ in range(2))
    keep = rng.random((size[0], 1)) >= draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return from_bytes(base, dtype, shape), from_bytes(np.where(keep, base, drawn), dtype, shape)


def f32(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def example() -> tuple[State, State]:
    """A state and its successor: sparse, dense, unchanged, narrow, scalar, transposed tensors."""
    drawn = torch.Generator().manual_seed(3)
    base = {
        "sparse": torch.randn(8, 9, generator=drawn).bfloat16(),
        "dense": torch.randn(5, generator=drawn),
        "still": torch.randn(4, generator=drawn),
        "bool": torch.zeros(30, dtype=torch.bool),
        "scalar": torch.tensor(3),
        "count": torch.arange(9, dtype=torch.int32),
        "turned": torch.randn(6, 7, generator=drawn).T,
    }
    tuned = clone(base)
    tuned["sparse"][[1, 7], [0, 8]] += 1
    tuned["dense"] += 1
    tuned["bool"][29] = True
    tuned["scalar"] += 1
    tuned["count"][4] = -1
    tuned["turned"][2, :3] = -0.0
    return base, tuned


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


class Wrapped(Tensor):
    """A tensor whose own memory says nothing of its entries, as a DTensor's."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("no operation may reach it")
