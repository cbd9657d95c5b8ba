"""A refresh of the mask: who keeps state, who starts anew, and everyone's own age.

A *cohort* is the entries that were admitted at the same step. Its age is the parameter's step less
that one, and its bias corrections are its age's. While all trainable entries have one age nothing
is stored an entry; after that an int16 cohort number each, into a short list of "births".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from offaxis.errors import InputError
from offaxis.train.sparse.layout import lay_out, mask_in

__all__ = ["ages", "refreshed", "settled"]

_MOST = torch.iinfo(torch.int16).max


def ages(state: dict[str, Any]) -> list[int]:
    """Steps that each cohort has taken."""
    return [state["step"] - birth for birth in state["births"]]


def settled(age: int, betas: tuple[float, float], dtype: torch.dtype) -> bool:
    """Whether both bias corrections are 1 in the arithmetic of `dtype`, now and ever after.

    The first is a divisor of the rate, in float64; the root of the second is rounded to `dtype`.
    """
    root = torch.tensor((1 - betas[1] ** age) ** 0.5, dtype=torch.float64).to(dtype)
    return 1 - betas[0] ** age == 1.0 and float(root) == 1.0


def refreshed(
    state: dict[str, Any],
    mask: torch.Tensor,
    parameter: torch.Tensor,
    *,
    is_settled: Callable[[int], bool],
) -> dict[str, Any]:
    """The state under a new mask. Survivors keep moments, masters and age.

    Admitted entries begin with zero moments, age 0 and, where masters are kept, the current weight;
    dropped ones lose their state. Cohorts for which `is_settled` are merged. `state` is left as it
    is.
    """
    new = lay_out(mask, parameter) | {"step": state["step"]}
    if "exp_avg" not in state or not new["trainable"]:
        return new  # all that is trainable will start together
    before = mask_in(state).to(parameter.device).reshape(-1)
    after = mask.to(parameter.device).reshape(-1)
    kept_from, kept_to = after[before], before[after]
    for key in ("exp_avg", "exp_avg_sq"):
        new[key] = torch.zeros(new["trainable"], dtype=state[key].dtype, device=parameter.device)
        new[key][kept_to] = state[key][kept_from]
    if "master" in state:
        new["master"] = parameter.detach().reshape(-1)[after].to(state["master"].dtype)
        new["master"][kept_to] = state["master"][kept_from]
    numbers = state.get("cohort")
    if numbers is None:
        numbers = torch.zeros(state["trainable"], dtype=torch.int16, device=parameter.device)
    return new | _joined(state, numbers[kept_from], kept_to, is_settled)


def _joined(
    state: dict[str, Any],
    survivors: torch.Tensor,
    kept_to: torch.Tensor,
    is_settled: Callable[[int], bool],
) -> dict[str, Any]:
    """Births, and cohorts where there are several, once the rest is admitted at this step."""
    step, births = state["step"], state["births"]
    used = torch.unique(survivors).tolist()
    oldest = min((births[c] for c in used), default=step)
    stands_for = [oldest if is_settled(step - birth) else birth for birth in births]
    present = {stands_for[c] for c in used}
    if survivors.numel() < kept_to.numel() or not present:
        present.add(step)
    after = sorted(present)
    if len(after) == 1:
        return {"births": tuple(after)}
    if len(after) > _MOST:
        raise InputError(
            f"{len(after)} ages in one parameter, of at most {_MOST}; refresh its mask less often"
        )
    number = {birth: c for c, birth in enumerate(after)}
    cohort = torch.full(
        kept_to.shape, number.get(step, 0), dtype=torch.int16, device=kept_to.device
    )
    table = torch.tensor([number.get(birth, 0) for birth in stands_for], dtype=torch.int16)
    cohort[kept_to] = table.to(kept_to.device)[survivors.to(torch.int64)]
    return {"births": tuple(after), "cohort": cohort}
