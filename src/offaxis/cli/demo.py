"""`offaxis demo`: the main job, end to end, on a model that trains in a minute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["demo"]


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

    result = run_demo(out, overwrite=overwrite, training=TrainingSettings(steps=steps, seed=seed))
    if as_json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    _show(result)
    print(f"The report is in {result['report']}")


def _show(result: Mapping[str, Any]) -> None:
    """Scores, paired differences and contrasts as tables on standard output."""
    from rich.console import Console

    console = Console()
    console.print(_scores(result["scores"]))
    console.print(_differences(result["differences"]))
    console.print(_contrasts(result["contrasts"]))
    console.print(result["caveat"], style="dim", highlight=False)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _interval(row: Mapping[str, Any], digits: str = ".3f") -> str:
    if row["low"] is None or row["high"] is None:
        return "none"
    return f"[{row['low']:{digits}}, {row['high']:{digits}}]".replace("[", "\\[")


def _scores(rows: Sequence[Mapping[str, Any]]) -> Any:
    table = _table(
        "Held-out accuracy, 95 % intervals over problems",
        ["checkpoint", "metric"],
        ["value", "interval", "n"],
    )
    for row in rows:
        table.add_row(
            row["tuned"], row["metric"], f"{row['value']:.3f}", _interval(row), str(row["n"])
        )
    return table


def _differences(rows: Sequence[Mapping[str, Any]]) -> Any:
    table = _table(
        "Differences of accuracy, paired by problem",
        ["first", "second"],
        ["first − second", "interval"],
    )
    for row in rows:
        table.add_row(row["a"], row["b"], f"{row['value']:+.3f}", _interval(row, "+.3f"))
    return table


def _contrasts(rows: Sequence[Mapping[str, Any]]) -> Any:
    table = _table(
        "RL against SFT, per matrix: at equal step, update norm, accuracy",
        ["measure", "at equal"],
        ["rl", "sft", "rl − sft", "interval", "n", "reading"],
    )
    for row in rows:
        table.add_row(
            row["measure"],
            f"{row['matched_by']} {row['at']:.3g}",
            f"{row['a_value']:.4g}",
            f"{row['b_value']:.4g}",
            f"{row['difference']:+.2g}",
            _interval(row, "+.2g"),
            str(row["n"]),
            row["verdict"],
        )
    return table
