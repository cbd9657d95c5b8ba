"""Gate III, two mechanisms: a store that rounds each step, and masters rounded once at the end.

A pure-bfloat16 store forgets each step below half a spacing; float32 masters forget nothing until
export, where the displacement accumulated so far meets the threshold. Stochastic rounding and a
Kahan compensation are the known remedies for a pure store.
Source: The Path Not Taken, section 3.3 (corollary 3.6), which does not tell the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from offaxis.checkpoint.rewriting import rounded
from offaxis.errors import InputError

__all__ = ["DRIFTS", "STORES", "Stored", "drift", "store_steps"]

STORES = ("nearest", "stochastic", "kahan", "masters")
DRIFTS = ("constant", "random_walk", "adam")


@dataclass(frozen=True)
class Stored:
    """What a store kept of a path of steps. T = w₀ + Σ steps in float64, S what is stored.

    changed: share of entries of S that differ from w₀. due: the share that would if T were rounded
    once. kept: ⟨S − w₀, T − w₀⟩ / ‖T − w₀‖², the share of the displacement along the path, 1 where
    nothing is lost. error: ‖S − T‖ / ‖T − w₀‖. Both are None for a path of no length.
    """

    store: str
    weights: Tensor
    steps: int
    changed: float
    due: float
    kept: float | None
    error: float | None

    @property
    def lost(self) -> float | None:
        """1 − kept."""
        return None if self.kept is None else 1 - self.kept


def store_steps(
    w0: Tensor,
    steps: Iterable[Tensor],
    *,
    store: str = "nearest",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Stored:
    """Apply `steps` one after the other to weights that are stored as `store` says.

    w0: any shape; it is first rounded to `dtype` (bfloat16 or float16). store: `nearest` (each sum
    in float32, rounded to `dtype` at once, as a pure-bfloat16 AdamW does), `stochastic` (rounded up
    with the probability that keeps the mean; bfloat16 alone), `kahan` (what rounding took is kept
    in a second tensor of `dtype` and added to the next step), `masters` (float32 weights, rounded
    at the end). Raises InputError for steps of another shape or entries that are not finite.
    """
    if store not in STORES:
        raise InputError(f"no store named {store!r}: choose {', '.join(STORES)}")
    if dtype not in (torch.bfloat16, torch.float16):
        raise InputError(f"a store in {dtype} loses nothing here: choose bfloat16 or float16")
    if store == "stochastic" and dtype != torch.bfloat16:
        raise InputError("stochastic rounding is for bfloat16: choose dtype=torch.bfloat16")
    start = w0.detach().to(dtype)
    truth = start.to(torch.float64)
    weights = start.float() if store == "masters" else start.clone()
    spare = torch.zeros_like(start)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for count, step in enumerate(steps, 1):
        _check(step, start, count)
        truth = truth + step.to(torch.float64)
        move = step.to(torch.float32)
        if store == "kahan":
            weights, spare = _kahan(weights, spare, move)
        elif store == "stochastic":
            weights = _stochastic(weights.float() + move, generator)
        else:
            weights = (weights.float() + move).to(weights.dtype)
    return _summary(store, start, weights.to(dtype), truth, count)


def drift(kind: str, w0: Tensor, *, steps: int, size: float, seed: int = 0) -> Iterator[Tensor]:
    """A synthetic path of float32 steps of the shape of `w0`, each entry of typical size `size`.

    `constant`: the same ±size at every step, the sign drawn once an entry. `random_walk`: ±size
    drawn anew at every step. `adam`: AdamW's step at learning rate `size` (betas 0.9 and 0.999,
    bias-corrected) on gradients of signal 1 and noise 4 an entry.
    """
    if kind not in DRIFTS:
        raise InputError(f"no drift named {kind!r}: choose {', '.join(DRIFTS)}")
    if steps < 0 or not math.isfinite(size):
        raise InputError(f"{steps} steps of size {size}: give at least 0 steps and a finite size")
    generator = torch.Generator().manual_seed(seed)

    def signs() -> Tensor:
        return torch.randint(0, 2, w0.shape, generator=generator).float() * 2 - 1

    direction = signs()
    first, second = torch.zeros_like(direction), torch.zeros_like(direction)
    for index in range(1, steps + 1):
        if kind == "constant":
            yield size * direction
        elif kind == "random_walk":
            yield size * signs()
        else:
            gradient = direction + 4 * torch.randn(w0.shape, generator=generator)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            scale = (second / (1 - 0.999**index)).sqrt() + 1e-8
            yield size * (first / (1 - 0.9**index)) / scale


def _check(step: Tensor, start: Tensor, count: int) -> None:
    if step.shape != start.shape:
        shapes = f"{tuple(step.shape)} and {tuple(start.shape)}"
        raise InputError(f"step {count} and the weights have shapes {shapes}: give equal ones")
    if not bool(torch.isfinite(step).all()):
        raise InputError(f"step {count} has entries that are NaN or infinite: leave it out")


def _kahan(weights: Tensor, spare: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of all three in float32; what storing it takes off stays in `spare`."""
    wanted = spare.float() + move
    stored = (weights.float() + wanted).to(weights.dtype)
    return stored, (wanted - (stored.float() - weights.float())).to(spare.dtype)


def _stochastic(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 to bfloat16, away from zero with probability (what is cut off) / (the spacing).

    16 random bits are added below the last kept one. Exact for magnitudes, so on both signs.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, values.shape, generator=generator, dtype=torch.int32)
    cut = (bits + noise) & ~0xFFFF
    return cut.view(torch.float32).to(torch.bfloat16)


def _summary(store: str, start: Tensor, weights: Tensor, truth: Tensor, count: int) -> Stored:
    begin = start.to(torch.float64)
    path, moved = truth - begin, weights.to(torch.float64) - begin
    square = float((path**2).sum())
    once = rounded(truth, start.dtype)
    return Stored(
        store=store,
        weights=weights,
        steps=count,
        changed=float((weights != start).double().mean()),
        due=float((once != start).double().mean()),
        kept=float((moved * path).sum()) / square if square else None,
        error=float(torch.linalg.norm(moved - path)) / math.sqrt(square) if square else None,
    )
