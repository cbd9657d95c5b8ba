"""Masks of a run, and how alike it ends to a run over all matrices: its twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offaxis.checkpoint import align, open_checkpoint, read_pair
from offaxis.kernels import bf16_codes
from offaxis.masks import RULES, Mask, build
from offaxis.masks.expression import parse

if TYPE_CHECKING:
    from offaxis.lab.queue.grid import RunConfig

__all__ = ["agreement", "run_mask"]


def run_mask(config: RunConfig, base: Path, twin: Path | None) -> Mask | None:
    """The mask that a run's rule selects from its base; None where the run has none.

    What the rule leaves open follows the run: `seed` is its seed, `tuned` its twin.
    """
    if not config.mask:
        return None
    takes = {option for call in parse(config.mask).calls() for option in RULES[call.name].options}
    given: dict[str, Any] = {"seed": config.seed, "tuned": None if twin is None else str(twin)}
    return build(base, config.mask, **{key: one for key, one in given.items() if key in takes})


def agreement(base: Path, twin: Path, tuned: Path) -> dict[str, float]:
    """How alike two runs from one base end, over the entries of all matrices.

    twin_cosine: ⟨ΔW, ΔW′⟩ / ‖ΔW‖‖ΔW′‖. twin_same: share of entries with equal bf16 values;
    twin_same_changed: the same among the entries that the twin changed. twin_distance:
    ‖W − W′‖ / ‖W′ − W₀‖, 0 where the run ends as its twin does, 1 where it never left the base.
    """
    ground, first, second = (open_checkpoint(str(path)) for path in (base, twin, tuned))
    others = {pair.part.tensor: pair for pair in align(ground, second).pairs}
    cross = one = two = apart = 0.0
    same = same_changed = changed = entries = 0
    for pair in align(ground, first).pairs:
        if not pair.part.is_matrix:
            continue
        both = read_pair(ground, first, pair)
        other = read_pair(ground, second, others[pair.part.tensor]).tuned.double()
        update, its = both.tuned.double() - both.base, other - both.base
        cross += float((update * its).sum())
        one += float((update**2).sum())
        two += float((its**2).sum())
        apart += float(((update - its) ** 2).sum())
        codes = [bf16_codes(tensor) for tensor in (both.base, both.tuned, other)]
        equal, moved = codes[1] == codes[2], codes[0] != codes[1]
        entries += equal.size
        same += int(np.count_nonzero(equal))
        changed += int(np.count_nonzero(moved))
        same_changed += int(np.count_nonzero(equal & moved))
    return {
        "twin_cosine": cross / (one * two) ** 0.5 if one and two else float("nan"),
        "twin_same": same / entries,
        "twin_same_changed": same_changed / changed if changed else float("nan"),
        "twin_distance": (apart / one) ** 0.5 if one else float("nan"),
    }
