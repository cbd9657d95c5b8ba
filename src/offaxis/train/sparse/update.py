"""One step of AdamW on trainable entries: by the compiled kernels, or by torch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from offaxis.kernels import BLOCK, adam_bits, adam_offsets, adam_rule, adam_whole
from offaxis.kernels.pool import for_each, threads
from offaxis.train.sparse.cohorts import ages
from offaxis.train.sparse.layout import positions

__all__ = ["Update", "advance"]

_COMPILED = {torch.float32, torch.bfloat16}
_NO_COHORT = np.empty(0, np.int16)
_NO_MASTERS = np.empty(0, np.float32)

Task = tuple[int, Callable[[], None]]
"""How many entries a task passes over, and the task."""


@dataclass(frozen=True)
class Update:
    """What one parameter's step needs. state has its moments; its step is the one being taken."""

    parameter: torch.Tensor
    gradient: torch.Tensor
    state: dict[str, Any]
    group: dict[str, Any]

    @property
    def betas(self) -> tuple[float, float]:
        return float(self.group["betas"][0]), float(self.group["betas"][1])

    @property
    def decay(self) -> float:
        """1 − lr·λ, computed as torch computes it where lr is a tensor."""
        return float(1 - self.group["lr"] * self.group["weight_decay"])

    @property
    def corrections(self) -> tuple[tuple[float, float], ...]:
        """For each cohort lr / (1 − β₁ᵗ) and √(1 − β₂ᵗ), t its age."""
        first, second = self.betas
        return tuple(
            (float(self.group["lr"] / (1 - first**age)), (1 - second**age) ** 0.5)
            for age in map(float, ages(self.state))
        )

    @property
    def compiled(self) -> bool:
        """Whether the kernels take it: on the CPU, float32 or bfloat16, laid out in one piece."""
        return (
            self.group["fused"] is not False
            and self.parameter.device.type == "cpu"
            and self.parameter.dtype in _COMPILED
            and self.gradient.dtype == self.parameter.dtype
            and self.parameter.is_contiguous()
        )


def advance(updates: Sequence[Update]) -> None:
    """Take the steps. Threads: as many as torch would use, of those that the process may."""
    compiled: list[Update] = []
    for one in updates:
        if one.compiled:
            compiled.append(one)
        else:
            _portable(one)
    workers = min(torch.get_num_threads(), threads())
    entries = sum(one.parameter.numel() for one in compiled)
    share = max(1, -(-entries // (4 * workers * BLOCK))) if workers > 1 else entries
    _run([task for one in compiled for task in _tasks(one, share)], workers)
    for one in compiled:
        torch.autograd.graph.increment_version(one.parameter)


def _run(tasks: Sequence[Task], workers: int) -> None:
    """Do the tasks over `workers` threads, in shares of about equal size."""
    if workers < 2 or len(tasks) < 2:
        for _, task in tasks:
            task()
        return
    shares = workers if workers < threads() else 4 * workers
    total, done = sum(size for size, _ in tasks), 0
    piles: list[list[Callable[[], None]]] = [[] for _ in range(shares)]
    for size, task in tasks:
        piles[min(done * shares // max(total, 1), shares - 1)].append(task)
        done += size

    def work(pile: list[Callable[[], None]]) -> None:
        for task in pile:
            task()

    for_each(work, [pile for pile in piles if pile])


def _array(tensor: torch.Tensor) -> Any:
    """A tensor as the kernels take it, sharing its memory where it is in one piece."""
    flat = tensor.detach().contiguous().reshape(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


@lru_cache(maxsize=16)
def _rule(
    corrections: tuple[tuple[float, float], ...],
    betas: tuple[float, float],
    decay: float,
    eps: float,
) -> Any:
    """`adam_rule`, which most parameters of a model share."""
    return adam_rule(corrections, betas, decay=decay, eps=eps)


def _tasks(update: Update, blocks: int) -> list[Task]:
    """The kernels' calls, each for at most `blocks` blocks: every entry in exactly one."""
    state = update.state
    p, g = _array(update.parameter), _array(update.gradient)
    m, v = state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
    masters = state["master"].numpy() if "master" in state else _NO_MASTERS
    cohort = state["cohort"].numpy() if "cohort" in state else _NO_COHORT
    rule = _rule(update.corrections, update.betas, update.decay, float(update.group["eps"]))
    starts = state["starts"].numpy() if "starts" in state else None
    made: list[Task] = []
    for first in range(0, -(-p.size // BLOCK), blocks):
        last = min(first + blocks, -(-p.size // BLOCK))
        span = slice(first * BLOCK, last * BLOCK)
        mine = span if starts is None else slice(int(starts[first]), int(starts[last]))
        kept = (m[mine], v[mine], masters[mine], cohort[mine])
        if starts is None:
            call = partial(adam_whole, p[span], g[span], kept, rule)
        elif "bits" in state:
            bits = state["bits"].numpy()[span.start // 8 : span.stop // 8]
            call = partial(adam_bits, p[span], g[span], bits, kept, rule)
        else:
            offsets = state["offsets"].numpy()[mine]
            call = partial(adam_offsets, p[span], g[span], offsets, starts[first : last + 1],
                           kept, rule)  # fmt: skip
        made.append((min(span.stop, p.size) - span.start, call))
    return made


def _portable(update: Update) -> None:
    """The same by the operations of torch.optim.AdamW(foreach=False) on vectors of what trains."""
    state, parameter = update.state, update.parameter.detach()
    places = positions(state)
    flat = parameter.reshape(-1)
    gradient = update.gradient.detach().reshape(-1)
    if places is not None:
        gradient = gradient[places]
    values = state.get("master")
    if values is None:
        values = flat if places is None else flat[places]
    _move(update, values, gradient.to(values.dtype))
    if places is not None:
        flat[places] = values.to(flat.dtype)
    elif values is not flat:
        flat.copy_(values)
    if flat.data_ptr() != parameter.data_ptr():  # not in one piece: reshape made a copy
        parameter.copy_(flat.reshape(parameter.shape))


def _move(update: Update, values: torch.Tensor, gradient: torch.Tensor) -> None:
    """torch's own operations, in its order; the last two for each cohort."""
    m, v = update.state["exp_avg"], update.state["exp_avg_sq"]
    first, second = update.betas
    if update.group["weight_decay"] != 0:
        values.mul_(update.decay)
    m.lerp_(gradient, 1 - first)
    v.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    cohort = update.state.get("cohort")
    for number, (rate, root) in enumerate(update.corrections):
        if cohort is None:
            values.addcdiv_(m, (v.sqrt() / root).add_(update.group["eps"]), value=-rate)
        else:
            some = (cohort == number).nonzero().reshape(-1)
            spread = (v[some].sqrt() / root).add_(update.group["eps"])
            values[some] = values[some].addcdiv_(m[some], spread, value=-rate)
