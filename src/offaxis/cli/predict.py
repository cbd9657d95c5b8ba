"""`offaxis predict`: later weights from early checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offaxis.cli.predict_dynamics import dynamics
from offaxis.cli.predict_rank import rank
from offaxis.cli.predict_shown import lines, shown
from offaxis.cli.progress import print_result

if TYPE_CHECKING:
    from offaxis.predict import Predictor, Series

__all__ = ["app"]

app = typer.Typer(
    name="predict",
    help="Predict a run's later weights from its base and early checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(rank)
app.command()(dynamics)

_Base = Annotated[str, typer.Argument(metavar="BASE", help="The model before training.")]
_Checkpoints = Annotated[
    list[str], typer.Argument(metavar="CKPT", help="Checkpoints of one run, in step order.")
]
_Out = Annotated[Path, typer.Option(help="The directory for the predicted model.")]
_Steps = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,...",
        help="The checkpoints' steps; by default from their names or trainer_state.json.",
    ),
]
_At = Annotated[float, typer.Option(help="The step to predict.")]
_MaybeAt = Annotated[float | None, typer.Option("--at", help="The step to predict.")]
_Scores = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Scores of the checkpoints on a validation set: CSV or JSON by step or name, or what "
        "eval or lighteval wrote; may be repeated.",
    ),
]
_Metric = Annotated[
    str | None, typer.Option(help="Which score of FILE; by default avg@n, or the only one.")
]
_Dtype = Annotated[
    str | None,
    typer.Option(help="float16, bfloat16, float32 or float64; by default as the last CKPT has it."),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")]
_Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
]
_Backtest = Annotated[
    bool,
    typer.Option(
        "--backtest/--no-backtest",
        help="Try every method on checkpoints held back, and recommend.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class _Asked:
    """What every method's command is given."""

    base: str
    checkpoints: list[str]
    out: Path
    steps: str | None
    scores: list[Path] | None
    metric: str | None
    dtype: str | None
    overwrite: bool
    allow_pickle: bool
    backtest: bool
    as_json: bool

    def series(self, least: int) -> "Series":
        """The series, opened after its scores were read; `out` is checked before."""
        from offaxis.cli.predict_scores import read_scores
        from offaxis.output import check_output
        from offaxis.predict import open_series
        from offaxis.predict.steps import steps_of

        check_output(self.out, overwrite=self.overwrite)
        steps = _numbers(self.steps, "--steps")
        found = read_scores(
            self.scores or [],
            base=self.base,
            checkpoints=self.checkpoints,
            steps=steps_of(self.checkpoints, steps),
            metric=self.metric,
        )
        return open_series(
            self.base,
            self.checkpoints,
            steps=steps,
            scores=found.values,
            base_score=found.base,
            least=least,
            allow_pickle=self.allow_pickle,
        )


@app.command()
def relex(
    base: _Base,
    checkpoints: _Checkpoints,
    out: _Out,
    at: _At,
    directions: Annotated[
        int, typer.Option("--rank", help="Singular directions that are continued.")
    ] = 1,
    steps: _Steps = None,
    scores: _Scores = None,
    metric: _Metric = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    allow_pickle: _Pickle = False,
    backtest: _Backtest = True,
    as_json: _Json = False,
) -> None:
    """RELEX: each tensor's first singular direction over the checkpoints, continued on a line."""
    from offaxis.predict import Relex

    asked = _Asked(
        base, checkpoints, out, steps, scores, metric, dtype, overwrite, allow_pickle, backtest,
        as_json,
    )  # fmt: skip
    _predict(asked, Relex(rank=directions), at)


@app.command()
def alpharl(
    base: _Base,
    checkpoints: _Checkpoints,
    out: _Out,
    at: _MaybeAt = None,
    variant: Annotated[
        str, typer.Option(help="paper, or code: what the authors' code does instead.")
    ] = "paper",
    target: Annotated[
        str,
        typer.Option(
            help="extrapolated: what the curve of the scores says of --at. A score such as 0.9. "
            "oracle:SCORE: the final model's, as in the paper, which no forecast can know."
        ),
    ] = "extrapolated",
    against: Annotated[
        str, typer.Option(help="score, or step: regress on the step number, without scores.")
    ] = "score",
    others: Annotated[
        str | None,
        typer.Option(
            help="What is no matrix becomes BASE's (base) or the last CKPT's (last); by default "
            "base for the paper's variant, last for the code's."
        ),
    ] = None,
    steps: _Steps = None,
    scores: _Scores = None,
    metric: _Metric = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    allow_pickle: _Pickle = False,
    backtest: _Backtest = True,
    as_json: _Json = False,
) -> None:
    """AlphaRL: each matrix's first singular direction, regressed on the scores, at a target.

    Scores belong to a validation set: a target that was read off the test set is no prediction.
    """
    from offaxis.predict import AlphaRL, Goal

    asked = _Asked(
        base, checkpoints, out, steps, scores, metric, dtype, overwrite, allow_pickle, backtest,
        as_json,
    )  # fmt: skip
    options: dict[str, Any] = {"variant": variant, "others": others}
    _predict(asked, AlphaRL(target=Goal.read(target, against=against), **options), at)


