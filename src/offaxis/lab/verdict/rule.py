"""The rule: which numbers of `compare` it reads, what it is fitted to, what it is tested on.

Fitted to the first study's runs at their last step (4 methods of RL, 4 of fine-tuning, 4 rates, 3
seeds, 2 tasks; AdamW, float32) by logistic regression with scikit-learn's default penalty on
standardised features. It was written after those rows had been looked at (leaving one task and rate
out at a time, all features give an AUC of 0.94, the norm alone 0.59), and before any run of the
study `verdict`, which tests it: other rates, stores, optimizers, batches and lengths. (Six trial
runs, GRPO and SFT by SGD and RMSprop, had been made to choose that study's rates.)

What counts as surviving: AUC over all test runs; AUC of pairs of RL and fine-tuning of one task
whose ‖ΔW‖/‖W₀‖ differ by less than `MATCHED`; the least AUC of any (task, rate, optimizer, dtype)
cell; each with a bootstrap over runs, for the three sets of features below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["FEATURES", "LABELS", "MATCHED", "SETS", "features", "fitted"]

LABELS: Mapping[str, bool] = {
    **dict.fromkeys(("grpo", "dapo", "dr_grpo", "rloo"), True),
    **dict.fromkeys(("sft", "sft_foreign", "rejection_sft", "distill"), False),
}
"""Method -> is it on-policy RL? DPO and distillation on the student's samples have no label."""

FEATURES: Mapping[str, bool] = {
    "relative_update_norm": True,
    "unchanged_bf16": False,
    "nss": True,
    "rotation_left_deg": True,
    "rotation_right_deg": True,
    "weyl_ratio": False,
    "rank1_energy": False,
    "effective_rank": True,
    "update_energy_left": False,
    "update_energy_right": False,
    "update_energy_two_sided": False,
    "principal_overlap_excess": False,
    "low_magnitude_overlap_excess": False,
    "row_stripes": True,
    "column_stripes": True,
}
"""A column of a row's checkpoint -> is its logarithm taken?"""

SETS: Mapping[str, tuple[str, ...]] = {
    "norm": ("relative_update_norm",),
    "rank": ("relative_update_norm", "rank1_energy", "effective_rank"),
    "all": tuple(FEATURES),
}

MATCHED = 1.1
"""The larger over the smaller norm of a matched pair."""

_SMALLEST = 1e-9


def features(points: pl.DataFrame, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """(rows, len(names)) of checkpoints (`by_checkpoint`), logarithms taken where told."""
    columns = []
    for name in names:
        value = points[name].to_numpy().astype(np.float64)
        columns.append(np.log(np.maximum(value, _SMALLEST)) if FEATURES[name] else value)
    return np.stack(columns, axis=1)


def fitted(points: pl.DataFrame, names: tuple[str, ...]) -> Any:
    """The rule on these features, fitted to labelled checkpoints."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    label = np.array([LABELS[one] for one in points["method"]])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return model.fit(features(points, names), label)
