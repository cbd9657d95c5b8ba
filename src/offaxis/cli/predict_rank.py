"""`offaxis predict rank`: models rebuilt from a few singular directions of an update."""

from pathlib import Path
from typing import Annotated, Any

import typer

from offaxis.cli.progress import print_result, with_bar

__all__ = ["rank"]


def rank(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before training.")],
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT", help="Trained from it; of several, in step order, the last is rebuilt."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory for the model, or for one each.")],
    ranks: Annotated[
        str | None,
        typer.Option(metavar="K,K,...", help="Ranks to keep: 1,4,1%,full. By default 1."),
    ] = None,
    components: Annotated[
        str | None, typer.Option(metavar="I,I,...", help="Single directions, counted from 1.")
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(metavar="S,S,...", help="Rank 1 made S times as long as the whole update."),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Do not lengthen what is kept to the whole update.")
    ] = False,
    include: Annotated[
        str | None,
        typer.Option(
            metavar="G,G,...",
            help="Also CKPT's embeddings, norms, head, biases, other; by default BASE's.",
        ),
    ] = None,
    at: Annotated[
        float | None, typer.Option(help="Grow the update in proportion to the step, to this one.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="The checkpoints' steps; by default from their names."
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Scores of the checkpoints, for the record."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Which score of FILE.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float16, bfloat16, float32 or float64; by default as CKPT has it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the permuted null.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rebuild CKPT from parts of each matrix's update: a rank, one direction, rank 1 at a length.

    One recipe: DIR is a model. Several: DIR/rank-1, DIR/rank-1pct, DIR/component-2, ... each are.
    Beside them ranks.parquet and ranks.json: norms, and shares of them, with a permuted null.
    """
    from offaxis.cli.predict_scores import read_scores
    from offaxis.output import check_output
    from offaxis.predict.ranks import rank_study
    from offaxis.predict.series import open_series
    from offaxis.predict.steps import steps_of

    asked = {
        "components": _parsed(components, int, "--components"),
        "scales": _parsed(scales, float, "--scales"),
    }
    kept = _listed(ranks) or ([] if any(asked.values()) else ["1"])
    check_output(out, overwrite=overwrite)
    when = steps_of(checkpoints, _parsed(steps, float, "--steps") if steps is not None else None)
    found = read_scores(scores or [], base=base, checkpoints=checkpoints, steps=when, metric=metric)
    if len(checkpoints) > 1:
        open_series(base, checkpoints, steps=_all(when), allow_pickle=allow_pickle)
    told = with_bar(
        lambda bar: rank_study(
            base,
            checkpoints[-1],
            ranks=kept,
            **asked,
            rescale=not as_is,
            include=_listed(include),
            step=when[-1],
            at=at,
            score=found.values[-1],
            out=out,
            dtype=dtype,
            seed=seed,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            progress=bar,
        ).summary()
    )
    print_result({"out": str(out), **told}, as_json, _lines)


def _all(steps: list[float | None]) -> list[float] | None:
    known = [step for step in steps if step is not None]
    return known if len(known) == len(steps) else None


def _listed(text: str | None) -> list[str]:
    return [] if text is None else [one.strip() for one in text.split(",") if one.strip()]


def _parsed(text: str | None, kind: Any, option: str) -> list[Any]:
    """Numbers joined by commas. Bad syntax is exit status 2."""
    try:
        return [kind(one) for one in _listed(text)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(
            f"{text!r}: write {what} joined by commas", param_hint=option
        ) from None


def _lines(found: dict[str, Any]) -> list[str]:
    """What a terminal shows."""
    mean, update = found["mean"], found["update"]
    lines = [f"{found['out']}: {found['tuned']} rebuilt from its update"]
    for one in found["recipes"]:
        span = _span(one["rank_least"], one["rank_most"])
        lines.append(
            f"  {one['name']}: {span}; holds {_share(one['norm_share'])} of ‖ΔW‖ on average, "
            f"times {one['mean_factor'] or 0:.3g}"
        )
    lines += [
        f"  ‖ΔW‖ {mean['update_norm']:.4g} a matrix on average ({mean['matrices']} matrices), "
        f"{update['norm']:.4g} in all, {update['relative_norm'] or 0:.3%} of ‖W‖",
        f"  rank 1 holds {_share(mean['rank1_norm_share'])} of a matrix's ‖ΔW‖ (the same entries "
        f"shuffled: {_share(mean['rank1_norm_share_null'])}), rank 1 % "
        f"{_share(mean['rank1pct_norm_share'])}",
    ]
    for one in found["groups"]:
        if one["group"] != "matrices":
            whose = "as in CKPT" if one["included"] else "left at BASE"
            lines.append(
                f"  {one['group']} ({one['tensors']}): {_share(one['share'])} of ‖ΔW‖², {whose}"
            )
    return lines + [f"  note: {note}" for note in found["notes"]]


def _span(least: int, most: int) -> str:
    if least == most:
        return f"rank {most}" if most else "nothing: no matrix has that direction"
    return f"ranks {least} to {most}"


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.1%}"
