"""What a comparison will cost, from shapes alone and one short measurement of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from offaxis.kernels.pool import threads
from offaxis.linalg import angle_rank

__all__ = ["Estimate", "estimate"]

_SCAN_RATE = 6e8  # entries a second and core for the scan, its masks and its nulls, roughly
_PROBE = 384


@dataclass(frozen=True)
class Estimate:
    """Work ahead. seconds is a guess to a factor of about two."""

    read_bytes: int
    matrices: int
    spectra: int
    seconds: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        span = f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {self.seconds:.0f} s"
        return (
            f"{self.read_bytes / 1e9:.2f} GB to read, {self.matrices} matrices, "
            f"{self.spectra} of them with spectra: {span}"
        )


def estimate(
    *, read_bytes: int, entries: int, matrices: int, spectra: Iterable[tuple[int, int]], tuned: int
) -> Estimate:
    """Cost of comparing `tuned` checkpoints with one base.

    spectra: shapes of the matrices that get one. Flops follow the algorithm in `linalg`: a Gram
    and an eigendecomposition for the base and for each tuned side, and eigenvalues of ΔW.
    """
    shapes = list(spectra)
    flops = 0.0
    for rows, cols in shapes:
        short, long = min(rows, cols), max(rows, cols)
        basis = short * short * long + 9.0 * short**3 + 4.0 * short * long * angle_rank(rows, cols)
        values = short * short * long + 2.0 * short**3
        flops += basis * (1 + tuned) + values * tuned
    seconds = entries * tuned / (_SCAN_RATE * threads()) + (flops / _flop_rate() if shapes else 0.0)
    return Estimate(read_bytes, matrices, len(shapes), seconds + 1.0)


def _flop_rate() -> float:
    """Float64 flops a second of eigendecompositions on all cores, from one on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        probe = torch.rand(_PROBE, _PROBE, dtype=torch.float64)
        probe = probe @ probe.T
        torch.linalg.eigh(probe)
        start = time.perf_counter()
        torch.linalg.eigh(probe)
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
    return threads() * 9.0 * _PROBE**3 / max(1e-6, seconds)
