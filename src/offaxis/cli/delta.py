"""`offaxis delta`: lossless sparse deltas between checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import typer

from offaxis.cli.progress import print_result, with_bar

__all__ = ["app"]

app = typer.Typer(
    name="delta",
    help="Store a checkpoint as what changed from its base: exact to the bit, in few bytes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Base = Annotated[str, typer.Argument(metavar="BASE", help="The model that both sides have.")]
_File = Annotated[Path, typer.Argument(metavar="FILE", help="A delta that `pack` wrote.")]
_Limit = Annotated[
    int | None,
    typer.Option(help="Refuse to make more bytes than this (default: 64 times the input)."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def pack(
    base: _Base,
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model to store.")],
    out: Annotated[Path, typer.Option(help="The delta file to write.")],
    codec: Annotated[
        str, typer.Option(help="small: the fewest bytes. fast: the most bytes a second.")
    ] = "small",
    export: Annotated[
        str | None,
        typer.Option(
            metavar="bf16",
            help="Round wider floats to bfloat16 first (not lossless; the loss is printed), and "
            "leave out what only resuming needs.",
        ),
    ] = None,
    weights_only: Annotated[
        bool,
        typer.Option("--weights-only", help="Leave out optimizer, scheduler and trainer state."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write what turns BASE into TUNED to one file."""
    from offaxis.delta import pack as run

    settings: dict[str, Any] = {"codec": codec, "export": export, "weights_only": weights_only}
    found = with_bar(lambda bar: run(base, tuned, out=out, progress=bar, **settings))
    print_result(found, as_json, _sizes)


@app.command()
def apply(
    base: _Base,
    file: _File,
    out: Annotated[Path, typer.Option(help="The directory for the model.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    limit: _Limit = None,
    as_json: _Json = False,
) -> None:
    """Make the model again from BASE and FILE, every file byte for byte."""
    from offaxis.delta import apply as run

    found = with_bar(
        lambda bar: run(base, file, out=out, overwrite=overwrite, limit=limit, progress=bar)
    )
    print_result(
        found, as_json, lambda it: [f"{it['files']} files, {it['bytes']:,} bytes, are in {out}"]
    )


@app.command()
def info(file: _File, as_json: _Json = False) -> None:
    """Say what FILE holds: sizes, and what changed by layer and role."""
    from offaxis.delta import info as run

    print_result(run(file), as_json, lambda found: [*_sizes(found), "", *_roles(found)])


@app.command()
def verify(base: _Base, file: _File, limit: _Limit = None, as_json: _Json = False) -> None:
    """Check FILE against BASE: exit status 0 only if `apply` would give every byte back."""
    from offaxis.delta import verify as run

    found = with_bar(lambda bar: run(base, file, limit=limit, progress=bar))
    print_result(found, as_json, _verified)


def _verified(found: dict[str, Any]) -> list[str]:
    lines = [f"sound: {found['files']} files, {found['bytes']:,} bytes, tuned {found['tuned']}"]
    if not found["base_matches"]:
        lines.append("the base is not the one it was made from, but holds every tensor it needs")
    return lines


def _sizes(found: dict[str, Any]) -> list[str]:
    """What the delta saves, and what is worth knowing about it."""
    share = found["changed_share"]
    moved = (
        "no entries" if share is None else f"{share:.2%} of {found['entries']:,} entries changed"
    )
    lines = [f"{found['file']}: {found['bytes']:,} bytes, codec {found['codec']}; {moved}"]
    for key, words in (("export", "weights and configuration"), ("resumable", "all, with state")):
        one = found[key]
        if one is not None and one["saved"] is not None:
            lines.append(
                f"  {words}: {one['bytes']:,} -> {one['delta']:,} bytes ({one['saved']:.1%} saved)"
            )
    if "rounding" in found:
        loss = found["rounding"]
        norm = "none" if loss["relative_norm"] is None else f"{loss['relative_norm']:.2e}"
        lines.append(
            f"  rounded to bfloat16: {loss['changed']:,} of {loss['entries']:,} entries changed, "
            f"relative norm lost {norm}"
        )
    return [*lines, *(f"note: {note}" for note in found["notes"])]


def _roles(found: dict[str, Any]) -> list[str]:
    """Changed share and bytes by layer and role."""
    lines = [
        f"{'layer':>5}  {'role':<20} {'tensors':>7} {'changed':>8} {'bytes':>14} {'delta':>12}"
    ]
    for row in found["roles"]:
        share = row["changed"] / row["entries"] if row["entries"] else 0.0
        layer = "—" if row["layer"] is None else row["layer"]
        lines.append(
            f"{layer:>5}  {row['role']:<20} {row['tensors']:>7} {share:>8.2%} {row['bytes']:>14,} "
            f"{row['delta']:>12,}"
        )
    return lines
