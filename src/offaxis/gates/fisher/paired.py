"""Gate I of two kinds of run, RL and SFT say, from one base, on the same prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.checkpoint import AdapterCheckpoint, bind, open_checkpoint
from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.evaluate.problems import Problem, ProblemSet
from offaxis.evaluate.prompts import Style
from offaxis.evaluate.samplers import Sampling
from offaxis.gates.fisher.exact import Derivative
from offaxis.gates.fisher.forms import quadratic_forms
from offaxis.gates.fisher.intervals import Estimate, Resampler
from offaxis.gates.fisher.measuring import Settings
from offaxis.gates.fisher.move import Move, move_of
from offaxis.gates.fisher.nulls import real
from offaxis.gates.fisher.prefixes import Prefixes, problem_set, sampled
from offaxis.gates.fisher.shrinking import kl
from offaxis.live import LiveModel, load_live

__all__ = ["PairedContrast", "Side", "Versus", "contrasts", "versus", "versus_summary"]

Floats = NDArray[np.float64]
Place = str | Path

_SCOPES = ("model", "matrices")


@dataclass(frozen=True)
class Side:
    """One run on completions of the base, in one scope."""

    run: str
    scope: str
    """model, or its matrices alone."""
    norm: float
    """‖Δ‖ in the scope."""
    quotient: Estimate
    """ΔᵀFΔ / ‖Δ‖², a sequence."""
    kl_base_tuned: Estimate
    """KL(π ‖ π₊) of the whole run, nats a sequence."""


@dataclass(frozen=True)
class PairedContrast:
    """Geometric mean over the pairs of (quotient of the first / quotient of the second).

    Below 1: the first moved in flatter directions, per unit of norm.
    """

    scope: str
    pairs: int
    over_prompts: Estimate
    """95 % by bootstrap over prompts, the same for every run; the runs as they are."""
    over_runs: Estimate
    """95 % by Student's t over the pairs, of the logarithm; no interval for one pair."""
    each: tuple[float, ...]
    """The ratio of every pair."""


@dataclass(frozen=True)
class Versus:
    """Runs, pair after pair, and what sets the two kinds apart."""

    sides: tuple[Side, ...]
    contrasts: tuple[PairedContrast, ...]
    prompts: int
    positions: int


def versus(
    base: Place,
    pairs: Sequence[tuple[Place, Place]],
    *,
    data: str | Path | ProblemSet | Sequence[Problem] | Sequence[str],
    limit: int | None = 16,
    settings: Settings | None = None,
    style: Style | None = None,
    device: str | None = None,
    allow_pickle: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Versus:
    """Rayleigh quotients of paired runs on completions sampled once from their common base.

    The Fisher matrix is of the base and the prefixes are the base's own, so that every run is
    measured by the same form. pairs: (first, second), such as RL and SFT of one seed. Of
    `settings` count samples, max_new_tokens, seed and derivative. Memory: three float64 copies of
    the model. Raises InputError for no pair, and as `anchor` does.
    """
    if not pairs:
        raise InputError("no pairs of runs: give at least one (first, second)")
    chosen = settings or Settings()
    problems = problem_set(data, limit)
    live = load_live(base, device=device)
    live.model.double()
    announce(f"sampling {len(problems.problems)} prompts from the base")
    sampling = Sampling(
        k=chosen.samples, max_new_tokens=chosen.max_new_tokens, seed=chosen.seed, batch_size=64
    )
    prefixes = sampled(live, problems, style or Style(), sampling)
    resampler = Resampler(prefixes.count, seed=chosen.seed)
    sides: list[Side] = []
    quotients: list[dict[str, Floats]] = []
    for path in (one for pair in pairs for one in pair):
        announce(f"ΔᵀFΔ of {path}")
        move = _moved(live, base, path, allow_pickle)
        each, norms, apart = _measured(move, prefixes, Derivative(chosen.derivative))
        quotients.append(each)
        sides += [
            Side(str(path), scope, norms[scope], resampler.mean(each[scope]), resampler.mean(apart))
            for scope in each
        ]
    found = contrasts(quotients[::2], quotients[1::2], resampler=resampler)
    return Versus(tuple(sides), found, prefixes.count, prefixes.positions)


def versus_summary(found: Versus) -> dict[str, Any]:
    """As JSON takes it."""
    return asdict(found)


def _moved(live: LiveModel, base: Place, path: Place, allow_pickle: bool) -> Move:
    checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
    if isinstance(checkpoint, AdapterCheckpoint):
        checkpoint = bind(checkpoint, open_checkpoint(base, allow_pickle=allow_pickle))
    return move_of(live, checkpoint)


def _measured(
    move: Move, prefixes: Prefixes, derivative: Derivative
) -> tuple[dict[str, Floats], dict[str, float], Floats]:
    """Quotients by scope (prompts,), norms by scope, KL(π ‖ π₊) (prompts,)."""
    squares = np.array([float(one.square().sum()) for one in move.delta])
    if squares.sum() == 0:
        raise InputError(
            f"{move.tuned.source}: the same weights as the base; give a run that moved"
        )
    every = range(len(move.units))
    inside = [at for at in every if move.units[at].part.is_matrix and squares[at] > 0]
    rest = [at for at in every if at not in set(inside)]
    slabs = [one for one in (inside, rest) if one]
    sets = [list(range(len(slabs)))] + ([[0]] if inside else [])
    forms = quadratic_forms(
        move, prefixes, [real(move)], slabs=slabs, sets=sets, derivative=derivative
    )
    per_prompt = prefixes.over_prompts(forms.values[0])
    sizes = [float(squares.sum())] + ([float(squares[inside].sum())] if inside else [])
    names = _SCOPES[: len(sets)]
    move.place(1.0)
    return (
        {name: per_prompt[at] / sizes[at] for at, name in enumerate(names)},
        {name: sizes[at] ** 0.5 for at, name in enumerate(names)},
        prefixes.over_prompts(kl(move.base, move.tuned, prefixes)),
    )


def contrasts(
    first: Sequence[dict[str, Floats]],
    second: Sequence[dict[str, Floats]],
    *,
    resampler: Resampler,
) -> tuple[PairedContrast, ...]:
    """One contrast a scope that every run has. first, second: quotients (prompts,) by scope."""
    found = []
    for scope in _SCOPES:
        if not all(scope in one for one in (*first, *second)):
            continue
        pairs = [(one[scope], other[scope]) for one, other in zip(first, second, strict=True)]
        each = tuple(float(one.mean() / other.mean()) for one, other in pairs)
        over_prompts = resampler.geometric(pairs)
        found.append(PairedContrast(scope, len(each), over_prompts, _over_runs(each), each))
    return tuple(found)


def _over_runs(ratios: Sequence[float]) -> Estimate:
    """exp of the mean logarithm ± Student's t."""
    logs = np.array([log(one) for one in ratios])
    middle = float(logs.mean())
    if len(ratios) < 2:
        return Estimate(exp(middle))
    half = student_t(len(ratios) - 1) * float(logs.std(ddof=1)) / len(ratios) ** 0.5
    return Estimate(exp(middle), exp(middle - half), exp(middle + half))
