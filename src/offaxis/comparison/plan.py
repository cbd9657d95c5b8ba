"""What headers tell before any tensor is read: matches, the choice of spectra, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from offaxis.checkpoint import AdapterCheckpoint, align, bind, open_checkpoint
from offaxis.comparison.estimate import Estimate, estimate
from offaxis.comparison.sampling import choose_spectra
from offaxis.errors import InputError

if TYPE_CHECKING:
    from offaxis.checkpoint import Aligned, Checkpoint, Part, PartPair

__all__ = ["DRAWN", "AnyPath", "Plan", "distinct", "open_base", "open_tuned"]

AnyPath = str | PathLike[str]

DRAWN = 2000
"""Curves and pictures are kept for so many matrices in all; beyond, for a stratified choice."""


@dataclass(frozen=True)
class Plan:
    """Everything that headers tell: what is matched with what, and what gets a spectrum."""

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    aligned: tuple[Aligned, ...]
    parts: tuple[tuple[Part, tuple[PartPair | None, ...]], ...]
    spectral: frozenset[str]
    why_not: str
    drawn: frozenset[str]
    estimate: Estimate

    @staticmethod
    def make(
        base: AnyPath,
        tuned: AnyPath | Sequence[AnyPath],
        *,
        spectra: str,
        seed: int,
        allow_pickle: bool,
    ) -> Plan:
        names = (
            [fspath(tuned)] if isinstance(tuned, (str, PathLike)) else [fspath(t) for t in tuned]
        )
        if not names:
            raise InputError("nothing to compare: name at least one tuned checkpoint")
        ground = open_base(fspath(base), allow_pickle=allow_pickle)
        sides = [open_tuned(name, ground, allow_pickle=allow_pickle) for name in names]
        return Plan.of(
            ground,
            [(side, align(ground, side)) for side in sides],
            names=names,
            labels=distinct(names),
            spectra=spectra,
            seed=seed,
            drawn=DRAWN // len(names),
        )

    @staticmethod
    def of(
        ground: Checkpoint,
        sides: Sequence[tuple[Checkpoint, Aligned]],
        *,
        names: Sequence[str],
        labels: Sequence[str],
        spectra: str,
        seed: int,
        drawn: int,
    ) -> Plan:
        """The plan for checkpoints that are open and aligned with their base.

        drawn: of how many matrices curves and pictures are kept.
        """
        aligned = tuple(one for _, one in sides)
        parts = _collect(aligned)
        matrices = {p.tensor: (p.role, p.layer or 0) for p, _ in parts if p.is_matrix}
        chosen, why_not = choose_spectra(matrices, spectra, seed=seed)
        pictured, _ = choose_spectra(matrices, f"sample:{max(1, drawn)}", seed=seed)
        shapes = [p.shape for p, _ in parts if p.tensor in chosen]
        entries = sum(prod(p.shape) for p, _ in parts)
        cost = estimate(
            read_bytes=sum(_bytes(side) for side, _ in sides) + _bytes(ground),
            entries=entries,
            matrices=len(matrices),
            spectra=[(shape[0], shape[1]) for shape in shapes],
            tuned=len(sides),
        )
        return Plan(
            base=ground,
            tuned=tuple(side for side, _ in sides),
            names=tuple(names),
            labels=tuple(labels),
            aligned=aligned,
            parts=parts,
            spectral=frozenset(chosen),
            why_not=why_not,
            drawn=frozenset(pictured),
            estimate=cost,
        )

    def lines(self) -> list[str]:
        """The plan in words, for a user to read before the work starts."""
        return [*self.notes(), str(self.estimate)]

    def notes(self) -> list[str]:
        """Names that were matched by a renaming, and tensors without a counterpart."""
        found = []
        for name, one in zip(self.names, self.aligned, strict=True):
            if one.renaming != "identity":
                found.append(f"{name}: names matched by {one.renaming}")
            for row in one.mismatches:
                found.append(f"{name}: {row.tensor}: {row.status}: {row.detail}")
        return found

    def record(self) -> list[dict[str, Any]]:
        """The chosen renamings and what did not match, for the `run` block."""
        return [
            {
                "tuned": name,
                "renaming": one.renaming,
                "renamed": dict(one.renamed),
                "mismatches": [
                    {"tensor": row.tensor, "status": row.status, "detail": row.detail}
                    for row in one.mismatches
                ],
            }
            for name, one in zip(self.names, self.aligned, strict=True)
        ]


def open_base(name: str, *, allow_pickle: bool) -> Checkpoint:
    """The base, from its headers. InputError where it is an adapter."""
    ground = open_checkpoint(name, allow_pickle=allow_pickle)
    if isinstance(ground, AdapterCheckpoint):
        raise InputError(f"{name} is an adapter; BASE must be the model it belongs to")
    return ground


def open_tuned(name: str, base: Checkpoint, *, allow_pickle: bool) -> Checkpoint:
    """A tuned checkpoint, from its headers; an adapter is bound to `base`."""
    side = open_checkpoint(name, allow_pickle=allow_pickle)
    return bind(side, base) if isinstance(side, AdapterCheckpoint) else side


def distinct(names: Sequence[str]) -> list[str]:
    """The names, a repeated one numbered so that rows stay apart."""
    labels: list[str] = []
    for name in names:
        label, number = name, 2
        while label in labels or (label != name and label in names):
            label, number = f"{name} ({number})", number + 1
        labels.append(label)
    return labels


def _collect(
    aligned: Sequence[Aligned],
) -> tuple[tuple[Part, tuple[PartPair | None, ...]], ...]:
    """Each part of the base that any tuned checkpoint matches, in order, with all its pairs."""
    order: dict[str, Part] = {}
    by_tensor: list[dict[str, PartPair]] = []
    for one in aligned:
        by_tensor.append({pair.part.tensor: pair for pair in one.pairs})
        for pair in one.pairs:
            order.setdefault(pair.part.tensor, pair.part)
    return tuple(
        (part, tuple(pairs.get(tensor) for pairs in by_tensor)) for tensor, part in order.items()
    )


def _bytes(side: Checkpoint) -> int:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    return sum(spec.numel * width.get(spec.dtype, 1) for spec in side.specs.values())
