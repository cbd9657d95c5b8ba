"""Small series of checkpoints whose future is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from models import State, tiny, write

__all__ = ["Run", "distance", "planted", "read_all"]

Curve = Callable[[float], float]


@dataclass(frozen=True)
class Run:
    """A base and checkpoints on disk: θ_s = θ_0 + Σ_k curve_k(s) D_k (+ noise at each)."""

    base: Path
    checkpoints: list[Path]
    start: State
    directions: tuple[State, ...]
    curves: tuple[Curve, ...]

    def truth(self, step: float) -> State:
        """θ at a step without noise, float64."""
        moves = list(zip(self.curves, self.directions, strict=True))
        return {n: one + sum(f(step) * d[n] for f, d in moves) for n, one in self.start.items()}


def planted(
    directory: Path,
    *,
    steps: Sequence[float] = (10, 20, 40),
    curves: Sequence[Curve] = (lambda step: step,),
    noise: float = 0.0,
    dtype: torch.dtype = torch.float64,
    base_dtype: torch.dtype | None = None,
    shards: int = 1,
    prefix: str = "",
    layers: int = 1,
    seed: int = 0,
) -> Run:
    """A run in which every tensor moves along fixed random directions, as `curves` say.

    The directions have entries of standard deviation 1e-4; noise: of each entry of each checkpoint.
    """
    start = {name: one.double() for name, one in tiny(seed=seed, layers=layers).items()}
    generator = torch.Generator().manual_seed(seed + 1)

    def normal(like: State, size: float) -> State:
        return {
            n: size * torch.randn(w.shape, generator=generator).double() for n, w in like.items()
        }

    directions = tuple(normal(start, 1e-4) for _ in curves)
    run = Run(directory / "base", [], start, directions, tuple(curves))
    write(run.base, start, dtype=base_dtype or dtype, shards=shards)
    for step in steps:
        jitter = normal(start, noise)
        state = {name: one + jitter[name] for name, one in run.truth(step).items()}
        place = directory / "rl" / f"checkpoint-{step:g}"
        write(place, state, dtype=dtype, shards=shards, prefix=prefix)
        run.checkpoints.append(place)
    return run


def read_all(directory: Path) -> State:
    """All tensors below a directory, in one file or shards, read by safetensors alone."""
    out: State = {}
    for file in sorted(directory.glob("*.safetensors")):
        out |= load_file(file)
    return out


def distance(one: State, other: State) -> float:
    """‖one − other‖ over all tensors, float64."""
    assert one.keys() == other.keys()
    return float(sum((one[n].double() - other[n].double()).square().sum() for n in one)) ** 0.5
