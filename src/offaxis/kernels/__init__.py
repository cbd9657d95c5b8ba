"""The few hot loops: the bit scan, selection, counts within magnitude bins, sparse AdamW."""

from offaxis.kernels.adam import (
    BLOCK,
    adam_bits,
    adam_offsets,
    adam_rule,
    adam_whole,
)
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
from offaxis.kernels.lanes import LANES
from offaxis.kernels.selection import Selection, magnitude_codes, select

__all__ = [
    "BLOCK",
    "LANES",
    "MAGNITUDE_BINS",
    "ULP_BINS",
    "Scan",
    "Selection",
    "adam_bits",
    "adam_offsets",
    "adam_rule",
    "adam_whole",
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
