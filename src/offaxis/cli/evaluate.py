"""`offaxis eval`: avg@k, pass@k and maj@k of a model on problems with answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.evaluate import Evaluation, Plan

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A directory, a PEFT adapter directory or a Hub id."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A .jsonl, .json, .csv, .tsv or .parquet file, a Hub data set id, or a preset's "
            "name."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for samples and results; a run that is there goes on."),
    ] = None,
    k: Annotated[int, typer.Option(help="Samples a problem.")] = 1,
    preset: Annotated[
        str | None,
        typer.Option(
            help="The benchmark that FILE is: gsm8k, math500, aime24, aime25, amc23, hmmt_feb25, "
            "minerva_math or olympiadbench."
        ),
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the problems.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answers.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the ids.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many problems alone.")] = None,
    verifier: Annotated[
        str | None,
        typer.Option(help="math, numeric, exact, integer or countdown; the preset's, else math."),
    ] = None,
    verifier_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of the verifier; may be repeated."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is the whole distribution.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="The likeliest so many tokens; 0 is all.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a sample, at most.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 64,
    sampler: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    chat_template: Annotated[
        str, typer.Option(help="auto: the tokenizer's, where it has one. none: the bare text.")
    ] = "auto",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Instructions around {problem}; the preset's, else none.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Another run on the same problems, or lighteval's, to compare with."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first prompt and answers; sample nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run, or write beside files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json alone.")] = False,
) -> None:
    """Sample a model's answers, mark them, and score avg@k, pass@k and maj@k with intervals.

    Every problem's samples are kept in DIR as they come: the same command goes on where one ended.
    """
    if out is None and not dry_run:
        raise typer.BadParameter(
            "give a directory for the results, or --dry-run", param_hint="--out"
        )
    import json
    import sys

    from offaxis.evaluate import Columns, Sampling, load_problems, plan

    columns = Columns(prompt_column, answer_column, id_column)
    problems = load_problems(
        data, preset=preset, columns=columns, config=config, split=split, limit=limit
    )
    options: dict[str, Any] = {
        "sampling": Sampling(k, temperature, top_p, top_k, max_new_tokens, seed, batch_size),
        "verifier": verifier,
        "verifier_options": _options(verifier_option or []),
        "template": template,
        "system": system,
        "chat_template": chat_template,
        "sampler": sampler,
        "dtype": dtype,
        "device": device,
    }
    if dry_run:
        shown = _shown(plan(model, problems, **options))
    else:
        result = _run(model, problems, options | {"against": against}, out, overwrite)
        shown = result.summary()
    if as_json:
        json.dump(shown, sys.stdout, indent=2, ensure_ascii=True, allow_nan=False)
        print()
    elif dry_run:
        _tell(shown)
    else:
        _show(result)
        print(f"Results and samples are in {out}")


def _options(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, values read as JSON where they are JSON, else as text."""
    import json

    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{one!r}: write NAME=VALUE", param_hint="--verifier-option")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _run(
    model: str, problems: Any, options: dict[str, Any], out: Path | None, overwrite: bool
) -> Evaluation:
    """The evaluation, its progress on standard error."""
    from rich.console import Console

    from offaxis.cli.progress import Bar
    from offaxis.evaluate import evaluate as run

    log = Console(stderr=True)
    try:
        with Bar(log) as advance:
            return run(
                model,
                problems,
                out=out,
                overwrite=overwrite,
                announce=lambda line: log.print(line, markup=False, highlight=False),
                progress=advance,
                **options,
            )
    except KeyboardInterrupt:
        log.print(f"samples so far are kept in {out}: the same command goes on", markup=False)
        raise


def _shown(plan: Plan) -> dict[str, Any]:
    """What a dry run tells: no sample is drawn and no weights are read."""
    prompts = plan.prompts()
    problems = plan.problems.problems
    lengths = [len(one.tokens) for one in prompts]
    return {
        "schema": 1,
        "problems": len(problems),
        "samples": len(problems) * plan.sampling.k,
        "prompt_tokens": {"least": min(lengths), "most": max(lengths)},
        "first_prompt": prompts[0].text,
        "answers": [one.answer for one in problems[:5]],
        "verifier": plan.verifier,
        "sampler": plan.sampler,
    }


def _tell(shown: dict[str, Any]) -> None:
    lengths = shown["prompt_tokens"]
    print(f"{shown['problems']} problems, {shown['samples']} samples, verifier {shown['verifier']}")
    print(f"Prompts have {lengths['least']} to {lengths['most']} tokens. The first:\n")
    print(shown["first_prompt"])
    print("\nThe first answers:")
    for answer in shown["answers"]:
        print(f"  {answer}")


def _show(result: Evaluation) -> None:
    """Scores, and the comparison where there is one, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("score")
    for title in ("value", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(row.metric, f"{row.value:.4f}", f"[{row.low:.4f}, {row.high:.4f}]")
    print(f"{len(result.problems)} problems")
    console.print(table, markup=False)
    if result.versus is None:
        return
    print(f"\nAgainst {result.versus.second}:")
    for one in result.versus.differences:
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
        print(f"  {one.metric:8} {one.value:+.4f}  {interval}  p {one.p:.4f}")
    if (crossing := result.versus.crossing) is not None:
        (a, b), share = crossing.between, crossing.resampled
        print(f"The curves of pass@k cross between k = {a} and {b} ({share:.0%} of resamples).")
    print(result.versus.verdict.sentence)
    for note in result.versus.notes:
        print(f"note: {note}")
