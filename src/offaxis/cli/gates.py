"""`offaxis gates`: what the theory allows, what was measured, and what an update does by chance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.gates import Gates

__all__ = ["gates"]


def gates(
    base: Annotated[
        str | None, typer.Argument(metavar="BASE", help="The model before tuning.")
    ] = None,
    tuned: Annotated[
        str | None, typer.Argument(metavar="TUNED", help="A checkpoint tuned from it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for gates.json and its tables.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also Gate I, on these problems: what `eval` takes."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or on these prompts, one a line.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="With data: another run from BASE, on equal prefixes."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Gate I: the first so many problems.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Gate I: tokens a completion.")] = 64,
    samples: Annotated[int, typer.Option(help="Gate I: completions a prompt.")] = 1,
    probes: Annotated[int, typer.Option(help="Gate I: probes a prompt.")] = 8,
    device: Annotated[str | None, typer.Option(help="Gate I: such as cpu or cuda:0.")] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Also Gate III of a lab queue's or saved study's runs from BASE; may be repeated.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Gate II: draws of each null, each matrix.")] = 8,
    seed: Annotated[int, typer.Option(help="Of nulls, samples and probes.")] = 0,
    rank: Annotated[
        int | None, typer.Option(help="k of the subspaces; by default min(512, min(m, n) // 8).")
    ] = None,
    every_rank: Annotated[
        bool, typer.Option("--every-rank", help="Also the worst ratio over all k.")
    ] = False,
    lemmas: Annotated[
        bool,
        typer.Option("--lemmas", help="Instead of BASE TUNED: try the paper's own statements."),
    ] = False,
    policies: Annotated[
        bool,
        typer.Option("--policies", help="Instead: proposition 3.1 and clipping, small policies."),
    ] = False,
    stores: Annotated[
        bool, typer.Option("--stores", help="Instead: what a bfloat16 store keeps of small steps.")
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

    Gate I, with data: the KL that the step costs, and how steep it lies. Gate II: every matrix's
    subspaces and singular values. Gate III: what rounding to bfloat16 hides as the update grows.
    """
    studies = {"lemmas": lemmas, "policies": policies, "stores": stores}
    if any(studies.values()):
        _study([name for name, asked in studies.items() if asked], (base, out), as_json)
        return
    if base is None or tuned is None or out is None:
        raise typer.BadParameter("give BASE, TUNED and --out DIR, or one of --lemmas, --policies, "
                                 "--stores")  # fmt: skip
    if data is not None and prompts is not None:
        raise typer.BadParameter("give --data or --prompts, not both")
    if against is not None and data is None and prompts is None:
        raise typer.BadParameter("--against needs --data or --prompts: prefixes to compare on")
    from offaxis.output import check_output

    check_output(out, overwrite=overwrite)
    from offaxis.gates.fisher import Settings

    settings = Settings(samples=samples, max_new_tokens=max_new_tokens, probes=probes, seed=seed)
    given = _problems(data if prompts is None else _prompts(prompts), limit)
    _check_other(base, against, allow_pickle=allow_pickle)
    found = _weights(
        base, tuned, rows=rows, draws=draws, seed=seed, rank=rank, every_rank=every_rank,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    if given is not None:
        asked = {"data": given, "limit": limit, "device": device, "allow_pickle": allow_pickle}
        found = _behaviour(found, (base, tuned, against), asked | {"settings": settings})
    found.save(out, overwrite=overwrite)
    _report(found.summary(), as_json=as_json, where=out)


def _problems(data: Any, limit: int | None) -> Any:
    """What Gate I reads, opened before Gate II takes its time; None where nothing is asked."""
    if data is None:
        return None
    from offaxis.gates.fisher.prefixes import problem_set

    return problem_set(data, limit)


def _check_other(base: str, against: str | None, *, allow_pickle: bool) -> None:
    """Open the other run's headers, for the same reason."""
    from offaxis.comparison.plan import open_base, open_tuned

    if against is not None:
        ground = open_base(base, allow_pickle=allow_pickle)
        open_tuned(against, ground, allow_pickle=allow_pickle)


def _prompts(file: Path) -> list[str]:
    """One prompt a line; empty lines are left out."""
    from offaxis.errors import InputError

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text ({error}); give a UTF-8 file") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"{file}: holds no prompt; write one a line")
    return found


def _weights(base: str, tuned: str, *, rows: list[Path] | None, **settings: Any) -> "Gates":
    """Gates II and III, progress on standard error."""
    import polars as pl
    from rich.console import Console

    from offaxis.cli.progress import Bar
    from offaxis.gates import check_checkpoints, rates

    runs = pl.concat([_runs(one, base) for one in rows], how="diagonal_relaxed") if rows else None
    with Bar(Console(stderr=True)) as advance:
        found = check_checkpoints(base, tuned, progress=advance, **settings)
        if runs is not None:
            pickle = settings["allow_pickle"]
            told = rates(base, tuned, runs, allow_pickle=pickle, progress=advance)
            found = found.adding("rates", told.summary(), {"runs": told.table})
    return found


def _runs(source: Path, base: str) -> Any:
    """The last checkpoint of every run of whole models in a queue that started from `base`."""
    import polars as pl

    from offaxis.errors import InputError
    from offaxis.lab.queue import by_checkpoint, read_rows
    from offaxis.lab.queue.store import digest

    table = source / "runs.parquet"  # a saved study
    found = by_checkpoint(read_rows(table if table.is_file() else source))
    found = found.filter(pl.col("step") == pl.col("steps"))
    for column in ("mask", "adapter"):
        if column in found.columns:
            found = found.filter(pl.col(column).is_null())
    own = digest(Path(base)) if Path(base).is_dir() else None
    known = set(found["base"])
    if own not in known:
        raise InputError(
            f"{source}: its runs started from {', '.join(sorted(known)) or 'nothing'}, and {base} "
            f"is {own}; give the base that they started from"
        )
    return found.filter(pl.col("base") == own)


def _behaviour(
    found: "Gates", models: tuple[str, str, str | None], asked: dict[str, Any]
) -> "Gates":
    """Gate I, and beside another run, what is being done told on standard error."""
    from rich.console import Console

    from offaxis.gates import anchor, anchor_summary, versus, versus_summary

    log = Console(stderr=True)
    base, tuned, other = models
    asked = asked | {"announce": lambda line: log.print(line, markup=False, highlight=False)}
    measured = anchor(base, tuned, **asked)
    found = found.adding("anchor", anchor_summary(measured), measured.tables())
    if other is not None:
        beside = versus(base, [(tuned, other)], **asked)
        found = found.adding("against", versus_summary(beside), {})
    return found


def _study(names: list[str], given: tuple[Any, ...], as_json: bool) -> None:
    """One of the studies that read no model."""
    if any(one is not None for one in given) or len(names) > 1:
        raise typer.BadParameter(
            f"--{' --'.join(names)}: one study at a time; it reads no model and writes no file"
        )
    from dataclasses import asdict

    from offaxis import gates as theory
    from offaxis.cli import gates_shown as shown

    result: Any
    if names == ["lemmas"]:
        result = [asdict(one) for one in theory.all_lemmas()]
    elif names == ["policies"]:
        result = {name: table.to_dicts() for name, table in theory.policy_tables().items()}
    else:
        result = theory.store_table().to_dicts()
    if as_json:
        shown.print_json(result)
        return
    getattr(shown, names[0])(result)


def _report(summary: dict[str, Any], *, as_json: bool, where: Path) -> None:
    from offaxis.cli import gates_shown as shown

    if as_json:
        shown.print_json(summary)
        return
    if summary["anchor"] is not None:
        shown.anchor(summary["anchor"])
    if summary["against"] is not None:
        shown.against(summary["against"])
    shown.weights(summary)
    if summary["rates"] is not None:
        shown.rates(summary["rates"])
    print(f"The tables are in {where}")
