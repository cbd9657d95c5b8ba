"""Gate I of a base and a tuned model: sample, measure, and put beside the nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate.models import versions
from offaxis.evaluate.problems import Problem, ProblemSet
from offaxis.evaluate.prompts import Style
from offaxis.evaluate.samplers import Sampling
from offaxis.gates.fisher.bound import bounds
from offaxis.gates.fisher.curvature import confined, quotients
from offaxis.gates.fisher.exact import Derivative
from offaxis.gates.fisher.forms import Forms, quadratic_forms
from offaxis.gates.fisher.intervals import Resampler
from offaxis.gates.fisher.move import Move, load_move
from offaxis.gates.fisher.nulls import NULLS, drawn, real
from offaxis.gates.fisher.prefixes import Prefixes, problem_set, sampled
from offaxis.gates.fisher.probes import Probed, probe
from offaxis.gates.fisher.result import Anchor, Leash
from offaxis.gates.fisher.scopes import scopes_of
from offaxis.gates.fisher.shrinking import kl, shrink
from offaxis.gates.fisher.spaces import spaces_of

__all__ = ["Settings", "anchor", "measure"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What decides Gate I's numbers beside the models and the prompts."""

    samples: int = 1
    """Completions a prompt, from each model."""
    max_new_tokens: int = 64
    draws: int = 4
    """Single draws of each null, exact."""
    draw_tensors: bool = False
    """Whether they are differentiated part by part: exact draws in every scope, at so many more
    passes as the model has parts. Else of the model and of its matrices."""
    probes: int = 8
    """Probes a prompt, for expectations over all draws and for spaces."""
    halvings: int = 8
    """t goes from 1 to 2^−halvings."""
    seed: int = 0
    derivative: str = "auto"
    """auto, forward, backward or difference (see `Derivative`)."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "draws", "probes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give at least 1")
        if not 0 <= self.halvings <= 20:
            raise InputError(f"halvings {self.halvings}: give 0 to 20; t = 2^−20 is rounding")
        Derivative(self.derivative)


def anchor(
    base: str | Path,
    tuned: str | Path,
    *,
    data: str | Path | ProblemSet | Sequence[Problem] | Sequence[str],
    limit: int | None = 16,
    settings: Settings | None = None,
    style: Style | None = None,
    device: str | None = None,
    allow_pickle: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Anchor:
    """Gate I of The Path Not Taken (section 3.1, appendix E.2), measured on models that run.

    KL(π₊ ‖ π) and KL(π ‖ π₊), exact over the vocabulary, on completions sampled at temperature 1
    from the model named first, summed over a sequence; ½ΔᵀFΔ on the same prefixes; their agreement
    as the step shrinks; Rayleigh quotients of Δ against nulls of the same norm in every part, and
    of noise confined to principal and other weights; the bound of proposition 3.2 where it says
    something. All in float64, F the token-level Fisher matrix of π. Intervals are 95 %, over
    prompts: they say nothing about another training seed.

    base: a model directory or Hub id. tuned: a checkpoint of the same architecture, or an adapter.
    data: what `offaxis.evaluate` takes, or prompts; the first `limit` are used.

    Memory: two float64 copies of the model, Δ, its gradient and `draws` directions, 8 bytes a
    parameter each. Time: a pass of the model is one forward pass in float64; there are about as
    many as parts (Δ part by part), plus 8 · `draws` (nulls), 2 · prompts · `probes` / batch,
    and 4 · `halvings`. Raises InputError for what cannot be used.
    """
    problems = problem_set(data, limit)
    move = load_move(base, tuned, device=device, allow_pickle=allow_pickle)
    return measure(move, problems, settings=settings, style=style, announce=announce)


def measure(
    move: Move,
    problems: ProblemSet,
    *,
    settings: Settings | None = None,
    style: Style | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Anchor:
    """As `anchor`, for a move that is loaded."""
    chosen, style = settings or Settings(), style or Style()
    sampling = Sampling(
        k=chosen.samples, max_new_tokens=chosen.max_new_tokens, seed=chosen.seed, batch_size=64
    )
    announce(f"sampling {len(problems.problems)} prompts from both models")
    move.place(1.0)
    theirs = sampled(move.tuned, problems, style, sampling)
    ours = sampled(move.base, problems, style, sampling)
    return _Measuring(move, chosen, announce).over(theirs, ours, _run(move, problems, chosen))


def _run(move: Move, problems: ProblemSet, settings: Settings) -> dict[str, Any]:
    return {
        "base": move.base.source,
        "tuned": move.tuned.source,
        "data": {"source": problems.source, "digest": problems.digest},
        "prompts": len(problems.problems),
        "settings": asdict(settings),
        "versions": versions(),
    }


class _Measuring:
    """One measurement: what its steps share."""

    def __init__(self, move: Move, settings: Settings, announce: Callable[[str], None]) -> None:
        self.move, self.settings, self.announce = move, settings, announce
        self.derivative = Derivative(settings.derivative)
        self.scopes = scopes_of(move.units)
        self.every = range(len(move.units))

    def over(self, theirs: Prefixes, ours: Prefixes, run: Mapping[str, Any]) -> Anchor:
        """theirs: completions of π₊, on which all is measured; ours: of π."""
        move, settings = self.move, self.settings
        resampler = Resampler(theirs.count, seed=settings.seed)
        norms = np.array([float(one.square().sum()) for one in move.delta])
        self.announce(f"ΔᵀFΔ along {len(move.units)} parts")
        forms = self._real(theirs)
        per_prompt = theirs.over_prompts(forms.values[0])
        leashes = self._leashes(theirs, ours, per_prompt[0], resampler)
        self.announce("the step shrinks")
        shrinking = shrink(move, theirs, float(per_prompt[0].mean()), halvings=settings.halvings)
        self.announce(f"{settings.draws} draws of each of {len(NULLS)} nulls")
        draws = self._draws(theirs)
        self.announce(f"{settings.probes} probes of each of {theirs.count} prompts")
        spaces = spaces_of(move)
        probed = probe(move, theirs, spaces, probes=settings.probes, seed=settings.seed)
        rows, contrasts = confined(self.scopes, norms, probed, spaces, resampler=resampler)
        return Anchor(
            leashes,
            shrinking,
            quotients(self.scopes, norms, per_prompt, probed, draws, resampler=resampler),
            rows,
            contrasts,
            bounds(
                forms.gram / len(theirs.prompts),
                np.sqrt(norms),
                kl=shrinking.kl_tuned_base[0],
                parameters=sum(one.numel() for one in move.origin.values()),
                positions=theirs.positions,
                vocabulary=move.base.model.config.get_text_config().vocab_size,
            ),
            {**run, **self._exactness(probed, per_prompt[0])},
        )

    def _real(self, prefixes: Prefixes) -> Forms:
        return quadratic_forms(
            self.move,
            prefixes,
            [real(self.move)],
            slabs=[[at] for at in self.every],
            sets=[scope.units for scope in self.scopes],
            derivative=self.derivative,
        )

    def _leashes(
        self, theirs: Prefixes, ours: Prefixes, form: Floats, resampler: Resampler
    ) -> tuple[Leash, ...]:
        move = self.move
        back = quadratic_forms(
            move, ours, [real(move)], slabs=[list(self.every)], sets=[[0]],
            derivative=self.derivative,
        )  # fmt: skip
        sides = (
            ("kl_tuned_base", kl(move.tuned, move.base, theirs), theirs, form),
            ("kl_base_tuned", kl(move.base, move.tuned, ours), ours,
             ours.over_prompts(back.values[0, 0])),
        )  # fmt: skip
        return tuple(
            Leash(
                name,
                resampler.mean(prefixes.over_prompts(each)),
                float(each.sum()) / prefixes.positions,
                resampler.mean(square, scale=0.5),
                resampler.ratio(prefixes.over_prompts(each), 0.5 * square),
                len(each),
                prefixes.positions,
            )
            for name, each, prefixes, square in sides
        )

    def _draws(self, prefixes: Prefixes) -> dict[str, dict[int, Floats]]:
        """Null → number of a scope → dᵀFd of each draw, a sequence."""
        slabs, sets = self._drawn_sets()
        found: dict[str, dict[int, Floats]] = {}
        for null in NULLS:
            directions = [
                drawn(self.move, null, draw=number, seed=self.settings.seed)
                for number in range(self.settings.draws)
            ]
            forms = quadratic_forms(
                self.move, prefixes, directions, slabs=slabs, sets=list(sets.values()),
                derivative=self.derivative,
            )  # fmt: skip
            means = prefixes.over_prompts(forms.values).mean(-1)
            found[null] = {scope: means[:, at] for at, scope in enumerate(sets)}
        return found

    def _drawn_sets(self) -> tuple[list[list[int]], dict[int, Sequence[int]]]:
        """Slabs, and by number of a scope the slabs that it holds."""
        if self.settings.draw_tensors:
            return [[at] for at in self.every], {
                number: scope.units for number, scope in enumerate(self.scopes)
            }
        matrices = [at for at in self.every if self.move.units[at].part.is_matrix]
        rest = [at for at in self.every if at not in set(matrices)]
        slabs = [one for one in (matrices, rest) if one]
        sets: dict[int, Sequence[int]] = {0: range(len(slabs))}
        if matrices:
            sets[1] = [0]
        return slabs, sets

    def _exactness(self, probed: Probed, form: Floats) -> dict[str, Any]:
        """Which derivative was used, its error, and how near the probes come to the exact form."""
        exact = float(form.mean())
        estimated = float(probed.real_form(self.scopes[0].units).mean())
        return {
            "derivative": self.derivative.method,
            "derivative_error": self.derivative.error,
            "probed_form_over_exact": estimated / exact if exact > 0 else None,
        }
