"""`offaxis mask`: which weights to train, by rule, in a file; and what such a file holds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from offaxis.cli.progress import print_result, with_bar

__all__ = ["mask"]


def mask(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to choose weights of.")],
    rule: Annotated[
        str | None,
        typer.Option(
            help="principal, non_principal, low_magnitude, safe, random, magnitude_random, "
            "subnetwork, lift, gradient, fisher, all, none, file(path='FILE'), or these with "
            "options, joined: \"low_magnitude(threshold='mean') | ~principal\"."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The mask file to write.")] = None,
    show: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Instead of --rule and --out: check FILE against BASE, show it."
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="FILE_OR_RULE", help="With --show: another, to compare."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of the fixed masks (default 0.5).")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="r of principal (default min(64, min(m, n) // 16)).")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="mean", help="low_magnitude: |W| at most its mean.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the entries of each matrix to select.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_RULE", help="As many entries (in each bin of |W|) as this one has."
        ),
    ] = None,
    tuned: Annotated[
        str | None, typer.Option(metavar="TUNED", help="subnetwork: the finished run.")
    ] = None,
    budget_rank: Annotated[
        int | None, typer.Option(help="lift: select (m + n) times this many entries.")
    ] = None,
    filter_rank: Annotated[
        int | None, typer.Option(help="lift: rank of the reconstruction (default as --rank).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random rules (default 0).")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="gradient, fisher: prompts and completions (.jsonl, .csv, .parquet)."),
    ] = None,
    prompt_column: Annotated[str, typer.Option(help="--data: column of the prompt.")] = "prompt",
    completion_column: Annotated[
        str, typer.Option(help="--data: column of the completion.")
    ] = "completion",
    rows: Annotated[
        int | None, typer.Option(help="--data: take so many rows at most, drawn at random.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the mask of BASE's matrices that a rule selects, or show what one holds.

    Options are for every rule in --rule that takes them and does not say otherwise itself.
    """
    options: dict[str, Any] = {
        "alpha": alpha,
        "rank": rank,
        "threshold": threshold,
        "density": density,
        "tuned": tuned,
        "budget_rank": budget_rank,
        "filter_rank": filter_rank,
        "seed": seed,
    }
    given = [f"--{name.replace('_', '-')}" for name, one in options.items() if one is not None]
    given += ["--like"] if like is not None else []
    given += ["--data"] if data is not None else []
    _check_usage(rule, out, show, other, given)
    if show is not None:
        print_result(_shown(base, show, other, allow_pickle), as_json, _lines_of_show)
        return
    assert rule is not None
    assert out is not None
    if data is not None:
        columns = {"prompt_column": prompt_column, "completion_column": completion_column}
        options["scores"] = _scores(base, rule, data, columns | {"limit": rows, "seed": seed or 0})
    print_result(_made(base, rule, out, like, allow_pickle, options), as_json, _lines_of_made)


def _check_usage(
    rule: str | None, out: Path | None, show: str | None, other: str | None, given: list[str]
) -> None:
    """Either --rule with --out, or --show alone or with --with; else exit status 2."""
    if show is None and (rule is None or out is None):
        raise typer.BadParameter("give --rule RULE and --out FILE, or --show FILE")
    if show is None and other is not None:
        raise typer.BadParameter("--with goes with --show FILE")
    if show is not None and (rule is not None or out is not None or given):
        also = ", ".join([*(["--rule"] if rule else []), *(["--out"] if out else []), *given])
        raise typer.BadParameter(f"--show goes without {also}")


def _made(
    base: str, rule: str, out: Path, like: str | None, allow_pickle: bool, options: dict[str, Any]
) -> dict[str, Any]:
    from offaxis.masks import make, mask_or_rule

    wanted = None if like is None else mask_or_rule(like)
    return with_bar(
        lambda bar: make(
            base, rule, out=out, like=wanted, allow_pickle=allow_pickle, progress=bar, **options
        )
    )


def _scores(base: str, rule: str, data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What `gradient` and `fisher` ask for, computed on the data. InputError where neither does."""
    import contextlib
    import sys

    from offaxis.errors import InputError
    from offaxis.masks.expression import parse
    from offaxis.provenance import require_training_libraries

    require_training_libraries("computing gradients")
    from offaxis.train.sparse import KINDS, score_checkpoint

    named = {call.name for call in parse(rule).calls()}
    kinds = [kind for kind in KINDS if kind in named]
    if not kinds:
        raise InputError(f"--data: the rule {rule} asks no data; leave it out, or use gradient")
    with contextlib.redirect_stdout(sys.stderr):
        return {kind: score_checkpoint(base, kind, data, **options) for kind in kinds}


def _shown(base: str, file: str, other: str | None, allow_pickle: bool) -> dict[str, Any]:
    from offaxis.masks import inspect, load, mask_or_rule

    wanted = None if other is None else mask_or_rule(other)
    chosen = load(file)
    return {"file": file} | with_bar(
        lambda bar: inspect(chosen, base, other=wanted, allow_pickle=allow_pickle, progress=bar)
    )


def _lines_of_made(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['file']}: {found['bytes']:,} bytes, {found['rule']}",
        *_selected(found),
        "",
        *_roles(found),
    ]


def _lines_of_show(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['file']}: a mask of this base, {found['rule']}",
        *_selected(found),
        "",
        *_roles(found),
        "",
        *_against(found),
    ]


def _selected(found: dict[str, Any]) -> list[str]:
    return [
        f"  {found['density']:.2%} of {found['entries']:,} entries in {found['tensors']} tensors; "
        f"base {found['base']}"
    ]


def _roles(found: dict[str, Any]) -> list[str]:
    lines = [f"{'role':<20} {'layers':>9} {'matrices':>8} {'entries':>15} {'selected':>8}"]
    for row in found["roles"]:
        run = row["layers"]
        layers = "—" if run is None else f"{run[0]}-{run[1]}" if run[0] != run[1] else f"{run[0]}"
        lines.append(
            f"{row['role']:<20} {layers:>9} {row['matrices']:>8} {row['entries']:>15,} "
            f"{row['density']:>8.2%}"
        )
    return lines


def _against(found: dict[str, Any]) -> list[str]:
    """Overlaps, each beside what random masks and masks of the same magnitudes would give."""
    lines = [f"{'means over the matrices':<28} {'found':>8} {'chance':>8} {'magnitude null':>14}"]
    for row in found["against"]:
        lines.append(f"with {row['rule']}")
        for key, words in (
            ("share", "of this mask inside it"),
            ("share_of_rule", "of it inside this mask"),
            ("jaccard", "Jaccard"),
        ):
            cells = (row[key], row[f"{key}_chance"], row[f"{key}_magnitude_null"])
            first, second, third = ("—" if one is None else f"{one:.4f}" for one in cells)
            lines.append(f"  {words:<26} {first:>8} {second:>8} {third:>14}")
    return lines
