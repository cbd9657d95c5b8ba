"""`offaxis compare`: where each tuned checkpoint moved the weights of its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.comparison import Comparison, ManyComparison

__all__ = ["compare"]


def compare(
    out: Annotated[Path, typer.Option(help="Directory for the tables and the report.")],
    base: Annotated[
        str | None, typer.Argument(metavar="BASE", help="The model before tuning.")
    ] = None,
    tuned: Annotated[
        list[str] | None, typer.Argument(metavar="TUNED", help="Checkpoints tuned from it.")
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Instead of BASE TUNED: a .csv, .tsv, .jsonl or .json table of pairs with the "
            "columns base, tuned, optionally name, and any of your own.",
        ),
    ] = None,
    spectra: Annotated[
        str, typer.Option(help="Which matrices get a spectrum: all, none or sample:N.")
    ] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the rounding null and the sample.")] = 0,
    alpha: Annotated[float, typer.Option(help="Density of the fixed masks.")] = 0.5,
    angle_rank: Annotated[
        int | None, typer.Option(help="k of the rotation; by default min(512, min(m, n) // 8).")
    ] = None,
    principal_rank: Annotated[
        int | None, typer.Option(help="r of M_princ; by default min(64, min(m, n) // 16).")
    ] = None,
    rounding_null: Annotated[
        bool, typer.Option(help="Compute the rounding null where it is defined.")
    ] = True,
    run_info: Annotated[
        str | None,
        typer.Option(
            metavar="INFO",
            help="What is known of the runs: key=value,... or a JSON file (method, data, "
            "learning_rate, steps, optimizer, dtype, batch).",
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json alone.")] = False,
) -> None:
    """Measure how each TUNED moved the weights of BASE, beside the nulls it must beat.

    With --manifest, do so for every pair of a table, into one sortable table.
    """
    _check_usage(base, tuned, manifest)
    import json
    import os
    import sys

    # Large float64 temporaries on huge pages: half the time in page faults. Read when torch loads.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from offaxis.output import check_output

    check_output(out, overwrite=overwrite)
    settings = {
        "spectra": spectra,
        "seed": seed,
        "alpha": alpha,
        "angle_rank": angle_rank,
        "principal_rank": principal_rank,
        "rounding_null": rounding_null,
        "allow_pickle": allow_pickle,
        "run_info": run_info,
    }
    result = _run(base, tuned, manifest, settings)
    result.save(out, overwrite=overwrite)
    if as_json:
        json.dump(result.summary(), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        print()
        return
    _show(result.summary()["pairs"], evidence=manifest is None)
    print(f"The report is in {out / 'report.html'}")


def _run(
    base: str | None, tuned: list[str] | None, manifest: str | None, settings: dict[str, Any]
) -> "Comparison | ManyComparison":
    """The comparison that was asked for, its plan and its progress on standard error."""
    from rich.console import Console

    from offaxis.cli.progress import Bar
    from offaxis.comparison import compare, compare_manifest

    log = Console(stderr=True)
    with Bar(log) as advance:
        settings["announce"] = lambda line: log.print(line, markup=False, highlight=False)
        settings["progress"] = advance
        if manifest is not None:
            return compare_manifest(manifest, **settings)
        return compare(base or "", tuned or [], **settings)


def _check_usage(base: str | None, tuned: list[str] | None, manifest: str | None) -> None:
    """Either BASE with at least one TUNED, or a manifest; else exit status 2."""
    if manifest is not None and (base is not None or tuned):
        raise typer.BadParameter("give BASE TUNED... or --manifest FILE, not both")
    if manifest is None and not tuned:
        raise typer.BadParameter("give BASE and at least one TUNED, or --manifest FILE")


_COLUMNS = (
    ("unchanged_bf16", "unchanged"),
    ("relative_update_norm", "norm"),
    ("nss", "nss"),
    ("principal_overlap", "principal"),
    ("principal_overlap_magnitude_null", "its null"),
)


def _show(pairs: list[dict[str, Any]], *, evidence: bool) -> None:
    """The pairs as a table on standard output, and the evidence for each verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="How the weights moved", title_justify="left", box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for _, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("step", no_wrap=True)
    told = any(pair["method"]["label"] != "undetermined" for pair in pairs)
    if told:
        table.add_column("method (one small model's rule)")
    names = _short([pair.get("name", pair["tuned"]) for pair in pairs])
    for name, pair in zip(names, pairs, strict=True):
        cells = ["—" if pair[key] is None else f"{pair[key]:.3g}" for key, _ in _COLUMNS]
        label = pair["verdict"]["label"].removesuffix("_step").replace("_", " ")
        table.add_row(escape(name), *cells, label, *([_method(pair)] if told else []))
    console.print(table)
    for pair in pairs if evidence else []:
        console.print(f"\n{escape(pair['tuned'])}", style="bold", highlight=False)
        for line in pair["verdict"]["evidence"]:
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _method(pair: dict[str, Any]) -> str:
    """`RL-like (7 % wrong)`: the label with the share of test runs that it was wrong for."""
    from offaxis.comparison.method import LABELS

    method = pair["method"]
    wrong = "" if method["wrong"] is None else f" ({100 * method['wrong'][0]:.0f} % wrong)"
    return LABELS[method["label"]] + wrong


def _short(names: list[str]) -> list[str]:
    """The names without the directories that all of them share."""
    parts = [name.rstrip("/").split("/") for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return ["/".join(one[shared:]) for one in parts]
