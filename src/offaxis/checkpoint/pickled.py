"""Checkpoints saved by torch.save, loaded only where pickles were allowed.

`weights_only=True` refuses everything but tensors and plain containers; `mmap=True` leaves the
values in the file.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from offaxis.checkpoint.dtypes import code_of
from offaxis.checkpoint.locate import Located
from offaxis.checkpoint.stored import check_index, missing_tensor
from offaxis.checkpoint.types import Checkpoint, TensorSpec
from offaxis.errors import CheckpointError
from offaxis.names import natural_key

__all__ = ["PickledCheckpoint"]

_NESTS = ("state_dict", "model_state_dict", "model", "module")


class PickledCheckpoint(Checkpoint):
    """State dicts in `.bin`, `.pt` or `.pth` files as one read-only mapping."""

    def __init__(self, located: Located) -> None:
        self.source = located.source
        self.root = located.root
        self.config: Mapping[str, object] = MappingProxyType(dict(located.config))
        tensors: dict[str, tuple[Path, torch.Tensor]] = {}
        for path in located.files:
            for name, tensor in _load(path).items():
                if name in tensors:
                    raise CheckpointError(
                        f"{self.source}: tensor {name!r} is in both {tensors[name][0].name} and "
                        f"{path.name}; remove the stale file"
                    )
                tensors[name] = (path, tensor)
        if located.index is not None:
            check_index(located, {name: path for name, (path, _) in tensors.items()})
        ordered = sorted(tensors, key=lambda name: (natural_key(name), name))
        self._tensors = {name: tensors[name][1] for name in ordered}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: _spec(name, *tensors[name]) for name in ordered}
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise missing_tensor(name, self.specs)
        return self._tensors[name]


def _spec(name: str, path: Path, tensor: torch.Tensor) -> TensorSpec:
    code = code_of(tensor.dtype)
    if code is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {tensor.dtype}, which is not supported; dequantise the "
            "checkpoint or save it as safetensors"
        )
    return TensorSpec(name, tuple(tensor.shape), code, path.name)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of one file."""
    try:
        value = _torch_load(path)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: torch.load(weights_only=True) cannot read it "
            f"({reason[0] if reason else type(error).__name__}); save it as safetensors"
        ) from error
    for nest in _NESTS:
        if isinstance(value, Mapping) and isinstance(value.get(nest), Mapping):
            value = value[nest]
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{path}: holds no state dict; save the model's state_dict()")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor; save the "
                "model's state_dict() alone"
            )
    return dict(value)


def _torch_load(path: Path) -> object:
    """Mapped where the file is of torch's zip format, read whole where it is older."""
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
