"""`offaxis gates`: what the theory allows, what was measured, and what an update does by chance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.gates import Lemma

__all__ = ["gates"]


def gates(
    base: Annotated[
        str | None, typer.Argument(metavar="BASE", help="The model before tuning.")
    ] = None,
    tuned: Annotated[
        str | None, typer.Argument(metavar="TUNED", help="A checkpoint tuned from it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for gates.parquet and gates.json.")
    ] = None,
    lemmas: Annotated[
        bool,
        typer.Option("--lemmas", help="Instead of BASE TUNED: try the paper's own statements."),
    ] = False,
    draws: Annotated[int, typer.Option(help="Draws of each null for each matrix.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the nulls.")] = 0,
    rank: Annotated[
        int | None, typer.Option(help="k of the subspaces; by default min(512, min(m, n) // 8).")
    ] = None,
    every_rank: Annotated[
        bool, typer.Option("--every-rank", help="Also the worst ratio over all k.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result alone.")] = False,
) -> None:
    """Check the bounds of The Path Not Taken on TUNED, beside updates drawn at random.

    Gate II: every matrix's subspaces and singular values. Gate III: what rounding to bfloat16
    hides as the update grows.
    """
    if lemmas:
        if base is not None or out is not None:
            raise typer.BadParameter("--lemmas reads no model and writes no file")
        _lemmas(as_json=as_json)
        return
    if base is None or tuned is None or out is None:
        raise typer.BadParameter("give BASE, TUNED and --out DIR, or --lemmas")
    from rich.console import Console

    from offaxis.cli.progress import Bar
    from offaxis.output import check_output

    check_output(out, overwrite=overwrite)
    from offaxis.gates import check_checkpoints

    with Bar(Console(stderr=True)) as advance:
        result = check_checkpoints(
            base,
            tuned,
            draws=draws,
            seed=seed,
            rank=rank,
            every_rank=every_rank,
            allow_pickle=allow_pickle,
            progress=advance,
        )
    result.save(out, overwrite=overwrite)
    if as_json:
        _print(result.summary())
        return
    _show(result.summary())
    print(f"The tables are in {out}")


def _print(result: Any) -> None:
    import json
    import sys

    json.dump(result, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def _show(summary: dict[str, Any]) -> None:
    """The checks and the sweep as two short tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"Gate II: measured / bound over {summary['matrices']} matrices"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    for name in ("median", "worst", "vacuous", "over", "×random", "×permuted", "×turned"):
        table.add_column(name, justify="right")
    for row in summary["checks"]:
        nulls = [row["nulls"][kind] for kind in ("random", "permuted", "turned")]
        table.add_row(
            row["check"],
            _number(row["median_ratio"]),
            _number(row["largest_ratio"]),
            str(row["vacuous"]),
            str(row["exceeded"]),
            *(_number(null and null["times"]) for null in nulls),
        )
    console.print(table)
    console.print(
        "over: bound exceeded; ×: the measured side over that of updates drawn at random, median\n"
    )
    table = Table(
        title="Gate III: share of entries unchanged in bfloat16", title_justify="left", box=None,
        pad_edge=False,
    )  # fmt: skip
    for name in ("update times", "unchanged", "were |ΔW| independent of |W|"):
        table.add_column(name, justify="right")
    for row in summary["melting"]:
        cells = (f"{row['unchanged']:.4f}", f"{row['expected']:.4f}")
        table.add_row(f"{row['factor']:g}", *cells)
    console.print(table)
    if summary["melting_rounded"]:
        share = f"{summary['melting_rounded']:.0%}"
        console.print(f"{share} of TUNED is stored as bfloat16: its ΔW has lost its small part")


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def _lemmas(*, as_json: bool) -> None:
    """Every statement that was tried, with its verdict."""
    from dataclasses import asdict

    from offaxis.gates import bf16_lemmas, tilt_lemmas

    found: list[Lemma] = [*bf16_lemmas(), *tilt_lemmas()]
    if as_json:
        _print([asdict(one) for one in found])
        return
    from rich.console import Console

    console = Console(highlight=False)
    for one in found:
        counts = f"{one.counterexamples:,} of {one.cases:,} cases against" if one.cases else ""
        console.print(f"{one.verdict:5}  {one.name} ({one.source})  {counts}", style="bold")
        console.print(f"       said: {one.statement}", markup=False)
        console.print(f"       found: {one.finding}", markup=False)
        for example in one.examples:
            console.print(f"       e.g. {example}", markup=False)
