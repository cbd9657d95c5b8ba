"""The mask of a run while it trains: put in place, refreshed, saved and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.kernels import popcount, unpack
from offaxis.masks import Mask
from offaxis.masks.mask import Bits
from offaxis.train.sparse.engines import (
    here,
    hook_gradients,
    innermost,
    local,
    part,
    stepped,
    whole,
)
from offaxis.train.sparse.packed import Packed
from offaxis.train.sparse.projected import Projection
from offaxis.train.sparse.refreshing import packed_for, renewed
from offaxis.train.sparse.saved import Saved, read, terms, write

__all__ = ["Flags", "MaskCallback", "Plan", "check_refreshed"]

_REFRESHED = (torch.optim.AdamW, torch.optim.Adam)
_ODD = ("amsgrad", "capturable", "differentiable")


@dataclass(frozen=True)
class Plan:
    """What `restrict` was asked for."""

    mask: Mask
    strategy: str
    others: str
    refresh_every: int
    """Optimizer steps from one refresh to the next; 0: none."""
    refresh_rule: str

    @property
    def terms(self) -> dict[str, str]:
        """What a resumed run must have in common with the one that it goes on from."""
        return terms(self.mask, strategy=self.strategy, others=self.others)


class MaskCallback(TrainerCallback):  # type: ignore[misc]
    """Drives the mask of one trainer; `restrict` adds it.

    It takes hold in `on_train_begin`, when the model is wrapped or sharded, the optimizer made and
    a checkpoint loaded: whatever the engine, parameters and optimizer are then those of training.
    """

    def __init__(self, trainer: Any, plan: Plan) -> None:
        self._trainer, self.plan = trainer, plan
        self.refreshes = 0
        self._saved: Saved | None = None
        self._bits: dict[str, Bits] = {}
        self._handles: list[Any] = []
        self._projection: Projection | None = None

    @property
    def density(self) -> float:
        """Trained entries over all entries of the masked parameters, now."""
        selected = sum(popcount(one) for one in self._bits.values())
        return selected / max(1, sum(p.numel() for _, p in self._parameters()))

    def flags(self, name: str) -> torch.Tensor:
        """The present mask of a parameter, by its name in the model: boolean, whole."""
        shape = tuple(self._trainer.model.get_parameter(name).shape)
        return torch.from_numpy(unpack(self._bits[name], shape))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take hold, with the mask of the checkpoint where the run is resumed from one."""
        if not self._bits:
            self._bits = self._first_mask()
        self._take_hold(self._saved)
        self._saved = None
        self._note({"mask/density": self.density})

    def resume(self, folder: Path) -> None:
        """Take the mask of a checkpoint. CheckpointError where it has none or began otherwise."""
        self._bits = self._first_mask()
        shapes = {name: tuple(one.shape) for name, one in self._parameters()}
        self._saved = read(folder, self.plan.terms, shapes)
        self._bits = {name: self._saved.bits[name] for name in self._bits}
        self.refreshes = self._saved.refreshes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every `refresh_every` steps: the rule's mask of the weights as they are now."""
        every = self.plan.refresh_every
        if every and state.global_step % every == 0:
            self._refresh()

    def save(self, folder: Path) -> None:
        """Store the present mask in a checkpoint. Every process calls it."""
        births = {}
        if self._projection is not None and self.plan.refresh_every:
            for name, parameter in self._parameters():
                found = whole(self._projection.ages.births(parameter), parameter).cpu()
                if bool(found.any()):
                    births[name] = found[self.flags(name)]
        if self._trainer.is_world_process_zero():
            write(folder, Saved(self._bits, self.refreshes, births), self.plan.terms)

    def _refresh(self) -> None:
        old = self._bits
        self.refreshes += 1
        self._bits = renewed(self.plan.refresh_rule, self._trainer, refreshes=self.refreshes)
        if absent := sorted(set(old) ^ set(self._bits)):
            raise InputError(
                f"refresh by {self.plan.refresh_rule}: the new mask and the old one do not cover "
                f"the same tensors, the first is {absent[0]}; give a rule for the same model"
            )
        if self._projection is not None:
            trained = self._trained()
            self._projection.refresh(trained)
            self._hook(trained)
        else:
            innermost(self._trainer.optimizer).refresh(Flags(self._bits, self._parameters()))
            self._hook(self._trained())
        survive = sum(popcount(old[name] & self._bits[name]) for name in old)
        before = sum(map(popcount, old.values()))
        self._note({"mask/density": self.density, "mask/kept": survive / max(1, before)})

    def _take_hold(self, saved: Saved | None) -> None:
        """Hooks on the parameters and the optimizer, as both are now."""
        trainer, trained = self._trainer, self._trained()
        optimizer = innermost(trainer.optimizer)
        self._hook(trained)
        if self._projection is not None:  # train() once more
            self._projection.detach()
        if self.plan.strategy == "compressed":
            if not hasattr(optimizer, "state_bytes"):
                raise InputError(
                    f"strategy compressed: the trainer made a {type(optimizer).__name__}, not a "
                    "SparseAdamW; use strategy projected with a trainer that makes its own"
                )
            return
        parts = stepped(trained, trainer.optimizer)
        if self.plan.refresh_every:
            check_refreshed(optimizer, flat=set(parts) != set(trained))
        if self._projection is None or saved is not None:
            self._projection = Projection(parts)
        self._projection.attach(optimizer)
        for name, found in (saved.births if saved is not None else {}).items():
            parameter = self._trainer.model.get_parameter(name)
            births = torch.zeros(parameter.shape, dtype=torch.int32)
            births[self.flags(name)] = found
            held = local(parameter.detach()).device
            self._projection.ages.restore(parameter, part(births, parameter).to(held))

    def _first_mask(self) -> dict[str, Bits]:
        return packed_for(
            self.plan.mask, MemoryCheckpoint(dict(self._trainer.model.named_parameters()))
        )

    def _hook(self, trained: Mapping[torch.Tensor, Packed]) -> None:
        for handle in self._handles:
            handle.remove()
        engine = self._trainer.accelerator
        reduced = engine.num_processes > 1 or self._trainer.is_deepspeed_enabled
        self._handles = hook_gradients(trained, reduced=reduced)

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, self._trainer.model.get_parameter(name)) for name in self._bits]

    def _trained(self) -> dict[torch.Tensor, Packed]:
        """This process's part of the present mask."""
        return {one: here(self.flags(name), one) for name, one in self._parameters()}

    def _note(self, numbers: dict[str, float]) -> None:
        """Log them: in an observed trainer's next row of training, else in a row of their own."""
        if hasattr(self._trainer, "note"):
            for name, value in numbers.items():
                self._trainer.note(name, value)
        else:
            self._trainer.log(dict(numbers))


class Flags(Mapping[torch.nn.Parameter, torch.Tensor]):
    """Parameter -> boolean mask, unpacked when it is asked for."""

    def __init__(
        self, bits: Mapping[str, Bits], named: Sequence[tuple[str, torch.nn.Parameter]]
    ) -> None:
        self._bits = {parameter: bits[name] for name, parameter in named}

    def __getitem__(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return torch.from_numpy(unpack(self._bits[parameter], tuple(parameter.shape)))

    def __iter__(self) -> Iterator[torch.nn.Parameter]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._bits


def check_refreshed(optimizer: Any, *, flat: bool = False) -> None:
    """InputError unless entries of this optimizer can begin anew: torch's Adam and AdamW alone."""
    groups = [] if flat else optimizer.param_groups
    odd = [key for key in _ODD if any(group.get(key) for group in groups)]
    if flat or type(optimizer) not in _REFRESHED or odd:
        what = " ".join(["DeepSpeed" if flat else type(optimizer).__name__, *odd])
        raise InputError(
            f"refresh_every with {what}: new entries need moments and a step count of their own, "
            "which offaxis gives them in torch's AdamW and Adam, on one device and under DDP and "
            "FSDP2; set optim to adamw_torch, or leave refresh_every out"
        )