@app.command()
def linear(
    base: _Base,
    checkpoints: _Checkpoints,
    out: _Out,
    at: _At,
    through_base: Annotated[
        bool, typer.Option("--through-base", help="Lines from BASE at step 0, no intercept.")
    ] = False,
    steps: _Steps = None,
    scores: _Scores = None,
    metric: _Metric = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    allow_pickle: _Pickle = False,
    backtest: _Backtest = True,
    as_json: _Json = False,
) -> None:
    """Each weight on a least squares line of its own."""
    from offaxis.predict import Linear

    asked = _Asked(
        base, checkpoints, out, steps, scores, metric, dtype, overwrite, allow_pickle, backtest,
        as_json,
    )  # fmt: skip
    _predict(asked, Linear(through_base=through_base), at)


@app.command()
def scale(
    base: _Base,
    checkpoints: _Checkpoints,
    out: _Out,
    factor: Annotated[
        float | None, typer.Option(help="The factor on the last CKPT's update.")
    ] = None,
    at: _MaybeAt = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Choose the factor by accuracy on these problems: a validation set, as `eval` "
            "takes it. Never the test set: the best of several scores is too good.",
        ),
    ] = None,
    factors: Annotated[
        str | None, typer.Option(metavar="F,F,...", help="With --data: the factors to try.")
    ] = None,
    k: Annotated[int, typer.Option(help="With --data: samples a problem.")] = 4,
    limit: Annotated[int | None, typer.Option(help="With --data: the first so many.")] = None,
    verifier: Annotated[str | None, typer.Option(help="With --data: as `eval` has it.")] = None,
    chat_template: Annotated[str, typer.Option(help="With --data: auto or none.")] = "auto",
    template: Annotated[
        str | None, typer.Option(help="With --data: instructions around {problem}.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="With --data: of the samples.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="With --data: tokens a sample.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="With --data: sequences at a time.")] = 64,
    device: Annotated[str | None, typer.Option(help="With --data: such as cuda:0.")] = None,
    seed: Annotated[int, typer.Option(help="With --data: of the samples.")] = 0,
    steps: _Steps = None,
    scores: _Scores = None,
    metric: _Metric = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    allow_pickle: _Pickle = False,
    backtest: _Backtest = True,
    as_json: _Json = False,
) -> None:
    """The last checkpoint's whole update times one factor: given, at/step, or chosen on FILE.

    No fit and no decomposition: what every other method has to beat.
    """
    if sum(one is not None for one in (factor, at, data)) != 1:
        raise typer.BadParameter("give one of --factor, --at and --data")
    if factors is not None and data is None:
        raise typer.BadParameter("--factors needs --data, on which they are tried")
    from offaxis.predict import Scale

    asked = _Asked(
        base, checkpoints, out, steps, scores, metric, dtype, overwrite, allow_pickle, backtest,
        as_json,
    )  # fmt: skip
    if data is None:
        _predict(asked, Scale(factor), at)
        return
    from offaxis.evaluate import Sampling

    settings: dict[str, Any] = {
        "sampling": Sampling(
            k, temperature, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size
        ),
        "verifier": verifier,
        "chat_template": chat_template,
        "template": template,
        "device": device,
    }
    ladder = _chosen(asked, data, limit, _numbers(factors, "--factors"), settings)
    _predict(asked, Scale(ladder["factor"]), None, extra={"chosen": ladder})


def _chosen(
    asked: _Asked,
    data: str,
    limit: int | None,
    factors: list[float] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The factor that scores best on a validation set, with all scores."""
    from rich.console import Console

    from offaxis.evaluate import evaluate, load_problems
    from offaxis.predict import LADDER, best_factor

    asked.series(least=1)
    problems = load_problems(data, limit=limit)
    log = Console(stderr=True)
    ladder = best_factor(
        asked.base,
        asked.checkpoints[-1],
        factors=factors or LADDER,
        score=lambda where: evaluate(where, problems, **settings).rows[0].value,
        dtype=asked.dtype,
        allow_pickle=asked.allow_pickle,
        announce=lambda line: log.print(line, markup=False, highlight=False),
    )
    sampling = settings["sampling"]
    return {
        **ladder.told(),
        "metric": f"avg@{sampling.k}",
        "data": problems.source,
        "problems": len(problems.problems),
        "seed": sampling.seed,
    }


def _predict(
    asked: _Asked,
    method: "Predictor",
    at: float | None,
    *,
    extra: dict[str, Any] | None = None,
) -> None:
    """Predict, write, and show."""
    from rich.console import Console

    from offaxis.cli.predict_shown import assessed, page_beside
    from offaxis.cli.progress import Bar
    from offaxis.predict import predict_series, survey

    series, console = asked.series(method.least), Console(stderr=True)
    series.timeline(at, needs=method.needs)
    with Bar(console) as advance:
        found = survey(series, progress=advance)
    judged: dict[str, Any] = {}
    if asked.backtest:
        with Bar(console) as advance:
            judged = assessed(series, method, at, advance)
    with Bar(console) as advance:
        made = predict_series(
            series,
            method=method,
            out=asked.out,
            at=at,
            dtype=asked.dtype,
            overwrite=asked.overwrite,
            found=found,
            extra={**(extra or {}), **judged},
            beside=page_beside if judged else None,
            progress=advance,
        )
    print_result(shown(made), asked.as_json, lines)


def _numbers(text: str | None, option: str) -> list[float] | None:
    """Numbers joined by commas. Bad syntax is exit status 2."""
    if text is None:
        return None
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: write numbers joined by commas", param_hint=option
        ) from None
