"""Gradients whose outer product is F on average: traces of F, and the nulls' expected curvature.

A probe draws z with independent signs and takes g = Jᵀ(√π ∘ z − π √πᵀz) at every position of a
prompt's sequences in one backward pass. E ggᵀ = F, so that gᵀPg estimates tr(PF) without bias, for
every part of the model and every P at once (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offaxis.checkpoint.digest import checksum
from offaxis.gates.fisher.exact import exactly
from offaxis.gates.fisher.move import Move
from offaxis.gates.fisher.nulls import NULLS, Shuffle, binned, magnitude_bins
from offaxis.gates.fisher.prefixes import Prefixes
from offaxis.gates.fisher.spaces import SPACES, Spaces

__all__ = ["Probed", "cotangent", "probe"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Probed:
    """What probes found, for every prompt and a sequence of it, each probe by itself."""

    real: Floats
    """gᵀΔ of every unit: (prompts, probes, units)."""
    means: Floats
    """E gᵀd over the draws of each null: (prompts, probes, units, nulls)."""
    variances: Floats
    traces: Floats
    """gᵀP_S g: (prompts, probes, units, spaces); NaN for what is no matrix."""

    def real_form(self, units: tuple[int, ...]) -> Floats:
        """An estimate of ΔᵀFΔ, (prompts,), which the exact one must agree with."""
        found: Floats = (self.real[..., list(units)].sum(-1) ** 2).mean(1)
        return found

    def null_form(self, units: tuple[int, ...]) -> Floats:
        """The expected dᵀFd of each null, (prompts, nulls): E (Σ gᵀd)² over draws and probes."""
        inside = list(units)
        mean = self.means[:, :, inside].sum(2)
        variance = self.variances[:, :, inside].sum(2)
        found: Floats = (mean**2 + variance).mean(1)
        return found


@dataclass(frozen=True, eq=False)
class _Part:
    """One unit, prepared."""

    take: Callable[[dict[str, Tensor]], Tensor]
    delta: Floats
    bins: NDArray[np.intp]
    shuffle: Shuffle
    spaces: Spaces | None


def probe(
    move: Move, prefixes: Prefixes, spaces: dict[int, Spaces], *, probes: int, seed: int
) -> Probed:
    """`probes` probes of every prompt, one backward pass each. Memory: one gradient of the model.

    A prompt's signs come from the seed, its number and the probe's.
    """
    parts = [_prepared(move, number, spaces.get(number)) for number in range(len(move.units))]
    shape = (prefixes.count, probes, len(parts))
    found = Probed(
        np.zeros(shape),
        np.zeros((*shape, len(NULLS))),
        np.zeros((*shape, len(NULLS))),
        np.full((*shape, len(SPACES)), np.nan),
    )
    for prompt in range(prefixes.count):
        rows = np.flatnonzero(prefixes.owners == prompt).tolist()
        batch = prefixes.batch(rows)
        with exactly():
            both: Any = torch.func.vjp(batch.logits(move.base), dict(move.origin))
            logits, back = both
            chances = torch.softmax(logits, dim=-1)
            for number in range(probes):
                signs = _signs(chances, f"{seed}\n{prompt}\n{number}")
                gradients = back(cotangent(chances, signs))[0]
                for at, part in enumerate(parts):
                    _note(found, (prompt, number, at), part, gradients, samples=len(rows))
    return found


def _prepared(move: Move, number: int, spaces: Spaces | None) -> _Part:
    unit = move.units[number]
    delta = move.delta[number].cpu().numpy().reshape(-1)
    bins = magnitude_bins(unit.of(move.origin))
    return _Part(unit.of, delta, bins, Shuffle(delta, bins), spaces)


def cotangent(chances: Tensor, signs: Tensor) -> Tensor:
    """√π ∘ z − π √πᵀz: over random signs z its outer product is diag π − ππᵀ at each position."""
    weighted = chances.sqrt() * signs
    return weighted - chances * weighted.sum(-1, keepdim=True)


def _signs(like: Tensor, key: str) -> Tensor:
    rng = np.random.Generator(np.random.PCG64(int(checksum(key.encode()), 16)))
    drawn = rng.integers(0, 2, size=tuple(like.shape)) * 2.0 - 1.0
    return torch.from_numpy(drawn).to(like.device)


def _note(
    found: Probed,
    at: tuple[int, int, int],
    part: _Part,
    gradients: dict[str, Tensor],
    *,
    samples: int,
) -> None:
    """One part of one gradient. The gradient of k sequences is taken to that of a mean one."""
    shaped = part.take(gradients).cpu().numpy() / np.sqrt(samples)
    gradient = shaped.reshape(-1)
    squares = gradient**2
    in_bins = binned(part.bins, squares)
    found.real[at] = gradient @ part.delta
    moments = part.shuffle.moments(gradient, squares, in_bins)
    found.means[at] = [moments[name][0] for name in NULLS]
    found.variances[at] = [moments[name][1] for name in NULLS]
    if part.spaces is not None:
        found.traces[at] = part.spaces.traces(shaped, squares.reshape(shaped.shape), in_bins)
