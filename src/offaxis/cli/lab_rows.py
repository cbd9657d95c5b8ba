"""`offaxis lab table`, `plot` and the studies from `study` to `predict`: what a queue has found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polars import DataFrame

    from offaxis.lab.methods import MethodTable
    from offaxis.lab.queue import RunConfig, Store
    from offaxis.lab.saved import SavedStudy
    from offaxis.lab.study import Study

__all__ = ["add_row_commands", "print_json"]

Source = Annotated[
    Path, typer.Argument(metavar="DIR", help="A queue's directory, or what this command wrote.")
]
Planned = Annotated[
    bool, typer.Option("--plan", help="Add to the queue what its rows so far call for, and end.")
]
Out = Annotated[Path | None, typer.Option(help="Directory for tables and figures.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")]
Into = Annotated[
    Path | None, typer.Option(help="A Markdown file whose marked tables are made new.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")]


def add_row_commands(app: typer.Typer) -> None:
    """Give `offaxis lab` its commands about rows."""
    for command in (table, plot, study, methods, sparse, peft, causal, verdict, predict):
        app.command()(command)


def print_json(result: object) -> None:
    """A result alone on standard output, no NaN among it."""
    import json
    import sys

    json.dump(result, sys.stdout, indent=1, allow_nan=False)
    print()


def table(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A queue's directory, or a table it wrote.")
    ],
    by: Annotated[
        str, typer.Option(help="Columns that make a group.")
    ] = "method,task,learning_rate",
    columns: Annotated[
        str | None, typer.Option(help="Numbers to average; a choice of them by default.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="A SQL condition; by default each run's last checkpoint.")
    ] = None,
    sql: Annotated[
        str | None, typer.Option(help="A whole query over the tables runs and checkpoints.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all rows, unchanged, to one Parquet file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Query a queue's rows: means by group, or any SQL."""
    from offaxis.lab import query
    from offaxis.lab.queue import read_rows

    if out is not None:
        from offaxis.output import staged_file

        with staged_file(out) as staged:
            read_rows(source).write_parquet(staged, compression="zstd")
    if sql is not None:
        found = query.query(source, sql)
    else:
        chosen = columns.split(",") if columns else query.DEFAULT_COLUMNS
        found = query.grouped(source, by=by.split(","), columns=chosen, where=where)
    if as_json:
        print_json(found.to_dicts())
    else:
        _show(found)


def _show(found: "DataFrame") -> None:
    """A frame as a plain table; `x_sd` is joined to `x`."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names = [name for name in found.columns if f"{name.removesuffix('_sd')}_sd" != name]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        shown.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for row in found.iter_rows(named=True):
        cells = []
        for name in names:
            spread = row.get(f"{name}_sd")
            cells.append(_cell(row[name]) + (f" ± {spread:.2g}" if spread is not None else ""))
        shown.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 220).print(shown)


def _cell(value: object) -> str:
    if value is None:
        return "—"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A queue's directory, or a table it wrote.")
    ],
    x: Annotated[str, typer.Option(help="A column of numbers.")],
    y: Annotated[str, typer.Option(help="Another.")],
    out: Annotated[Path, typer.Option(help="The picture: .svg, .png or .pdf.")],
    colour: Annotated[str, typer.Option("--colour", "--color", help="One colour a value.")] = (
        "method"
    ),
    panel: Annotated[str, typer.Option(help="One panel a value; none for a single one.")] = "task",
    where: Annotated[str | None, typer.Option(help="A SQL condition on checkpoints.")] = None,
) -> None:
    """Plot one number of a queue's checkpoints against another."""
    from offaxis.lab.plots import Look, draw, save_figure

    look = Look(x, y, colour, None if panel == "none" else panel, where)
    save_figure(draw(source, look), out)
    print(f"The plot is in {out}")


def _tell(
    found: "Study | MethodTable | SavedStudy",
    *,
    as_markdown: bool,
    as_json: bool,
) -> None:
    """Answers on standard output: JSON, Markdown, or tables."""
    if as_json:
        print_json(found.told())
        return
    if as_markdown:
        print(found.markdown(), end="")
        return
    for title, frame in found.tables():
        print(title)
        _show(frame)


