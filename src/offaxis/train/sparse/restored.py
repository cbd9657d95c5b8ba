"""A `SparseAdamW` state that comes from elsewhere: checked against its parameter before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from offaxis.errors import InputError
from offaxis.train.sparse.layout import layout_fault

__all__ = ["Kept", "master_dtype", "moment_dtype", "taken"]


class Kept:
    """A parameter's state on its way through `Optimizer.load_state_dict`.

    torch casts every floating tensor of a state, masters and moments too, to the dtype of its
    parameter; it passes on what is neither a tensor nor a collection as it is.
    """

    def __init__(self, state: Any) -> None:
        self.state = state


def master_dtype(parameter: torch.Tensor) -> torch.dtype | None:
    """float32 for float16 and bfloat16 parameters; None where no masters are kept."""
    return torch.float32 if parameter.dtype.itemsize < 4 else None


def moment_dtype(parameter: torch.Tensor) -> torch.dtype:
    """The dtype of a parameter's moments."""
    return master_dtype(parameter) or parameter.dtype


def taken(state: Any, parameter: torch.Tensor, name: str) -> dict[str, Any]:
    """A copy of `state` on the parameter's device; InputError where it cannot be this one's."""
    fault = _fault(state, parameter)
    if fault is not None:
        raise InputError(
            f"the optimizer state of {name} has {fault}; load a state that SparseAdamW saved for "
            "the same model"
        )
    device = parameter.device
    return {
        key: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    } | {"shape": tuple(state["shape"])}


def _fault(state: Any, parameter: torch.Tensor) -> str | None:
    """What is wrong with a state; None if nothing is."""
    if not isinstance(state, Mapping) or not {"step", "shape", "trainable"} <= state.keys():
        return "no mask in it"
    shape, trainable = tuple(state["shape"]), state["trainable"]
    if shape != tuple(parameter.shape):
        return f"shape {shape}, not {tuple(parameter.shape)}"
    if type(trainable) is not int or not 0 <= trainable <= parameter.numel():
        return f"{trainable} trainable entries of {parameter.numel()}"
    if type(state["step"]) is not int or state["step"] < 0:
        return f"step {state['step']}"
    return layout_fault(dict(state)) or _moments_fault(state, parameter)


def _moments_fault(state: Mapping[str, Any], parameter: torch.Tensor) -> str | None:
    wanted = {"exp_avg": moment_dtype(parameter), "exp_avg_sq": moment_dtype(parameter)}
    if master_dtype(parameter) is not None:
        wanted["master"] = torch.float32
    found = {key for key in ("exp_avg", "exp_avg_sq", "master") if key in state}
    if not found:
        return "ages without moments" if state.keys() & {"births", "cohort"} else None
    if found != wanted.keys():
        return f"{', '.join(sorted(found))}, not {', '.join(sorted(wanted))}"
    for key, dtype in wanted.items():
        held = state[key]
        if held.dtype != dtype or held.shape != (state["trainable"],):
            return f"{key} of {tuple(held.shape)} {held.dtype}, not {(state['trainable'],)} {dtype}"
    return _ages_fault(state)


def _ages_fault(state: Mapping[str, Any]) -> str | None:
    births, cohort = state.get("births"), state.get("cohort")
    if not births or not all(type(b) is int and 0 <= b <= state["step"] for b in births):
        return f"births {births}"
    if (cohort is None) != (len(births) == 1):
        return f"{len(births)} ages and {'no' if cohort is None else 'a'} cohort an entry"
    if cohort is None:
        return None
    if cohort.dtype != torch.int16 or cohort.shape != (state["trainable"],):
        return f"cohorts of {tuple(cohort.shape)} {cohort.dtype}"
    low, high = (int(end) for end in cohort.aminmax())
    return None if low >= 0 and high < len(births) else f"cohorts {low} to {high} of {len(births)}"
