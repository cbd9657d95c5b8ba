"""A model as an exact float64 function of its parameters, and its derivative along a direction."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from offaxis.errors import InputError

__all__ = ["DERIVATIVES", "Derivative", "Tensors", "exactly"]

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors], Tensor]

DERIVATIVES = ("forward", "backward", "difference")
_NARROW = {torch.float32, torch.float16, torch.bfloat16}
_STEP = 1e-5


class _Wide(TorchFunctionMode):
    """float64 stays float64 where a model's code asks for a narrower type.

    transformers casts norms and softmaxes to float32, which leaves an error of 1e-7 in the logits
    of a float64 model: as large as the change along a small step.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
                return first
            if func in (Tensor.to, Tensor.type):
                args = tuple(_widened(one) for one in args)
            if named.get("dtype") in _NARROW:
                named["dtype"] = torch.float64
        return func(*args, **named)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Run float64 models in float64 throughout, with attention that has every derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), _Wide():
        yield


@dataclass
class Derivative:
    """J·d of a function of named tensors, for a stack of directions at once.

    method: `forward` (forward-mode, exact), `backward` (reverse mode twice, exact) or `difference`
    (central differences; `error` is then the largest relative change on halving the step).
    `auto` takes the first of them that the function has, and `method` then says which.
    """

    method: str = "auto"
    error: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("auto", *DERIVATIVES):
            raise InputError(
                f"derivative {self.method!r}: choose one of auto, {', '.join(DERIVATIVES)}"
            )

    def along(self, function: Function, at: Tensors, directions: Tensors) -> Tensor:
        """(D, ...): the derivative of `function` at `at` along D directions.

        directions: as `at`, each tensor with a leading axis of length D.
        """
        if self.method != "auto":
            return self._by(self.method, function, at, directions)
        failures = []
        for method in DERIVATIVES:
            try:
                found = self._by(method, function, at, directions)
            except (RuntimeError, NotImplementedError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                failures.append(f"{method}: {error}")
                continue
            self.method = method
            return found
        raise InputError(f"the model has no derivative ({'; '.join(failures)}); use another model")

    def _by(self, method: str, function: Function, at: Tensors, directions: Tensors) -> Tensor:
        if method == "forward":
            return _forward(function, at, directions)
        names = list(at)
        count = next(iter(directions.values())).shape[0]
        one: Callable[[list[Tensor]], Tensor]
        if method == "backward":
            one = _twice(function, at, names)
        else:
            one = self._differences(function, at, names)
        return torch.stack([one([directions[name][k] for name in names]) for k in range(count)])

    def _differences(
        self, function: Function, at: Tensors, names: Sequence[str]
    ) -> Callable[[list[Tensor]], Tensor]:
        size = _norm([at[name] for name in names])

        def at_step(direction: list[Tensor], step: float) -> Tensor:
            def moved(by: float) -> Tensor:
                pairs = zip(names, direction, strict=True)
                return function({name: at[name] + by * one for name, one in pairs})

            return (moved(step) - moved(-step)) / (2 * step)

        def one(direction: list[Tensor]) -> Tensor:
            length = _norm(direction)
            step = _STEP * (size or 1.0) / (length or 1.0)
            coarse, fine = at_step(direction, step), at_step(direction, step / 2)
            scale = float(torch.linalg.norm(fine)) or 1.0
            self.error = max(self.error or 0.0, float(torch.linalg.norm(coarse - fine)) / scale)
            return (4 * fine - coarse) / 3

        return one


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(one.square().sum()) for one in tensors))


def _forward(function: Function, at: Tensors, directions: Tensors) -> Tensor:
    from torch.func import jvp, vmap

    def one(direction: dict[str, Tensor]) -> Tensor:
        found: Tensor = jvp(function, (dict(at),), (direction,))[1]
        return found

    with warnings.catch_warnings():  # torch compiles its rules with its own deprecated jit
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        found: Tensor = vmap(one)(dict(directions))
    return found


def _twice(
    function: Function, at: Tensors, names: Sequence[str]
) -> Callable[[list[Tensor]], Tensor]:
    def of(*values: Tensor) -> Tensor:
        return function(dict(zip(names, values, strict=True)))

    def one(direction: list[Tensor]) -> Tensor:
        values = tuple(at[name] for name in names)
        both = torch.autograd.functional.jvp(  # type: ignore[no-untyped-call]
            of, values, tuple(direction)
        )
        found: Tensor = both[1]
        return found

    return one
