"""`offaxis describe MODEL`: what is in a checkpoint, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

__all__ = ["describe"]


def describe(
    model: Annotated[
        str,
        typer.Argument(
            help="A directory, a .safetensors file, a PEFT adapter directory, or a Hub id."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub id.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also load .bin and .pt (weights only).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The result alone, as JSON.")] = False,
) -> None:
    """Show what is in a checkpoint: files, dtypes, layers, roles. Reads headers alone."""
    from offaxis.checkpoint import describe as description

    result = description(model, allow_pickle=allow_pickle, revision=revision)
    if json:
        import json as codec

        print(codec.dumps(result, indent=2))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """Print the description as text and one table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for line in _summary(result):
        console.print(Text(_printable(line)), soft_wrap=True)
    table = Table("role", "layers", "shape", "dtype", "parts", "elements")
    for column in (4, 5):
        table.columns[column].justify = "right"
    for row in result["roles"]:
        shape = " x ".join(map(str, row["shape"])) + (" (turned)" if row["transposed"] else "")
        table.add_row(
            row["role"],
            _ranges(row["layers"]),
            shape,
            row["dtype"],
            f"{row['parts']:,}",
            f"{row['elements']:,}",
        )
    console.print(table)
    for note in result["notes"]:
        console.print(Text(_printable(note)), soft_wrap=True)


def _summary(result: dict[str, Any]) -> list[str]:
    """The lines above the table."""
    dtypes = ", ".join(f"{code} {row['elements']:,}" for code, row in result["dtypes"].items())
    family = f", {result['family']}" if result["family"] else ""
    lines = [
        f"{result['source']}  ({result['kind']}{family})",
        f"{result['parameters']:,} parameters in {result['tensors']:,} tensors, "
        f"{result['matrices']:,} matrices, {result['layers']} layers, {result['bytes']:,} bytes",
        f"dtypes: {dtypes}",
    ]
    lines += [f"  {row['name']}  {row['bytes']:,} bytes" for row in result["files"][:8]]
    if len(result["files"]) > 8:
        lines.append(f"  and {len(result['files']) - 8} files more")
    if result["adapter"] is not None:
        lines.append(", ".join(f"{key} {value}" for key, value in result["adapter"].items()))
    if result["quantised"] is not None:
        lines.append(f"cannot be compared: {result['quantised']}")
    return lines


def _ranges(layers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` -> `0-2, 5`."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _printable(text: str) -> str:
    """Names are untrusted: control characters must not reach the terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
