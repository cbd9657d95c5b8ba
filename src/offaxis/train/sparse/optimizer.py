"""`SparseAdamW`: AdamW that keeps state for trainable entries alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.optimizer import ParamsT, StateDict

from offaxis.errors import InputError
from offaxis.train.sparse.cohorts import refreshed, settled
from offaxis.train.sparse.layout import INDEX, lay_out, mask_in, positions
from offaxis.train.sparse.restored import Kept, master_dtype, moment_dtype, taken
from offaxis.train.sparse.update import Update, advance

__all__ = ["SparseAdamW"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_REFUSED = ("amsgrad", "maximize", "capturable", "differentiable")


class SparseAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019; bias-corrected, decoupled decay) under masks.

    For each trainable entry at its own age t, with gradient g:
    m ← m + (1 − β₁)(g − m), v ← β₂v + (1 − β₂)g²,
    θ ← (1 − lr·λ)θ − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε). A frozen entry is never written, by
    weight decay neither, and its gradient decides nothing, NaN and infinity included.

    params, lr, betas, eps, weight_decay: as for `torch.optim.AdamW`; lr may be a 0-d tensor.
    masks: parameter -> boolean tensor of its shape, True = trainable, on any device; not kept. A
    parameter without a mask is trained whole, one with an empty mask not at all.
    fused: None or True takes the compiled kernels for contiguous float32 and bfloat16 parameters on
    the CPU, and torch's operations elsewhere; False takes torch's operations everywhere.

    *Arithmetic.* torch's operations give what `torch.optim.AdamW(foreach=False)` gives on the
    vector p[mask], bit for bit. The kernels give what `AdamW(fused=True)` gives, bit for bit where
    torch was built with fused multiply-add; torch rounds the last size % 16 entries of a tensor
    (% 8 with AVX2) in another way, by an ULP of v. The two differ in the square root alone, which
    torch takes from MKL, an ULP off in a fifth of all entries. NaN stays NaN, its payload may not.

    *Half precision.* bfloat16 and float16 parameters keep float32 masters of their trainable
    entries, taken from the weights at the first step; each step widens the gradient and writes the
    masters, rounded to nearest even, to the trainable entries. A trainable weight that something
    else changes between steps is therefore overwritten; `refresh` does not change that.

    *Memory.* A parameter of N entries with K trainable: 8K bytes of moments (16K in float64), 4K of
    masters in half precision, an index of min(⌈N/8⌉, 2K) + 8(⌈N/65536⌉ + 1), none where K is 0 or
    N, and after a refresh that leaves several ages 2K. Moments and masters come with the first
    step. Gradients stay dense: autograd makes them whole.

    Raises InputError for a mask of another shape or dtype or for no parameter of the optimizer,
    settings out of range, sharded parameters (DTensor), dtypes other than float64, float32,
    bfloat16 and float16, and in `step` for sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        masks: Mapping[Parameter, torch.Tensor],
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings | {"fused": fused})
        self._check_masks(masks)
        for parameter, mask in masks.items():
            self.state[parameter] = lay_out(mask, parameter)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to be trained whole; `refresh` gives them masks."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_settings(group)
            for parameter, name in _named(len(self.param_groups) - 1, group):
                _check_parameter(parameter, name)
        except InputError:
            self.param_groups.pop()
            raise
        for parameter in group["params"]:
            self.state[parameter] = lay_out(None, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step for every parameter with a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [
            (parameter, name, group)
            for i, group in enumerate(self.param_groups)
            for parameter, name in _named(i, group)
            if parameter.grad is not None
        ]
        for parameter, name, _ in ready:
            if parameter.grad.layout != torch.strided:
                raise InputError(
                    f"{name} has a sparse gradient; make its layer's gradients dense (sparse=False)"
                )
        updates = []
        for parameter, _, group in ready:
            state = self._begun(parameter)
            state["step"] += 1
            if state["trainable"]:
                updates.append(Update(parameter, parameter.grad, state, group))
        advance(updates)
        return loss

    def _begun(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The parameter's state, with moments and masters."""
        state: dict[str, Any] = self.state[parameter]
        if "exp_avg" in state or not state["trainable"]:
            return state
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros(
                state["trainable"], dtype=moment_dtype(parameter), device=parameter.device
            )
        state["births"] = (state["step"],)
        wide = master_dtype(parameter)
        if wide is not None:
            flat, places = parameter.detach().reshape(-1), positions(state)
            state["master"] = (flat if places is None else flat[places]).to(wide)
        return state

    @torch.no_grad()
    def refresh(self, masks: Mapping[Parameter, torch.Tensor]) -> None:
        """Change the masks of some parameters; the others keep theirs.

        An entry trainable before and after keeps its moments, master and age. An admitted one
        begins with zero moments, age 0 (its bias corrections start from 1) and the current weight;
        a dropped one loses its state and stays at its current value. Refused masks change nothing.
        """
        self._check_masks(masks)
        for group in self.param_groups:
            betas = float(group["betas"][0]), float(group["betas"][1])
            for parameter in group["params"]:
                if parameter not in masks:
                    continue
                dtype = moment_dtype(parameter)
                self.state[parameter] = refreshed(
                    self.state[parameter],
                    masks[parameter],
                    parameter,
                    is_settled=lambda age, b=betas, d=dtype: settled(age, b, d),  # type: ignore[misc]
                )

    def mask_of(self, parameter: Parameter) -> torch.Tensor:
        """Which entries are trainable: a new boolean tensor of the parameter's shape, there."""
        if parameter not in self.state:
            raise InputError(
                f"a tensor of shape {tuple(parameter.shape)} is not among this optimizer's "
                "parameters; ask for one of param_groups"
            )
        return mask_in(self.state[parameter]).to(parameter.device)

    def state_bytes(self) -> dict[str, int]:
        """Bytes now held: "moments", "masters", "indices" and "cohorts" (see *Memory*)."""
        kinds = {
            "moments": ("exp_avg", "exp_avg_sq"),
            "masters": ("master",),
            "indices": INDEX,
            "cohorts": ("cohort",),
        }
        return {
            kind: sum(
                state[key].untyped_storage().nbytes()
                for state in self.state.values()
                for key in keys
                if key in state
            )
            for kind, keys in kinds.items()
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore what `state_dict` gave, masks included; tensors are copied.

        Raises InputError where a state is not of its parameter's shape and dtype, or is damaged;
        nothing is changed then.
        """
        kept = {key: Kept(state) for key, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": kept})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over an unpickled state, or one that `load_state_dict` brings."""
        held = state["state"]
        if "defaults" not in state:  # from load_state_dict
            found = dict(held)
            restored = {
                parameter: taken(getattr(found.get(parameter), "state", None), parameter, name)
                for i, group in enumerate(state["param_groups"])
                for parameter, name in _named(i, group)
            }
            held.clear()
            held.update(restored)
        super().__setstate__(state)

    def _check_masks(self, masks: Mapping[Parameter, torch.Tensor]) -> None:
        names = dict(pair for i, group in enumerate(self.param_groups) for pair in _named(i, group))
        for parameter, mask in masks.items():
            if parameter not in names:
                raise InputError(
                    f"a mask is for a tensor of shape {tuple(parameter.shape)} that is not among "
                    "the optimizer's parameters; leave it out, or add the parameter"
                )
            if mask.dtype != torch.bool or mask.shape != parameter.shape:
                raise InputError(
                    f"the mask of {names[parameter]} is {mask.dtype} of shape "
                    f"{tuple(mask.shape)}; give torch.bool of shape {tuple(parameter.shape)}"
                )


def _named(number: int, group: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """A group's parameters with their names, or what stands for them in a message."""
    names = group.get("param_names")
    for i, parameter in enumerate(group["params"]):
        yield parameter, names[i] if names else f"parameter {i} of group {number}"


def _check_settings(group: dict[str, Any]) -> None:
    for name in _REFUSED:
        if group.get(name):
            raise InputError(f"SparseAdamW has no {name}; leave it out, or use torch.optim.AdamW")
    for name in ("lr", "eps", "weight_decay"):
        if not float(group[name]) >= 0:
            raise InputError(f"{name} is {float(group[name])}; give a number of at least 0")
    for beta in group["betas"]:
        if not 0 <= float(beta) < 1:
            raise InputError(f"betas are {tuple(group['betas'])}; give two numbers in [0, 1)")


def _check_parameter(parameter: torch.Tensor, name: str) -> None:
    sharded = sys.modules.get("torch.distributed.tensor")  # no DTensor exists before its import
    if sharded is not None and isinstance(parameter, sharded.DTensor):
        raise InputError(
            f"{name} is sharded (DTensor), and SparseAdamW keeps state for whole parameters; train "
            'it with masked gradients (strategy="projected")'
        )
    if parameter.dtype not in _DTYPES:
        raise InputError(
            f"{name} is {parameter.dtype}; SparseAdamW trains float32, float64, bfloat16 and "
            "float16 parameters"
        )
