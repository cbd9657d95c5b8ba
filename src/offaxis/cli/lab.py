"""`offaxis lab`: the small verifiable world in which claims are re-run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offaxis.cli.lab_rows import add_row_commands, print_json

if TYPE_CHECKING:
    from offaxis.lab.queue import State, Store

__all__ = ["app"]

app = typer.Typer(
    name="lab",
    help="The small verifiable world in which claims are re-run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


add_row_commands(app)


@app.callback()
def lab() -> None:
    """The small verifiable world in which claims are re-run."""


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Directory for the model.")],
    recipe: Annotated[
        str, typer.Option(help="small: the bundled base. large: 31 million parameters, for a GPU.")
    ] = "small",
    seed: Annotated[int, typer.Option(help="Seed of problems, solutions and weights.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps; the recipe's by default.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pretrain the lab's base model again from its seed (46 minutes of a shared core)."""
    from dataclasses import replace

    from offaxis.errors import InputError
    from offaxis.lab.bundle import pretrain as make
    from offaxis.lab.pretrain import RECIPES

    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    chosen = replace(RECIPES[recipe], seed=seed)
    if steps is not None:
        clean = round(steps * chosen.clean_steps / chosen.steps)
        chosen = replace(chosen, steps=steps, clean_steps=clean)
    result = make(out, recipe=chosen, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    for one in result["scores"]:
        for score in one["scores"]:
            what = f"{one['task']:10}  difficulty {one['difficulty']}  {score['metric']:8}"
            print(f"{what} {score['value']:.3f}  [{score['low']:.3f}, {score['high']:.3f}]")
    print(f"The base is in {result['out']}")


@app.command()
def teacher(
    out: Annotated[Path, typer.Option(help="Directory for the model.")],
    base: Annotated[
        Path | None, typer.Option(help="Model directory to start from; the bundled base.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of problems and solutions.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = 400,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make the stronger lab model that distillation learns from (minutes of a core)."""
    from offaxis.lab import BASE
    from offaxis.lab.provenance import require_training_libraries
    from offaxis.lab.teacher import TeacherRecipe, build_teacher

    require_training_libraries()
    recipe = TeacherRecipe(seed=seed, steps=steps)
    result = build_teacher(base or BASE, out, recipe, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    for one in result["scores"]:
        print(f"{one['task']:10}  {one['metric']:8} {one['value']:.3f}  "
              f"[{one['low']:.3f}, {one['high']:.3f}]")  # fmt: skip
    print(f"The teacher is in {result['out']}")


@app.command()
def queue(
    grid: Annotated[
        str, typer.Argument(metavar="GRID", help="A TOML file, or a study's name such as first.")
    ],
    out: Annotated[Path, typer.Option(help="The queue's directory; an old one is continued.")],
    base: Annotated[
        Path | None, typer.Option(help="Model directory to start from; the bundled base.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one a core.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed runs again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the queue is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """Do a grid of runs in the background: one row a run, stopped and resumed at any time."""
    from offaxis.errors import InputError
    from offaxis.lab import BASE
    from offaxis.lab import queue as runs
    from offaxis.lab.provenance import require_training_libraries

    require_training_libraries()
    store = runs.Store.create(out, runs.read_grid(grid), base or BASE)
    if retry:
        store.forget_failures()
    if not runs.is_running(store):
        runs.start(store, workers=workers or runs.cores())
    state = runs.wait(store) if wait else store.state()
    if as_json:
        print_json(_told(store, state))
    else:
        print(f"{state}. {_how_to_go_on(out)}")
    if wait and state.failed:
        raise InputError(f"{state.failed} runs failed: see {store.directory / 'failed'}")
    if wait and state.waiting:
        raise InputError(
            f"the workers ended before {state.waiting} runs were done: see "
            f"{store.directory / 'queue.log'}, and start the queue again to go on"
        )


def _told(store: "Store", state: "State") -> dict[str, object]:
    from offaxis.lab import queue as runs

    return {
        "schema": 1,
        "out": str(store.directory),
        "base": store.base_digest,
        "planned": state.planned,
        "done": state.done,
        "running": state.running,
        "failed": state.failed,
        "waiting": state.waiting,
        "workers_alive": runs.is_running(store),
    }


def _how_to_go_on(out: Path) -> str:
    return f"See `offaxis lab status {out}`, `offaxis lab stop {out}`, `offaxis lab table {out}`."


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The queue's directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """How far a queue is."""
    from offaxis.lab import queue as runs

    store = runs.Store.open(directory)
    state = store.state()
    if as_json:
        print_json(_told(store, state))
        return
    print(f"{state}; {'workers are on it' if runs.is_running(store) else 'no worker is on it'}")
    for name in store.failures():
        print(f"failed: {store.failure(name)}")


@app.command()
def stop(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The queue's directory.")],
) -> None:
    """Stop a queue's workers. Finished runs stay; those under way start again the next time."""
    from offaxis.lab import queue as runs

    store = runs.Store.open(directory)
    print("stopped" if runs.stop(store) else "no worker was on it", end="; ")
    print(store.state())


@app.command(hidden=True)
def work(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    workers: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Do a queue's runs in this process tree until none is left (what `queue` starts)."""
    from offaxis.lab import queue as runs

    print(runs.work(directory, workers=workers))
