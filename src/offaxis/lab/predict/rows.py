"""The tables that are measured on a queue's kept checkpoints; everything else follows from them."""

from __future__ import annotations

import polars as pl

from offaxis.lab.tasks import TASKS

__all__ = ["CURVE", "LINEARITY", "MODELS", "NUMBERS", "SHARES", "TABLES"]

CURVE = {
    "run": pl.String(),
    "step": pl.Int64(),
    "validation": pl.Float64(),
    "right": pl.List(pl.Int64()),
}
"""Accuracy on the validation problems by step, step 0 the base; `right`: right answers to each."""

MODELS = {
    "run": pl.String(),
    "kind": pl.String(),
    "predictor": pl.String(),
    "origin": pl.Int64(),
    "target": pl.Int64(),
    "factor": pl.Float64(),
    "validation": pl.Float64(),
    "goal": pl.Float64(),
    "avg": pl.Float64(),
    "right": pl.List(pl.Int64()),
    "right_harder": pl.List(pl.Int64()),
    "mixture_loss": pl.Float64(),
    **{f"mixture_loss_{task}": pl.Float64() for task in TASKS},
    "relative_error": pl.Float64(),
    "moved": pl.Float64(),
    "cosine": pl.Float64(),
    "refused": pl.String(),
}
"""One model. `kind`: real (a checkpoint), stopped (the one at `origin`, held against `target`; its
scores are the real one's), predicted (from the checkpoints up to `origin`, for `target`) or rebuilt
(from the update at `origin` alone). `factor`: by which the reach of a prediction was chosen on the
validation problems, `validation` its score there; `goal`: the score that the prediction aims at, of
an oracle in units of the real end's. `avg`, `right`: the judging exam; `right_harder`: one
difficulty up; `mixture_loss*`: nats a token on the held-out pretraining mixture. Against the real
target: `relative_error` ‖θ̂ − θ‖ / ‖θ − θ_base‖, `moved` ‖θ̂ − θ_base‖ / ‖θ − θ_base‖ and the cosine
of the two updates. `refused`: why there is no such model; then nothing else is known."""

NUMBERS = (
    "r2", "q2", "rmse", "walk_r2", "walk_q2", "residual_r2", "residual_null", "residual_walk",
    "permuted_r2", "pc1", "walk_pc1",
)  # fmt: skip
SHARES = ("above_walks", "left_out_above_walks", "left_out_above_step", "residual_above_permuted")
LINEARITY = {
    "run": pl.String(),
    "kind": pl.String(),
    "role": pl.String(),
    "matrices": pl.Int64(),
    **{name: pl.Float64() for name in (*NUMBERS, *SHARES)},
    "step_r2": pl.Float64(),
    "step_q2": pl.Float64(),
    "embedding_shift": pl.Float64(),
}
"""Means over matrices (`offaxis.predict.walks.Linearity`) of the raw and the scaled first
directions, role by role and, role null, over all; `SHARES`: of matrices. `step_*`: a line of the
validation scores on the step number alone. `embedding_shift`: mean ‖Δe‖/‖e‖ of a token's row. A run
has no rows where its scores allow no fit: fewer than four, or all alike."""

TABLES = {"curve": CURVE, "models": MODELS, "linearity": LINEARITY}
