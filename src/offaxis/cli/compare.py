"""`offaxis compare`: where each tuned checkpoint moved the weights of its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.comparison import Comparison

__all__ = ["compare"]


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before tuning.")],
    tuned: Annotated[
        list[str], typer.Argument(metavar="TUNED...", help="Checkpoints tuned from it.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the tables and the report.")],
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
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt files (weights only).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json alone.")] = False,
) -> None:
    """Measure how each TUNED moved the weights of BASE, beside the nulls it must beat."""
    import json
    import os
    import sys

    from rich.console import Console

    # Large float64 temporaries on huge pages: half the time in page faults. Read when torch loads.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from offaxis.comparison import compare as run
    from offaxis.output import check_output

    check_output(out, overwrite=overwrite)
    log = Console(stderr=True)
    with _bar(log) as advance:
        result = run(
            base,
            tuned,
            spectra=spectra,
            seed=seed,
            alpha=alpha,
            angle_rank=angle_rank,
            principal_rank=principal_rank,
            rounding_null=rounding_null,
            allow_pickle=allow_pickle,
            announce=lambda line: log.print(line, markup=False, highlight=False),
            progress=advance,
        )
    result.save(out, overwrite=overwrite)
    if as_json:
        json.dump(result.summary(), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        print()
        return
    _show(result)
    print(f"The report is in {out / 'report.html'}")


class _bar:
    """A progress bar on standard error, in entries done."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Any:
        self._bar.start()
        task = self._bar.add_task("", total=None)

        def advance(step: Any) -> None:
            self._bar.update(task, completed=step.done, total=step.total, description=step.tensor)

        return advance

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


_COLUMNS = (
    ("unchanged_bf16", "unchanged"),
    ("relative_update_norm", "norm"),
    ("nss", "nss"),
    ("principal_overlap", "principal"),
    ("principal_overlap_magnitude_null", "its null"),
)


def _show(result: "Comparison") -> None:
    """The summary as a table on standard output, and the verdict's evidence."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="How the weights moved", title_justify="left", box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for _, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("step", no_wrap=True)
    pairs = result.summary()["pairs"]
    for name, pair in zip(_short([pair["tuned"] for pair in pairs]), pairs, strict=True):
        cells = ["—" if pair[key] is None else f"{pair[key]:.3g}" for key, _ in _COLUMNS]
        label = pair["verdict"]["label"].removesuffix("_step").replace("_", " ")
        table.add_row(escape(name), *cells, label)
    console.print(table)
    for pair in pairs:
        console.print(f"\n{escape(pair['tuned'])}", style="bold", highlight=False)
        for line in pair["verdict"]["evidence"]:
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _short(names: list[str]) -> list[str]:
    """The names without the directories that all of them share."""
    parts = [name.rstrip("/").split("/") for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return ["/".join(one[shared:]) for one in parts]
