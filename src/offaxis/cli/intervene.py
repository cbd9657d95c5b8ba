"""`offaxis intervene`: edits of attention that leave what the model computes unchanged."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offaxis.cli.progress import print_result, with_bar

if TYPE_CHECKING:
    from offaxis.intervene import Intervention

__all__ = ["app"]

app = typer.Typer(
    name="intervene",
    help="Change the coordinates of a model's attention, and not what it computes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model to edit.")]
_Layers = Annotated[
    str,
    typer.Option(
        help="Layers as in tensor names, 0-based: 1,2 or 4-7; vision.3 for a vision tower."
    ),
]
_Out = Annotated[Path, typer.Option(help="The directory for the edited model.")]
_Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a non-empty DIR.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def rotate(
    model: _Model,
    layers: _Layers,
    out: _Out,
    kind: Annotated[
        str, typer.Option(help="haar, or hadamard (heads of a power of two).")
    ] = "haar",
    per_head: Annotated[
        bool, typer.Option("--per-head", help="A rotation for each KV head, not one a layer.")
    ] = False,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
) -> None:
    """Turn the values of the layers' heads into another basis: v, its bias, and o."""
    from offaxis.intervene import rotate as run

    drawn: dict[str, Any] = {"kind": kind, "per_head": per_head, "seed": seed}
    found = with_bar(
        lambda bar: _result(
            run(model, layers, out=out, overwrite=overwrite, progress=bar, **drawn), out
        )
    )
    print_result(found, as_json, _lines)


@app.command()
def permute(
    model: _Model,
    layers: _Layers,
    out: _Out,
    within_groups: Annotated[
        bool, typer.Option("--within-groups", help="Also reorder the query heads of a KV head.")
    ] = False,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
) -> None:
    """Put the layers' heads in another order: q, k, v, o, and what goes by heads with them."""
    from offaxis.intervene import permute as run

    drawn: dict[str, Any] = {"seed": seed, "within_groups": within_groups}
    found = with_bar(
        lambda bar: _result(
            run(model, layers, out=out, overwrite=overwrite, progress=bar, **drawn), out
        )
    )
    print_result(found, as_json, _lines)


def _lines(found: dict[str, Any]) -> list[str]:
    done = {"rotate": "rotated", "permute": "permuted"}[found["edit"]]
    return [
        f"{found['out']}: layers {', '.join(found['layers'])} {done}, seed {found['seed']}",
        f"  {len(found['tensors'])} tensors edited, {found['untouched']} untouched byte for byte; "
        f"rounding to the stored dtype at most {found['rounding']:.1e} of a tensor's norm",
    ]


def _result(made: "Intervention", out: Path) -> dict[str, Any]:
    """What was done, as plain values; everything else is in DIR/intervention.json."""
    step = made.steps[-1]
    edited = step.tensors or {}
    return {
        "out": str(out),
        "model": made.source,
        "edit": step.verb,
        "seed": step.seed,
        **step.settings,
        "layers": [str(heads.layer) for heads in step.heads],
        "tensors": sorted(edited),
        "untouched": len(made.untouched | made.tensors.keys()) - len(edited),
        "rounding": max((one.rounding for one in edited.values()), default=0.0),
    }
