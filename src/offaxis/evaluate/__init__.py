"""How well a model does, and how far it went from another: sampling, avg@k, pass@k, KL."""

from offaxis.evaluate.divergence import Divergence, sequence_kl, token_losses
from offaxis.evaluate.lighteval import LightEval, read_lighteval
from offaxis.evaluate.presets import PRESETS, Preset, preset_named
from offaxis.evaluate.problems import Columns, Problem, ProblemSet, load_problems
from offaxis.evaluate.prompts import Prompt, Style, render
from offaxis.evaluate.result import Evaluation, load_evaluation
from offaxis.evaluate.running import Plan, evaluate, plan
from offaxis.evaluate.samplers import Sampler, Sampling
from offaxis.evaluate.sampling import Completion, correctness, sample, sample_completions
from offaxis.evaluate.scores import Answers, ScoreRow, score_rows, scores_frame
from offaxis.evaluate.statistics import (
    Score,
    avg_at_k,
    bootstrap_mean,
    mean_score,
    paired_difference,
    pass_at_k,
    pass_rates,
)
from offaxis.evaluate.versus import Versus, versus
from offaxis.evaluate.voting import majority_rate, vote_classes

__all__ = [
    "PRESETS",
    "Answers",
    "Columns",
    "Completion",
    "Divergence",
    "Evaluation",
    "LightEval",
    "Plan",
    "Preset",
    "Problem",
    "ProblemSet",
    "Prompt",
    "Sampler",
    "Sampling",
    "Score",
    "ScoreRow",
    "Style",
    "Versus",
    "avg_at_k",
    "bootstrap_mean",
    "correctness",
    "evaluate",
    "load_evaluation",
    "load_problems",
    "majority_rate",
    "mean_score",
    "paired_difference",
    "pass_at_k",
    "pass_rates",
    "plan",
    "preset_named",
    "read_lighteval",
    "render",
    "sample",
    "sample_completions",
    "score_rows",
    "scores_frame",
    "sequence_kl",
    "token_losses",
    "versus",
    "vote_classes",
]
