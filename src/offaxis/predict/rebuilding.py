"""An update rebuilt from a few of its singular directions. Pure: tensors in, tensors out.

One decomposition of ΔW serves every recipe: the singular vectors P of its shorter side, and their
images PᵀΔW, whose rows are σᵢ times the vectors of the longer side. A recipe is a stretch of them
times one factor. Signs of singular vectors cancel in every product, and P is orthonormal to
rounding, so that all components together give ΔW back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offaxis.errors import CheckpointError, InputError
from offaxis.linalg import gram

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offaxis.predict.methods import Timeline, Trail

__all__ = [
    "Directions",
    "Grown",
    "RankK",
    "Rebuilt",
    "Recipe",
    "directions",
    "parse_recipes",
    "percent_rank",
    "rank_recipe",
]

Kind = Literal["rank", "component", "scale"]
RankLike = int | str
_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


@dataclass(frozen=True)
class Directions:
    """Leading singular directions of one update ΔW (m, n), s = min(m, n), l = max(m, n).

    near: orthonormal columns, the singular vectors of the shorter side, σ descending.
    images: nearᵀΔW (or nearᵀΔWᵀ): row i has norm σᵢ. norm: ‖ΔW‖_F. tall: m > n.
    """

    near: Float[Tensor, "s k"]
    images: Float[Tensor, "k l"]
    norm: float
    tall: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        short, long = self.near.shape[0], self.images.shape[1]
        return (long, short) if self.tall else (short, long)

    @property
    def values(self) -> Float[Tensor, " k"]:
        """σ₁ ≥ σ₂ ≥ ..., to rounding; float64."""
        found: Tensor = torch.linalg.vector_norm(self.images, dim=1)
        return found

    def part(self, start: int, stop: int) -> Float[Tensor, "m n"]:
        """Σ σᵢuᵢvᵢᵀ over start ≤ i < stop, 0-based."""
        found = self.near[:, start:stop] @ self.images[start:stop]
        return found.T if self.tall else found

    def part_norm(self, start: int, stop: int) -> float:
        """‖Σ σᵢuᵢvᵢᵀ‖_F = √Σσᵢ² over the same i."""
        return float(torch.linalg.vector_norm(self.images[start:stop]))


def directions(
    update: Float[Tensor, "m n"], *, most: int | None = None, name: str = "update"
) -> Directions:
    """The leading `most` singular directions of a float64 update; None: all min(m, n).

    By eigenvectors of the Gram matrix of the shorter side, a tenth of the time of an SVD. That
    blurs directions with σᵢ < 1e-8 σ₁ into each other, never their sum.
    Raises CheckpointError (naming `name`) where ΔW holds NaN or infinity, InputError where it is
    not 2-D.
    """
    if update.ndim != 2 or 0 in update.shape:
        raise InputError(f"{name}: has shape {tuple(update.shape)}; a matrix is needed")
    if not bool(torch.isfinite(update).all()):
        count = int((~torch.isfinite(update)).sum())
        raise CheckpointError(
            f"{name}: {count} of {update.numel()} entries of the update are NaN or infinite, and "
            "it has no singular values; take a checkpoint from before that"
        )
    tall = update.shape[0] > update.shape[1]
    wide = update.T if tall else update
    scale = float(wide.abs().max())
    scaled = wide / scale if scale > 0 else wide  # squares of tiny entries would underflow
    keep = wide.shape[0] if most is None else max(1, min(most, wide.shape[0]))
    _, vectors = torch.linalg.eigh(gram(scaled))
    near = vectors.flip(1)[:, :keep].contiguous()
    images = (near.T @ scaled) * scale
    norm = float(torch.linalg.vector_norm(scaled)) * scale
    return Directions(near, images, norm, tall)


def percent_rank(percent: float, shape: Sequence[int]) -> int:
    """max(1, ⌊min(m, n) · percent / 100⌋): rank 1 of anything below a width of 100/percent · 2."""
    return max(1, math.floor(min(shape) * percent / 100 + 1e-9))


@dataclass(frozen=True)
class Recipe:
    """What of an update is kept, and how long it is made. `name` is a directory's name.

    kind "rank": the first `rank` directions (or `percent` of min(m, n), rounded down, at least
    one). "component": direction `component` alone, 1-based. "scale": the first direction, made
    `factor` · ‖ΔW‖_F long. rescale: the first two are made ‖ΔW‖_F long (AlphaRL, eq. 3); without,
    they stay as they are in ΔW.
    """

    name: str
    kind: Kind
    rank: int | None = None
    percent: float | None = None
    component: int | None = None
    factor: float | None = None
    rescale: bool = True

    def stretch(self, shape: Sequence[int]) -> tuple[int, int]:
        """Which directions of a matrix of this shape, 0-based: start, stop. Empty: none."""
        least = min(shape)
        if self.kind == "component":
            assert self.component is not None
            return min(self.component - 1, least), min(self.component, least)
        return 0, self.rank_of(shape)

    def rank_of(self, shape: Sequence[int]) -> int:
        """How many directions are kept of a matrix of this shape."""
        if self.kind == "component":
            start, stop = self.stretch(shape)
            return stop - start
        if self.percent is not None:
            return percent_rank(self.percent, shape)
        return min(self.rank or 1, *shape)

    def reach(self, shape: Sequence[int]) -> int:
        """How many leading directions must be known to rebuild a matrix of this shape."""
        return self.stretch(shape)[1]

    def factor_of(self, found: Directions) -> float:
        """What the kept part is multiplied by; 0 where it vanishes."""
        own = found.part_norm(*self.stretch(found.shape))
        if own == 0:
            return 0.0
        if self.kind == "scale":
            return float(self.factor or 0.0) * found.norm / own
        return found.norm / own if self.rescale else 1.0

    def rebuild(self, found: Directions) -> Float[Tensor, "m n"]:
        """The update of this recipe, float64."""
        return found.part(*self.stretch(found.shape)) * self.factor_of(found)

    def told(self) -> dict[str, object]:
        """The recipe as plain values, what does not apply left out."""
        kept = {
            "rank": self.rank,
            "percent": self.percent,
            "component": self.component,
            "factor": self.factor,
        }
        told: dict[str, object] = {"name": self.name, "kind": self.kind}
        told |= {key: value for key, value in kept.items() if value is not None}
        return told | ({} if self.kind == "scale" else {"rescale": self.rescale})


def rank_recipe(rank: RankLike, *, rescale: bool = True) -> Recipe:
    """The recipe of `4`, `"4"`, `"1%"` or `"full"` (all of them). InputError for anything else."""
    text = str(rank).strip().lower()
    ending = "" if rescale else "-as-is"
    if text == "full":
        return Recipe(f"full{ending}", "rank", percent=100.0, rescale=rescale)
    if found := _PERCENT.match(text):
        percent = float(found[1])
        if 0 < percent <= 100:
            return Recipe(f"rank-{percent:g}pct{ending}", "rank", percent=percent, rescale=rescale)
    elif text.isascii() and text.isdigit() and int(text) > 0:
        return Recipe(f"rank-{int(text)}{ending}", "rank", rank=int(text), rescale=rescale)
    raise InputError(
        f"rank {rank!r}: give a whole number from 1, a share of the smaller side such as 1% "
        "(above 0, to 100), or full"
    )


def parse_recipes(
    ranks: Sequence[RankLike] = (1,),
    *,
    components: Sequence[int] = (),
    scales: Sequence[float] = (),
    rescale: bool = True,
) -> tuple[Recipe, ...]:
    """The recipes that were asked for, in order: ranks, single components, lengths of rank 1.

    Raises InputError where nothing is asked for, one is asked for twice, or one cannot be.
    """
    found = [rank_recipe(rank, rescale=rescale) for rank in ranks]
    ending = "" if rescale else "-as-is"
    for component in components:
        if component < 1:
            raise InputError(f"component {component}: they are counted from 1, the largest")
        name = f"component-{component}{ending}"
        found.append(Recipe(name, "component", component=component, rescale=rescale))
    for factor in scales:
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"scale {factor}: a length relative to the update's, above 0")
        found.append(Recipe(f"scale-{factor:g}", "scale", rank=1, factor=factor))
    names = [one.name for one in found]
    if not names:
        raise InputError("nothing to rebuild: ask for a rank, a component or a scale")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"asked for twice: {', '.join(twice)}; ask once for each")
    return tuple(found)


@dataclass(frozen=True)
class RankK:
    """The last checkpoint's update cut to `rank` directions, grown in proportion to the step.

    θ̂(at) − θ_BASE = (at / t_T) · ΔW_T^(k), first made as long as ΔW_T where `rescale` (AlphaRL, eq.
    3, and its linear growth taken at its word); without a step to predict, as long as that.
    Everything that is no matrix stays at BASE.
    """

    rank: RankLike = 1
    rescale: bool = True
    name: ClassVar[str] = "rank"
    needs: ClassVar[frozenset[str]] = frozenset({"steps"})
    least: ClassVar[int] = 1
    cuts: ClassVar[bool] = True

    def fit(self, trail: Trail, timeline: Timeline) -> Grown:
        """Decompose the last update of one tensor. InputError for a rank that cannot be."""
        return Rebuilt(rank_recipe(self.rank, rescale=self.rescale)).fit(trail, timeline)


@dataclass(frozen=True)
class Rebuilt:
    """What a recipe keeps of the last checkpoint's update, as `RankK` for any recipe."""

    recipe: Recipe
    name: ClassVar[str] = "rank"
    needs: ClassVar[frozenset[str]] = frozenset({"steps"})
    least: ClassVar[int] = 1
    cuts: ClassVar[bool] = True

    def fit(self, trail: Trail, timeline: Timeline) -> Grown:
        """Decompose the last update of one tensor."""
        if not trail.is_matrix:
            return Grown(None, 1.0, None, {})
        recipe = self.recipe
        update = torch.from_numpy(trail[len(trail) - 1])
        found = directions(update, most=recipe.reach(trail.shape), name=trail.name)
        facts = {"rank": float(recipe.rank_of(trail.shape))}
        if found.norm > 0:
            facts["norm_share"] = found.part_norm(*recipe.stretch(trail.shape)) / found.norm
        kept = recipe.rebuild(found).numpy()
        return Grown(kept, float(timeline.steps[-1]), timeline.at, facts)


@dataclass(frozen=True, eq=False)
class Grown:
    """An update (None: none) that grows in proportion to the step from `last` on."""

    kept: NDArray[np.float64] | None
    last: float
    at: float | None
    facts: Mapping[str, float]

    def update(self, at: float | None = None) -> NDArray[np.float64] | None:
        """The update times at / last; as it is where no step is asked for."""
        step = self.at if at is None else at
        if self.kept is None or step is None:
            return self.kept
        found: NDArray[np.float64] = self.kept * (step / self.last)
        return found
