"""The command-line application: verbs, exit codes, and the one place that prints errors."""

import sys
from typing import NoReturn

import typer

from offaxis.errors import OffaxisError

__all__ = ["app", "main"]

app = typer.Typer(
    name="offaxis",
    help="See where post-training moves a language model's weights, beside the nulls.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def register() -> None:
    """Hang every verb on the application."""
    from offaxis.cli import describe

    app.command(name="describe")(describe.describe)


def main() -> NoReturn:
    """Run the command line. Exit 0 on success, 1 on bad input, 2 on bad syntax, 130 on Ctrl-C."""
    register()
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except OffaxisError as error:
        if debug:
            raise
        print(f"offaxis: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("offaxis: stopped by Ctrl-C; nothing was written", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
