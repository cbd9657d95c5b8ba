"""The golden mask files, and the flags that they hold, by integer arithmetic alone.

`python tests/golden/masks/make.py` writes the files again, after a change of the format that is
meant.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from xxhash import xxh3_128_hexdigest

HERE = Path(__file__).parent
Flags = np.ndarray


def scattered(shape: tuple[int, ...], share: int) -> Flags:
    """About one entry in `share`, by a multiplicative hash of its index."""
    index = np.arange(1, np.prod(shape) + 1, dtype=np.uint64)
    mixed = index * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed ^ (mixed >> np.uint64(29))) % np.uint64(share) == 0).reshape(shape)


FILES: dict[str, dict[str, Flags]] = {
    "codings": {
        "a.layers.2.half": scattered((5, 7), 2),
        "a.layers.2.stack": scattered((3, 4, 5), 9),
        "a.layers.10.all": np.ones((3, 3), np.bool_),
        "a.layers.10.nearly all": ~scattered((33, 31), 50),
        "a.layers.10.none": np.zeros((4, 4), np.bool_),
        "ü.one entry": np.arange(1000).reshape(8, 125) == 987,
    },
    "sparse": {"v": scattered((64, 64), 3), "w": scattered((256, 300), 700)},
    "empty": {"w": np.zeros((2, 2), np.bool_)},
}
DTYPES = ("BF16", "F32", "F8_E4M3")


def origin(name: str, place: int) -> tuple[str, str]:
    """(dtype, checksum) of a base tensor."""
    return DTYPES[place % 3], str(xxh3_128_hexdigest(name.encode()))


def main() -> None:
    from offaxis.kernels import pack
    from offaxis.masks import Mask, Origin

    for name, flags in FILES.items():
        Mask(
            {one: pack(found) for one, found in flags.items()},
            {one: found.shape for one, found in flags.items()},
            {one: Origin(*origin(one, i)) for i, one in enumerate(flags)},
            f"golden({name!r})",
        ).save(HERE / f"{name}.mask")


if __name__ == "__main__":
    main()
