"""The few hot loops: the fused bit scan, exact selection, counts within magnitude bins."""

from offaxis.kernels.bits import bf16_codes
from offaxis.kernels.bitscan import ULP_BINS, Scan, scan
from offaxis.kernels.counts import (
    MAGNITUDE_BINS,
    bin_counts,
    block_counts,
    pack,
    popcount,
    rate_sums,
    run_counts,
    unpack,
)
from offaxis.kernels.selection import Selection, magnitude_codes, select

__all__ = [
    "MAGNITUDE_BINS",
    "ULP_BINS",
    "Scan",
    "Selection",
    "bf16_codes",
    "bin_counts",
    "block_counts",
    "magnitude_codes",
    "pack",
    "popcount",
    "rate_sums",
    "run_counts",
    "scan",
    "select",
    "unpack",
]
