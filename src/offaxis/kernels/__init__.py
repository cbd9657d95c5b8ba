"""The few hot loops: the fused bit scan, exact selection, counts within magnitude bins."""

from offaxis.kernels.scan import ULP_BINS, Scan, scan
from offaxis.kernels.select import (
    MAGNITUDE_BINS,
    Selection,
    bin_counts,
    magnitude_codes,
    magnitude_histogram,
    pack,
    popcount,
    select,
    unpack,
)

__all__ = [
    "MAGNITUDE_BINS",
    "ULP_BINS",
    "Scan",
    "Selection",
    "bin_counts",
    "magnitude_codes",
    "magnitude_histogram",
    "pack",
    "popcount",
    "scan",
    "select",
    "unpack",
]
