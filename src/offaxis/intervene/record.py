"""`Intervention`: what was done to a model's heads, on disk beside it, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from offaxis.checkpoint.digest import checksum
from offaxis.checkpoint.locate import read_json
from offaxis.errors import CheckpointError, InputError
from offaxis.intervene.edits import Gather
from offaxis.intervene.step import Edited, Step, step_from, step_record
from offaxis.kernels import pack
from offaxis.masks import Mask, Origin

__all__ = ["FILE", "SIDECAR", "Intervention"]

FILE = "intervention.json"
SIDECAR = "intervention.rotations"
"""The rotations, in safetensors' format; without its ending, which says weights."""
_SCHEMA = 1
_REMEDY = "take the directory that `offaxis intervene` wrote"

Rotations = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Intervention:
    """The edits that made a model, first to last; more than one where an edited one was edited."""

    source: str
    """The model that the last edit was given."""
    steps: tuple[Step, ...]
    untouched: frozenset[str]
    """Tensors that no step has edited."""

    @classmethod
    def load(cls, directory: str | Path) -> Intervention:
        """What `offaxis intervene` wrote beside the model in `directory`.

        CheckpointError where there is nothing, or it contradicts itself.
        """
        root = Path(directory).expanduser()
        path = root / FILE
        if not path.is_file():
            raise CheckpointError(f"{directory}: holds no {FILE}; {_REMEDY}")
        record = read_json(path)
        try:
            if record["schema"] != _SCHEMA:
                raise ValueError(f"schema {record['schema']!r}, and this offaxis reads {_SCHEMA}")
            rows = [*_list(record["earlier"]), record]
            needed = any(row["edit"] == "rotate" for row in rows)
            rotations = _read_sidecar(root / SIDECAR) if needed else {}
            steps = tuple(_step(at, row, rotations) for at, row in enumerate(rows))
            return cls(
                str(record["source"]), steps, frozenset(map(str, _list(record["untouched"])))
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{path}: is damaged ({error!r}); {_REMEDY}") from error

    @cached_property
    def tensors(self) -> Mapping[str, Edited]:
        """Every tensor that was edited, from its first state to its last; rounding: at most."""
        out: dict[str, Edited] = {}
        for step in self.steps:
            for name, one in (step.tensors or {}).items():
                first = out.get(name, one)
                loss = one.rounding if first is one else first.rounding + one.rounding
                out[name] = Edited(one.shape, one.dtype, first.before, one.after, loss)
        return out

    def pull_back_update(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """ΔW of the edited model's tensor `name`, in the coordinates of the original.

        RΔW_v, ΔW_oRᵀ (float64); channels back in their places for PERMUTE (delta's dtype);
        an untouched tensor's as it is. InputError where the model has no such tensor, or `delta`
        has not its shape.
        """
        self._check_name(name)
        edited = self.tensors.get(name)
        if edited is not None and tuple(delta.shape) != edited.shape:
            raise InputError(f"{name}: is {edited.shape}, and the update {tuple(delta.shape)}")
        for step in reversed(self.steps):
            edit = step.edits.get(name)
            delta = delta if edit is None else edit.undo(delta)
        return delta

    def map_mask_back(self, mask: Mask) -> Mask:
        """A mask of the edited model as a mask of the original: what was selected, back in place.

        InputError where it is a mask of another model, or a tensor of it was rotated: a rotation
        mixes entries, so that a selection of them has no counterpart (`pull_back_update` has).
        """
        bits, origins = dict(mask.bits), dict(mask.origins)
        for name in mask:
            self._check_name(name)
            edited = self.tensors.get(name)
            if edited is None:
                continue
            if mask.origins[name].checksum != edited.after or mask.shapes[name] != edited.shape:
                raise InputError(
                    f"the mask {mask.rule}: its {name} is not the edited model's "
                    f"({mask.origins[name].checksum}, not {edited.after}); make it from that model"
                )
            bits[name] = pack(self._unpermuted(name, mask[name]).numpy())
            origins[name] = Origin(edited.dtype, edited.before)
        return Mask(bits, dict(mask.shapes), origins, f"mapped_back({mask.rule})")

    def _unpermuted(self, name: str, flags: torch.Tensor) -> torch.Tensor:
        for step in reversed(self.steps):
            edit = step.edits.get(name)
            if edit is not None and not isinstance(edit, Gather):
                raise InputError(
                    f"{name}: was rotated, and a rotation mixes the entries that a mask selects; "
                    "pull the update back instead (pull_back_update)"
                )
            flags = flags if edit is None else edit.undo(flags)
        return flags.contiguous()

    def _check_name(self, name: str) -> None:
        if name not in self.tensors and name not in self.untouched:
            raise InputError(f"{name}: the edited model stores no such tensor; use its own names")

    def save(self, directory: Path) -> None:
        """Write FILE and, where something was rotated, SIDECAR into `directory`."""
        from safetensors.numpy import save_file

        held: dict[str, Rotations] = {}
        rows = []
        for at, step in enumerate(self.steps):
            digests = {}
            for heads, one in zip(step.heads, step.rotations, strict=False):
                held[f"{at}.{heads.layer}"] = one
                digests[str(heads.layer)] = checksum(np.ascontiguousarray(one).data)
            rows.append(step_record(step, digests))
        if held:
            save_file(held, directory / SIDECAR)
        record = {"schema": _SCHEMA, "source": self.source, **rows[-1], "earlier": rows[:-1]}
        record["untouched"] = sorted(self.untouched)
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (directory / FILE).write_text(text + "\n", encoding="utf-8")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list should be")
    return value


def _read_sidecar(path: Path) -> dict[str, Rotations]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: np.asarray(one, np.float64) for name, one in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_REMEDY}") from error


def _step(at: int, row: Mapping[str, Any], held: Mapping[str, Rotations]) -> Step:
    """One step, its rotations checked against their digests."""
    own: dict[str, Rotations] = {}
    for layer in row["layers"] if row["edit"] == "rotate" else ():
        name = str(layer["layer"])
        own[name] = held[f"{at}.{name}"]
        if checksum(np.ascontiguousarray(own[name]).data) != layer["rotations_xxh3_128"]:
            raise ValueError(f"the rotations of layer {name} are not those that were written")
    return step_from(row, own)
