"""`offaxis contribute` and `offaxis pool`: what a comparison found, to send and to gather."""

from pathlib import Path
from typing import Annotated, Any

import typer

from offaxis.cli.progress import print_result

__all__ = ["contribute", "pool"]


def contribute(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `offaxis compare --out DIR` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write (JSON).")],
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="What BASE is called, where it was given as a path; once for all."
        ),
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="What each TUNED is called, in order; repeat the option."),
    ] = None,
    run_info: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INFO",
            help="What is known of the runs, as for `compare`: once for all, or for each in order.",
        ),
    ] = None,
    without_digests: Annotated[
        bool,
        typer.Option("--without-digests", help="Do not read the weights again to identify them."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the contribution alone.")] = False,
) -> None:
    """Write what a comparison found, aggregated by role and layer, to a file that can be sent.

    It holds no weights, no names of tensors, no paths: read it, it is text.
    """
    from offaxis.comparison.contribution import contribute as aggregate
    from offaxis.comparison.contribution import write_contribution

    told = aggregate(
        directory,
        base_ids=base,
        tuned_ids=tuned,
        run_infos=run_info,
        read_weights=not without_digests,
    )
    write_contribution(told, out)
    print_result(told, as_json, lambda found: _contents(found, out))


def _contents(told: dict[str, Any], out: Path) -> list[str]:
    """What the file says about which models, for its author to check before sending."""
    lines = [f"{out}: {out.expanduser().stat().st_size:,} bytes"]
    for pair in told["pairs"]:
        sides = [
            f"{pair[side]['id']} ({pair[side]['digest'] or 'no digest'})"
            for side in ("base", "tuned")
        ]
        groups = f"{len(pair['roles'])} roles, {len(pair['layers'])} layers"
        lines.append(f"  {' -> '.join(sides)}: {len(pair['means'])} means, {groups}")
    if told["overlaps"]:
        lines.append(f"  {len(told['overlaps'])} overlaps of two of them")
    return lines


def pool(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="What `offaxis contribute` wrote.")
    ],
    by: Annotated[
        str | None,
        typer.Option(help="Print the numbers by pair, role, layer or overlap, not the answers."),
    ] = None,
    measures: Annotated[
        str | None, typer.Option(help="With --by: which measures, joined by commas.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every number to one Parquet table.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Gather contributions into one table, and say what they show together.

    The unit is the base model: pairs that share one are averaged first.
    """
    from offaxis.comparison.contribution import pool as gather
    from offaxis.comparison.contribution.tables import asked, lines
    from offaxis.output import staged_file

    if measures is not None and by is None:
        raise typer.BadParameter("--measures needs --by: pair, role, layer or overlap")
    found = gather(files)
    chosen = None if by is None else asked(found.rows, by, measures)
    if out is not None:
        with staged_file(out) as staged:
            found.rows.write_parquet(staged, compression="zstd")
    shown = found.answers if chosen is None else chosen
    told = {
        "schema": 1,
        "files": found.files,
        "repeated": found.repeated,
        "rows": found.rows.height,
        "answers" if chosen is None else "numbers": shown.to_dicts(),
    }
    print_result(told, as_json, lambda result: lines(shown, found))
