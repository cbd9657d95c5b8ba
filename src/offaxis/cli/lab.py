"""`offaxis lab`: the small verifiable world in which claims are re-run."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="lab",
    help="The small verifiable world in which claims are re-run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def lab() -> None:
    """The small verifiable world in which claims are re-run."""


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Directory for the model.")],
    seed: Annotated[int, typer.Option(help="Seed of problems, solutions and weights.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps; the recipe's by default.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pretrain the lab's base model again from its seed (a quarter of an hour on two cores)."""
    import json
    import sys
    from dataclasses import replace

    from offaxis.lab.bundle import pretrain as make
    from offaxis.lab.pretrain import Recipe

    recipe = replace(Recipe(), seed=seed)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    result = make(out, recipe=recipe, overwrite=overwrite)
    if as_json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    for score in result["scores"]:
        print(
            f"{score['metric']:8} {score['value']:.3f}  [{score['low']:.3f}, {score['high']:.3f}]"
        )
    print(f"The base is in {result['out']}")
