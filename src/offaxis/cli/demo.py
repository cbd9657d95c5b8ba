"""`offaxis demo`: the main job, end to end, on a model that trains in a minute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["demo"]

_WIDTH = 100  # columns, where standard output is no terminal
_MATCHED = {"step": "step", "norm": "relative update norm", "accuracy": "accuracy"}


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the report, tables and checkpoints.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of both runs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a small model by RL and by SFT, score both, and report where the weights moved."""
    import json
    import sys

    from offaxis.lab.demo import run_demo
    from offaxis.lab.training import TrainingSettings

    training = TrainingSettings(steps=steps, seed=seed, save_at=tuple(range(10, steps + 1, 10)))
    result = run_demo(out, overwrite=overwrite, training=training)
    if as_json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    _show(result)
    print(f"The report is in {result['report']}")


def _show(result: Mapping[str, Any]) -> None:
    """Scores, paired differences and contrasts as tables on standard output.

    An `excess` is an overlap minus its magnitude null.
    """
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_scores(result["scores"]))
    console.print(_differences(result["differences"]))
    for matched_by in _MATCHED:
        console.print(_contrasts(result["contrasts"], matched_by))
    console.print(result["caveat"], style="dim", highlight=False)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _interval(row: Mapping[str, Any], digits: str) -> str:
    """`[low, high]`, the bracket escaped for rich; a word where there is none."""
    if row["low"] is None or row["high"] is None:
        return "(no interval)"
    return f"\\[{row['low']:{digits}}, {row['high']:{digits}}]"


def _scores(rows: Sequence[Mapping[str, Any]]) -> Any:
    """One row a checkpoint, one column a metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    title = f"Held-out accuracy, {rows[0]['n']} problems, 95 % intervals over problems"
    table = _table(title, ["checkpoint"], metrics)
    for tuned in dict.fromkeys(row["tuned"] for row in rows):
        cells = {row["metric"]: row for row in rows if row["tuned"] == tuned}
        table.add_row(
            tuned, *(f"{cells[m]['value']:.3f} {_interval(cells[m], '.2f')}" for m in metrics)
        )
    return table


def _differences(rows: Sequence[Mapping[str, Any]]) -> Any:
    table = _table(
        "Differences of accuracy, paired by problem", ["first", "second"], ["first − second"]
    )
    for row in rows:
        table.add_row(row["a"], row["b"], f"{row['value']:+.3f} {_interval(row, '+.3f')}")
    return table


def _contrasts(rows: Sequence[Mapping[str, Any]], matched_by: str) -> Any:
    chosen = [row for row in rows if row["matched_by"] == matched_by]
    title = f"RL against SFT at equal {_MATCHED[matched_by]}"
    if not chosen:
        return f"{title}: the two runs have none in common"
    title += f" ({chosen[0]['at']:.3g}), means over {chosen[0]['n']} matrices"
    table = _table(title, ["measure"], ["rl", "sft", "rl − sft", "reading"])
    for row in chosen:
        table.add_row(
            row["measure"].replace("_overlap_excess", " excess").replace("_", " "),
            f"{row['a_value']:.2g}",
            f"{row['b_value']:.2g}",
            f"{row['difference']:+.2g} {_interval(row, '+.2g')}",
            row["verdict"],
        )
    return table
