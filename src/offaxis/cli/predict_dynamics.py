"""`offaxis predict dynamics`: does accuracy follow the first singular directions, beyond drift?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from offaxis.cli.progress import print_result, with_bar

__all__ = ["dynamics"]


def dynamics(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before training.")],
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT", help="Checkpoints of one run, in step order.")
    ],
    scores: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="Scores of at least four checkpoints: CSV or JSON by step or name, or what eval "
            "or lighteval wrote; may be repeated.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for tables and pictures.")],
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="The checkpoints' steps; by default from their names."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Which score of FILE; by default avg@n, or the only one.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Random walks, and permutations, a matrix.")] = 200,
    windows: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Also write DIR/windows: models with the rank-1 updates of a third of the "
            "matrices, in the order of their R² (raw or scaled), of their norm, and at random.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit accuracy to each matrix's u₁ over the checkpoints, beside nulls that drift as well.

    R² alone says little: a random walk of as many dimensions has nearly the same.
    """
    if windows not in (None, "raw", "scaled"):
        raise typer.BadParameter(f"{windows!r}: raw or scaled", param_hint="--windows")
    given = _numbers(steps)
    from offaxis.cli.predict_scores import read_scores
    from offaxis.output import check_output
    from offaxis.predict.dynamics import dynamics as run
    from offaxis.predict.steps import steps_of

    check_output(out, overwrite=overwrite)
    marks = read_scores(
        scores, base=base, checkpoints=checkpoints, steps=steps_of(checkpoints, given),
        metric=metric,
    )  # fmt: skip

    def work(bar: Any) -> dict[str, Any]:
        found = run(
            base,
            checkpoints,
            scores=marks.values,
            steps=given,
            base_score=marks.base,
            draws=draws,
            seed=seed,
            allow_pickle=allow_pickle,
            progress=bar,
        )
        found.save(out, windows=windows, overwrite=overwrite)
        return {"out": str(out), **found.summary()}

    print_result(with_bar(work), as_json, _lines)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(one) for one in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: write numbers joined by commas", param_hint="--steps"
        ) from None


def _lines(found: dict[str, Any]) -> list[str]:
    """What a terminal shows: each share beside its null."""
    step = found["step_line"]
    lines = [
        f"{found['out']}: {found['fitted_on']} of {len(found['checkpoints'])} checkpoints have a "
        "score",
        f"  the step number alone: R² {step['r2']:.3f}, left out {step['q2']:.3f} "
        f"(error {step['rmse']:.4f})",
    ]
    for kind, own in found["kinds"].items():
        lines += _of_kind(kind, own)
    for one in found["embeddings"]:
        shift, floor = one["relative_shift_mean"], one["floor_bf16_mean"]
        if shift is not None and floor is not None:
            lines.append(
                f"  {one['tensor']}: rows shifted by {shift:.2e} on average, at most "
                f"{one['relative_shift_max']:.2e}; one rounding to bfloat16 shifts by {floor:.2e}"
            )
    return lines + [f"  note: {note}" for note in found["notes"]]


def _of_kind(kind: str, own: dict[str, Any]) -> list[str]:
    mean = own["mean"]
    if mean is None:
        return [f"  {kind} u₁: no matrix moves"]
    shares = own["shares"]
    return [
        f"  {kind} u₁, {own['matrices']} matrices: R² {mean['r2']:.3f}, random walks "
        f"{mean['walk_r2']:.3f}; {shares['above_walks']:.0%} above 95 % of theirs (chance: 5 %)",
        f"    a checkpoint left out: Q² {mean['q2']:.3f}, walks {mean['walk_q2']:.3f}; "
        f"{shares['left_out_above_step']:.0%} of the matrices do better than the step number",
        f"    what the step leaves: R² {_told(mean['residual_r2'])}, walks "
        f"{_told(mean['residual_walk'])}, permuted {_told(mean['residual_null'])}",
    ]


def _told(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
