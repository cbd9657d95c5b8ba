"""Which matrices get a spectrum, and what a sample of them says about all.

`all`, `none`, or `sample:N`: N matrices, stratified by role and spread evenly over depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offaxis.errors import InputError

__all__ = ["Mean", "choose_spectra", "mean_over"]

_T_DEGREES = (*range(1, 31), 40, 60, 120, math.inf)
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042, 2.021, 2.000, 1.980, 1.960,
)  # fmt: skip
"""Student's t at 97.5 %, by degrees of freedom."""


@dataclass(frozen=True)
class Mean:
    """A mean over matrices with its 95 % interval. None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def choose_spectra(
    roles: Mapping[str, tuple[str, int]], request: str, *, seed: int = 0
) -> tuple[set[str], str]:
    """The matrices whose spectra are computed, and the reason that the others carry.

    roles: matrix → (role, layer). request: `all`, `none` or `sample:N`; else InputError. A sample
    takes its share of each role (largest remainder, at least one where N allows), and within a
    role every n-th matrix in order of depth from a seeded start.
    """
    if request == "all":
        return set(roles), ""
    if request == "none":
        return set(), "not_asked_for"
    kind, _, number = request.partition(":")
    if kind != "sample" or not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise InputError(
            f"--spectra {request!r} is not understood; use all, none or sample:N with N at least 1"
        )
    if seed < 0:
        raise InputError(f"seed {seed} is negative; use 0 or more")
    strata = _strata(roles)
    generator = np.random.default_rng(seed)
    chosen: set[str] = set()
    for role, wanted in _allocate({r: len(m) for r, m in strata.items()}, int(number)).items():
        members = strata[role]
        if wanted:
            step = len(members) / wanted
            start = generator.uniform(0, step)
            chosen |= {members[int(start + i * step)] for i in range(wanted)}
    return chosen, "not_sampled"


def _strata(roles: Mapping[str, tuple[str, int]]) -> dict[str, list[str]]:
    strata: dict[str, list[str]] = {}
    for name, (role, _) in sorted(roles.items(), key=lambda item: (item[1], item[0])):
        strata.setdefault(role, []).append(name)
    return strata


def _allocate(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Split `wanted` over strata in proportion to size; each gets one first where that fits."""
    total = sum(sizes.values())
    wanted = min(wanted, total)
    share = {role: wanted * size / total for role, size in sizes.items()} if total else {}
    first = 1 if wanted >= len(sizes) else 0
    given = {role: min(sizes[role], max(first, math.floor(s))) for role, s in share.items()}
    by_need = sorted(share, key=lambda role: (given[role] - share[role], role))
    while sum(given.values()) < wanted:
        for role in by_need:
            if sum(given.values()) < wanted and given[role] < sizes[role]:
                given[role] += 1
    while sum(given.values()) > wanted:
        role = max(given, key=lambda role: (given[role] - share[role], role))
        given[role] -= 1
    return given


def mean_over(
    values: Sequence[float], strata: Sequence[str], sizes: Mapping[str, int] | None = None
) -> Mean:
    """Mean over matrices and its 95 % interval.

    Each role's mean weighs as much as the role has matrices (`sizes`; those measured where None),
    so a stratified sample is unbiased for the mean over all. The standard error pools Σ w² s²/n
    over roles, a role with one member taking the spread of all; the interval is Student's t with
    Satterthwaite's degrees of freedom. No finite-population correction:
    the interval is about what such matrices do, not about this one checkpoint's exact mean.
    """
    if not values:
        return Mean(None, None, None, 0)
    data, labels = np.asarray(values, np.float64), np.asarray(strata)
    present = [str(role) for role in np.unique(labels)]
    counts = {role: int((labels == role).sum()) for role in present}
    weights = {role: float((sizes or counts).get(role, counts[role])) for role in present}
    total = sum(weights.values())
    if sizes is None:
        value = float(data.mean())
    else:
        value = sum(weights[r] / total * float(data[labels == r].mean()) for r in present)
    if data.size < 2:
        return Mean(value, None, None, data.size)
    overall = float(data.var(ddof=1))
    variance, doubt = 0.0, 0.0
    for role in present:
        members = data[labels == role]
        alone = members.size < 2
        spread = overall if alone else float(members.var(ddof=1))
        share = (weights[role] / total) ** 2 * spread / members.size
        variance += share
        doubt += share**2 / ((data.size if alone else members.size) - 1)
    degrees = variance**2 / doubt if doubt > 0 else math.inf
    half = student_t(degrees) * math.sqrt(variance)
    return Mean(value, value - half, value + half, int(data.size))


def student_t(degrees: float) -> float:
    """The 97.5 % quantile of Student's t, to about 0.1 %, from a table in 1/degrees."""
    inverse = [1 / d for d in _T_DEGREES]
    return float(np.interp(1 / max(1.0, degrees), inverse[::-1], _T_QUANTILES[::-1]))