def study(
    source: Source,
    out: Out = None,
    overwrite: Overwrite = False,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Answer the first study's questions from a queue's rows: holds, does not, cannot tell."""
    from offaxis.lab.study import Study

    found = Study.read(source)
    if out is not None:
        found.save(out, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def methods(
    source: Source,
    out: Out = None,
    overwrite: Overwrite = False,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Every method of a queue side by side: accuracy, pass@k, KL, forgetting, weights, cost."""
    from offaxis.lab.methods import MethodTable

    found = MethodTable.read(source)
    if out is not None:
        found.save(out, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def sparse(
    source: Source,
    plan: Planned = False,
    out: Out = None,
    overwrite: Overwrite = False,
    into: Into = None,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Which entries to train: masks against their controls, KL, LIFT, subnetworks, rates."""
    if plan:
        from offaxis.lab.queue import read_rows
        from offaxis.lab.sparse.planning import second_stage

        _plan(source, lambda old: second_stage(read_rows(source), old.runs), as_json=as_json)
        return
    from offaxis.lab.sparse import SparseStudy

    found = SparseStudy.read(source)
    _written(found, out, into, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def peft(
    source: Source,
    plan: Planned = False,
    out: Out = None,
    overwrite: Overwrite = False,
    into: Into = None,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Adapters compared: at their own rates and at LoRA's, by rate, rank, algorithm and batch."""
    if plan:
        from offaxis.lab.peft.planning import next_stage
        from offaxis.lab.queue import read_rows

        _plan(
            source,
            lambda old: next_stage(read_rows(source), old.runs, _failed(old)),
            as_json=as_json,
        )
        return
    from offaxis.lab.peft import PeftStudy

    found = PeftStudy.read(source)
    _written(found, out, into, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def causal(
    source: Source,
    out: Out = None,
    overwrite: Overwrite = False,
    into: Into = None,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Runs from a base in other coordinates: which entries and directions stay, against nulls."""
    from offaxis.lab.causal import CausalStudy

    found = CausalStudy.read(source)
    _written(found, out, into, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def verdict(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="The runs that the rule is fitted to.")
    ],
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The runs that test it.")],
    out: Out = None,
    overwrite: Overwrite = False,
    into: Into = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The rule's file, which `compare` reads.")
    ] = None,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Do weights alone tell on-policy RL from fine-tuning? A rule, tested on other runs."""
    from offaxis.lab.verdict import VerdictStudy

    found = VerdictStudy.read(source, training=first)
    _written(found, out, into, overwrite=overwrite)
    if write is not None:
        found.write(write)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def predict(
    source: Source,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="First measure runs with kept checkpoints; goes on later."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs measured at a time.")] = 1,
    out: Out = None,
    overwrite: Overwrite = False,
    into: Into = None,
    as_markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Later weights predicted from early checkpoints, beside scaling, stopping and the real end."""
    from offaxis.lab.predict import PredictStudy

    if measure:
        import sys

        from offaxis.lab.predict.running import measure as measured

        for line in measured(source, workers=workers):
            print(line, file=sys.stderr, flush=True)
    found = PredictStudy.read(source)
    _written(found, out, into, overwrite=overwrite)
    _tell(found, as_markdown=as_markdown, as_json=as_json)


def _written(study: "SavedStudy", out: Path | None, into: Path | None, *, overwrite: bool) -> None:
    """The study in a directory of its own, and in the document that shows it."""
    if out is not None:
        study.save(out, overwrite=overwrite)
    if into is not None:
        study.refresh(into)


def _plan(
    directory: Path, stage: "Callable[[Store], Sequence[RunConfig]]", *, as_json: bool
) -> None:
    """Add the runs of a study's next stage to its queue."""
    from offaxis.lab.queue import Store

    old = Store.open(directory)
    new = Store.create(directory, stage(old), old.base)
    added = len(new.runs) - len(old.runs)
    if as_json:
        print_json({"schema": 1, "added": added, "planned": len(new.runs)})
    else:
        again = "; queue it again to do them" if added else ""
        print(f"{added} runs added, {len(new.runs)} planned{again}")


def _failed(store: "Store") -> "list[RunConfig]":
    """The planned runs whose failure is recorded."""
    names = set(store.failures())
    return [run for run in store.runs if run.identity(store.base_digest) in names]
