"""`compare`: plan from headers, validate, stream one pair of tensors at a time, tabulate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from offaxis.comparison.base import Settings
from offaxis.comparison.many import compare_manifest
from offaxis.comparison.plan import AnyPath, Plan
from offaxis.comparison.record import check, record
from offaxis.comparison.result import Comparison, ManyComparison
from offaxis.comparison.run_info import RunInfo, RunInfoLike
from offaxis.comparison.run_info import run_info as known_info
from offaxis.comparison.stream import Progress, Stream

__all__ = [
    "Comparison",
    "ManyComparison",
    "Progress",
    "RunInfo",
    "compare",
    "compare_manifest",
]


def compare(
    base: AnyPath,
    tuned: AnyPath | Sequence[AnyPath],
    *,
    spectra: str = "all",
    seed: int = 0,
    alpha: float = 0.5,
    angle_rank: int | None = None,
    principal_rank: int | None = None,
    rounding_null: bool = True,
    allow_pickle: bool = False,
    run_info: RunInfoLike = None,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Measure how each tuned checkpoint moved the weights of `base`, beside the nulls.

    base, tuned: a directory, a `.safetensors` file, a PEFT adapter directory (tuned only) or a Hub
    id. spectra: `all`, `none` or `sample:N` (N matrices, stratified by role and depth). alpha:
    density of the fixed masks. angle_rank, principal_rank: k and r of DESIGN's definitions, whose
    defaults depend on the shape. run_info: what is known of the run, the same for all of `tuned`: a
    `RunInfo`, a mapping, `key=value,...` or a JSON file; where a checkpoint's name tells a lower
    step than its `steps`, that counts. announce: called with lines of plan (renamings, cost).
    progress: called after each tensor.

    Tensors are matched from headers before any is read, and each worker holds one pair at a time.
    One unusable checkpoint fails the whole comparison. Raises InputError and its subclasses.
    """
    started = time.time()
    settings = Settings(alpha, angle_rank, principal_rank, seed, rounding_null)
    check(settings)
    info = known_info(run_info)
    plan = Plan.make(base, tuned, spectra=spectra, seed=seed, allow_pickle=allow_pickle)
    tell = announce or (lambda line: None)
    for line in plan.lines():
        tell(line)
    stream = Stream(plan, settings, info=info)
    stream.run(progress or (lambda step: None))
    return stream.result(record(started, spectra, settings, plan.record(), info=info))
