"""Updates of single matrices added to the base, and the result written as a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from offaxis.checkpoint.rewriting import Rewriting
from offaxis.output import explained
from offaxis.predict.series import Series
from offaxis.predict.trails import SeriesTrail
from offaxis.predict.writing import codes_of, opened_files, stored_as, stored_base

__all__ = ["Injection", "added", "inject", "replaced", "stored_parts"]

Change = tuple[SeriesTrail, torch.Tensor]
"""A part of a stored tensor, and what is added to the base's values there."""


def stored_parts(series: Series) -> Iterator[tuple[str, list[SeriesTrail]]]:
    """Each stored tensor of the base with the parts that are measured by themselves."""
    for name, parts in groupby(series.trails(cut=True), key=lambda trail: trail.view.name):
        yield name, list(parts)


class Injection:
    """One model like the base, written into `out`: θ_BASE, and updates where there are any.

    changed: the stored tensors that `put` will be given; the others are the base's values. dtype:
    as in `codes_of`. Use as a context: leaving it writes what lies beside the weights.
    """

    def __init__(
        self, series: Series, out: Path, *, changed: Collection[str], dtype: str | None = None
    ) -> None:
        self._series, self._out = series, out
        self._codes = codes_of(series, dtype)
        copies = {head for head, source in series.aliases.items() if source in changed}
        self._changed = {*changed, *copies}
        self._files: Rewriting | None = None

    def __enter__(self) -> Injection:
        with explained(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
            self._files = opened_files(
                stored_base(self._series.base), self._out, codes=self._codes, changed=self._changed
            )
            self._files.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._files is not None:
            with explained(self._out):
                self._files.finish()

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write one changed tensor, float64, rounded once; a head that is this tensor as well."""
        assert self._files is not None
        names = [name, *(head for head, source in self._series.aliases.items() if source == name)]
        for one in names:
            stored = stored_as(one, value, self._codes[one])
            with explained(self._out):
                self._files.put(one, stored)


def added(series: Series, name: str, changes: Sequence[Change]) -> torch.Tensor:
    """The base's stored tensor with updates added to some of its parts, float64."""
    out = series.base[name].double().clone()
    for trail, update in changes:
        place = _place(out, trail)
        place.add_(update)
    return out


def replaced(series: Series, name: str, changes: Sequence[Change]) -> torch.Tensor:
    """The base's stored tensor with some of its parts put in place of the base's, float64."""
    out = series.base[name].double().clone()
    for trail, values in changes:
        _place(out, trail).copy_(values)
    return out


def _place(tensor: torch.Tensor, trail: SeriesTrail) -> torch.Tensor:
    """The view of a stored tensor that holds a part."""
    if trail.view.slices is None:
        return tensor
    found = tensor[tuple(slice(start, stop) for start, stop in trail.view.slices)]
    return found[0] if trail.view.drop_leading else found


def inject(
    series: Series,
    out: Path,
    update: Callable[[SeriesTrail], torch.Tensor | None],
    *,
    dtype: str | None = None,
    changed: Collection[str],
) -> None:
    """Write the base with `update` of each part (None: none) added, tensor by tensor."""
    with Injection(series, out, changed=changed, dtype=dtype) as files:
        for name, parts in stored_parts(series):
            if name in changed:
                found = [(trail, update(trail)) for trail in parts]
                files.put(name, added(series, name, [(t, u) for t, u in found if u is not None]))
