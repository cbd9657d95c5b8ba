"""The present mask and its entries' ages in a checkpoint, so that a run resumes exactly.

`sparse.offaxis`, a safetensors file whose name keeps loaders of weights away: for each masked
parameter, under its name in the model, the mask as bytes (entry i, row-major, in bit i % 8, lowest
first, of byte i // 8); for one that has entries admitted by a refresh, `births:NAME`, int32, the
optimizer's step at which each trained entry was admitted (0 = at the start). The metadata tell what
the run began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from offaxis.checkpoint.digest import checksum
from offaxis.errors import CheckpointError
from offaxis.masks import Mask
from offaxis.masks.mask import Bits
from offaxis.output import staged_file

__all__ = ["FILE", "Saved", "read", "terms", "write"]

FILE = "sparse.offaxis"
_FORMAT = "offaxis-sparse-1"
_BIRTHS = "births:"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    bits: Mapping[str, Bits]
    """Parameter -> its mask, packed."""
    refreshes: int
    births: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Parameter -> admission steps of its trained entries, row-major, for those that have any."""


def terms(mask: Mask, *, strategy: str, others: str) -> dict[str, str]:
    """What must be the same when a run is resumed: the mask it began with, and how it is used."""
    content = b"".join(name.encode() + b"\n" + mask.bits[name].tobytes() for name in sorted(mask))
    return {"mask": checksum(content), "strategy": strategy, "others": others}


def write(folder: Path, saved: Saved, began: Mapping[str, str]) -> None:
    """Write the file into a checkpoint."""
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(bits) for name, bits in saved.bits.items()}
    tensors |= {f"{_BIRTHS}{name}": one.contiguous() for name, one in saved.births.items()}
    told = {"format": _FORMAT, "began": json.dumps(dict(began)), "refreshes": str(saved.refreshes)}
    with staged_file(folder / FILE) as staged:
        save_file(tensors, staged, metadata=told)


def read(folder: Path, began: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Saved:
    """The file of a checkpoint.

    shapes: of the masked parameters. Raises CheckpointError where there is none, where it is
    damaged, and where the run began otherwise.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: is not there, so this checkpoint is of a run without a mask; resume it "
            "without one, or begin a run from its weights"
        )
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, refreshes = json.loads(told["began"]), int(told["refreshes"])
        sound = told["format"] == _FORMAT and isinstance(found, dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); resume from another "
            "checkpoint"
        ) from error
    if not sound:
        raise CheckpointError(f"{path}: is not of this version; resume from another checkpoint")
    for key, value in began.items():
        if found.get(key) != value:
            raise CheckpointError(
                f"{path}: the run began with {key} {found.get(key)}, and is resumed with {value}; "
                f"give the {key} that it began with"
            )
    births = {n.removeprefix(_BIRTHS): t for n, t in tensors.items() if n.startswith(_BIRTHS)}
    bits = {name: t.numpy() for name, t in tensors.items() if not name.startswith(_BIRTHS)}
    for name, shape in shapes.items():
        entries = int(np.prod(shape, dtype=np.int64))
        if name not in bits or bits[name].shape != (-(-entries // 8),):
            raise CheckpointError(
                f"{path}: has no mask of {entries} entries for {name}; resume with the model that "
                "the run began with"
            )
    return Saved(bits, refreshes, births)
